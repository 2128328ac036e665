// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"testing"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// A9: a peer reaches the published port on the host's addresses; the server sees the
// peer, and the answer comes from the address that was asked.
func TestA9(t *testing.T) {
	parallel(t)
	c, s, p, _ := mainCast(t)
	for _, h := range []string{lab.HostIPv4, "10.1.0.1"} {
		c.answers(p.ns, at(h, 8080), "srv", p.ip4.String())
	}
	for _, h := range []string{lab.HostIPv6, "fd00:1::1"} {
		c.answers(p.ns, at(h, 8080), "srv", p.ip6.String())
	}
	for _, h := range []string{lab.HostIPv4, lab.HostIPv6, "10.1.0.1", "fd00:1::1"} {
		c.pings(p.ns, h)
		c.refused(p.ns, at(h, 8088), at(h, 8080))
	}
	// From one port the peer talks to the server directly too: both are p:PORT > s:80.
	for i, to := range [][]string{
		{at(s.ip4, 80), "10.1.0.1:8080", at(lab.HostIPv4, 8080)},
		{"10.1.0.1:8080", at(s.ip4, 80), at(lab.HostIPv4, 8080)},
		{at(s.ip6, 80), "[fd00:1::1]:8080", at(lab.HostIPv6, 8080)},
		{"[fd00:1::1]:8080", at(s.ip6, 80), at(lab.HostIPv6, 8080)},
	} {
		from, src := fmt.Sprintf("0.0.0.0:%d", 47100+i), p.ip4.String()
		if i >= 2 {
			from, src = fmt.Sprintf("[::]:%d", 47100+i), p.ip6.String()
		}
		t.Run(fmt.Sprintf("%s, then %s, UDP", to[0], to[1]), func(t *testing.T) { c.in(t).oneSocket(p.ns, "srv", src, to...) })
		t.Run(fmt.Sprintf("%s, then %s, TCP", to[0], to[1]), func(t *testing.T) { c.in(t).onePort(p.ns, from, "srv", src, to...) })
	}
}

// A10: a server reaches its own published port (hairpin); it sees the gateway.
func TestA10(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t)
	for _, h := range []string{lab.HostIPv4, "10.1.0.1", "10.2.0.1"} {
		c.answers(s.ns, at(h, 8080), "srv", "10.1.0.1")
	}
	for _, h := range []string{lab.HostIPv6, "fd00:1::1", "fd00:2::1"} {
		c.answers(s.ns, at(h, 8080), "srv", "fd00:1::1")
	}
}

// A11: a container of another network reaches the published port on any address of
// the host; the server sees it. Other ports of a gateway are services of the host's.
func TestA11(t *testing.T) {
	parallel(t)
	c, _, p, o := mainCast(t)
	lab.ServeTCP(t, c.Host, "H", ":9090")
	lab.ServeUDP(t, c.Host, "H", ":9090")
	for _, h := range []string{lab.HostIPv4, "10.1.0.1", "10.2.0.1"} {
		c.answers(o.ns, at(h, 8080), "srv", o.ip4.String())
		c.answers(o.ns, at(h, 9090), "H", o.ip4.String())
		c.answers(p.ns, at(h, 9090), "H", p.ip4.String())
	}
	for _, h := range []string{lab.HostIPv6, "fd00:1::1", "fd00:2::1"} {
		c.answers(o.ns, at(h, 8080), "srv", o.ip6.String())
		c.answers(o.ns, at(h, 9090), "H", o.ip6.String())
		c.answers(p.ns, at(h, 9090), "H", p.ip6.String())
	}
	for _, h := range []string{lab.HostIPv4, "10.1.0.1", "10.2.0.1", lab.HostIPv6, "fd00:1::1", "fd00:2::1"} {
		c.pings(o.ns, h)
		c.refused(o.ns, at(h, 9091), at(h, 9090))
	}
}
