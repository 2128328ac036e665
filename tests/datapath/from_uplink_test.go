// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// Publications beyond the world's own.
const (
	ruleRange   = 6000 // 7000-7002 -> s:80-82
	ruleAddress = 6001 // one address of the host:8090 -> s:80
	ruleAgain   = 6002 // 8083 -> s:80, as 8080 does
	ruleQ       = 6003 // 8085 -> q:80
	ruleOpen    = 6004 // s:80 by its own address, in a routed network
	ruleFour    = 6005 // IPv4 only: 8091 -> s:80
	ruleLink    = 6006 // o may reach q:80
)

var (
	other4, other6   = netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:113::9") // the host's second address
	remote4, remote6 = netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:51::7") // beyond the router
	group4, group6   = netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb")
)

func pick[T any](six bool, a4, a6 T) T {
	if six {
		return a6
	}
	return a4
}

func withAddr(s side, a netip.Addr) side { s.addr = a; return s }

// inside is how from_uplink delivers in to a container's port.
func (w *world) inside(in packet, to side) packet {
	in.from.mac, in.to, in.ttl = w.bridgeMAC[net1], to, 63
	return in
}

func TestFromUplinkPublished(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		second := pick(six, other4, other6)
		w.put(w.objs.HostAddrs, addr(second), uint32(w.uplink))
		ports := w.objs.Ports4
		if six {
			ports = w.objs.Ports6
			w.put(w.objs.Sources, loader.BPFSourceKey{Prefixlen: 32 + 64, Rule: ruleFrom, Addr: addr(netip.MustParseAddr("2001:db8:113::"))}, uint32(1))
		}
		w.publish(ruleRange, epS, 7000, 80, 0)
		w.publish(ruleAddress, epS, 8090, 80, 0)
		for i, proto := range []uint8{tcp, udp} {
			for n := range 3 {
				w.put(ports, uint32(i*65536+7000+n), uint32(ruleRange))
			}
			w.put(ports, uint32(i*65536+8090), uint32(loader.BPFPortSlotPORT_ADDRESSES))
			w.put(w.objs.PortsAddr, loader.BPFPortKey{Addr: addr(f.host.addr), Port: be16(8090), Proto: proto}, uint32(ruleAddress))
		}
		client := f.client
		next := func() side { client.port++; return client } // a flow of its own each

		for _, proto := range []uint8{tcp, udp} {
			for _, c := range []struct {
				name      string
				from, to  side
				inner     uint16
				payload   []byte
				edit      func([]byte) []byte
				refused   loader.BPFReason
				untouched bool
			}{
				{name: "payload", from: next(), to: f.host, inner: 80},
				{name: "no payload", from: next(), to: f.host, inner: 80, payload: []byte{}},
				{name: "one byte", from: next(), to: f.host, inner: 80, payload: []byte{0xa5}},
				{name: "even payload", from: next(), to: f.host, inner: 80, payload: []byte("12345678")},
				{name: "large payload", from: next(), to: f.host, inner: 80, payload: make([]byte, 1401)},
				{name: "from beyond a router", from: withAddr(next(), pick(six, remote4, remote6)), to: f.host, inner: 80},
				{name: "to the host's second address", from: next(), to: withAddr(f.host, second), inner: 80},
				{name: "to a gateway", from: next(), to: withAddr(f.host, f.gw.addr), inner: 80},
				{name: "one option", from: next(), to: f.host, inner: 80, edit: func(b []byte) []byte { return extended(b, 1) }},
				{name: "many options", from: next(), to: f.host, inner: 80, edit: func(b []byte) []byte { return extended(b, 7) }},
				{name: "first of a range", from: next(), to: f.host.at(7000), inner: 80},
				{name: "second of a range", from: next(), to: f.host.at(7001), inner: 81},
				{name: "last of a range", from: next(), to: f.host.at(7002), inner: 82},
				{name: "beside the range", from: next(), to: f.host.at(7003), untouched: true},
				{name: "on this address", from: next(), to: f.host.at(8090), inner: 80},
				{name: "not on this address", from: next(), to: withAddr(f.host.at(8090), second), untouched: true},
				{name: "source allowed", from: next(), to: f.host.at(8082), inner: 80},
				{name: "source denied", from: withAddr(next(), pick(six, remote4, remote6)), to: f.host.at(8082), refused: loader.BPFReasonREASON_SOURCE_DENIED},
			} {
				w.sub(protoNames[proto]+" "+c.name, func(w *world) {
					in := packet{from: c.from, to: c.to, proto: proto, flags: "S", payload: c.payload}
					frame, out := in.frame(), w.inside(in, f.s.at(c.inner)).frame()
					if c.edit != nil {
						frame, out = c.edit(frame), c.edit(out)
					}
					expected := sent(out)
					switch {
					case c.untouched:
						expected = passed()
					case c.refused != 0:
						expected = refused(c.refused)
					}
					w.check(w.objs.FromUplink, w.uplink, frame, expected)
				})
			}
		}
		if six {
			return
		}
		w.sub("UDP checksum zero stays zero", func(w *world) {
			in := packet{from: next(), to: f.host, proto: udp, noSum: true}
			w.arrive(in, sent(w.inside(in, f.s).frame()))
		})
	})
}

