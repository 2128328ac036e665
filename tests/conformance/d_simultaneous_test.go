// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// D8: two ends that connect to each other at the same time, one of them masqueraded: the SYNs cross, each is
// answered, and the connection is open (RFC 9293 section 3.5, figure 7). The far end is the test's own, packet
// by packet, because a kernel would have to know the masqueraded port in advance; the container's is a real socket.
//
//	srv connect() ── SYN ──► H ── SYN ──► far
//	              ◄── SYN ───── ◄── SYN ──
//	              ── SYN-ACK ──► ◄── SYN-ACK ──
func TestD8(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t)
	x, h := c.world(), c.uplink()
	for i, family := range ipVersions {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			c := c.in(t)
			// An address that X's kernel does not have, so that it says nothing.
			far := netip.MustParseAddr([]string{"203.0.113.50", "2001:db8:113::50"}[i])
			c.knows(c.Host, h.dev, far, x.mac)
			heard := lab.CaptureIn(t, x.ns, x.dev, func(f []byte) bool {
				p := tcpOf(f)
				return p != nil && p.DstPort == 5000
			})
			next := func(n int, what string) *layers.TCP {
				t.Helper()
				require.True(t, heard.Wait(n, wait), "%s: %s", what, lab.Describe(heard.Frames()))
				return tcpOf(heard.Frames()[n-1])
			}
			opened := make(chan error, 1)
			var conn *net.TCPConn
			go func() {
				k, err := lab.Dial(s.ns, "tcp", "", at(far, 5000), wait)
				if err == nil {
					conn = k.Conn.(*net.TCPConn)
				}
				opened <- err
			}()
			syn := next(1, "the container's SYN")
			require.True(t, syn.SYN && !syn.ACK)
			say := func(flags string, seq, ack uint32, payload string) {
				t.Helper()
				p := x.to(h, family)
				p.Src = far
				require.NoError(t, lab.Inject(x.ns, x.dev, p.TCP(5000, uint16(syn.SrcPort), flags, seq, ack, []byte(payload)), 1))
			}
			const ours = 1_000_000
			say("S", ours, 0, "")
			answer := next(2, "the container's answer to the SYN that crossed its own")
			require.True(t, answer.SYN && answer.ACK, "%v", answer)
			require.EqualValues(t, ours+1, answer.Ack)
			require.Equal(t, syn.SrcPort, answer.SrcPort)
			say("SA", ours, syn.Seq+1, "")
			require.NoError(t, <-opened)
			defer conn.Close()

			// Both ways, and for good.
			_, err := conn.Write([]byte("from the container"))
			require.NoError(t, err)
			require.True(t, soon(func() bool { return len(payloads(heard.Frames())) > 0 }))
			require.Equal(t, "from the container", payloads(heard.Frames())[0])
			say("PA", ours+1, syn.Seq+1+uint32(len("from the container")), "from far")
			buf := make([]byte, 100)
			require.NoError(t, conn.SetReadDeadline(time.Now().Add(wait)))
			n, err := conn.Read(buf)
			require.NoError(t, err)
			require.Equal(t, "from far", string(buf[:n]))
			k := &connection{client: conn, asked: netip.AddrPortFrom(far, 5000)}
			require.True(t, soon(func() bool { return c.flow(k).State == "established" }), "%v", c.flow(k))
			require.Equal(t, "masquerade", c.flow(k).Kind)
		})
	}
}

// payloads are those of the TCP frames that have one.
func payloads(frames [][]byte) (list []string) {
	for _, f := range frames {
		if p := tcpOf(f); p != nil && len(p.Payload) > 0 && p.PSH {
			list = append(list, string(p.Payload))
		}
	}
	return list
}
