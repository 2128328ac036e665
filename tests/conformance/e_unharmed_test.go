// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// tosOf is a frame's traffic class: DSCP and ECN (RFC 2474, RFC 3168).
func tosOf(frame []byte) uint8 {
	switch ip := lab.Decode(frame).NetworkLayer().(type) {
	case *layers.IPv4:
		return ip.TOS
	case *layers.IPv6:
		return ip.TrafficClass
	}
	return 0
}

// E12: DSCP and ECN of whatever is translated, and TCP's header beyond ports and checksum, arrive as they were
// sent, there and back: with real connections, which have timestamps, SACK and window scaling, and with what no
// kernel would send.
//
//	X eth0 ── eth0 H ── srv (P:P)
func TestE12Headers(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	x, h, srv, gw := c.world(), c.uplink(), c.station(s, "n1"), c.gateway("n1")
	for _, family := range ipVersions {
		for name, k := range c.connections(family, s) {
			t.Run(fmt.Sprintf("%s, IPv%d", name, family), func(t *testing.T) {
				// What both ends send and get, in the order of a lossless wire.
				port := uint16(k.listener.Addr().(*net.TCPAddr).Port)
				ours := func(f []byte) bool {
					p := tcpOf(f)
					return p != nil && (uint16(p.SrcPort) == port || uint16(p.DstPort) == port)
				}
				here, there := lab.StartCapture(t, k.from.ns, k.from.dev, ours), lab.StartCapture(t, k.to.ns, k.to.dev, ours)
				k.open(t, 0)
				const class = 0xb8 // EF
				for _, conn := range []*net.TCPConn{k.client, k.server} {
					raw, err := conn.SyscallConn()
					require.NoError(t, err)
					level, option := unix.IPPROTO_IP, unix.IP_TOS
					if family == 6 {
						level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
					}
					require.NoError(t, setOption(raw, level, option, class))
				}
				for i := range 5 {
					k.there(t, fmt.Sprint("there ", i))
					k.back(t, fmt.Sprint("back ", i))
				}
				require.NoError(t, k.client.Close())
				_, err := k.serverLines.ReadString('\n')
				require.Error(t, err)
				require.NoError(t, k.server.Close())
				require.True(t, soon(func() bool { return c.flow(k).State == "closing" && here.Count() == there.Count() }))
				for _, fromClient := range []bool{true, false} {
					a, b := headersOf(here.Frames(), port, fromClient), headersOf(there.Frames(), port, fromClient)
					require.NotEmpty(t, a)
					require.Equal(t, a, b)
					for _, want := range []string{"WindowScale", "SACKPermitted", "MSS"} {
						require.Contains(t, a[0], want)
					}
					require.Contains(t, a[len(a)-1], "Timestamps")
					require.Contains(t, a[len(a)-2], fmt.Sprintf("tos %#x", class))
				}
			})
		}
		// Every code point, by packets of every kind.
		c.publish(s, fmt.Sprintf("%d:80/udp", 8100+family))
		type way struct {
			name   string
			at, to station
			packet lab.Packet
			port   uint16
		}
		for _, w := range []way{
			{"to a published port", x, srv, x.to(h, family), uint16(8100 + family)},
			{"from a container", srv, x, srv.by(gw, x, family), 7000},
		} {
			t.Run(fmt.Sprintf("code points %s, IPv%d", w.name, family), func(t *testing.T) {
				got := lab.CaptureIn(t, w.to.ns, w.to.dev, func(f []byte) bool {
					_, _, port := transportOf(f) // not the errors about answers
					return (port == 80 || port == 7000) && marked("code point")(f)
				})
				var frames [][]byte
				for tos := range 256 {
					w.packet.TOS = uint8(tos)
					frames = append(frames, w.packet.UDP(9000, w.port, fmt.Appendf(nil, "code point %3d", tos)))
				}
				require.NoError(t, lab.InjectEach(w.at.ns, w.at.dev, len(frames), func(i int) []byte { return frames[i] }))
				require.True(t, got.Wait(len(frames), wait))
				for tos, f := range got.Frames() {
					require.Contains(t, string(f), fmt.Sprintf("code point %3d", tos))
					require.EqualValues(t, tos, tosOf(f))
				}
			})
		}
	}
}

// headersOf is a line for every packet of one side: all of its TCP header but ports and checksum, and its class.
func headersOf(frames [][]byte, server uint16, fromClient bool) (list []string) {
	for _, f := range frames {
		p := tcpOf(f)
		if p == nil || (uint16(p.DstPort) == server) != fromClient {
			continue
		}
		options := ""
		for _, o := range p.Options {
			options += fmt.Sprintf(" %s %x", o.OptionType, o.OptionData)
		}
		list = append(list, fmt.Sprintf("tos %#x seq %d ack %d flags %v window %d urgent %d%s data %q", tosOf(f), p.Seq, p.Ack,
			[]bool{p.SYN, p.ACK, p.FIN, p.RST, p.PSH, p.URG, p.ECE, p.CWR, p.NS}, p.Window, p.Urgent, options, p.Payload))
	}
	return list
}

