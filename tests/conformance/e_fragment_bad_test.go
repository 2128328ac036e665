// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// E3: fragments that no honest sender makes do not reach a container, and do not leave one: first ones that
// are too small for what they begin, second ones that overwrite the ports, overlaps. Whole datagrams
// beside them all arrive.
//
//	X eth0 ── eth0 H ─── srv (8080:80, P:P/udp)
func TestE3Hostile(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	x, h, srv, gw := c.world(), c.uplink(), c.station(s, "n1"), c.gateway("n1")
	n := times(2000, 25)
	// The kernel keeps what remains of each hostile datagram for 30 s.
	for _, ns := range []*netns.NS{s.ns, c.Client} {
		lab.Sysctl(t, ns, "ipv4/ipfrag_high_thresh", fmt.Sprint(64<<20))
		lab.Sysctl(t, ns, "ipv6/ip6frag_high_thresh", fmt.Sprint(64<<20))
	}
	for _, family := range ipVersions {
		inS, inX := c.packets(s.ns, family), c.packets(c.Client, family)
		c.publish(s, fmt.Sprintf("%d:%d/udp", inS.port, inS.port))
		for _, w := range []struct {
			name   string
			from   station
			packet lab.Packet
			tcp    uint16
			in     *packets
			at     station
		}{
			{"to a published port", x, x.to(h, family), 8080, inS, srv},
			{"from a container", srv, srv.by(gw, x, family), 7000, inX, x},
		} {
			t.Run(fmt.Sprintf("%s, IPv%d", w.name, family), func(t *testing.T) {
				c := c.in(t)
				const evil = "evil evil evil evil evil"
				got := lab.CaptureIn(t, w.at.ns, w.at.dev, marked(evil))
				frame := w.packet.UDP(9000, w.in.port, bytes.Repeat([]byte(evil), 60))
				honest := w.packet.UDP(9000, w.in.port, bytes.Repeat([]byte("good"), 400))
				segment := w.packet.TCP(9000, w.tcp, "S", 1, 0, []byte(evil))
				head := 14 + map[int]int{4: 20, 6: 40}[family]
				piece := func(f []byte, from, to int, more bool, id uint32) []byte {
					return lab.Fragment(f[:head], f[head+from:head+to], from, more, id)
				}
				out := c.injector(w.from)
				for i := range n {
					id := uint32(8 * i) // IPv4 has 16 bits of it: by chance, a datagram would get those of a hostile one
					frames := [][]byte{
						// RFC 1858: the flags are in the second one, or are overwritten by it.
						piece(segment, 0, 8, true, id), piece(segment, 8, 44, false, id),
						piece(segment, 0, 16, true, id+1), piece(segment, 8, 44, false, id+1),
						// RFC 5722: the second overlaps the first; the third would complete it.
						piece(honest, 0, 808, true, id+2), piece(frame, 800, 1448, true, id+2), piece(honest, 808, 1608, false, id+2),
						// The overlap comes first.
						piece(frame, 800, 1448, true, id+3), piece(honest, 792, 1608, false, id+3), piece(honest, 0, 808, true, id+3),
						// No multiple of 8.
						piece(frame, 0, 804, true, id+4), piece(frame, 804, 1448, false, id+4),
					}
					frames = append(frames, lab.Fragments(honest, 808, id+5)...)
					require.NoError(t, out.Send(frames...))
					w.in.from(t, bytes.Repeat([]byte("good"), 400))
				}
				require.Zero(t, got.Count(), lab.Describe(got.Frames()))
				require.NotZero(t, c.drops("FRAGMENT"))
			})
		}
	}
}

// E3: a flood of fragments that belong to nothing evicts no flow, and stops no datagram whose fragments come
// in order.
func TestE3Flood(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	x, h, srv, gw := c.world(), c.uplink(), c.station(s, "n1"), c.gateway("n1")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	talks := []*dialogue{c.talking("tcp", c.Client, at(lab.HostIPv4, 8080), "srv"), c.talking("udp", c.Client, at(lab.HostIPv6, 8080), "srv"),
		c.talking("udp", s.ns, at(lab.ClientIPv4, 7000), "world")}
	flows := func() int {
		list, err := c.m.Flows(control.FlowFilter{})
		require.NoError(t, err)
		return len(list)
	}
	for _, family := range ipVersions {
		in := c.packets(s.ns, family)
		c.publish(s, fmt.Sprintf("%d:%d/udp", in.port, in.port))
		payload := bytes.Repeat([]byte("in order"), 300)
		datagram := x.to(h, family).UDP(9000, in.port, payload)
		out := c.injector(x)
		whole := func() {
			frames := lab.Fragments(datagram, 1024, rand.Uint32()|1)
			require.NoError(t, out.Send(frames...))
			in.from(t, payload)
		}
		whole()
		before := flows()
		junk := []struct {
			station
			frame []byte
		}{{x, x.to(h, family).UDP(1, in.port, make([]byte, 64))}, {srv, srv.by(gw, x, family).UDP(1, 7001, make([]byte, 64))}}
		head := 14 + map[int]int{4: 20, 6: 40}[family]
		const burst = 500
		for range times(100_000, 4000) / burst {
			for _, from := range junk {
				require.NoError(t, lab.InjectEach(from.ns, from.dev, burst/2, func(i int) []byte {
					f := bytes.Clone(from.frame[:head])
					if family == 4 && i%2 == 0 { // of many senders; the container has but one address
						copy(f[14+12:], netip.AddrFrom4([4]byte{203, 0, 113, byte(3 + rand.IntN(250))}).AsSlice())
					}
					return lab.Fragment(f, from.frame[head:head+64], 64*(1+rand.IntN(200)), i%3 > 0, rand.Uint32()&^1) // none that whole has
				}))
			}
			whole()
		}
		unharmed(talks...)
		require.Equal(t, before, flows())
	}
	over(talks...)
}

// E3: datagrams of the host's own, of which nothing is published, come whole in whatever order their
// fragments do, there and back.
func TestE3Host(t *testing.T) {
	parallel(t)
	c, _, _, _ := ownCast(t)
	x, h := c.world(), c.uplink()
	n := times(2000, 15)
	for _, family := range ipVersions {
		for name, order := range orders {
			t.Run(fmt.Sprintf("IPv%d, %s", family, name), func(t *testing.T) {
				c := c.in(t)
				inH, inX := c.packets(c.Host, family), c.packets(c.Client, family)
				c.fragmented(x, x.to(h, family), order, 9000, inH.port, inH, n)
				c.fragmented(h, h.to(x, family), order, 9000, inX.port, inX, n)
			})
		}
	}
	require.Zero(t, c.drops("FRAGMENT"))
}
