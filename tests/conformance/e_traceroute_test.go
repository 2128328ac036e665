// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// E7: who traces the way to somewhere, by UDP or by ICMP, is shown every hop: from a container to a host
// behind a router the gateway, the router, the host; from that host to a published port the router and H, as
// which the container shows, too.
//
//	srv (8080:80) ── n1's gateway, H ── R ── far
func TestE7(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	b := c.beyond()
	c.publish(s, "8099:99/udp") // where nobody listens
	for _, family := range ipVersions {
		gw, refused := c.gateway("n1").addr(family), map[int]complaint{4: {kind: 3, code: 3}, 6: {kind: 1, code: 4}}[family]
		exceeded := map[int]complaint{4: {kind: 11}, 6: {kind: 3}}[family]
		by := func(e complaint, from netip.Addr) complaint { e.from = from; return e }
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			c := c.in(t)
			there := []complaint{by(exceeded, gw), by(exceeded, b.inner[family]), by(refused, b.addr[family])}
			back := []complaint{by(exceeded, b.outer[family]), by(exceeded, b.host[family]), by(refused, b.host[family])}
			for hop := range there {
				// As traceroute does: a new port each, and one and the same socket.
				c.traces(s.ns, netip.AddrPortFrom(b.addr[family], uint16(33434+hop)), hop+1, there[hop])
				c.traces(b.far, netip.AddrPortFrom(b.host[family], 8099), hop+1, back[hop])
			}
			// By ICMP; only hosts answer, and H for the container's part.
			for hop, want := range there[:2] {
				_, err := lab.Echo{To: b.addr[family].String(), TTL: hop + 1, Wait: wait}.Send(s.ns)
				var e *lab.ICMPError
				require.True(t, errors.As(err, &e), "hop %d: %v", hop+1, err)
				require.Equal(t, lab.ICMPError{From: want.from, Type: want.kind}, *e, "hop %d", hop+1)
			}
			_, err := lab.Echo{To: b.addr[family].String(), TTL: 3, Wait: wait}.Send(s.ns)
			require.NoError(t, err)
			_, err = lab.Echo{To: b.host[family].String(), TTL: 1, Wait: wait}.Send(b.far)
			require.ErrorContains(t, err, b.outer[family].String())
			_, err = lab.Echo{To: b.host[family].String(), TTL: 2, Wait: wait}.Send(b.far)
			require.NoError(t, err)
		})
	}
}

// traces sends a datagram with so many hops to live, and requires the complaint.
func (c *cast) traces(from *netns.NS, to netip.AddrPort, hops int, want complaint) {
	c.t.Helper()
	k, err := dialHops(from, "udp", to.String(), hops)
	require.NoError(c.t, err)
	defer k.Close()
	require.NoError(c.t, k.say("hop"))
	// A router need not quote more than the ports.
	var got complaint
	require.True(c.t, soon(func() (ok bool) { got, ok = nextError(k.raw); return ok }), "hop %d to %s: no error; wanted %v", hops, to, want)
	got.about = ""
	require.Equal(c.t, want, got, "hop %d to %s", hops, to)
}
