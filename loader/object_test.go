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
