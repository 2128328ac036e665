// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// D10: a container's UDP socket is seen from one port of the host's by all destinations, and no other
// socket has that port. Who was never written to gets nothing through to it, another port of who was
// neither; on a full-cone network everybody does, and gets answers.
//
//	X, Y, Z ── H ─┬─ n1 ────────────── srv, peer
//	              └─ n5, full cone ─── open
func TestD10(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	y := c.AddClient(t, "Y", "198.51.100.1/24", "2001:db8:198::1/64")
	z := c.AddClient(t, "Z", "192.0.2.1/24", "2001:db8:192::1/64")
	for _, far := range []*lab.Client{y, z} { // they reach H where X does, too
		lab.AddRoute(t, far.NS, "203.0.113.0/24", far.HostAddrs[0].String())
		lab.AddRoute(t, far.NS, "2001:db8:113::/64", far.HostAddrs[1].String())
	}
	_, err := c.m.Reconcile() // the new uplinks
	require.NoError(t, err)

	at := func(c *cast, ns *netns.NS, family int, addr netip.Addr) destination {
		in := c.packets(ns, family)
		return destination{in, netip.AddrPortFrom(addr, in.port)}
	}
	// Three ports of X's: three destinations behind one address of the host's.
	three := func(c *cast, family int) (x []destination) {
		for range 3 {
			x = append(x, at(c, c.Client, family, c.world().addr(family)))
		}
		return x
	}
	for i, family := range ipVersions {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			c := c.in(t)
			x := three(c, family)
			in, other := c.packets(s.ns, family), c.packets(p.ns, family)
			mapped, others := c.maps(in, x...), c.maps(other, x...)
			require.NotEqual(t, mapped.Port(), others.Port())

			// By another uplink it is another address, and again one port for all.
			c.maps(in, at(c, y.NS, family, y.Addrs[i]), at(c, y.NS, family, y.Addrs[i]))

			// Contacted: an answer of theirs gets in. Not contacted: neither the same host's other
			// port, nor another host.
			for _, who := range []*packets{c.packets(c.Client, family), c.packets(z.NS, family)} {
				c.neverReaches(who, mapped, in, x[0])
			}
		})
	}
	t.Run("full cone", func(t *testing.T) {
		c := c.in(t)
		c.network("n5", 5, true, func(o *control.NetworkOptions) { o.FullCone = true })
		open := c.container("open", "n5")
		for _, family := range ipVersions {
			x := three(c, family)
			in, out := c.packets(s.ns, family), c.packets(open.ns, family)
			mapped, cone := c.maps(in, x...), c.maps(out, x...)
			require.NotEqual(t, mapped.Port(), cone.Port())
			for _, who := range []*packets{c.packets(c.Client, family), c.packets(z.NS, family)} {
				c.neverReaches(who, mapped, in, x[0])
				who.send(t, cone, "to the cone")
				got, from := out.next(t, "a stranger's datagram")
				require.Equal(t, "to the cone", string(got))
				out.send(t, from, "from the cone")
				require.Equal(t, cone, who.from(t, []byte("from the cone")))
			}
		}
	})
}

// destination is a socket of the world's, and how a container writes to it.
type destination struct {
	*packets
	addr netip.AddrPort
}

// maps writes from a container's socket to each destination, and gives the one address and port as
// which all of them see it.
func (c *cast) maps(in *packets, to ...destination) (mapped netip.AddrPort) {
	c.t.Helper()
	for i, d := range to {
		text := fmt.Sprintf("number %d to %s", i, d.addr)
		in.send(c.t, d.addr, text)
		seen := d.from(c.t, []byte(text))
		if i > 0 {
			require.Equal(c.t, mapped, seen)
		}
		mapped = seen
	}
	return mapped
}

// neverReaches sends to where a container's socket is seen, and lets a destination of its do so afterwards: that
// alone arrives.
func (c *cast) neverReaches(who *packets, mapped netip.AddrPort, in *packets, control destination) {
	c.t.Helper()
	for range times(1000, 20) {
		who.send(c.t, mapped, "from a stranger")
	}
	control.send(c.t, mapped, "from a friend")
	got, from := in.next(c.t, "the control")
	require.Equal(c.t, "from a friend", string(got))
	require.Equal(c.t, control.addr, from)
	require.NoError(c.t, in.conn.SetReadDeadline(time.Now().Add(silence)))
	_, _, err := in.conn.ReadFromUDPAddrPort(make([]byte, 100))
	require.True(c.t, lab.Timeout(err), "%v", err)
}

func (p *packets) send(t testing.TB, to netip.AddrPort, text string) {
	t.Helper()
	_, err := p.conn.WriteToUDPAddrPort([]byte(text), to)
	require.NoError(t, err)
}
