// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// E3: the fragments of a datagram come at the same time, each to another CPU: none is left behind, and
// none comes twice: it would wait for a first one of its own. An identification is used once: who
// uses it again within seconds may join datagrams, and the kernel that puts them together gives up
// those that take long (RFC 6864, ipfrag_max_dist).
//
//	X ═ two CPUs ═ eth0 H ── srv (P:P/udp)
func TestE3AtOnce(t *testing.T) {
	c, s, _, _ := ownCast(t)
	x, h := c.world(), c.uplink()
	cpus := usableCPUs(t)
	for _, family := range ipVersions {
		in := c.packets(s.ns, family)
		c.publish(s, fmt.Sprintf("%d:%d/udp", in.port, in.port))
		const burst = 64
		out := [2]*lab.Injector{c.injector(x), c.injector(x)}
		before, rounds := counted(t, "ReasmReqds", s.ns), times(1000, 40)
		for round := range rounds {
			list := make([][][]byte, burst)
			for i := range list {
				id := uint32(round*burst + i)
				list[i] = lab.Fragments(x.to(h, family).UDP(9000, in.port, fmt.Appendf(make([]byte, 1000), "%10d", id)), 1000, id)
			}
			var running sync.WaitGroup
			start := make(chan struct{})
			for k := range 2 {
				cpu := cpus[k%len(cpus)]
				running.Go(func() {
					runtime.LockOSThread() // and never unlocked: the thread ends with the function
					var set unix.CPUSet
					set.Set(cpu)
					if err := unix.SchedSetaffinity(0, &set); err != nil {
						t.Error(err)
					}
					<-start
					for i := range list {
						if err := out[k].Send(list[i][k]); err != nil {
							t.Error(err)
							return
						}
					}
				})
			}
			close(start)
			got := make(map[string]bool)
			for range burst {
				payload, _ := in.next(t, "round %d: %d of %d", round, len(got), burst)
				got[string(payload)] = true
			}
			running.Wait()
			require.Len(t, got, burst)
		}
		require.Equal(t, 2*rounds*burst, counted(t, "ReasmReqds", s.ns)-before, "fragments")
	}
}

func usableCPUs(t testing.TB) (list []int) {
	t.Helper()
	var set unix.CPUSet
	require.NoError(t, unix.SchedGetaffinity(0, &set))
	for i := range 1024 {
		if set.IsSet(i) {
			list = append(list, i)
		}
	}
	return list
}
