package datapath

import (
	"net"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// forgery is a frame that p sends and may not.
type forgery struct {
	frame  []byte
	reason loader.BPFReason
}

func (w *world) forged(cases map[string]forgery) {
	w.t.Helper()
	for name, c := range cases {
		w.sub("forged: "+name, func(w *world) { w.utter(epP, c.frame, refused(c.reason)) })
	}
}

func (w *world) genuine(cases map[string][]byte, want want) {
	w.t.Helper()
	for name, frame := range cases {
		w.sub("genuine: "+name, func(w *world) { w.utter(epP, frame, want) })
	}
}

func TestSpoofMAC(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		reason := loader.BPFReasonREASON_SPOOFED_MAC
		flow := packet{from: f.p.at(50100), to: f.host.via(f.gw), proto: udp}
		for range 2 { // an established flow, for the fast path
			w.say(epP, flow, handed().any())
			reply := flow.with(func(p *packet) { p.to = f.s }).answer()
			w.say(epS, reply, handed().any())
		}
		w.say(epP, flow, handed().any())
		require.True(w.t, w.entry(flow, w.containers[epP].ifindex).established)
		for name, mac := range map[string]net.HardwareAddr{"a neighbour": f.s.mac, "the gateway": f.gw.mac, "nobody": mac(9, 9), "zero": make([]byte, 6), "broadcast": net.HardwareAddr(broadcastMAC)} {
			cases := map[string]forgery{}
			for kind, frame := range map[string][]byte{
				"TCP": opening(f.p, f.s, tcp).frame(), "UDP to the world": opening(f.p, f.client.via(f.gw), udp).frame(),
				"established": flow.frame(), "fragment": fragment(flow.frame(), 64, true), "ARP": arp(1, w.end(epP, false, 0), w.end(epS, false, 0)),
				"broadcast": withMACs(flow.frame(), net.HardwareAddr(broadcastMAC), nil), "unknown ethertype": ether(f.s.mac, f.p.mac, 0x88b5),
				"malformed": edited(flow.frame(), func(b []byte) { b[ethLen] = 0 }),
			} {
				cases[kind+" of "+name] = forgery{withMACs(frame, nil, mac), reason}
			}
			w.forged(cases)
		}
		w.say(epP, flow, handed().any())
	})
}

func TestSpoofARP(t *testing.T) {
	w := newWorld(t)
	f := w.family(false)
	p, s, gw, o := f.p, f.s, f.gw, w.end(epO, false, 0)
	as := func(a netip.Addr) side { return side{mac: p.mac, addr: a} }
	everybody := side{mac: net.HardwareAddr(broadcastMAC)}
	zero := netip.IPv4Unspecified()
	bad := loader.BPFReasonREASON_SPOOFED_ARP
	edit := func(e func(*layers.ARP)) func(*layers.Ethernet, *layers.ARP) {
		return func(_ *layers.Ethernet, a *layers.ARP) { e(a) }
	}
	cases := map[string]forgery{
		"sender hardware address":      {arp(2, p, s, edit(func(a *layers.ARP) { a.SourceHwAddress = s.mac })), bad},
		"sender hardware in a request": {arp(1, p, s, edit(func(a *layers.ARP) { a.SourceHwAddress = gw.mac })), bad},
		"probe for a foreign address":  {arp(1, as(zero), s), bad},
		"probe with a foreign MAC":     {arp(1, as(zero), p, edit(func(a *layers.ARP) { a.SourceHwAddress = s.mac })), bad},
		"answer without an address":    {arp(2, as(zero), p), bad},
		"reverse ARP":                  {arp(3, p, s), bad},
		"inverse ARP":                  {arp(8, p, s), bad},
		"operation 0":                  {arp(0, p, s), bad},
		"hardware type":                {arp(1, p, s, edit(func(a *layers.ARP) { a.AddrType = 6 })), bad},
		"protocol type":                {arp(1, p, s, edit(func(a *layers.ARP) { a.Protocol = layers.EthernetTypeIPv6 })), bad},
		"cut":                          {arp(1, p, s)[:30], loader.BPFReasonREASON_MALFORMED},
		"hardware length":              {edited(arp(1, p, s), func(b []byte) { b[18] = 8 }), bad},
		"protocol length":              {edited(arp(1, p, s), func(b []byte) { b[19] = 16 }), bad},
	}
	for name, a := range map[string]netip.Addr{"a neighbour": s.addr, "the gateway": gw.addr, "the host": f.host.addr, "another network": o.addr, "the world": f.client.addr, "broadcast": netip.MustParseAddr("255.255.255.255")} {
		cases["answer as "+name] = forgery{arp(2, as(a), s), bad}
		cases["answer as "+name+" to all"] = forgery{arp(2, as(a), withAddr(everybody, a)), bad}
		cases["request as "+name] = forgery{arp(1, as(a), s), bad}
		cases["announcement as "+name] = forgery{arp(1, as(a), as(a)), bad}
	}
	w.forged(cases)
	w.genuine(map[string][]byte{
		"request for a neighbour":    arp(1, p, s),
		"request for the gateway":    arp(1, p, gw),
		"request for the host":       arp(1, p, f.host),
		"unicast request":            withMACs(arp(1, p, s), s.mac, nil),
		"answer to a neighbour":      arp(2, p, s),
		"answer to the gateway":      arp(2, p, gw),
		"answer to the gateway, all": withMACs(arp(2, p, gw), net.HardwareAddr(broadcastMAC), nil),
	}, handed())
	w.genuine(map[string][]byte{"announcement": arp(1, p, p), "announcement by answer": arp(2, p, p), "probe": arp(1, as(zero), p)}, swallowed())
	w.genuine(map[string][]byte{
		"request for nobody":          arp(1, p, withAddr(s, netip.MustParseAddr("10.1.7.7"))),
		"request for another network": arp(1, p, o),
	}, refused(loader.BPFReasonREASON_NO_ENDPOINT))
}

