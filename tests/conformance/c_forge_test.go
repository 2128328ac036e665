// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// C9: what a container forges leaves it nowhere, is counted by its reason, and
// changes no neighbour's cache, while what it says of itself gets through beside it.
//
//	X ── H ─┬─ n1 ─┬─ srv
//	        │      └─ peer, the forger
//	        └─ n2 ─┬─ other
//	               └─ second
//
// The captures are where a frame could come out: srv's eth0, the bridge, X's eth0 and other's eth0.
func TestC9(t *testing.T) {
	parallel(t)
	c, s, p, o := ownCast(t)
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Host, "host", ":9000")
	second := c.station(c.container("second", "n2"), "n2")
	w := &wire{me: c.station(p, "n1"), peer: c.station(s, "n1"), gw: c.gateway("n1"), up: c.uplink(), x: c.world(), other: c.station(o, "n2")}
	beside := []*dialogue{
		c.talking("udp", p.ns, at(s.ip4, 80), "srv"), c.talking("tcp", p.ns, at(s.ip6, 80), "srv"),
		c.talking("udp", p.ns, at(lab.ClientIPv6, 7000), "world"), c.talking("tcp", p.ns, at(lab.ClientIPv4, 7000), "world"),
		c.talking("udp", p.ns, at(w.gw.ip4, 9000), "host"),
	}
	seen := []*watch{
		{Capture: lab.CaptureIn(t, s.ns, "eth0", isForged)},
		{Capture: lab.StartCapture(t, c.Host, w.gw.dev, isForged)},
		{Capture: lab.CaptureIn(t, c.Client, "eth0", isForged)},
		{Capture: lab.CaptureIn(t, o.ns, "eth0", isForged)},
	}
	n := times(10_000, 20)
	for _, f := range forgeries {
		t.Run(f.name, func(t *testing.T) {
			c := c.in(t)
			frames := f.frames(w)
			before := c.drops(f.reason)
			require.NoError(t, lab.InjectEach(p.ns, "eth0", n*len(frames), func(i int) []byte { return frames[i%len(frames)] }))
			counted := func() bool { return c.drops(f.reason) >= before+uint64(n*len(frames)) }
			if !soon(counted) {
				t.Errorf("%s: %d of %d", f.reason, c.drops(f.reason)-before, n*len(frames))
			}
			for _, k := range beside {
				k.t = t
			}
			unharmed(beside...)
			for i, where := range []string{"srv", "the bridge", "X", "other"} {
				if frames := seen[i].fresh(); len(frames) > 0 {
					t.Errorf("at %s: %s", where, lab.Describe(frames))
				}
			}
			w.believed(c)
		})
	}
	for _, k := range beside {
		k.t = t
	}
	over(beside...)

	// The same texts, not forged, are what the captures do see.
	for i, honest := range []struct {
		from, to station
		routed   bool
	}{{w.me, w.peer, false}, {w.me, w.gw, false}, {w.me, w.x, true}, {second, w.other, false}} {
		me, to := honest.from, honest.to
		for _, family := range ipVersions {
			packet := me.to(to, family)
			if honest.routed {
				packet = me.by(w.gw, to, family)
			}
			require.NoError(t, lab.Inject(me.ns, "eth0", packet.UDP(1000, 99, []byte(forgedText)), 1))
			require.True(t, soon(func() bool { return len(seen[i].fresh()) > 0 }), "an honest packet, capture %d", i)
		}
		if honest.routed {
			continue
		}
		require.NoError(t, lab.Inject(me.ns, "eth0", padded(lab.ARP{SrcMAC: me.mac, DstMAC: to.mac, SenderMAC: me.mac, Sender: me.ip4, Target: to.ip4}.Frame()), 1))
		require.NoError(t, lab.Inject(me.ns, "eth0", labelled(me.to(to, 6).NeighborSolicitation(to.ip6, me.mac)), 1))
		require.True(t, seen[i].Wait(seen[i].seen+2, wait), "honest ARP and ND, capture %d", i)
	}
	w.believed(c)
}

// wire is who a forger can lie about.
type wire struct{ me, peer, gw, up, x, other station }

