// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"iter"
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

// bindings unrolls ranges: one for each port, by port, protocol, IPv4 first.
func bindings(pubs []control.Publication) []binding {
	list := []binding{}
	for p, i := range unrolled(pubs) {
		list = append(list, binding{
			Port:     fmt.Sprintf("%d/%s", uint32(p.Port)+i, p.Proto),
			HostIP:   p.HostIP.String(),
			HostPort: fmt.Sprint(uint32(p.HostPort) + i),
			From:     p.From,
		})
	}
	return list
}

// unrolled is every single port of some publications, as its place in one of them,
// in the order of bindings. A range of 60,000 is 120,000 of them: they are sorted as numbers.
func unrolled(pubs []control.Publication) iter.Seq2[*control.Publication, uint32] {
	byAddr := make([]*control.Publication, len(pubs))
	for i := range pubs {
		byAddr[i] = &pubs[i]
	}
	slices.SortFunc(byAddr, func(a, b *control.Publication) int {
		if c := cmp.Compare(a.Proto, b.Proto); c != 0 {
			return c
		}
		if c := a.HostIP.Compare(b.HostIP); c != 0 {
			return c
		}
		return cmp.Compare(int(a.HostPort)-int(a.Port), int(b.HostPort)-int(b.Port))
	})
	n := 0
	for _, p := range byAddr {
		n += int(max(p.Count, 1))
	}
	keys := make([]uint64, 0, n)
	for i, p := range byAddr {
		for port := range max(p.Count, 1) {
			keys = append(keys, uint64(uint32(p.Port)+port)<<32|uint64(i))
		}
	}
	slices.Sort(keys)
	return func(yield func(*control.Publication, uint32) bool) {
		for _, k := range keys {
			p := byAddr[uint32(k)]
			if !yield(p, uint32(k>>32)-uint32(p.Port)) {
				return
			}
		}
	}
}

// appendHost is binding.host for one port of a publication.
func appendHost(line []byte, p *control.Publication, i uint32) []byte {
	line = netip.AddrPortFrom(p.HostIP, p.HostPort+uint16(i)).AppendTo(line)
	return append(line, fromText(p.From)...)
}

func (b binding) host() string { return net.JoinHostPort(b.HostIP, b.HostPort) + fromText(b.From) }
