package conformance

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// The kernel's run-time statistics, of real requests and responses on one
// established connection: what a packet costs in from_uplink and from_endpoint
// above an empty program, which reads emptyCost.
const (
	emptyCost = 65  // ns, of which most is the two clock readings
	costBar   = 150 // ns above it
)

func TestCostOfEstablishedPacket(t *testing.T) {
	c, _, _, _ := mainCast(t)
	set, err := loader.OpenPrograms(loader.Options{BPFFS: c.BPFFS})
	require.NoError(t, err)
	defer set.Close()
	for _, to := range []string{lab.HostIPv4, lab.HostIPv6} {
		conn, err := lab.Dial(c.Client, "tcp", "", at(to, 8080), wait)
		require.NoError(t, err)
		talk := func(n int) {
			for i := range n {
				_, err := conn.Ask(fmt.Sprint(i), wait)
				require.NoError(t, err)
			}
		}
		talk(500)
		stats, err := ebpf.EnableStats(0)
		require.NoError(t, err)
		defer stats.Close()
		cost := map[string][]float64{}
		for range 5 {
			names := []string{loader.BPFProgFromUplink, loader.BPFProgFromEndpoint}
			before := map[string]*ebpf.ProgramStats{}
			for _, name := range names {
				before[name] = statsOf(t, set, name)
			}
			talk(2000)
			for _, name := range names {
				after := statsOf(t, set, name)
				runs := after.RunCount - before[name].RunCount
				require.GreaterOrEqual(t, runs, uint64(2000), name)
				cost[name] = append(cost[name], float64(after.Runtime-before[name].Runtime)/float64(runs)-emptyCost)
			}
		}
		for name, rounds := range cost {
			slices.Sort(rounds)
			t.Logf("%s to %s: +%.0f ns a packet (%.0f to %.0f)", name, to, rounds[2], rounds[0], rounds[4])
			require.LessOrEqual(t, rounds[2], float64(costBar*times(1, 2)), name)
		}
	}
}

func statsOf(t testing.TB, set *loader.ProgramSet, name string) *ebpf.ProgramStats {
	t.Helper()
	p, err := set.Program(name)
	require.NoError(t, err)
	s, err := p.Stats()
	require.NoError(t, err)
	return s
}