// believed requires that srv, H and X think of everybody what is true.
func (w *wire) believed(c *cast) {
	c.t.Helper()
	truth := make(map[string]string)
	for _, s := range []station{w.me, w.peer, w.gw} {
		for _, a := range []netip.Addr{s.ip4, s.ip6, s.local} {
			truth[a.String()] = s.mac.String()
		}
	}
	for _, s := range []station{w.peer, w.gw} {
		for ip, mac := range c.neighbours(s.ns, s.dev) {
			if a := netip.MustParseAddr(ip); !a.IsMulticast() && ip != "255.255.255.255" {
				require.Equal(c.t, truth[ip], mac, "what %s thinks of %s", s.ns, ip)
			}
		}
		require.Equal(c.t, w.me.mac.String(), c.neighbours(s.ns, s.dev)[w.me.ip4.String()])
	}
	for ip, mac := range c.neighbours(w.x.ns, w.x.dev) {
		if netip.MustParseAddr(ip).IsMulticast() {
			continue
		}
		require.Equal(c.t, w.up.mac.String(), mac, "what X thinks of %s", ip)
	}
}

const (
	forgedText  = "this is forged"
	forgedLabel = 0xf0f6e // IPv6 flow label of messages that have no room for text
)

// isForged finds the forger's frames where they should not be.
func isForged(frame []byte) bool {
	if marked(forgedText)(frame) {
		return true
	}
	return len(frame) > 54 && frame[12] == 0x86 && frame[13] == 0xdd &&
		int(frame[15]&15)<<16|int(frame[16])<<8|int(frame[17]) == forgedLabel
}

// labelled puts the label into an IPv6 frame: it is in no checksum.
func labelled(frame []byte) []byte {
	frame[15] = frame[15]&0xf0 | forgedLabel>>16
	frame[16], frame[17] = forgedLabel>>8&0xff, forgedLabel&0xff
	return frame
}

// padded puts the text where Ethernet has its padding.
func padded(frame []byte) []byte { return append(frame, forgedText...) }

type forgery struct {
	name   string
	reason string
	frames func(w *wire) [][]byte
}

func one(frame []byte) [][]byte { return [][]byte{frame} }

var nobodysMAC = net.HardwareAddr{0x02, 0x99, 0x99, 0x99, 0x99, 0x99}

// arp is an honest question or answer of the forger's, for the cases to change.
func (w *wire) arp(reply bool, to station, change func(*lab.ARP)) []byte {
	a := lab.ARP{SrcMAC: w.me.mac, DstMAC: to.mac, Reply: reply, SenderMAC: w.me.mac, Sender: w.me.ip4, TargetMAC: to.mac, Target: to.ip4}
	change(&a)
	return padded(a.Frame())
}

// everywhere are packets with one source to the peer, the host, the world and another network.
func (w *wire) everywhere(src netip.Addr) [][]byte {
	family := 4
	if src.Is6() {
		family = 6
	}
	var list [][]byte
	for _, p := range []lab.Packet{w.me.to(w.peer, family), w.me.to(w.gw, family), w.me.by(w.gw, w.x, family), w.me.by(w.gw, w.up, family), w.me.by(w.gw, w.other, family)} {
		p.Src = src
		list = append(list, p.UDP(1000, 80, []byte(forgedText)), p.TCP(1000, 80, "S", 1, 0, []byte(forgedText)),
			p.Echo(false, 1, 1, []byte(forgedText)), p.UDP(80, 8080, []byte(forgedText)))
	}
	return list
}

// all makes frames for each of several sources.
func (w *wire) all(sources ...netip.Addr) (list [][]byte) {
	for _, src := range sources {
		list = append(list, w.everywhere(src)...)
	}
	return list
}

func addrs(list ...string) (out []netip.Addr) {
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

var allNodes = netip.MustParseAddr("ff02::1")

// nd begins a message of neighbour discovery from the forger to everybody.
func (w *wire) nd(src netip.Addr) lab.Packet {
	return lab.Packet{SrcMAC: w.me.mac, DstMAC: net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}, Src: src, Dst: allNodes}
}