func TestSpoofSource(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		reason := loader.BPFReasonREASON_SPOOFED_IPV4
		sources := map[string]netip.Addr{"a neighbour": f.s.addr, "the gateway": f.gw.addr, "the host": f.host.addr, "the world": f.client.addr,
			"another network": w.end(epO, six, 0).addr, "loopback": pick(six, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()),
			"multicast": pick(six, group4, group6), "nobody": pick(six, netip.IPv4Unspecified(), netip.IPv6Unspecified())}
		if six {
			reason = loader.BPFReasonREASON_SPOOFED_IPV6
			sources["a neighbour's link-local"] = w.containers[epS].ll6
			sources["the gateway's link-local"] = linkLocal(f.gw.mac)
		} else {
			sources["broadcast"] = netip.MustParseAddr("255.255.255.255")
			sources["the network's broadcast"] = netip.MustParseAddr("10.1.255.255")
		}
		kinds := func(from side) map[string][]byte {
			datagram := opening(from, f.s.at(9), udp).frame()
			out := map[string][]byte{"later fragment": fragment(datagram, 64, false), "first fragment": fragment(datagram, 0, true), "another protocol": withProto(datagram, 47), "options": extended(datagram, 2),
				"ICMP error": icmpError(opening(f.s, from, udp).frame(), from.addr, 3, 3, 0)}
			for name, to := range map[string]side{"neighbour": f.s.at(9), "gateway": f.gw.at(22), "world": f.client.at(443).via(f.gw), "published": f.host.via(f.gw)} {
				for _, proto := range []uint8{tcp, udp, f.icmp} {
					out[protoNames[proto]+" to "+name] = opening(from, to, proto).frame()
				}
			}
			out["to all"] = opening(from, group(pick(six, group4, group6).String(), 5353), udp).frame()
			return out
		}
		for name, a := range sources {
			cases := map[string]forgery{}
			for kind, frame := range kinds(withAddr(f.p, a)) {
				cases[kind+" of "+name] = forgery{frame, reason}
			}
			if six && name == "nobody" {
				delete(cases, "ICMP error of nobody")
			}
			w.forged(cases)
		}
		own := kinds(f.p)
		w.utter(epP, own["later fragment"], parked())
		delete(own, "later fragment")
		w.genuine(own, handed().any())
		established, half := w.tables()
		require.NotZero(w.t, established+half)
		if six {
			mapped := opening(f.p, f.s, udp).like(func(p *packet) { p.from.addr = netip.MustParseAddr("::ffff:10.1.0.3") })
			w.forged(map[string]forgery{"IPv4-mapped": {mapped, loader.BPFReasonREASON_MARTIAN}})
			w.genuine(map[string][]byte{"link-local": opening(w.ll(epP, 1), w.ll(epS, 2), udp).frame()}, handed().any())
		}
	})
}

