// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func sprintfPlus(err error) string { return fmt.Sprintf("%+v", err) }

// The most instructions that the verifier may walk for one program (its own
// limit is 1,000,000): older kernels walk more for the same program.
const verifiedLimit = 100_000

// The real object: loads, is within the budget, and is attached by Load's rules.
func TestObject(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	o.Need = rare
	objs, err := Load(o)
	require.NoError(t, err)
	defer objs.Close()
	spec, err := LoadBPF()
	require.NoError(t, err)
	require.NotEmpty(t, spec.Programs)
	for name := range spec.Programs {
		p, err := objs.Program(name)
		require.NoError(t, err)
		info, err := p.Info()
		require.NoError(t, err)
		n, ok := info.VerifiedInstructions()
		require.True(t, ok)
		t.Logf("%-14s %6d verified instructions", name, n)
		require.LessOrEqual(t, n, uint32(verifiedLimit), name)
	}
	was := programIDOf(t, objs, BPFProgFromUplink)
	again, err := Load(Options{BPFFS: o.BPFFS})
	require.NoError(t, err)
	defer again.Close()
	require.Equal(t, was, programIDOf(t, again, BPFProgFromUplink), "loaded again for nothing")
	for name, ms := range spec.Maps {
		if ms.Pinning == ebpf.PinByName {
			_, err := objs.Map(name)
			require.NoError(t, err)
		}
	}
}

func TestObjectLog(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	o.Log = ebpf.LogLevelStats
	objs, err := Load(o)
	require.NoError(t, err)
	defer objs.Close()
	require.Contains(t, objs.VerifierLog(BPFProgFromUplink), "processed ")
}

func TestArmSweep(t *testing.T) {
	newNetns(t)
	objs, err := Load(testOptions(t))
	require.NoError(t, err)
	defer objs.Close()
	p, err := objs.Program(BPFProgSweep)
	require.NoError(t, err)
	require.NoError(t, ArmSweep(p))
	require.NoError(t, ArmSweep(p))
	wrong, err := objs.Program(BPFProgPostBind4)
	require.NoError(t, err)
	require.ErrorContains(t, ArmSweep(wrong), "program sweep")
}

// A Load that finds everything in place: what init costs when it is done.
func BenchmarkLoadAgain(b *testing.B) {
	dir := b.TempDir()
	defer unix.Unmount(dir, unix.MNT_DETACH)
	for b.Loop() {
		objs, err := Load(Options{BPFFS: dir})
		require.NoError(b, err)
		objs.Close()
	}
}

// What few hosts need is loaded when it is needed, beside what is there, and stays through
// upgrades as long as it is attached.
func TestRare(t *testing.T) {
	newNetns(t)
	ifindex := newVeth(t, "tun0")
	o := testOptions(t)
	first, err := Load(o)
	require.NoError(t, err)
	defer first.Close()
	for _, name := range rare {
		_, err := first.Program(name)
		require.ErrorIs(t, err, ErrNotLoaded, name)
	}
	was := programIDOf(t, first, BPFProgFromUplink)

	o.Need = []string{BPFProgFromTunnel}
	second, err := Load(o)
	require.NoError(t, err)
	defer second.Close()
	require.Equal(t, was, programIDOf(t, second, BPFProgFromUplink), "the others stay")
	p, err := second.Program(BPFProgFromTunnel)
	require.NoError(t, err)
	_, err = second.Program(BPFProgToTunnel)
	require.ErrorIs(t, err, ErrNotLoaded)
	_, err = Attach(p, BPFProgFromTunnel, ifindex, Ingress, o.BPFFS)
	require.NoError(t, err)

	// Another build's.
	o.Need = nil
	spec, err := LoadBPF()
	require.NoError(t, err)
	third, err := load(spec, "another", o)
	require.NoError(t, err)
	defer third.Close()
	require.NotEqual(t, was, programIDOf(t, third, BPFProgFromUplink))
	_, err = third.Program(BPFProgFromTunnel)
	require.NoError(t, err)
	require.Len(t, third.Replaced, 1)
	require.Equal(t, BPFProgFromTunnel, third.Replaced[0].Program)

	// And gone with the device, at the next upgrade.
	require.NoError(t, Detach(BPFProgFromTunnel, ifindex, o.BPFFS))
	fourth, err := Load(o)
	require.NoError(t, err)
	defer fourth.Close()
	_, err = fourth.Program(BPFProgFromTunnel)
	require.ErrorIs(t, err, ErrNotLoaded)
}