// One container port published twice, asked by one client port: the server has
// to tell them apart.
func TestFromUplinkPublishedTwice(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		w.publish(ruleAgain, epS, 8083, 80, 0)
		for _, proto := range []uint8{tcp, udp} {
			first := opening(f.client, f.host, proto)
			w.arrive(first, sent(w.inside(first, f.s).frame()))
			again := opening(f.client, f.host.at(8083), proto)
			r := w.check(w.objs.FromUplink, w.uplink, again.frame(), want{verdict: redirect, out: nil}.any())
			port := sourcePort(r.raw)
			require.True(w.t, port >= 20000 && port <= 20999, "port %d is of the pool", port)
			seen := w.inside(again, f.s)
			seen.from.port = port
			require.Equal(w.t, dump(seen.frame()), dump(r.raw))
			for _, x := range []struct{ asked, inside packet }{{first, w.inside(first, f.s)}, {again, seen}} {
				reply := x.inside.answer()
				out := reply.like(func(p *packet) {
					p.from.addr, p.from.port, p.to.port, p.ttl = f.host.addr, x.asked.to.port, f.client.port, 63
				})
				reply.ttl = 64
				w.say(epS, reply, sent(out))
			}
		}
	})
}

// Whatever is not certainly ours is the host's, to the last bit.
func TestFromUplinkUntouched(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		syn, datagram := opening(f.client, f.host, tcp), opening(f.client, f.host, udp)
		w.publish(ruleFour, epS, 8091, 80, 0)
		for proto := range uint32(2) {
			w.put(w.objs.Ports6, proto*65536+8091, uint32(0))
		}
		flags := func(s string) []byte { return syn.like(func(p *packet) { p.flags = s }) }
		to := func(p packet, s side) []byte { return p.like(func(p *packet) { p.to = s }) }
		cases := map[string][]byte{
			"unpublished TCP port":          to(syn, f.host.at(9)),
			"unpublished UDP port":          to(datagram, f.host.at(9)),
			"published on loopback only":    to(syn, f.host.at(8081)),
			"ACK of an unknown connection":  flags("A"),
			"SYN-ACK to the host":           flags("SA"),
			"RST":                           flags("R"),
			"RST-ACK":                       flags("RA"),
			"FIN":                           flags("FA"),
			"another host's address":        to(syn, withAddr(f.host, pick(six, remote4, remote6))),
			"another host's address, UDP":   to(datagram, withAddr(f.host, pick(six, remote4, remote6))),
			"ping of the host":              opening(f.client.at(7), f.host, f.icmp).frame(),
			"ping of a gateway":             opening(f.client.at(7), withAddr(f.host, f.gw.addr), f.icmp).frame(),
			"a gateway's unpublished port":  to(syn, withAddr(f.host.at(22), f.gw.addr)),
			"first fragment":                fragment(to(datagram, f.host.at(9)), 0, true),
			"another protocol":              withProto(datagram.frame(), 47),
			"broadcast frame":               withMACs(datagram.frame(), net.HardwareAddr(broadcastMAC), nil),
			"multicast frame":               withMACs(syn.frame(), net.HardwareAddr{1, 0, 0x5e, 1, 2, 3}, nil),
			"another host's frame":          withMACs(syn.frame(), mac(9, 9), nil),
			"another host's direct access":  withMACs(to(syn, f.s), mac(9, 9), nil),
			"multicast":                     to(datagram, withAddr(f.host, pick(six, group4, group6))),
			"VLAN tag":                      tagged(syn.frame()),
			"VLAN tag, container's address": tagged(to(syn, f.s)),
			"ARP request":                   arp(1, withAddr(f.client, client4), withAddr(f.host, host4)),
			"ARP answer":                    arp(2, withAddr(f.client, client4), withAddr(f.host, host4)),
			"ARP about a container":         arp(1, withAddr(f.client, client4), w.end(epS, false, 0)),
			"LLDP":                          ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0x0e}, w.clientMAC, 0x88cc),
			"EAPOL to us":                   ether(w.hostMAC, w.clientMAC, layers.EthernetTypeEAPOL),
			"spanning tree":                 ether(net.HardwareAddr{1, 0x80, 0xc2, 0, 0, 0}, w.clientMAC, 0x0027),
			"ICMP error for the host":       withMACs(icmpError(flags("A"), f.client.addr, 3, 1, 0), w.hostMAC, w.clientMAC),
		}
		if six {
			cases["neighbour solicitation"] = nd(f.client, solicited(host6), 135, about(host6), linkOption(1, w.clientMAC))
			cases["router advertisement to us"] = nd(f.client, f.host, 134, make([]byte, 12))
			cases["IPv4-only publication"] = to(syn, f.host.at(8091))
			cases["IPv4-mapped source"] = syn.like(func(p *packet) { p.from.addr = netip.MustParseAddr("::ffff:203.0.113.2") })
		}
		for name, frame := range cases {
			w.sub(name, func(w *world) { w.check(w.objs.FromUplink, w.uplink, frame, passed()) })
		}
		w.check(w.objs.FromUplink, w.uplink, fragment(datagram.frame(), 64, false), passed().keeping())
		established, half := w.tables()
		require.Zero(w.t, established+half, "flows made")
		w.arrive(syn, sent(w.inside(syn, f.s).frame()))
		w.arrive(datagram, sent(w.inside(datagram, f.s).frame()))
	})
}