// E12: options and flags that no kernel sends pass as they are; a datagram without a checksum has none when it
// arrives, and is read.
func TestE12Strange(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	x, h, srv, gw := c.world(), c.uplink(), c.station(s, "n1"), c.gateway("n1")
	for _, family := range ipVersions {
		for _, w := range []struct {
			name   string
			at, to station
			packet lab.Packet
			port   uint16
		}{
			{"to a published port", x, srv, x.to(h, family), 8080},
			{"from a container", srv, x, srv.by(gw, x, family), 7000},
		} {
			t.Run(fmt.Sprintf("%s, IPv%d", w.name, family), func(t *testing.T) {
				got := lab.CaptureIn(t, w.to.ns, w.to.dev, marked("strange"))
				segments := []*layers.TCP{
					{SYN: true, ECE: true, CWR: true, Window: 1, Options: []layers.TCPOption{{OptionType: 30, OptionLength: 12, OptionData: []byte("multipath!")}}},
					{SYN: true, NS: true, URG: true, Urgent: 7, Options: []layers.TCPOption{{OptionType: 34, OptionLength: 10, OptionData: []byte("fastopen")}}},
					{SYN: true, PSH: true, Options: []layers.TCPOption{{OptionType: 254, OptionLength: 38, OptionData: bytes.Repeat([]byte{0xa5}, 36)}, {OptionType: 1}, {OptionType: 0}}},
					{SYN: true, Options: slices.Repeat([]layers.TCPOption{{OptionType: 1}}, 40)},
				}
				for i, tcp := range segments {
					tcp.SrcPort, tcp.DstPort, tcp.Seq = layers.TCPPort(9000+i), layers.TCPPort(w.port), uint32(i)
					frame := w.packet.IP(layers.IPProtocolTCP, tcp, gopacket.Payload("strange"))
					require.NoError(t, lab.Inject(w.at.ns, w.at.dev, frame, 1))
					require.True(t, got.Wait(i+1, wait))
					f := got.Frames()[i]
					require.True(t, rightSum(f), lab.Describe([][]byte{f}))
					sent, arrived := tcpOf(frame), tcpOf(f)
					require.Equal(t, sent.Contents[4:16], arrived.Contents[4:16], "sequence, flags, window")
					require.Equal(t, sent.Contents[18:], arrived.Contents[18:], "urgent pointer, options")
				}
			})
		}
	}
	in, out := c.packets(s.ns, 4), c.packets(c.Client, 4)
	c.publish(s, fmt.Sprintf("%d:%d/udp", in.port, in.port))
	for _, w := range []struct {
		at     station
		packet lab.Packet
		in     *packets
		to     station
		from   netip.Addr
	}{{x, x.to(h, 4), in, srv, x.ip4}, {srv, srv.by(gw, x, 4), out, x, h.ip4}} {
		got := lab.CaptureIn(t, w.to.ns, w.to.dev, marked("no checksum"))
		f := w.packet.UDP(9000, w.in.port, []byte("no checksum"))
		f[14+20+6], f[14+20+7] = 0, 0
		require.NoError(t, lab.Inject(w.at.ns, w.at.dev, f, 1))
		require.Equal(t, w.from, w.in.from(t, []byte("no checksum")).Addr())
		require.True(t, got.Wait(1, wait))
		require.Equal(t, []byte{0, 0}, got.Frames()[0][14+20+6:14+20+8])
	}
}

// E12: frames of a VLAN are another network's: what is published is not reached by them, nor anything dropped.
func TestE12VLAN(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	x, h, srv := c.world(), c.uplink(), c.station(s, "n1")
	for _, family := range ipVersions {
		got := lab.CaptureIn(t, srv.ns, srv.dev, func(f []byte) bool {
			_, _, port := transportOf(f) // not the errors about answers
			return port == 80 && marked("in a VLAN")(f)
		})
		plain := x.to(h, family).UDP(9000, 8080, []byte("in a VLAN, or not"))
		vlan := slices.Insert(slices.Clone(plain), 12, 0x81, 0x00, 0x00, 0x05)
		direct := slices.Insert(x.by(h, srv, family).UDP(9000, 80, []byte("in a VLAN, to a container")), 12, 0x81, 0x00, 0x00, 0x05)
		before, err := c.m.Status()
		require.NoError(t, err)
		frames := [][]byte{vlan, direct}
		require.NoError(t, lab.InjectEach(x.ns, x.dev, 200, func(i int) []byte { return frames[i%2] }))
		require.NoError(t, lab.Inject(x.ns, x.dev, plain, 1))
		require.True(t, got.Wait(1, wait), "the one without a tag")
		require.Equal(t, 1, got.Count(), lab.Describe(got.Frames()))
		after, err := c.m.Status()
		require.NoError(t, err)
		require.Equal(t, before.Drops, after.Drops)
		got.Stop()
	}
}
