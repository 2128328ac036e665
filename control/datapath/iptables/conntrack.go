// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/maps"
)

// match says whether a connection ends. It is a filter of the netlink package's.
type match func(f *conn) bool

func (m match) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	c := asConn(f)
	return m(&c)
}

// conn is a connection as netfilter tracks it.
type conn struct {
	proto            maps.Proto
	src, dst         netip.AddrPort // as the initiator sent it
	client, server   netip.AddrPort // as the responder sees both
	packets, bytes   uint64
	expires          time.Duration
	answered, closed bool
}

func asConn(f *netlink.ConntrackFlow) conn {
	addr := func(ip net.IP, port uint16) netip.AddrPort {
		a, _ := netip.AddrFromSlice(ip)
		return netip.AddrPortFrom(a.Unmap(), port)
	}
	c := conn{
		proto:   maps.Proto(f.Forward.Protocol),
		src:     addr(f.Forward.SrcIP, f.Forward.SrcPort),
		dst:     addr(f.Forward.DstIP, f.Forward.DstPort),
		server:  addr(f.Reverse.SrcIP, f.Reverse.SrcPort),
		client:  addr(f.Reverse.DstIP, f.Reverse.DstPort),
		packets: f.Forward.Packets + f.Reverse.Packets,
		bytes:   f.Forward.Bytes + f.Reverse.Bytes,
		expires: time.Duration(f.TimeOut) * time.Second,
	}
	c.answered = f.Reverse.Packets > 0
	if tcp, ok := f.ProtoInfo.(*netlink.ProtoInfoTCP); ok {
		c.answered = tcp.State >= tcpEstablished
		c.closed = tcp.State > tcpEstablished
	}
	return c
}

// tcpEstablished is TCP_CONNTRACK_ESTABLISHED; the states after it are those of an end: enum
// tcp_conntrack of uapi/linux/netfilter/nf_conntrack_tcp.h.
const tcpEstablished = 3

// touches says whether an address is at one of the ends.
func (c *conn) touches(a netip.Addr) bool {
	return a.IsValid() && (c.src.Addr() == a || c.dst.Addr() == a || c.server.Addr() == a || c.client.Addr() == a)
}

// endFlows ends the connections that something allowed which is no more, or that would keep
// a new publication from being seen: netfilter asks the rules only of the first packet.
func (p *Path) endFlows() error {
	var ends [2][]match
	end := func(a netip.Addr, m match) {
		if a.Is4() {
			ends[v4] = append(ends[v4], m)
		} else {
			ends[v6] = append(ends[v6], m)
		}
	}
	was, now := view{p, true, &p.before}, view{p, false, p.about}
	for _, i := range p.endpoints.items {
		if i.was == nil || !i.changed() {
			continue
		}
		for _, a := range []netip.Addr{i.was.IPv4, i.was.IPv6} {
			if a.IsValid() {
				end(a, func(c *conn) bool { return c.touches(a) })
			}
		}
	}
	for _, i := range p.rules.items {
		if i.changed() {
			if err := ruleEnds(was, now, i, end); err != nil {
				return err
			}
		}
	}
	for _, i := range p.networks.items {
		if i.was != nil && i.now != nil && i.changed() {
			for _, s := range i.was.Subnets {
				end(s.Addr(), policyEnds(i.was, i.now, s))
			}
		}
	}
	ns, err := p.host.Netns()
	if err != nil || len(ends[v4])+len(ends[v6]) == 0 {
		return err
	}
	return ns.Do(func() error {
		for family, list := range ends {
			if len(list) == 0 {
				continue
			}
			any := match(func(c *conn) bool {
				for _, m := range list {
					if m(c) {
						return true
					}
				}
				return false
			})
			_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, inet(family), any)
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("conntrack: %w", err)
			}
		}
		return nil
	})
}

