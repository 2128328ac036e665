// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// G7: a container opens twice its quota: what is beyond is refused, with QUOTA, and counted;
// it loses none of what it has, all of the others' connect.
//
//	greedy ══ twice its quota ══► X:9000          others ──► X:9000
func TestG7(t *testing.T) {
	parallel(t)
	quota := times(5000, 200)
	for _, proto := range []string{"tcp", "udp"} {
		for _, family := range ipVersions {
			t.Run(fmt.Sprintf("%s IPv%d", proto, family), func(t *testing.T) {
				c := newCast(t)
				c.network("n1", 1, true)
				c.network("n2", 2, true)
				greedy := c.container("greedy", "n1")
				lab.ServeTCP(t, c.Client, "X", ":9000")
				lab.ServeUDP(t, c.Client, "X", ":9000")
				var others crowd
				for i := range 4 {
					others = append(others, c.probe(c.container(fmt.Sprint("other", i), []string{"n1", "n2"}[i%2]).ns))
				}
				c.must("init", "--flow-quota", strconv.Itoa(quota))
				to := at(c.world().addr(family), 9000)
				mine := crowd{c.probe(greedy.ns)}
				opened, why := mine.open(proto, to, quota)
				require.Equal(t, quota, opened, "%v", why)
				before := c.drops("QUOTA")
				// As many again, by packets: each socket would wait for seconds.
				x, from, gw := c.world(), c.station(greedy, "n1"), c.gateway("n1")
				p := from.by(gw, x, family)
				require.NoError(t, lab.InjectEach(greedy.ns, from.dev, quota, func(i int) []byte {
					if proto == "udp" {
						return p.UDP(uint16(1024+i), 9001, []byte("x"))
					}
					return p.TCP(uint16(1024+i), 9001, "S", 1, 0, nil)
				}))
				require.True(t, soon(func() bool { return c.drops("QUOTA") >= before+uint64(quota) }), "refused and counted: %d", c.drops("QUOTA")-before)
				opened, _ = mine.open(proto, to, 8)
				require.Zero(t, opened, "beyond the quota")
				n := times(1000, 100)
				opened, why = others.open(proto, to, n/len(others))
				require.Equal(t, n, opened, "%v", why)
				require.Equal(t, n, others.alive())
				require.Equal(t, quota, mine.alive())
			})
		}
	}
}
