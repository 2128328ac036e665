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
// above an empty program on the same hook (most of what that reads is the two clock
// readings, and waiting for its first instruction). The empty one is in front while it is
// read, and gone while they are: who is second finds in the caches what the first has
// waited for. With the counts that are promised (make soak) the bar is costBar. Else it is
// there to notice what doubles a packet's cost, and is as much higher as the machine is slower
// than the one on which the empty program reads costEmpty.
const (
	costBar   = 150 // ns
	costEmpty = 65  // ns
)

func TestCostOfEstablishedPacket(t *testing.T) {
	c, s, _, _ := ownCast(t)
	set, err := loader.OpenPrograms(loader.Options{BPFFS: c.BPFFS})
	require.NoError(t, err)
	defer set.Close()
	hooks := map[string]string{loader.BPFProgFromUplink: c.X.Device, loader.BPFProgFromEndpoint: c.hostDevice(s)}
	empty := emptyProgram(t)
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
		const rounds, n = 11, 1000
		read, base := map[string][]float64{}, map[string][]float64{}
		for range rounds {
			for name, device := range hooks {
				remove := c.inFront(device, empty)
				talk(50)
				before, err := empty.Stats()
				require.NoError(t, err)
				talk(n)
				after, err := empty.Stats()
				require.NoError(t, err)
				remove()
				require.GreaterOrEqual(t, after.RunCount-before.RunCount, uint64(n), name)
				base[name] = append(base[name], perRun(before, after))
			}
			talk(50)
			before := map[string]*ebpf.ProgramStats{}
			for name := range hooks {
				before[name] = statsOf(t, set, name)
			}
			talk(n)
			for name := range hooks {
				after := statsOf(t, set, name)
				require.GreaterOrEqual(t, after.RunCount-before[name].RunCount, uint64(n), name)
				read[name] = append(read[name], perRun(before[name], after))
			}
		}
		for name := range hooks {
			slices.Sort(base[name])
			slices.Sort(read[name])
			empty, cost := base[name][rounds/2], read[name][rounds/2]-base[name][rounds/2]
			t.Logf("%s to %s: +%.0f ns a packet, above %.0f (half of the rounds within %.0f to %.0f, and %.0f to %.0f)", name, to, cost, empty,
				read[name][rounds/4], read[name][rounds*3/4], base[name][rounds/4], base[name][rounds*3/4])
			bar := float64(costBar)
			if !soak() {
				bar *= 2 * max(1, empty/costEmpty)
			}
			assert.LessOrEqual(t, cost, bar, name)
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

// emptyProgram does nothing.
func emptyProgram(t testing.TB) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "empty", Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// inFront puts a program in front of all others on a device's ingress.
func (c *cast) inFront(device string, p *ebpf.Program) (remove func()) {
	c.t.Helper()
	index := lab.Link(c.t, c.Host, device).Attrs().Index
	var l link.Link
	require.NoError(c.t, c.Host.Do(func() (err error) {
		l, err = link.AttachTCX(link.TCXOptions{Interface: index, Program: p, Attach: ebpf.AttachTCXIngress, Anchor: link.Head()})
		return err
	}))
	return func() { l.Close() }
}