// A socket of the host that is connected to the sender from the published port
// keeps its answers; everybody else gets the container.
func TestFromUplinkConnectedSocket(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		w.assign("uplink", f.host.addr)
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: f.host.addr.AsSlice(), Port: 8080}, &net.UDPAddr{IP: f.client.addr.AsSlice(), Port: 53})
		require.NoError(w.t, err)
		defer c.Close()
		w.arrive(packet{from: f.client.at(53), to: f.host, proto: udp}, passed())
		beside := packet{from: f.client.at(54), to: f.host, proto: udp}
		w.arrive(beside, sent(w.inside(beside, f.s).frame()))
	})
}

func TestFromUplinkDropped(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		o := w.end(epO, six, 80)
		syn, datagram, ping := opening(f.client, f.host, tcp), opening(f.client, f.host, udp), opening(f.client.at(7), f.host, f.icmp)
		to := func(p packet, a netip.Addr, port uint16) []byte {
			return p.like(func(p *packet) { p.to.addr, p.to.port = a, port })
		}
		from := func(p packet, a netip.Addr) []byte { return p.like(func(p *packet) { p.from.addr = a }) }
		type c struct {
			frame  []byte
			reason loader.BPFReason
		}
		direct, loopback, martian := loader.BPFReasonREASON_DIRECT_ACCESS, loader.BPFReasonREASON_LOOPBACK, loader.BPFReasonREASON_MARTIAN
		cases := map[string]c{
			"direct access: published port":   {to(syn, f.s.addr, 80), direct},
			"direct access: its host port":    {to(syn, f.s.addr, 8080), direct},
			"direct access: other port":       {to(syn, f.s.addr, 99), direct},
			"direct access: UDP":              {to(datagram, f.s.addr, 80), direct},
			"direct access: mid-connection":   {syn.like(func(p *packet) { p.flags, p.to = "A", f.s.via(f.host) }), direct},
			"direct access: ping":             {to(ping, f.s.addr, 0), direct},
			"direct access: other network":    {to(syn, o.addr, 80), direct},
			"direct access: nobody's address": {to(syn, pick(six, netip.MustParseAddr("10.1.77.7"), netip.MustParseAddr("fd00:1::7777")), 80), direct},
			"direct access: fragment":         {fragment(to(datagram, f.s.addr, 80), 0, true), direct},
			"direct access: later fragment":   {fragment(to(datagram, f.s.addr, 80), 64, false), direct},
			"direct access: another protocol": {withProto(to(datagram, f.s.addr, 80), 47), direct},
			"direct access: options":          {extended(to(syn, f.s.addr, 80), 3), direct},
			"direct access: ICMP error":       {withMACs(withDestination(icmpError(syn.frame(), f.client.addr, 3, 1, 0), f.s.addr), w.hostMAC, w.clientMAC), direct},
			"martian: a container":            {from(syn, f.s.addr), martian},
			"martian: another network's":      {from(datagram, o.addr), martian},
			"martian: loopback":               {from(syn, pick(six, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())), martian},
			"martian: multicast":              {from(datagram, pick(six, group4, group6)), martian},
			"martian: unspecified":            {from(datagram, pick(six, netip.IPv4Unspecified(), netip.IPv6Unspecified())), martian},
			"martian: the host itself":        {from(syn, f.host.addr), martian},
			"martian: a gateway":              {from(syn, f.gw.addr), martian},
			"loopback: published there":       {to(syn, pick(six, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), 8081), loopback},
			"loopback: published everywhere":  {to(datagram, pick(six, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), 8080), loopback},
			"loopback: unpublished":           {to(syn, pick(six, netip.MustParseAddr("127.0.0.2"), netip.IPv6Loopback()), 22), loopback},
			"loopback: ping":                  {to(ping, pick(six, netip.MustParseAddr("127.9.9.9"), netip.IPv6Loopback()), 0), loopback},
			"loopback: fragment":              {fragment(to(datagram, pick(six, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), 8080), 64, false), loopback},
		}
		if !six {
			cases["direct access: broadcast"] = c{to(datagram, netip.MustParseAddr("10.1.255.255"), 80), direct}
			cases["martian: broadcast"] = c{from(datagram, netip.MustParseAddr("255.255.255.255")), martian}
		}
		for name, c := range cases {
			w.sub(name, func(w *world) { w.check(w.objs.FromUplink, w.uplink, c.frame, refused(c.reason)) })
		}
		established, half := w.tables()
		require.Zero(w.t, established+half, "flows made")
	})
}

