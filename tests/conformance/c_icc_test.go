// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// C1: peers reach any port of each other, and see each other.
func TestC1(t *testing.T) {
	parallel(t)
	c, s, p, _ := mainCast(t)
	c.serve(s, 99)
	for _, port := range []int{80, 99} {
		c.answers(p.ns, at(s.ip4, port), "srv", p.ip4.String())
		c.answers(p.ns, at(s.ip6, port), "srv", p.ip6.String())
		c.answers(p.ns, at(c.scoped(c.station(s, "n1"), p.ns, "eth0"), port), "srv", "")
	}
	for _, to := range []string{s.ip4.String(), s.ip6.String(), c.scoped(c.station(s, "n1"), p.ns, "eth0").String()} {
		require.NoError(t, lab.Ping(p.ns, to, wait), to)
		_, err := lab.Echo{To: to, Size: 1400, Wait: wait}.Send(p.ns)
		require.NoError(t, err, to)
	}
}

func iccOff(o *control.NetworkOptions) { off := false; o.ICC = &off }

// iccCast is n1 with icc off: srv (published), peer and linked, which has a link to srv.
func iccCast(t testing.TB, opts ...lab.Option) (c *cast, s, p, l *actor) {
	t.Helper()
	c = newCast(t, opts...)
	c.linkable("n1", 1, true)
	s, p = c.container("srv", "n1", publish("8080:80", "8080:80/udp")), c.container("peer", "n1")
	l = c.container("linked", "n1", func(o *control.ContainerOptions) { o.Links = []string{"srv:db"} })
	for _, a := range []*actor{s, p, l} {
		c.serve(a, 80)
		c.serve(a, 99)
	}
	return c, s, p, l
}

