// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// E1, by real sockets: who sends UDP by way of a translation to a port where nobody listens is told
// so at once, wherever the two are: the error comes back through the translation.
//
//	X ── H ─┬─ n1 ─┬─ srv (8090:90/udp, where nobody listens)
//	        │      └─ peer
//	        └─ n2 ──── other
func TestE1Refused(t *testing.T) {
	parallel(t)
	c, s, p, o := ownCast(t)
	c.publish(s, "8090:90/udp", "127.0.0.1:8091:90/udp")
	for _, family := range ipVersions {
		host, world := c.uplink().addr(family), c.world().addr(family)
		gw, srv := c.gateway("n1").addr(family), c.station(s, "n1").addr(family)
		loop := []string{4: "127.0.0.1", 6: "::1"}[family]
		for what, v := range map[string]struct {
			from *netns.NS
			to   string
		}{
			"X to a published port":              {c.Client, at(host, 8090)},
			"a container to X":                   {s.ns, at(world, 90)},
			"a peer to a published port":         {p.ns, at(host, 8090)},
			"a peer to a port of the gateway's":  {p.ns, at(gw, 8090)},
			"its own published port":             {s.ns, at(host, 8090)},
			"another network's published port":   {o.ns, at(host, 8090)},
			"a peer":                             {p.ns, at(srv, 90)},
			"the host to a container":            {c.Host, at(srv, 90)},
			"a container to the host":            {s.ns, at(host, 90)},
			"the host to its own published port": {c.Host, at(host, 8090)},
			"the host by loopback":               {c.Host, at(loop, 8090)},
		} {
			t.Run(fmt.Sprintf("%s, IPv%d", what, family), func(t *testing.T) {
				_, err := ask(v.from, "udp", "", v.to, wait)
				require.ErrorIs(t, err, syscall.ECONNREFUSED)
			})
		}
	}
	// The control: where somebody listens there is an answer.
	lab.ServeUDP(t, s.ns, "srv", ":90")
	c.answersBy("udp", c.Client, "", at(lab.HostIPv4, 8090), "srv", lab.ClientIPv4)
	c.answersBy("udp", c.Client, "", at(lab.HostIPv6, 8090), "srv", lab.ClientIPv6)
}