// A routed network: published container ports and ping by its own addresses.
func TestFromUplinkRouted(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		w.flags(net1, loader.BPFNetworkFlagsNETWORK_ROUTED, 0)
		w.allow(ruleOpen, 0, epS, tcp, 80)
		w.allow(ruleOpen, 0, epS, udp, 80)
		w.bump(ruleOpen, loader.BPFRuleKindRULE_PUBLICATION)
		direct := refused(loader.BPFReasonREASON_DIRECT_ACCESS)
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			w.sub(protoNames[proto], func(w *world) {
				in := opening(f.client, f.s.via(f.host), proto)
				out := w.inside(in, withAddr(in.to, f.s.addr).via(f.s))
				w.arrive(in, sent(out.frame()))
				reply := out.answer()
				reply.ttl = 64
				w.say(epS, reply, sent(reply.like(func(p *packet) { p.ttl = 63 })))
			})
		}
		for name, frame := range map[string][]byte{
			"unpublished port":   opening(f.client, f.s.at(81).via(f.host), tcp).frame(),
			"mid-connection":     packet{from: f.client.at(9), to: f.s.via(f.host), proto: tcp}.frame(),
			"first fragment":     fragment(opening(f.client, f.s.at(81).via(f.host), udp).frame(), 0, true),
			"another container":  opening(f.client, f.p.at(80).via(f.host), tcp).frame(),
			"not routed network": opening(f.client, w.end(epO, six, 80).via(f.host), f.icmp).frame(),
		} {
			w.sub(name, func(w *world) { w.check(w.objs.FromUplink, w.uplink, frame, direct) })
		}
		w.check(w.objs.FromUplink, w.uplink, fragment(opening(f.client, f.s.via(f.host), udp).frame(), 64, true), parked())
		// What the world sends in a container's name would be believed by it.
		for name, a := range map[string]netip.Addr{
			"martian: a neighbour":       f.p.addr,
			"martian: another network's": w.end(epO, six, 0).addr,
			"martian: itself":            f.s.addr,
			"martian: the gateway":       f.gw.addr,
			"martian: the host":          f.host.addr,
			"martian: loopback":          pick(six, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()),
			"martian: multicast":         pick(six, group4, group6),
			"martian: unspecified":       pick(six, netip.IPv4Unspecified(), netip.IPv6Unspecified()),
		} {
			w.sub(name, func(w *world) {
				in := opening(withAddr(f.client, a), f.s.via(f.host), udp)
				w.arrive(in, refused(loader.BPFReasonREASON_MARTIAN))
			})
		}
	})
}