// C2: with icc off nothing of a peer's arrives, by whatever protocol, while the
// gateway and linked peers are resolved and reached.
func TestC2(t *testing.T) {
	parallel(t)
	c, s, p, l := iccCast(t)
	lab.ServeTCP(t, c.Host, "host", ":9000")
	lab.ServeUDP(t, c.Host, "host", ":9000")
	ps, ss, gw := c.station(p, "n1"), c.station(s, "n1"), c.gateway("n1")
	arrived := lab.CaptureIn(t, s.ns, ss.dev, ps.mentions)
	none := func(t testing.TB) {
		t.Helper()
		require.Empty(t, arrived.Frames(), lab.Describe(arrived.Frames()))
	}
	gateway := reaches(p.ns, at(gw.ip4, 9000), at(gw.ip6, 9000))

	t.Run("gateway and linked peers", func(t *testing.T) {
		c := c.in(t)
		c.answers(l.ns, at(s.ip4, 80), "srv", l.ip4.String())
		c.answers(l.ns, at(s.ip6, 80), "srv", l.ip6.String())
		require.Equal(t, ss.mac.String(), c.neighbours(l.ns, "eth0")[s.ip4.String()])
		require.Equal(t, ss.mac.String(), c.neighbours(l.ns, "eth0")[s.ip6.String()])
		for _, to := range []string{at(gw.ip4, 9000), at(gw.ip6, 9000), at(c.scoped(gw, p.ns, "eth0"), 9000)} {
			c.answersBy("tcp", p.ns, "", to, "host", "")
		}
		require.Equal(t, gw.mac.String(), c.neighbours(p.ns, "eth0")[gw.ip4.String()])
		none(t)
	})
	// As p's own stack does it: the question who has that address is not answered.
	t.Run("sockets", func(t *testing.T) {
		c := c.in(t)
		before := c.drops("ICC_DENIED")
		c.allSilent(doors(p.ns, []netip.Addr{s.ip4, s.ip6, c.scoped(ss, p.ns, "eth0")}, 80, 99), gateway)
		require.Greater(t, c.drops("ICC_DENIED"), before)
		none(t)
	})
	// p knows the MAC: packets, not questions, are what is denied.
	t.Run("sockets, neighbour known", func(t *testing.T) {
		c := c.in(t)
		for _, to := range []netip.Addr{s.ip4, s.ip6, ss.local} {
			c.knows(p.ns, "eth0", to, ss.mac)
		}
		for _, to := range []netip.Addr{s.ip4, s.ip6, c.scoped(ss, p.ns, "eth0")} {
			before := c.drops("ICC_DENIED")
			c.allSilent(doors(p.ns, []netip.Addr{to}, 80), gateway)
			require.GreaterOrEqual(t, c.drops("ICC_DENIED"), before+3, to)
		}
		none(t)
	})
	t.Run("sockets, by the gateway", func(t *testing.T) {
		c := c.in(t)
		lab.AddRoute(t, p.ns, s.ip4.String()+"/32", gw.ip4.String())
		lab.AddRoute(t, p.ns, s.ip6.String()+"/128", gw.ip6.String())
		for _, to := range []netip.Addr{s.ip4, s.ip6} {
			before := c.drops("ICC_DENIED")
			c.allSilent(doors(p.ns, []netip.Addr{to}, 80), gateway)
			require.GreaterOrEqual(t, c.drops("ICC_DENIED"), before+3, to)
		}
		none(t)
	})

	// The same frames between two containers with icc on are the positive control.
	c.network("open", 3, true)
	q, r := c.container("open1", "open"), c.container("open2", "open")
	qs, rs := c.station(q, "open"), c.station(r, "open")
	for _, f := range peerFrames {
		t.Run(f.name, func(t *testing.T) {
			c := c.in(t)
			n := times(10_000, 20)
			seen := lab.CaptureIn(t, r.ns, rs.dev, func(frame []byte) bool { return f.is(frame, qs) })
			require.NoError(t, lab.Inject(q.ns, qs.dev, f.frame(qs, rs), n))
			if f.open {
				require.True(t, seen.Wait(n, wait), "icc on: %s", lab.Describe(seen.Frames()))
			}

			// What leaves the container is what the host's end of the cable gets.
			left := lab.CaptureIn(t, c.Host, c.endpoint("peer", "n1").HostIf, func(frame []byte) bool { return f.is(frame, ps) })
			reason := f.reason
			if reason == "" {
				reason = "ICC_DENIED"
			}
			before := c.drops(reason)
			require.NoError(t, lab.Inject(p.ns, ps.dev, f.frame(ps, ss), n))
			require.True(t, left.Wait(n, wait), "%d of %d left", left.Count(), n)
			eventually(t, reason, func() bool { return c.drops(reason) >= before+uint64(n) })
			require.NoError(t, gateway())
			none(t)
		})
	}
}

// peerFrame is something that one container may send to another.
type peerFrame struct {
	name   string
	frame  func(from, to station) []byte
	is     func(frame []byte, from station) bool // of from's, as it arrives
	open   bool                                  // arrives with icc on
	reason string                                // "": ICC_DENIED
}

const peerText = "from one container to another"

// ownEthertype is IEEE 802's "local experimental ethertype 1".
const ownEthertype = 0x88b5

func carriesText(frame []byte, _ station) bool { return marked(peerText)(frame) }

func namesSender(frame []byte, from station) bool {
	d := lab.Decode(frame)
	arp, nd := d.Layer(layers.LayerTypeARP), d.Layer(layers.LayerTypeICMPv6NeighborSolicitation)
	na := d.Layer(layers.LayerTypeICMPv6NeighborAdvertisement)
	return (arp != nil || nd != nil || na != nil) && from.mentions(frame)
}

var multicastMAC4 = []byte{0x01, 0, 0x5e, 0, 0, 0xfb}
var multicastMAC6 = []byte{0x33, 0x33, 0, 0, 0, 0xfb}

