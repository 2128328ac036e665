// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// A17: an uplink without an Ethernet header. A published port answers over it and sees the real client;
// containers reach the world by it; the host's own traffic is untouched; errors come back out of it; and a
// packet socket in the container finds the Ethernet header that it expects.
//
//	far tun0 198.51.100.2 ~~~~~ tun0 198.51.100.1 H ─┬─ n1 ─┬─ srv (8080:80)
//	         2001:db8:51::2      2001:db8:51::1      │      └─ peer
//	X eth0 ──────────────────── eth0                 └─ n2 ──── other
func TestA17(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	far := c.AddTunnel(t, "tun0", "198.51.100.1/24", "2001:db8:51::1/64")
	_, err := c.m.Reconcile()
	require.NoError(t, err)
	status, err := c.m.Status()
	require.NoError(t, err)
	require.Empty(t, status.Problems)
	programs := map[string]bool{}
	for _, h := range status.Hooks {
		if h.Device == "tun0" {
			programs[h.Program] = true
		}
	}
	if !netfilter() {
		require.True(t, status.FastPath)
		require.Equal(t, map[string]bool{loader.BPFProgFromTunnel: true, loader.BPFProgToTunnel: true}, programs)
	}

	lab.ServeTCP(t, far.NS, "far", ":9000")
	lab.ServeUDP(t, far.NS, "far", ":9000")
	lab.ServeTCP(t, c.Host, "host", ":9100")
	lab.ServeUDP(t, c.Host, "host", ":9100")
	const fragments = 45000     // and the next
	c.publish(s, "8099:99/udp", // where nobody listens
		fmt.Sprintf("%d-%d:%d-%d/udp", fragments, fragments+1, fragments, fragments+1))
	gw := c.gateway("n1")
	for i, family := range ipVersions {
		host, client := far.HostAddrs[i].String(), far.Addrs[i].String()
		// The container's packet socket: whole frames, from its gateway's MAC to its own.
		got := lab.CaptureIn(t, s.ns, "eth0", func(f []byte) bool { return bytes.Contains(f, far.Addrs[i].AsSlice()) })
		c.answers(far.NS, at(host, 8080), "srv", client)
		conn, err := lab.Dial(far.NS, "tcp", "", at(host, 8080), wait)
		require.NoError(t, err)
		c.carries(conn, 1<<20)
		conn.Close()
		frames := got.Frames()
		require.NotEmpty(t, frames)
		srv := c.station(s, "n1")
		for _, f := range frames {
			require.Equal(t, srv.mac.String()+" "+gw.mac.String(), lab.Decode(f).LinkLayer().LinkFlow().Dst().String()+" "+
				lab.Decode(f).LinkLayer().LinkFlow().Src().String(), lab.Describe([][]byte{f}))
			require.NotNil(t, lab.Decode(f).NetworkLayer(), lab.Describe([][]byte{f}))
		}
		got.Stop()

		c.answers(s.ns, at(client, 9000), "far", host)
		c.pings(s.ns, client)
		conn, err = lab.Dial(s.ns, "tcp", "", at(client, 9000), wait)
		require.NoError(t, err)
		c.carries(conn, 1<<20)
		conn.Close()

		c.answers(c.Host, at(client, 9000), "far", host)
		c.answers(far.NS, at(host, 9100), "host", client)
		c.pings(far.NS, host)
		c.pings(c.Host, client)

		// Errors, out by the tunnel and back in by it.
		_, err = ask(far.NS, "udp", "", at(host, 8099), wait)
		require.ErrorIs(t, err, syscall.ECONNREFUSED, "from a published port")
		_, err = ask(s.ns, "udp", "", at(client, 9001), wait)
		require.ErrorIs(t, err, syscall.ECONNREFUSED, "from the world")
		_, err = lab.Echo{To: client, TTL: 1, Wait: wait}.Send(s.ns)
		require.ErrorContains(t, err, gw.addr(family).String(), "the gateway, by the first hop")
		k, err := dialHops(far.NS, "udp", at(host, 8080), 1)
		require.NoError(t, err)
		_, err = k.ask(wait)
		require.ErrorIs(t, err, syscall.EHOSTUNREACH, "time exceeded")
		k.Close()

		// Fragments, in and out.
		big := make([]byte, 9000)
		in := c.packetsOn(s.ns, family, fragments+i)
		out := c.packets(far.NS, family)
		_, err = out.conn.WriteToUDPAddrPort(big, netip.AddrPortFrom(far.HostAddrs[i], in.port))
		require.NoError(t, err)
		from := in.from(t, big)
		require.Equal(t, far.Addrs[i], from.Addr())
		_, err = in.conn.WriteToUDPAddrPort(big, from)
		require.NoError(t, err)
		require.Equal(t, far.HostAddrs[i], out.from(t, big).Addr())

		// Nothing else gets in: a container's own address, by somebody who has a route to it.
		lab.AddRoute(t, far.NS, []string{"10.1.0.0/24", "fd00:1::/64"}[i], host)
		direct := c.drops("DIRECT_ACCESS")
		c.silent(far.NS, at(c.station(p, "n1").addr(family), 80), works(far.NS, at(host, 8080)))
		require.Greater(t, c.drops("DIRECT_ACCESS"), direct)
	}
}