var forgeries = []forgery{
	{"arp: sender's mac", "SPOOFED_ARP", func(w *wire) [][]byte {
		lie := func(a *lab.ARP) { a.SenderMAC = nobodysMAC }
		return [][]byte{w.arp(false, w.peer, lie), w.arp(true, w.peer, lie), w.arp(false, w.gw, lie), w.arp(true, w.gw, lie)}
	}},
	{"arp: sender is a peer", "SPOOFED_ARP", func(w *wire) [][]byte {
		lie := func(a *lab.ARP) { a.Sender = w.peer.ip4 }
		return [][]byte{w.arp(false, w.gw, lie), w.arp(true, w.gw, lie)}
	}},
	{"arp: sender is the gateway", "SPOOFED_ARP", func(w *wire) [][]byte {
		lie := func(a *lab.ARP) { a.Sender = w.gw.ip4 }
		return [][]byte{w.arp(false, w.peer, lie), w.arp(true, w.peer, lie)}
	}},
	{"arp: gratuitous for another", "SPOOFED_ARP", func(w *wire) (list [][]byte) {
		for _, victim := range []netip.Addr{w.peer.ip4, w.gw.ip4, w.up.ip4, w.other.ip4} {
			lie := func(a *lab.ARP) { a.DstMAC, a.Sender, a.Target, a.TargetMAC = lab.Broadcast, victim, victim, nil }
			list = append(list, w.arp(false, w.peer, lie), w.arp(true, w.peer, lie))
		}
		return list
	}},
	{"arp: answer for another", "SPOOFED_ARP", func(w *wire) [][]byte {
		return [][]byte{
			w.arp(true, w.peer, func(a *lab.ARP) { a.Sender, a.SenderMAC = w.gw.ip4, w.me.mac }),
			w.arp(true, w.gw, func(a *lab.ARP) { a.Sender, a.SenderMAC = w.peer.ip4, w.me.mac }),
			w.arp(true, w.peer, func(a *lab.ARP) { a.Sender, a.SenderMAC = w.gw.ip4, w.gw.mac }),
		}
	}},
	{"arp: frame's source", "SPOOFED_MAC", func(w *wire) [][]byte {
		return [][]byte{
			w.arp(false, w.peer, func(a *lab.ARP) { a.SrcMAC = nobodysMAC }),
			w.arp(true, w.peer, func(a *lab.ARP) { a.SrcMAC, a.SenderMAC, a.Sender = w.gw.mac, w.gw.mac, w.gw.ip4 }),
		}
	}},
	{"arp: probe for another", "SPOOFED_ARP", func(w *wire) [][]byte {
		return one(w.arp(false, w.peer, func(a *lab.ARP) {
			a.DstMAC, a.TargetMAC, a.Sender = lab.Broadcast, nil, netip.IPv4Unspecified()
		}))
	}},
	{"arp: not of Ethernet and IPv4", "SPOOFED_ARP", func(w *wire) [][]byte {
		frame := w.arp(true, w.peer, func(a *lab.ARP) { a.Sender = w.gw.ip4 })
		hardware, protocol, lengths, op := slices.Clone(frame), slices.Clone(frame), slices.Clone(frame), slices.Clone(frame)
		hardware[15], protocol[17], lengths[18], op[21] = 6, 1, 8, 4
		return [][]byte{hardware, protocol, lengths, op}
	}},
	{"arp: behind LLC", "UNSUPPORTED", func(w *wire) [][]byte {
		frame := w.arp(true, w.peer, func(a *lab.ARP) { a.Sender = w.gw.ip4 })
		snap := []byte{0, byte(len(frame) - 14 + 8), 0xaa, 0xaa, 3, 0, 0, 0, 8, 6}
		return one(slices.Concat(frame[:12], snap, frame[14:]))
	}},
	{"mac", "SPOOFED_MAC", func(w *wire) (list [][]byte) {
		for _, mac := range []net.HardwareAddr{nobodysMAC, w.peer.mac, w.gw.mac, w.up.mac, lab.Broadcast} {
			for _, family := range ipVersions {
				for _, p := range []lab.Packet{w.me.to(w.peer, family), w.me.to(w.gw, family), w.me.by(w.gw, w.x, family), w.me.by(w.gw, w.other, family)} {
					p.SrcMAC = mac
					list = append(list, p.UDP(1000, 80, []byte(forgedText)), p.TCP(1000, 80, "S", 1, 0, []byte(forgedText)))
				}
			}
		}
		return list
	}},
	{"ipv4 source", "SPOOFED_IPV4", func(w *wire) [][]byte {
		return w.all(append(addrs("127.0.0.1", "0.0.0.0", "255.255.255.255", "224.0.0.1", "10.1.0.77", "10.1.0.255", "8.8.8.8"),
			w.peer.ip4, w.gw.ip4, w.up.ip4, w.x.ip4, w.other.ip4)...)
	}},
	{"ipv4 source of an answer", "SPOOFED_IPV4", func(w *wire) [][]byte {
		p := w.me.by(w.gw, w.x, 4)
		p.Src = w.peer.ip4
		return [][]byte{p.UDP(80, 1000, []byte(forgedText)), p.TCP(80, 1000, "R", 1, 1, []byte(forgedText)), p.Echo(true, 1, 1, []byte(forgedText))}
	}},
	{"ipv4 redirect", "SPOOFED_IPV4", func(w *wire) [][]byte {
		p := w.me.to(w.peer, 4)
		p.Src = w.gw.ip4
		return one(p.ICMP(5, 1, 0, w.peer.by(w.gw, w.x, 4).UDP(1, 2, []byte(forgedText))[14:]))
	}},
	{"ipv4 source in a fragment", "SPOOFED_IPV4", func(w *wire) (list [][]byte) {
		for _, frame := range w.all(w.peer.ip4, w.gw.ip4) {
			frame[20] |= 0x20
			sum4(frame)
			list = append(list, frame)
		}
		return list
	}},
	{"ipv6 source", "SPOOFED_IPV6", func(w *wire) [][]byte {
		return w.all(append(addrs("::1", "::", "ff02::1", "fd00:1::77", "2001:db8::8888"),
			w.peer.ip6, w.gw.ip6, w.up.ip6, w.x.ip6, w.other.ip6, w.peer.local, w.gw.local)...)
	}},
	{"ipv6 source, IPv4 mapped", "MARTIAN", func(w *wire) [][]byte {
		mapped := w.me.to(w.peer, 6)
		mapped.Src = netip.AddrFrom16(w.me.ip4.As16())
		return one(mapped.UDP(1000, 80, []byte(forgedText)))
	}},
	{"ra", "SPOOFED_RA", func(w *wire) [][]byte {
		unicast := lab.Packet{SrcMAC: w.me.mac, DstMAC: w.peer.mac, Src: w.me.local, Dst: w.peer.local}
		return [][]byte{labelled(w.nd(w.me.local).RouterAdvertisement(1800, w.me.mac)), labelled(unicast.RouterAdvertisement(0, nil)),
			labelled(w.nd(w.me.ip6).RouterAdvertisement(1800, w.me.mac))}
	}},
	{"ra of the gateway", "SPOOFED_IPV6", func(w *wire) [][]byte {
		return one(labelled(w.nd(w.gw.local).RouterAdvertisement(0, w.gw.mac)))
	}},
	{"ra behind options", "SPOOFED_RA", func(w *wire) [][]byte {
		ra := labelled(w.nd(w.me.local).RouterAdvertisement(1800, w.me.mac))
		return [][]byte{extended(ra, 60, 0), extended(ra, 0, 0), extended(extended(ra, 60, 0), 60, 0), extended(ra, 44, 0)}
	}},
	{"ra in fragments", "SPOOFED_ND", func(w *wire) [][]byte {
		ra := labelled(w.nd(w.me.local).RouterAdvertisement(1800, w.me.mac))
		return [][]byte{extended(ra, 44, 1), extended(extended(ra, 60, 0), 44, 1)}
	}},
	{"redirect", "SPOOFED_RA", func(w *wire) [][]byte {
		p := lab.Packet{SrcMAC: w.me.mac, DstMAC: w.peer.mac, Src: w.me.local, Dst: w.peer.ip6, TTL: 255}
		body := slices.Concat(make([]byte, 4), w.me.local.AsSlice(), w.x.ip6.AsSlice())
		return one(labelled(p.IP(layers.IPProtocolICMPv6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(137, 0)}, gopacket.Payload(body))))
	}},
	{"na for another", "SPOOFED_ND", func(w *wire) (list [][]byte) {
		for _, victim := range []netip.Addr{w.peer.ip6, w.gw.ip6, w.gw.local, w.peer.local, w.up.ip6, netip.MustParseAddr("fd00:1::77")} {
			flags := uint8(lab.NASolicited | lab.NAOverride | lab.NARouter)
			list = append(list, labelled(w.nd(w.me.local).NeighborAdvertisement(victim, lab.NAOverride, w.me.mac)),
				labelled(w.me.to(w.peer, 6).NeighborAdvertisement(victim, flags, w.me.mac)),
				labelled(w.me.to(w.gw, 6).NeighborAdvertisement(victim, flags, w.me.mac)))
		}
		return list
	}},
	{"na with another mac", "SPOOFED_ND", func(w *wire) [][]byte {
		return [][]byte{labelled(w.me.to(w.peer, 6).NeighborAdvertisement(w.me.ip6, lab.NAOverride, nobodysMAC)),
			labelled(w.me.to(w.gw, 6).NeighborAdvertisement(w.me.ip6, lab.NAOverride, w.peer.mac))}
	}},
	{"na of another", "SPOOFED_IPV6", func(w *wire) [][]byte {
		return one(labelled(w.nd(w.gw.local).NeighborAdvertisement(w.gw.ip6, lab.NAOverride, w.me.mac)))
	}},
	{"na in fragments", "SPOOFED_ND", func(w *wire) [][]byte {
		return one(extended(labelled(w.nd(w.me.local).NeighborAdvertisement(w.gw.ip6, lab.NAOverride, w.me.mac)), 44, 1))
	}},
	{"ns with another mac", "SPOOFED_ND", func(w *wire) [][]byte {
		return [][]byte{labelled(w.me.to(w.peer, 6).NeighborSolicitation(w.peer.ip6, nobodysMAC)),
			labelled(w.me.to(w.gw, 6).NeighborSolicitation(w.gw.ip6, w.peer.mac))}
	}},
	{"ns of another", "SPOOFED_IPV6", func(w *wire) (list [][]byte) {
		for _, src := range []netip.Addr{w.peer.ip6, w.peer.local, w.gw.ip6, w.gw.local} {
			p := w.me.to(w.gw, 6)
			p.Src = src
			list = append(list, labelled(p.NeighborSolicitation(w.gw.ip6, w.me.mac)))
		}
		return list
	}},
	{"ns as if another had the address", "SPOOFED_ND", func(w *wire) [][]byte {
		return [][]byte{labelled(w.nd(netip.IPv6Unspecified()).NeighborSolicitation(w.peer.ip6, nil)),
			labelled(w.nd(netip.IPv6Unspecified()).NeighborSolicitation(w.gw.local, nil))}
	}},
	{"dhcp server", "DHCP_SERVER", func(w *wire) [][]byte {
		wide := lab.Packet{SrcMAC: w.me.mac, DstMAC: lab.Broadcast, Src: w.me.ip4, Dst: netip.MustParseAddr("255.255.255.255")}
		return [][]byte{texted(wide.DHCPOffer(w.peer.mac, w.peer.ip4)), texted(w.me.to(w.peer, 4).DHCPOffer(w.peer.mac, w.peer.ip4))}
	}},
	{"dhcp server, ipv6", "DHCP_SERVER", func(w *wire) [][]byte {
		local := lab.Packet{SrcMAC: w.me.mac, DstMAC: w.peer.mac, Src: w.me.local, Dst: w.peer.local}
		return [][]byte{local.UDP(547, 546, []byte(forgedText)), w.me.to(w.peer, 6).UDP(547, 546, []byte(forgedText))}
	}},
	{"dhcp server in fragments", "DHCP_SERVER", func(w *wire) (list [][]byte) {
		wide := lab.Packet{SrcMAC: w.me.mac, DstMAC: lab.Broadcast, Src: w.me.ip4, Dst: netip.MustParseAddr("255.255.255.255")}
		for _, frame := range [][]byte{texted(wide.DHCPOffer(w.peer.mac, w.peer.ip4)), texted(w.me.to(w.peer, 4).DHCPOffer(w.peer.mac, w.peer.ip4))} {
			frame[20] |= 0x20
			sum4(frame)
			list = append(list, frame)
		}
		local := lab.Packet{SrcMAC: w.me.mac, DstMAC: w.peer.mac, Src: w.me.local, Dst: w.peer.local}
		return append(list, extended(local.UDP(547, 546, []byte(forgedText)), 44, 1))
	}},
}

// texted puts the text into the server name of a DHCP message, and mends no
// checksum: zero is none (RFC 768).
func texted(frame []byte) []byte {
	copy(frame[14+20+8+44:], forgedText)
	frame[14+20+6], frame[14+20+7] = 0, 0
	return frame
}

// extended puts an empty extension header of a kind (0 hop-by-hop, 44 fragment,
// 60 destination options) between the IPv6 header and what follows; more says of a
// fragment that others follow.
func extended(frame []byte, kind, more byte) []byte {
	header := []byte{frame[20], 0, 1, 4, 0, 0, 0, 0} // PadN
	if kind == 44 {
		header = []byte{frame[20], 0, 0, more, 0, 0, 0, 1}
	}
	out := slices.Concat(frame[:54], header, frame[54:])
	out[20] = kind
	length := int(out[18])<<8 + int(out[19]) + len(header)
	out[18], out[19] = byte(length>>8), byte(length)
	return out
}