var peerFrames = []peerFrame{
	{name: "udp4", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 4).UDP(1000, 99, []byte(peerText)) }},
	{name: "udp6", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 6).UDP(1000, 99, []byte(peerText)) }},
	{name: "tcp4", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 4).TCP(1000, 99, "S", 1, 0, []byte(peerText)) }},
	{name: "tcp6", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 6).TCP(1000, 99, "S", 1, 0, []byte(peerText)) }},
	{name: "tcp4 ack", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 4).TCP(1001, 99, "A", 1, 1, []byte(peerText)) }},
	{name: "icmp", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 4).Echo(false, 1, 1, []byte(peerText)) }},
	{name: "icmp reply", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 4).Echo(true, 2, 1, []byte(peerText)) }},
	{name: "icmp error", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 4).ICMP(3, 1, 0, []byte(peerText)) }},
	{name: "icmpv6", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 6).Echo(false, 1, 1, []byte(peerText)) }},
	{name: "icmpv6 error", open: true, is: carriesText, frame: func(f, to station) []byte { return f.to(to, 6).ICMP(1, 0, 0, []byte(peerText)) }},
	{name: "gre", open: true, is: carriesText, frame: func(f, to station) []byte {
		return f.to(to, 4).IP(layers.IPProtocolGRE, gopacket.Payload(peerText))
	}},
	{name: "fragment", open: true, is: carriesText, frame: func(f, to station) []byte {
		const eight = "..." // the length is a multiple of 8
		return lab.Fragments(f.to(to, 4).UDP(1000, 99, []byte(peerText+eight+"the second one")), len(peerText+eight)+8, 7)[0]
	}},
	{name: "link-local", open: true, is: carriesText, frame: func(f, to station) []byte {
		return lab.Packet{SrcMAC: f.mac, DstMAC: to.mac, Src: f.local, Dst: to.local}.UDP(1000, 99, []byte(peerText))
	}},
	{name: "ethernet", is: carriesText, frame: func(f, to station) []byte {
		return lab.Frame(&layers.Ethernet{SrcMAC: f.mac, DstMAC: to.mac, EthernetType: ownEthertype}, gopacket.Payload(peerText))
	}},
	{name: "ethernet broadcast", is: carriesText, frame: func(f, to station) []byte {
		return lab.Frame(&layers.Ethernet{SrcMAC: f.mac, DstMAC: lab.Broadcast, EthernetType: ownEthertype}, gopacket.Payload(peerText))
	}},
	{name: "vlan", is: carriesText, reason: "UNSUPPORTED", frame: func(f, to station) []byte {
		return tagged(f.to(to, 4).UDP(1000, 99, []byte(peerText)), layers.EthernetTypeDot1Q)
	}},
	{name: "two vlans", is: carriesText, reason: "UNSUPPORTED", frame: func(f, to station) []byte {
		return tagged(tagged(f.to(to, 6).UDP(1000, 99, []byte(peerText)), layers.EthernetTypeDot1Q), layers.EthernetTypeQinQ)
	}},
	{name: "broadcast", open: true, is: carriesText, frame: func(f, to station) []byte {
		return lab.Packet{SrcMAC: f.mac, DstMAC: lab.Broadcast, Src: f.ip4, Dst: netip.MustParseAddr("255.255.255.255")}.UDP(1000, 99, []byte(peerText))
	}},
	{name: "subnet broadcast", open: true, is: carriesText, frame: func(f, to station) []byte {
		subnet := f.ip4.As4()
		subnet[3] = 255
		return lab.Packet{SrcMAC: f.mac, DstMAC: lab.Broadcast, Src: f.ip4, Dst: netip.AddrFrom4(subnet)}.UDP(1000, 99, []byte(peerText))
	}},
	{name: "unicast in a broadcast frame", open: true, is: carriesText, frame: func(f, to station) []byte {
		return lab.Packet{SrcMAC: f.mac, DstMAC: lab.Broadcast, Src: f.ip4, Dst: to.ip4}.UDP(1000, 99, []byte(peerText))
	}},
	{name: "multicast", open: true, is: carriesText, frame: func(f, to station) []byte {
		return lab.Packet{SrcMAC: f.mac, DstMAC: multicastMAC4, Src: f.ip4, Dst: netip.MustParseAddr("224.0.0.251")}.UDP(5353, 5353, []byte(peerText))
	}},
	{name: "multicast6", open: true, is: carriesText, frame: func(f, to station) []byte {
		return lab.Packet{SrcMAC: f.mac, DstMAC: multicastMAC6, Src: f.local, Dst: netip.MustParseAddr("ff02::fb")}.UDP(5353, 5353, []byte(peerText))
	}},
	{name: "arp for a peer", open: true, is: namesSender, frame: func(f, to station) []byte {
		return lab.ARP{SrcMAC: f.mac, DstMAC: lab.Broadcast, SenderMAC: f.mac, Sender: f.ip4, Target: to.ip4}.Frame()
	}},
	{name: "arp reply to a peer", open: true, is: namesSender, frame: func(f, to station) []byte {
		return lab.ARP{SrcMAC: f.mac, DstMAC: to.mac, Reply: true, SenderMAC: f.mac, Sender: f.ip4, TargetMAC: to.mac, Target: to.ip4}.Frame()
	}},
	{name: "nd for a peer", open: true, is: namesSender, frame: func(f, to station) []byte {
		group := to.ip6.As16()
		snm := netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 12: 0xff, 13: group[13], 14: group[14], 15: group[15]})
		mac := []byte{0x33, 0x33, 0xff, group[13], group[14], group[15]}
		return lab.Packet{SrcMAC: f.mac, DstMAC: mac, Src: f.ip6, Dst: snm}.NeighborSolicitation(to.ip6, f.mac)
	}},
	{name: "nd unicast to a peer", open: true, is: namesSender, frame: func(f, to station) []byte {
		return f.to(to, 6).NeighborSolicitation(to.ip6, f.mac)
	}},
	{name: "na to a peer", open: true, is: namesSender, frame: func(f, to station) []byte {
		return f.to(to, 6).NeighborAdvertisement(f.ip6, lab.NASolicited|lab.NAOverride, f.mac)
	}},
}

