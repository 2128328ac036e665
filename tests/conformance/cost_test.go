// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// The kernel's run-time statistics, of real requests and responses on one
// established connection: what a packet costs in from_uplink and from_endpoint
// above an empty program on the same hook in the same run (most of what that
// reads is the two clock readings). With the counts that are promised (make soak) the
// bar is costBar. Else it is there to notice what doubles a packet's cost, and is as much
// higher as the machine is slower than the one on which the empty program reads costEmpty.
const (
	costBar   = 150 // ns
	costEmpty = 65  // ns
)

func TestCostOfEstablishedPacket(t *testing.T) {
	c, _, _, _ := ownCast(t)
	set, err := loader.OpenPrograms(loader.Options{BPFFS: c.BPFFS})
	require.NoError(t, err)
	defer set.Close()
	empty := c.emptyProgram(c.X.Device)
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
		var base []float64
		for range 5 {
			names := []string{loader.BPFProgFromUplink, loader.BPFProgFromEndpoint}
			before := map[string]*ebpf.ProgramStats{}
			emptyBefore, err := empty.Stats()
			require.NoError(t, err)
			for _, name := range names {
				before[name] = statsOf(t, set, name)
			}
			talk(2000)
			emptyAfter, err := empty.Stats()
			require.NoError(t, err)
			base = append(base, perRun(emptyBefore, emptyAfter))
			for _, name := range names {
				after := statsOf(t, set, name)
				require.GreaterOrEqual(t, after.RunCount-before[name].RunCount, uint64(2000), name)
				cost[name] = append(cost[name], perRun(before[name], after)-base[len(base)-1])
			}
		}
		slices.Sort(base)
		t.Logf("empty program: %.0f ns (%.0f to %.0f)", base[2], base[0], base[4])
		bar := float64(costBar)
		if !soak() {
			bar *= 2 * max(1, base[2]/costEmpty)
		}
		for name, rounds := range cost {
			slices.Sort(rounds)
			t.Logf("%s to %s: +%.0f ns a packet (%.0f to %.0f)", name, to, rounds[2], rounds[0], rounds[4])
			assert.LessOrEqual(t, rounds[2], bar, name)
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

func perRun(before, after *ebpf.ProgramStats) float64 {
	return float64(after.Runtime-before.Runtime) / float64(after.RunCount-before.RunCount)
}

// emptyProgram puts a program that does nothing in front of the ones on a
// device's ingress.
func (c *cast) emptyProgram(device string) *ebpf.Program {
	c.t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "empty", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	require.NoError(c.t, err)
	c.t.Cleanup(func() { p.Close() })
	index := lab.Link(c.t, c.Host, device).Attrs().Index
	require.NoError(c.t, c.Host.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		if err == nil {
			c.t.Cleanup(func() { l.Close() })
		}
		return err
	}))
	return p
}