func TestSpoofND(t *testing.T) {
	w := newWorld(t)
	f := w.family(true)
	p, s, gw, pll := f.p, f.s, f.gw, w.ll(epP, 0)
	all, routers := group("ff02::1", 0), group("ff02::2", 0)
	none := side{p.mac, netip.IPv6Unspecified(), 0}
	bad, router := loader.BPFReasonREASON_SPOOFED_ND, loader.BPFReasonREASON_SPOOFED_RA
	own, foreign := linkOption(2, p.mac), linkOption(2, s.mac)
	cases := map[string]forgery{
		"advertisement: a foreign MAC":       {nd(p, s, 136, about(p.addr), foreign), bad},
		"advertisement: a second option":     {nd(p, s, 136, about(p.addr), own, foreign), bad},
		"advertisement: a foreign source":    {nd(p, s, 136, about(p.addr), linkOption(1, gw.mac)), bad},
		"advertisement: a long option":       {nd(p, s, 136, about(p.addr), append([]byte{2, 2}, make([]byte, 14)...)), bad},
		"advertisement: option of length 0":  {nd(p, s, 136, about(p.addr), []byte{14, 0, 0, 0, 0, 0, 0, 0}, foreign), bad},
		"advertisement: an option cut":       {nd(p, s, 136, about(p.addr), own[:4]), bad},
		"advertisement: nine options":        {nd(p, s, 136, about(p.addr), own, own, own, own, own, own, own, own, foreign), bad},
		"advertisement: cut":                 {nd(p, s, 136, make([]byte, 8)), loader.BPFReasonREASON_MALFORMED},
		"solicitation: a foreign MAC":        {nd(p, solicited(s.addr), 135, about(s.addr), linkOption(1, s.mac)), bad},
		"solicitation: unicast, foreign MAC": {nd(p, s, 135, about(s.addr), linkOption(1, gw.mac)), bad},
		"solicitation: from nobody":          {nd(none, solicited(s.addr), 135, about(s.addr)), bad},
		"router solicitation: a foreign MAC": {nd(pll, routers, 133, make([]byte, 4), linkOption(1, gw.mac)), bad},
		"router advertisement":               {nd(pll, all, 134, make([]byte, 12)), router},
		"router advertisement to one":        {nd(pll, w.ll(epS, 0), 134, make([]byte, 12), linkOption(1, p.mac)), router},
		"router advertisement to the host":   {nd(pll, side{gw.mac, linkLocal(gw.mac), 0}, 134, make([]byte, 12)), router},
		"redirect":                           {nd(pll, s, 137, append(about(gw.addr), make([]byte, 16)...)), router},
		"redirect to the host":               {nd(p, gw, 137, append(about(gw.addr), make([]byte, 16)...)), router},
		"behind an extension header":         {extended(nd(pll, all, 134, make([]byte, 12)), 1), router},
		"advertisement behind seven":         {extended(nd(p, s, 136, about(gw.addr)), 7), bad},
		"behind nine extension headers":      {extended(nd(pll, all, 134, make([]byte, 12)), 9), loader.BPFReasonREASON_UNSUPPORTED},
		"in an atomic fragment":              {fragment(nd(p, s, 136, about(gw.addr)), 0, false), bad},
	}
	for name, a := range map[string]netip.Addr{"a neighbour": s.addr, "the gateway": gw.addr, "the gateway's link-local": linkLocal(gw.mac), "a neighbour's link-local": w.containers[epS].ll6, "the host": host6, "the world": client6, "nothing": netip.IPv6Unspecified()} {
		cases["advertisement for "+name] = forgery{nd(p, s, 136, about(a), own), bad}
		cases["advertisement to all for "+name] = forgery{nd(p, all, 136, about(a), own), bad}
		cases["advertisement to the gateway for "+name] = forgery{nd(p, gw, 136, about(a), own), bad}
	}
	for kind, frame := range map[string][]byte{"router solicitation": nd(pll, routers, 133, make([]byte, 4)), "solicitation": nd(p, solicited(s.addr), 135, about(s.addr)),
		"advertisement": nd(p, s, 136, about(p.addr), own)} {
		cases[kind+" in a first fragment"] = forgery{fragment(frame, 0, true), bad}
		cases[kind+" behind a fragment's header"] = forgery{fragment(extended(frame, 1), 0, true), bad}
		cases[kind+" behind headers and a fragment's"] = forgery{extended(fragment(extended(frame, 2), 0, true), 2), bad}
	}
	cases["router advertisement in a first fragment"] = forgery{fragment(nd(pll, all, 134, make([]byte, 12)), 0, true), bad}
	w.forged(cases)
	w.genuine(map[string][]byte{
		"solicitation":              nd(p, solicited(s.addr), 135, about(s.addr), linkOption(1, p.mac)),
		"solicitation, unicast":     nd(p, s, 135, about(s.addr), linkOption(1, p.mac)),
		"solicitation of a gateway": nd(p, solicited(gw.addr), 135, about(gw.addr), linkOption(1, p.mac)),
		"of its link-local":         nd(pll, solicited(linkLocal(gw.mac)), 135, about(linkLocal(gw.mac)), linkOption(1, p.mac)),
		"of a peer's link-local":    nd(pll, solicited(w.containers[epS].ll6), 135, about(w.containers[epS].ll6), linkOption(1, p.mac)),
		"advertisement":             nd(p, s, 136, about(p.addr), own),
		"of one's link-local":       nd(pll, w.ll(epS, 0), 136, about(pll.addr), own),
		"to the gateway":            nd(p, gw, 136, about(p.addr), own),
		"without an option":         nd(p, gw, 136, about(p.addr)),
		"other options":             nd(p, s, 136, about(p.addr), []byte{14, 1, 1, 2, 3, 4, 5, 6}, own),
		"router solicitation":       nd(pll, routers, 133, make([]byte, 4), linkOption(1, p.mac)),
		"from nobody":               nd(none, routers, 133, make([]byte, 4)),
		"listener report":           nd(none, group("ff02::16", 0), 143, make([]byte, 24)),
		"behind extension headers":  extended(nd(p, s, 136, about(p.addr), own), 2),
	}, handed())
	w.genuine(map[string][]byte{
		"duplicate address detection": nd(none, solicited(p.addr), 135, about(p.addr)),
		"of the link-local":           nd(none, solicited(pll.addr), 135, about(pll.addr)),
		"announcement":                nd(p, all, 136, about(p.addr), own),
	}, swallowed())
	// What is nobody's address is not that of a gateway which a network does not have.
	var n loader.BPFNetwork
	require.NoError(t, w.objs.Networks.Lookup(uint32(net1), &n))
	n.Gateway6 = loader.BPFAddr{}
	w.put(w.objs.Networks, uint32(net1), n)
	w.genuine(map[string][]byte{
		"of the unspecified address": nd(pll, solicited(s.addr), 135, about(netip.IPv6Unspecified()), linkOption(1, p.mac)),
	}, refused(loader.BPFReasonREASON_NO_ENDPOINT))
}

