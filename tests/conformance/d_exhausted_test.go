// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// crowd is a probe in each of some containers, with open conversations.
type crowd []*probe

// open lets each open n more, all at once, and says how many got through.
func (list crowd) open(proto, to string, n int) (opened int, why []string) {
	for _, answer := range list.all("idle %s %s %d", proto, to, n) {
		var got int
		fmt.Sscan(answer, &got)
		opened += got
		if _, err, _ := strings.Cut(answer, " "); err != "<nil>" {
			why = append(why, err)
		}
	}
	return opened, why
}

func (list crowd) alive() (n int) {
	for _, answer := range list.all("alive") {
		var got int
		fmt.Sscan(answer, &got)
		n += got
	}
	return n
}

// all gives each the same order.
func (list crowd) all(order string, args ...any) []string {
	answers := make([]string, len(list))
	var running sync.WaitGroup
	for i, p := range list {
		running.Go(func() { answers[i], _ = p.do(order, args...) })
	}
	running.Wait()
	return answers
}

// D5: as many flows to one X:port from ten containers as masquerade has ports: all work; the
// next is refused and counted; none is lost.
//
//	s0 … s9 ──► H 203.0.113.1, by each of its ports ──► X:9000
func TestD5(t *testing.T) {
	parallel(t)
	const containers = 10
	c := newCast(t)
	c.network("n1", 1, true)
	var from crowd
	for i := range containers {
		from = append(from, c.probe(c.container(fmt.Sprint("s", i), "n1").ns))
	}
	for _, port := range []string{":9000", ":9001"} {
		lab.ServeTCP(t, c.Client, "X", port)
		lab.ServeUDP(t, c.Client, "X", port)
	}
	for _, v := range []struct {
		proto  string
		family int
		ports  int
	}{
		{"udp", 4, times(60_000, 500)},
		{"udp", 6, times(10_000, 500)},
		{"tcp", 4, times(10_000, 500)}, // X's process may have 20,000 sockets
		{"tcp", 6, times(10_000, 500)},
	} {
		t.Run(fmt.Sprintf("%d by %s over IPv%d", v.ports, v.proto, v.family), func(t *testing.T) {
			c := c.in(t)
			c.must("init", "--masquerade-ports", fmt.Sprintf("2000-%d", 2000+v.ports-1))
			to, flows := c.world().addr(v.family), fmt.Sprint("flows", v.family)
			used := c.table(flows).Used
			opened, why := from.open(v.proto, at(to, 9000), v.ports/containers)
			require.Equal(t, v.ports, opened, "%v", why)
			before := c.drops("NO_PORT")
			opened, _ = from.open(v.proto, at(to, 9000), 2)
			require.Zero(t, opened, "beyond the last port")
			require.GreaterOrEqual(t, c.drops("NO_PORT"), before+2*containers)
			require.Equal(t, v.ports, from.alive())
			require.Equal(t, used+2*v.ports, c.table(flows).Used)
			opened, why = from.open(v.proto, at(to, 9001), 2) // whom fewer talk to
			require.Equal(t, 2*containers, opened, "%v", why)
			from.all("drop")
		})
	}
}