// What comes back to a masqueraded flow, and what does not.
func TestFromUplinkMasqueraded(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			w.sub(protoNames[proto], func(w *world) {
				out := opening(f.p, f.client.at(443).via(f.gw), proto)
				r := w.check(w.objs.FromEndpoint, w.containers[epP].ifindex, out.frame(), want{verdict: redirect}.any())
				asked := packet{from: withAddr(f.host, f.host.addr).at(sourcePort(r.raw)), to: withAddr(out.to, f.client.addr).via(f.client), proto: proto, flags: "S", seq: 100}
				reply := asked.answer()
				back := reply.like(func(p *packet) { p.from.mac, p.to, p.ttl = w.bridgeMAC[net1], out.from, 63 })
				w.arrive(reply, sent(back))
				w.arrive(reply, sent(back))
				for name, frame := range map[string][]byte{
					"another sender":   reply.like(func(p *packet) { p.from.addr = pick(six, remote4, remote6) }),
					"another receiver": reply.like(func(p *packet) { p.to.addr = pick(six, other4, other6) }),
					"another port":     reply.like(func(p *packet) { p.to.port++ }),
				} {
					w.sub(name, func(w *world) { w.check(w.objs.FromUplink, w.uplink, frame, passed()) })
				}
			})
		}
	})
}

// Malformed packets are the host's to judge, and make no flow.
func TestFromUplinkMalformed(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		syn, datagram := opening(f.client, f.host, tcp).frame(), opening(f.client, f.host, udp).frame()
		cases := map[string][]byte{}
		if six {
			cases["TCP header cut"] = edited(syn[:ethLen+ip6Len+12], func(b []byte) { b[18], b[19] = 0, 12 })
			cases["UDP header cut"] = edited(datagram[:ethLen+ip6Len+4], func(b []byte) { b[18], b[19] = 0, 4 })
			cases["payload length beyond the frame"] = edited(syn, func(b []byte) { b[18] = 4 })
			cases["version 4"] = edited(syn, func(b []byte) { b[14] = 0x40 })
			cases["extension header cut"] = edited(syn[:ethLen+ip6Len], func(b []byte) { b[18], b[19], b[20] = 0, 0, 60 })
			cases["extension header beyond the frame"] = edited(extended(syn, 1), func(b []byte) { b[ethLen+ip6Len+1] = 200 })
			cases["nine extension headers"] = extended(syn, 9)
			cases["ICMP of IPv4"] = withProto(datagram, icmp)
		} else {
			cases["no transport header"] = edited(syn[:ethLen+ip4Len], func(b []byte) { b[16], b[17] = 0, 20 })
			cases["TCP header cut"] = edited(syn[:ethLen+ip4Len+12], func(b []byte) { b[16], b[17] = 0, 32 })
			cases["UDP header cut"] = edited(datagram[:ethLen+ip4Len+4], func(b []byte) { b[16], b[17] = 0, 24 })
			cases["header of 16 bytes"] = edited(syn, func(b []byte) { b[14] = 0x44 })
			cases["header beyond the frame"] = edited(datagram, func(b []byte) { b[14] = 0x4f })
			cases["total length beyond the frame"] = edited(syn, func(b []byte) { b[16] = 4 })
			cases["total length below the header"] = edited(syn, func(b []byte) { b[16], b[17] = 0, 19 })
			cases["version 5"] = edited(syn, func(b []byte) { b[14] = 0x55 })
			cases["ICMP of IPv6"] = withProto(datagram, icmp6)
		}
		for name, frame := range cases {
			w.sub(name, func(w *world) { w.check(w.objs.FromUplink, w.uplink, frame, passed()) })
		}
		established, half := w.tables()
		require.Zero(w.t, established+half, "flows made")
	})
}