func TestSpoofDHCP(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		server, client := uint16(67), uint16(68)
		if six {
			server, client = 547, 546
		}
		everybody := group("255.255.255.255", client)
		if six {
			everybody = group("ff02::1", client)
		}
		frames := func() map[string][]byte {
			out := map[string][]byte{}
			for _, port := range []uint16{server, 12345, client} {
				for name, to := range map[string]side{"one": f.s.at(client), "all": everybody, "the host": f.gw.at(client)} {
					p := packet{from: f.p.at(port), to: to, proto: udp}
					key := name + " from " + protoNames[udp] + string('0'+byte(port%10))
					out["to "+key] = p.frame()
					out["options, to "+key] = extended(p.frame(), 2)
					out["first fragment to "+key] = fragment(p.frame(), 0, true)
					if six {
						out["behind a fragment's header to "+key] = fragment(extended(p.frame(), 1), 0, true)
					}
				}
			}
			return out
		}
		reason := loader.BPFReasonREASON_DHCP_SERVER
		cases := map[string]forgery{}
		for name, frame := range frames() {
			cases[name] = forgery{frame, reason}
		}
		if six {
			cases["link-local"] = forgery{packet{from: w.ll(epP, server), to: w.ll(epS, client), proto: udp}.frame(), reason}
		}
		w.forged(cases)
		w.genuine(map[string][]byte{
			"TCP":             packet{from: f.p.at(server), to: f.s.at(client), proto: tcp}.frame(),
			"beside the port": packet{from: f.p.at(server), to: f.s.at(client + 3), proto: udp}.frame(),
			"asks":            packet{from: f.p.at(client), to: f.s.at(server), proto: udp}.frame(),
			"asks all":        packet{from: f.p.at(client), to: everybody.at(server), proto: udp}.frame(),
		}, handed().any())
		w.utter(epP, fragment(packet{from: f.p.at(server), to: f.s.at(client), proto: udp}.frame(), 64, false), parked())
		if !six {
			none := withAddr(f.p, netip.IPv4Unspecified())
			discover := packet{from: none.at(68), to: everybody.at(67), proto: udp}
			w.genuine(map[string][]byte{"discovers": discover.frame()}, handed())
			bad := loader.BPFReasonREASON_SPOOFED_IPV4
			w.forged(map[string]forgery{
				"discovers by one":         {discover.like(func(p *packet) { p.to = f.s.at(67) }), bad},
				"discovers the world":      {discover.like(func(p *packet) { p.to = f.client.at(67).via(f.gw) }), bad},
				"discovers by TCP":         {discover.like(func(p *packet) { p.proto = tcp }), bad},
				"from another port":        {discover.like(func(p *packet) { p.from.port = 69 }), bad},
				"to another port":          {discover.like(func(p *packet) { p.to.port = 69 }), bad},
				"discovers by fragment":    {fragment(discover.frame(), 0, true), bad},
				"discovers by a later one": {fragment(discover.frame(), 64, false), bad},
			})
		}
		w.change(epP, func(e *loader.BPFEndpoint) {
			e.Gen++
			e.Flags |= uint32(loader.BPFEndpointFlagsENDPOINT_DHCP_SERVER)
		})
		w.genuine(frames(), handed().any())
	})
}