// tagged puts a frame into VLAN 5.
func tagged(frame []byte, ethertype layers.EthernetType) []byte {
	tag := []byte{byte(ethertype >> 8), byte(ethertype), 0, 5}
	return slices.Concat(frame[:12], tag, frame[12:])
}

// sum4 makes the checksum of a frame's IPv4 header right again.
func sum4(frame []byte) {
	frame[24], frame[25] = 0, 0
	var sum uint32
	for i := 14; i < 34; i += 2 {
		sum += uint32(frame[i])<<8 | uint32(frame[i+1])
	}
	sum = sum>>16 + sum&0xffff
	sum = ^(sum>>16 + sum)
	frame[24], frame[25] = byte(sum>>8), byte(sum)
}

// C3: icc off takes nothing from published ports, the world and the host.
func TestC3(t *testing.T) {
	parallel(t)
	c, s, p, _ := iccCast(t)
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	c.answers(p.ns, at(lab.HostIPv4, 8080), "srv", "")
	c.answers(p.ns, at(lab.HostIPv6, 8080), "srv", "")
	c.answers(s.ns, at(lab.ClientIPv4, 7000), "world", lab.HostIPv4)
	c.answers(s.ns, at(lab.ClientIPv6, 7000), "world", lab.HostIPv6)
	require.NoError(t, lab.Ping(s.ns, lab.ClientIPv4, wait))
	require.NoError(t, lab.Ping(s.ns, lab.ClientIPv6, wait))
	for _, port := range []int{80, 99} {
		c.answers(c.Host, at(s.ip4, port), "srv", "10.1.0.1")
		c.answers(c.Host, at(s.ip6, port), "srv", "fd00:1::1")
	}
	require.NoError(t, lab.Ping(c.Host, s.ip4.String(), wait))
	require.NoError(t, lab.Ping(c.Host, s.ip6.String(), wait))
	// And is off: the same ports by the container's own address.
	c.silent(p.ns, at(s.ip4, 80), works(p.ns, at(lab.HostIPv4, 8080)))
	c.silent(p.ns, at(s.ip6, 80), works(p.ns, at(lab.HostIPv6, 8080)))
}

