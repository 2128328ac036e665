// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// A8: 127.0.0.0/8 and ::1 are reached from the host alone. X and a container send
// there through H, crafted and by sockets that have a route; H's kernel would take
// such packets (route_localnet). What is published on loopback, on all addresses, and
// a service of the host's on loopback get 0 of 10,000.
//
//	X 203.0.113.2 ──► H 127.0.0.1:8081, 127.0.0.2:8080, 127.0.0.1:5300, [::1]:8081 ◄── p 10.1.0.3
func TestA8(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	c.publish(s, "[::1]:8081:80", "[::1]:8081:80/udp")
	lab.Sysctl(t, c.Host, "ipv4/conf/all/route_localnet", "1")
	services := []*lab.Server{
		lab.ServeTCP(t, c.Host, "loopback", "127.0.0.1:5300"), lab.ServeUDP(t, c.Host, "loopback", "127.0.0.1:5300"),
		lab.ServeTCP(t, c.Host, "loopback", "[::1]:5300"), lab.ServeUDP(t, c.Host, "loopback", "[::1]:5300"),
	}

	senders := []struct {
		name             string
		ns               *netns.NS
		device           string // of H, by which it comes
		src, dst         net.HardwareAddr
		ip4, ip6         netip.Addr
		host4            string // an address of H's that it reaches
		gateway4, beside string
	}{
		{"X", c.Client, "eth0", c.X.MAC, c.X.HostMAC, c.X.Addrs[0], c.X.Addrs[1], lab.HostIPv4, lab.HostIPv4, at(lab.HostIPv4, 8080)},
		{"container", p.ns, c.hostDevice(p), lab.Link(t, p.ns, "eth0").Attrs().HardwareAddr, c.gateway("n1").mac, p.ip4, p.ip6, "10.1.0.1", "10.1.0.1", "10.1.0.1:8080"},
	}
	for _, x := range senders {
		t.Run("crafted by "+x.name, func(t *testing.T) {
			c := c.in(t)
			mark := []byte("crafted by " + x.name)
			var frames [][]byte
			seen := 0 // by who counts: what is no bridge's of ::1 the kernel itself drops before netfilter
			for _, to := range []string{"127.0.0.1:8081", "127.0.0.1:8080", "127.0.0.2:8081", "127.0.0.2:8080", "127.0.0.1:5300", "[::1]:8081", "[::1]:5300"} {
				dst := netip.MustParseAddrPort(to)
				packet := lab.Packet{SrcMAC: x.src, DstMAC: x.dst, Src: x.ip4, Dst: dst.Addr()}
				if dst.Addr().Is6() {
					packet.Src = x.ip6
				}
				if dst.Addr().Is4() || !netfilter() || x.name != "X" {
					seen += 2
				}
				frames = append(frames, packet.UDP(4000, dst.Port(), mark), packet.TCP(4001, dst.Port(), "S", 1, 0, mark))
			}
			marked := func(frame []byte) bool { return bytes.Contains(frame, mark) }
			arrived := lab.CaptureIn(t, c.Host, x.device, marked)
			// Not the errors: nobody at x waits for the server's answer.
			through := lab.CaptureIn(t, s.ns, "eth0", func(f []byte) bool { return marked(f) && lab.Decode(f).TransportLayer() != nil })
			answers := lab.CaptureIn(t, x.ns, "eth0", nil)

			// The same packet to an address of H's outside gets in.
			packet := lab.Packet{SrcMAC: x.src, DstMAC: x.dst, Src: x.ip4, Dst: netip.MustParseAddr(x.host4)}
			require.NoError(t, lab.Inject(x.ns, "eth0", packet.UDP(4000, 8080, mark), 1))
			require.True(t, through.Wait(1, wait), "the control does not arrive")
			require.True(t, answers.Wait(1, wait))

			n, before := times(10_000, 700), c.drops("LOOPBACK")
			require.NoError(t, lab.InjectEach(x.ns, "eth0", n, func(i int) []byte { return frames[i%len(frames)] }))
			require.True(t, arrived.Wait(n+1, wait), "%d of %d arrived at H", arrived.Count(), n+1)
			require.Eventually(t, func() bool { return c.drops("LOOPBACK")-before == uint64(n*seen/len(frames)) }, wait, 5*time.Millisecond,
				"%d of %d counted", c.drops("LOOPBACK")-before, n*seen/len(frames))
			require.Equal(t, 1, through.Count(), "reached the server: %s", lab.Describe(through.Frames()))
			for _, f := range answers.Frames() {
				if ip := lab.Decode(f).NetworkLayer(); ip != nil {
					require.NotContains(t, []string{"127.0.0.1", "127.0.0.2", "::1"}, ip.NetworkFlow().Src().String())
				}
			}
		})
	}
	unasked := func() {
		t.Helper()
		for _, service := range services {
			require.Zero(t, service.Requests(), "%s", service.Addr)
		}
	}
	unasked()
	for _, x := range senders {
		t.Run("by sockets of "+x.name, func(t *testing.T) {
			c := c.in(t)
			// 127.0.0.0/8 is not its own any more, but H's.
			lab.DelAddr(t, x.ns, "lo", "127.0.0.1/8")
			lab.AddRoute(t, x.ns, "127.0.0.0/8", x.gateway4)
			lab.Sysctl(t, x.ns, "ipv4/conf/all/route_localnet", "1")
			for _, to := range []string{"127.0.0.1:8081", "127.0.0.2:8080", "127.0.0.1:5300"} {
				c.dropped(x.ns, to, x.beside, "LOOPBACK")
			}
		})
	}
	unasked()
	// All the while the host itself gets there.
	c.answers(c.Host, "127.0.0.1:8081", "srv", "10.1.0.1")
	c.answers(c.Host, "[::1]:8081", "srv", "fd00:1::1")
	c.answers(c.Host, "127.0.0.1:5300", "loopback", "127.0.0.1")
	c.answers(c.Host, "[::1]:5300", "loopback", "::1")
	for _, service := range services {
		require.NotZero(t, service.Requests(), "%s", service.Addr)
	}
}

// hostDevice is the host's end of a container's cable.
func (c *cast) hostDevice(a *actor) string {
	c.t.Helper()
	record, err := c.m.Container(a.name)
	require.NoError(c.t, err)
	for _, e := range record.Endpoints {
		return e.HostIf
	}
	require.Fail(c.t, "no endpoint", a.name)
	return ""
}
