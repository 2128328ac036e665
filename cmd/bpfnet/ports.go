// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bpfnet/bpfnet/control"
)

// sortPublications orders as port prints: by container port, protocol, IPv4 first, address, host port.
func sortPublications(pubs []control.Publication) []control.Publication {
	pubs = slices.Clone(pubs)
	slices.SortStableFunc(pubs, func(a, b control.Publication) int {
		return cmp.Or(
			cmp.Compare(a.Port, b.Port),
			cmp.Compare(a.Proto, b.Proto),
			a.HostIP.Compare(b.HostIP),
			cmp.Compare(a.HostPort, b.HostPort),
		)
	})
	return pubs
}

// portsText is the column PORTS. Ranges that follow one another are one; ports
// with the same number on both sides come first, as in Docker.
func portsText(pubs []control.Publication, exposed []string) string {
	type group struct {
		key             string
		host, port, len uint32
		text            func(host, port string) string
		differ          bool
	}
	var groups []*group
	last := map[string]*group{}
	add := func(g group) {
		if l := last[g.key]; l != nil && l.port+l.len == g.port && l.host+l.len == g.host {
			l.len += g.len
			return
		}
		groups = append(groups, &g)
		last[g.key] = &g
	}
	for _, p := range sortPublications(pubs) {
		host := p.HostIP.String()
		from := fromText(p.From)
		add(group{
			key:  fmt.Sprint(host, p.Proto, from, int(p.HostPort)-int(p.Port)),
			host: uint32(p.HostPort), port: uint32(p.Port), len: max(p.Count, 1),
			differ: p.HostPort != p.Port,
			text: func(h, c string) string {
				return net.JoinHostPort(host, h) + "->" + c + "/" + p.Proto + from
			},
		})
	}
	for _, e := range unpublished(pubs, exposed) {
		add(group{
			key: e.proto, host: e.port, port: e.port, len: 1,
			text: func(_, c string) string { return c + "/" + e.proto },
		})
	}
	slices.SortStableFunc(groups, func(a, b *group) int {
		switch {
		case a.differ == b.differ:
			return cmp.Compare(a.port, b.port)
		case a.differ:
			return 1
		}
		return -1
	})
	var shown []string
	for _, g := range groups {
		shown = append(shown, g.text(rangeText(g.host, g.len), rangeText(g.port, g.len)))
	}
	return strings.Join(shown, ", ")
}

// exposure is a port that a container serves and does not publish.
type exposure struct {
	port  uint32
	proto string
}

func (e exposure) String() string { return fmt.Sprintf("%d/%s", e.port, e.proto) }

// unpublished reads PORT[-END][/PROTO] and leaves out what is published, in order.
func unpublished(pubs []control.Publication, exposed []string) []exposure {
	var open []exposure
	for _, e := range exposed {
		ports, proto, ok := strings.Cut(e, "/")
		if !ok {
			proto = "tcp"
		}
		a, b, ranged := strings.Cut(ports, "-")
		if !ranged {
			b = a
		}
		first, err1 := strconv.ParseUint(a, 10, 16)
		last, err2 := strconv.ParseUint(b, 10, 16)
		if err1 != nil || err2 != nil {
			continue // not a thing that the store takes
		}
		for port := uint32(first); port <= uint32(last); port++ {
			published := slices.ContainsFunc(pubs, func(p control.Publication) bool {
				return p.Proto == proto && port >= uint32(p.Port) && port < uint32(p.Port)+max(p.Count, 1)
			})
			if !published {
				open = append(open, exposure{port, proto})
			}
		}
	}
	slices.SortFunc(open, func(a, b exposure) int {
		return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.proto, b.proto))
	})
	return slices.Compact(open)
}

func rangeText(first, n uint32) string {
	if n <= 1 {
		return fmt.Sprint(first)
	}
	return fmt.Sprintf("%d-%d", first, first+n-1)
}

// fromText is who may connect, when not everybody.
func fromText(from []netip.Prefix) string {
	if len(from) == 0 {
		return ""
	}
	texts := make([]string, len(from))
	for i, p := range from {
		texts[i] = p.String()
	}
	return " from=" + strings.Join(texts, ",")
}

// binding is one port of a container and where it is published.
type binding struct {
	Port     string         `json:"Port,omitempty"` // "80/tcp"
	HostIP   string         `json:"HostIp"`
	HostPort string         `json:"HostPort"`
	From     []netip.Prefix `json:"From,omitempty"`
}

// bindings unrolls ranges: one for each port, by port, IPv4 first.
func bindings(pubs []control.Publication) []binding {
	type one struct {
		control.Publication
		offset uint32
	}
	var all []one
	for _, p := range sortPublications(pubs) {
		for i := range max(p.Count, 1) {
			all = append(all, one{p, i})
		}
	}
	slices.SortStableFunc(all, func(a, b one) int {
		return cmp.Or(
			cmp.Compare(uint32(a.Port)+a.offset, uint32(b.Port)+b.offset),
			cmp.Compare(a.Proto, b.Proto),
			a.HostIP.Compare(b.HostIP),
			cmp.Compare(uint32(a.HostPort)+a.offset, uint32(b.HostPort)+b.offset),
		)
	})
	list := make([]binding, len(all))
	for i, p := range all {
		list[i] = binding{
			Port:     fmt.Sprintf("%d/%s", uint32(p.Port)+p.offset, p.Proto),
			HostIP:   p.HostIP.String(),
			HostPort: fmt.Sprint(uint32(p.HostPort) + p.offset),
			From:     p.From,
		}
	}
	return list
}

func (b binding) host() string { return net.JoinHostPort(b.HostIP, b.HostPort) + fromText(b.From) }