// C5: containers of two networks do not reach each other.
func TestC5(t *testing.T) {
	parallel(t)
	c, s, p, o := ownCast(t)
	c.serve(s, 99)
	ss, os, gw2 := c.station(s, "n1"), c.station(o, "n2"), c.gateway("n2")
	arrived := lab.CaptureIn(t, s.ns, ss.dev, os.mentions)
	for _, to := range []netip.Addr{s.ip4, s.ip6} {
		before := c.drops("ISOLATED")
		c.allSilent(doors(o.ns, []netip.Addr{to}, 80, 99), func() error {
			return reaches(p.ns, at(to, 80), at(to, 99))()
		})
		require.GreaterOrEqual(t, c.drops("ISOLATED"), before+5, to)
	}
	// Whatever the frame's destination: the gateway's MAC, the server's, everybody's.
	n := times(10_000, 20)
	for _, family := range ipVersions {
		for _, mac := range [][]byte{gw2.mac, ss.mac, lab.Broadcast} {
			for _, frame := range [][]byte{
				lab.Packet{SrcMAC: os.mac, DstMAC: mac, Src: os.addr(family), Dst: ss.addr(family)}.UDP(1000, 80, []byte(peerText)),
				lab.Packet{SrcMAC: os.mac, DstMAC: mac, Src: os.addr(family), Dst: ss.addr(family)}.TCP(1000, 80, "A", 1, 1, []byte(peerText)),
				lab.Packet{SrcMAC: os.mac, DstMAC: mac, Src: os.addr(family), Dst: ss.addr(family)}.Echo(false, 1, 1, []byte(peerText)),
				lab.Packet{SrcMAC: os.mac, DstMAC: mac, Src: os.addr(family), Dst: ss.addr(family)}.ICMP(3, 1, 0, []byte(peerText)),
			} {
				before := c.drops("ISOLATED")
				require.NoError(t, lab.Inject(o.ns, os.dev, frame, n))
				if netfilter() && !bytes.Equal(mac, gw2.mac) {
					continue // stays on n2, where nobody has that address: nothing to count
				}
				eventually(t, "ISOLATED", func() bool { return c.drops("ISOLATED") >= before+uint64(n) })
			}
		}
	}
	require.Empty(t, arrived.Frames(), lab.Describe(arrived.Frames()))
	beside := lab.CaptureIn(t, s.ns, ss.dev, marked(peerText))
	require.NoError(t, lab.Inject(p.ns, "eth0", c.station(p, "n1").to(ss, 4).UDP(1000, 80, []byte(peerText)), 1))
	require.True(t, beside.Wait(1, wait), "a peer's frame")

	t.Run("isolate off", func(t *testing.T) {
		c := c.in(t)
		open := func(o *control.NetworkOptions) { off := false; o.Isolate = &off }
		c.network("n4", 4, true, open)
		c.network("n5", 5, true, open)
		a, b := c.container("first", "n4"), c.container("second", "n5")
		c.serve(b, 80)
		c.answers(a.ns, at(b.ip4, 80), "second", a.ip4.String())
		c.answers(a.ns, at(b.ip6, 80), "second", a.ip6.String())
		require.NoError(t, lab.Ping(a.ns, b.ip4.String(), wait))
		c.silent(a.ns, at(s.ip4, 80), works(p.ns, at(s.ip4, 80)))
		c.silent(a.ns, at(s.ip6, 80), works(p.ns, at(s.ip6, 80)))
	})
}

// C7: the host reaches every port of a container, published or not.
func TestC7(t *testing.T) {
	parallel(t)
	c, s, _, o := mainCast(t)
	c.serve(s, 99)
	for _, port := range []int{80, 99} {
		c.answers(c.Host, at(s.ip4, port), "srv", "10.1.0.1")
		c.answers(c.Host, at(s.ip6, port), "srv", "fd00:1::1")
	}
	c.answers(c.Host, at(o.ip4, 80), "other", "10.2.0.1")
	for _, to := range []netip.Addr{s.ip4, s.ip6, c.scoped(c.station(s, "n1"), c.Host, c.gateway("n1").dev)} {
		require.NoError(t, lab.Ping(c.Host, to.String(), wait), to)
	}
	c.answers(c.Host, at(c.scoped(c.station(s, "n1"), c.Host, c.gateway("n1").dev), 99), "srv", "")
}
