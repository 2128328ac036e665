// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// C11: a running container joins another network and leaves it, which works at once
// and harms no connection that does not need the network that is left.
//
//	X ── H ─┬─ n1 (IPv4, or both), icc off ─┬─ srv (8080:80), which joins and leaves n2
//	        │                               └─ client, linked to srv, on n2 too
//	        ├─ n2 (both) ── other
//	        └─ n3 (both) ── third
func TestC11(t *testing.T) {
	parallel(t)
	// Of an IPv4 network alone: n2 brings srv its first IPv6 gateway, and with it the
	// IPv6 side of the published ports.
	t.Run("first IPv6", func(t *testing.T) { joinAndLeave(t, false) })
	t.Run("dual-stack", func(t *testing.T) { joinAndLeave(t, true) })
	t.Run("published network left", leaveFirst)
}

func joinAndLeave(t *testing.T, six bool) {
	c := newCast(t)
	c.linkable("n1", 1, six)
	c.network("n2", 2, true)
	s := c.container("srv", "n1", publish("8080:80", "8080:80/udp"))
	p := c.container("client", "n1", func(o *control.ContainerOptions) { o.Links = []string{"srv:db"} })
	c.network("n3", 3, true)
	o, third := c.container("other", "n2"), c.container("third", "n3")
	c.connect("n2", p) // the link gets a second network, too
	for _, a := range []*actor{s, p, o} {
		c.serve(a, 80)
	}
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")

	list := []netip.Addr{s.ip4}
	hosts, worlds, loops := []string{lab.HostIPv4}, []string{lab.ClientIPv4}, []string{"127.0.0.1"}
	if six {
		list = append(list, s.ip6)
		hosts, worlds, loops = append(hosts, lab.HostIPv6), append(worlds, lab.ClientIPv6), append(loops, "::1")
	}
	var talks []*dialogue
	for i := range list {
		for _, proto := range []string{"tcp", "udp"} {
			talks = append(talks,
				c.talking(proto, c.Client, at(hosts[i], 8080), "srv"),
				c.talking(proto, c.Host, at(loops[i], 8080), "srv"),
				c.talking(proto, third.ns, at(hosts[i], 8080), "srv"),
				c.talking(proto, p.ns, at(list[i], 80), "srv"), // by the link
				c.talking(proto, s.ns, at(worlds[i], 7000), "world"),
			)
		}
		talks = append(talks, c.calling("tcp", p.ns, at(list[i], 80), "srv"))
	}
	apart := tries{}.ask(s.ns, at(o.ip4, 80))
	if six {
		apart.ask(s.ns, at(o.ip6, 80))
	}
	rounds := times(20, 3)
	if onDocker() {
		rounds = 2
	}
	for range rounds {
		unharmed(talks...)
		c.allSilent(apart, works(c.Host, at(o.ip4, 80), at(o.ip6, 80)))

		c.connect("n2", s)
		unharmed(talks...)
		second := c.station(s, "n2")
		if !onDocker() { // which counts on
			require.Equal(t, "eth1", second.dev)
		}
		c.answers(o.ns, at(second.ip4, 80), "srv", o.ip4.String())
		c.answers(o.ns, at(second.ip6, 80), "srv", o.ip6.String())
		c.answers(s.ns, at(o.ip4, 80), "other", second.ip4.String())
		c.answers(s.ns, at(o.ip6, 80), "other", second.ip6.String())
		require.NoError(t, lab.Ping(o.ns, second.ip4.String(), wait))
		require.NoError(t, lab.Ping(o.ns, second.ip6.String(), wait))
		c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
		if six || !onDocker() { // the Engine publishes by one network alone
			c.answers(c.Client, at(lab.HostIPv6, 8080), "srv", lab.ClientIPv6)
		}
		unharmed(talks...)

		c.disconnect("n2", s)
		unharmed(talks...)
		c.silent(o.ns, at(second.ip4, 80), works(c.Client, at(lab.HostIPv4, 8080)))
		c.silent(o.ns, at(second.ip6, 80), works(c.Host, at(o.ip6, 80)))
		require.Equal(t, []string{"eth0", "lo"}, c.devices(s))
		c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
		if six {
			c.answers(c.Client, at(lab.HostIPv6, 8080), "srv", lab.ClientIPv6)
		} else {
			c.silent(c.Client, at(lab.HostIPv6, 8080), works(c.Client, at(lab.HostIPv4, 8080)))
		}
	}
	over(talks...)
}

// leaveFirst has srv leave the network on which its ports are published: they move to
// the other, whose own connections go on.
func leaveFirst(t *testing.T) {
	c, s, p, o := ownCast(t)
	c.connect("n2", s)
	second := c.station(s, "n2")
	var talks []*dialogue
	for _, proto := range []string{"tcp", "udp"} {
		for _, to := range []netip.Addr{second.ip4, second.ip6} {
			talks = append(talks, c.talking(proto, o.ns, at(to, 80), "srv"), c.talking(proto, c.Host, at(to, 80), "srv"))
		}
		talks = append(talks, c.talking(proto, s.ns, at(o.ip4, 80), "other"), c.talking(proto, s.ns, at(o.ip6, 80), "other"))
	}
	unharmed(talks...)
	c.answers(p.ns, at(s.ip4, 80), "srv", p.ip4.String())
	c.disconnect("n1", s)
	unharmed(talks...)
	c.silent(p.ns, at(s.ip4, 80), works(o.ns, at(second.ip4, 80)))
	c.silent(p.ns, at(s.ip6, 80), works(o.ns, at(second.ip6, 80)))
	for _, to := range []string{lab.HostIPv4, lab.HostIPv6} {
		c.answers(c.Client, at(to, 8080), "srv", "")
		c.answers(p.ns, at(to, 8080), "srv", "")
	}
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	c.answers(s.ns, at(lab.ClientIPv4, 7000), "world", lab.HostIPv4)
	c.answers(s.ns, at(lab.ClientIPv6, 7000), "world", lab.HostIPv6)

	t.Run("back again", func(t *testing.T) {
		c := c.in(t)
		// While what is published by n2 is in use.
		var published []*dialogue
		for _, proto := range []string{"tcp", "udp"} {
			published = append(published, c.talking(proto, c.Client, at(lab.HostIPv4, 8080), "srv"), c.talking(proto, c.Client, at(lab.HostIPv6, 8080), "srv"),
				c.talking(proto, s.ns, at(lab.ClientIPv4, 7000), "world"))
		}
		c.connect("n1", s)
		first := c.station(s, "n1")
		c.answers(p.ns, at(first.ip4, 80), "srv", p.ip4.String())
		c.answers(p.ns, at(first.ip6, 80), "srv", p.ip6.String())
		unharmed(published...)
		over(published...)
	})
	unharmed(talks...)
	over(talks...)
}

// devices are the names of an actor's devices, sorted.
func (c *cast) devices(a *actor) []string {
	c.t.Helper()
	return devicesOf(c.t, a.ns)
}