func inet(family int) netlink.InetFamily {
	if family == v4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// ruleEnds is for a publication or link that has changed.
func ruleEnds(was, now view, i *item[rule], end func(netip.Addr, match)) error {
	has := func(r *rule, b maps.Binding) bool {
		if r == nil || r.Publication == nil {
			return false
		}
		for _, x := range r.Bindings {
			if x == b {
				return true
			}
		}
		return false
	}
	at := func(b maps.Binding, c *conn) bool {
		return c.proto == b.Proto && c.dst.Port() >= b.First && int(c.dst.Port()) < int(b.First)+b.Count &&
			(b.Addr.IsUnspecified() || c.dst.Addr() == b.Addr)
	}
	if r := i.was; r != nil && r.Publication != nil {
		narrower := i.now == nil || i.now.Publication == nil || len(i.now.Publication.Sources) > 0 || i.now.Publication.Port != r.Publication.Port
		for _, b := range r.Bindings {
			if narrower || !has(i.now, b) {
				end(b.Addr, func(c *conn) bool { return at(b, c) && c.server.Addr() != c.dst.Addr() })
			}
		}
	}
	if r := i.now; r != nil && r.Publication != nil {
		for _, b := range r.Bindings {
			if b.Proto == maps.UDP && !has(i.was, b) {
				end(b.Addr, func(c *conn) bool { return at(b, c) && c.server.Addr() == c.dst.Addr() })
			}
		}
	}
	if i.was == nil || !i.was.Link {
		return nil
	}
	kept := make(map[maps.Link]bool)
	if i.now != nil && i.now.Link {
		for _, l := range i.now.Links {
			kept[l] = true
		}
	}
	for _, l := range i.was.Links {
		if kept[l] || l.Proto == 0 || l.Client == 0 {
			continue
		}
		client, err := was.endpoint(l.Client)
		if err != nil {
			return err
		}
		server, err := was.endpoint(l.Server)
		if err != nil {
			return err
		}
		for family := range families {
			from, to := slotAddr(client, family), slotAddr(server, family)
			if from.IsValid() && to.IsValid() {
				end(from, func(c *conn) bool {
					return c.proto == l.Proto && c.src.Addr() == from && c.dst == netip.AddrPortFrom(to, l.Port)
				})
			}
		}
	}
	return nil
}

// policyEnds is what a changed policy ends: what only icc or isolation allowed, or all if
// masquerade has changed.
func policyEnds(was, now *network, s netip.Prefix) match {
	if was.Masquerade != now.Masquerade || was.Routed != now.Routed || was.Internal != now.Internal {
		return func(c *conn) bool { return s.Contains(c.src.Addr()) || s.Contains(c.server.Addr()) }
	}
	return func(c *conn) bool {
		direct := c.server.Addr() == c.dst.Addr()
		return direct && s.Contains(c.dst.Addr())
	}
}

// Flows are the connections of containers that netfilter tracks.
func (p *Path) Flows() ([]datapath.Flow, error) {
	ns, err := p.host.Netns()
	if err != nil {
		return nil, err
	}
	up, err := p.host.Endpoints()
	if err != nil {
		return nil, err
	}
	names := make(map[netip.Addr]string)
	for _, e := range up {
		known, err := p.endpoints.get(e.Slot)
		if err != nil {
			return nil, err
		}
		for family := range families {
			if a := slotAddr(known, family); a.IsValid() {
				names[a] = e.Container
			}
		}
	}
	var list []datapath.Flow
	err = ns.Do(func() error {
		for family := range families {
			found, err := netlink.ConntrackTableList(netlink.ConntrackTable, inet(family))
			if err != nil {
				return fmt.Errorf("conntrack: %w", err)
			}
			for _, f := range found {
				c := asConn(f)
				info, ok := c.info(names)
				if !ok {
					continue
				}
				list = append(list, datapath.Flow{FlowInfo: info, End: func() error {
					return ns.Do(func() error {
						same := match(func(x *conn) bool { return x.proto == c.proto && x.src == c.src && x.dst == c.dst })
						_, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, inet(family), same)
						return err
					})
				}})
			}
		}
		return nil
	})
	return list, err
}

// info says what a connection is to the containers of those addresses; ok is false if it is
// none of theirs.
func (c *conn) info(names map[netip.Addr]string) (info datapath.FlowInfo, ok bool) {
	from, to := names[c.src.Addr()], names[c.server.Addr()]
	info = datapath.FlowInfo{
		Proto: c.proto.String(), Source: c.src, Destination: c.dst, NewSource: c.client, NewDest: c.server,
		Container: to, Peer: from, Expires: c.expires, Packets: c.packets, Bytes: c.bytes,
	}
	switch {
	case to == "" && from == "":
		return info, false
	case c.dst.Addr() != c.server.Addr():
		info.Kind = "published"
	case to != "" && from != "":
		info.Kind = "peer"
	case to != "":
		info.Kind = "host"
	case c.src.Addr() != c.client.Addr():
		info.Kind = "masquerade"
	default:
		info.Kind = "routed"
	}
	if to == "" {
		info.Container, info.Peer = from, ""
	}
	switch {
	case c.closed:
		info.State = "closing"
	case c.answered:
		info.State = "established"
	default:
		info.State = "new"
	}
	return info, true
}
