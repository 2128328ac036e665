// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// G5: the host's firewall may be flushed, reloaded and set to forward nothing, and
// ip_forward switched, in a loop: no stream loses anything, no new connection fails.
func TestG5(t *testing.T) {
	parallel(t)
	c, s, p, o := ownCast(t)
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	gw := c.gateway("n1")
	lab.ServeTCP(t, c.Host, "host", ":9000")
	lab.ServeUDP(t, c.Host, "host", ":9000")
	var talks []*dialogue
	for _, proto := range []string{"tcp", "udp"} {
		for i, family := range ipVersions {
			host, world, loop := []string{lab.HostIPv4, lab.HostIPv6}[i], []string{lab.ClientIPv4, lab.ClientIPv6}[i], []string{"127.0.0.1", "::1"}[i]
			talks = append(talks,
				c.talking(proto, c.Client, at(host, 8080), "srv"), c.calling(proto, c.Client, at(host, 8080), "srv"),
				c.talking(proto, s.ns, at(world, 7000), "world"), c.calling(proto, s.ns, at(world, 7000), "world"),
				c.talking(proto, p.ns, at(c.station(s, "n1").addr(family), 80), "srv"),
				c.talking(proto, o.ns, at(host, 8080), "srv"), c.calling(proto, o.ns, at(host, 8080), "srv"),
				c.talking(proto, c.Host, at(loop, 8080), "srv"),
				c.talking(proto, c.Host, at(c.station(s, "n1").addr(family), 80), "srv"),
				c.talking(proto, s.ns, at(gw.addr(family), 9000), "host"),
			)
		}
	}
	talks = append(talks, c.pinging(s.ns, lab.ClientIPv4), c.pinging(p.ns, s.ip6.String()))
	// A new UDP socket for each question, for minutes: their flows are there for five.
	require.NoError(t, c.m.Init(&control.Config{Quota: 131072}))
	run := func(name string, args ...string) {
		_, err := c.Run(c.Host, name, args...)
		require.NoError(t, err)
	}
	var reload string
	for _, family := range []string{"ip", "ip6", "inet", "bridge"} {
		reload += fmt.Sprintf("add table %s fw; delete table %s fw; table %s fw { chain forward { type filter hook forward priority 0; policy drop; }; }; ", family, family, family)
	}
	for range times(100, 2) {
		run("nft", reload)
		c.forwarding("0")
		unharmed(talks...)
		run("iptables", "-P", "FORWARD", "DROP")
		run("ip6tables", "-P", "FORWARD", "DROP")
		run("iptables-legacy", "-P", "FORWARD", "DROP")
		run("ip6tables-legacy", "-P", "FORWARD", "DROP")
		c.forwarding("1")
		unharmed(talks...)
		run("nft", reload)
		unharmed(talks...)
		run("nft", "flush", "ruleset")
		unharmed(talks...)
	}
	over(talks...)
}
