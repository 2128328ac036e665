// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
)

// testSpec is a small object with maps of the real one's names, so that these
// tests do not depend on what the real programs do.
func testSpec() *ebpf.CollectionSpec {
	tc := func(name string, do ...asm.Instruction) *ebpf.ProgramSpec {
		return &ebpf.ProgramSpec{Name: name, Type: ebpf.SchedCLS, License: "GPL", Instructions: append(do,
			asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
			asm.Return(),
		)}
	}
	hook := func(name string) *ebpf.ProgramSpec {
		return tc(name,
			asm.LoadMapPtr(asm.R2, 0).WithReference(BPFMapSlowPaths),
			asm.Mov.Imm(asm.R3, 0),
			asm.FnTailCall.Call(),
		)
	}
	hash := func(name string) *ebpf.MapSpec {
		return &ebpf.MapSpec{Name: name, Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: 4096, Pinning: ebpf.PinByName}
	}
	return &ebpf.CollectionSpec{
		Maps: map[string]*ebpf.MapSpec{
			"counters": {Name: "counters", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1, Pinning: ebpf.PinByName},
			"flows4":   hash("flows4"), "half4": hash("half4"),
			BPFMapSlowPaths: {Name: BPFMapSlowPaths, Type: ebpf.ProgramArray, KeySize: 4, ValueSize: 4, MaxEntries: 1,
				Contents: []ebpf.MapKV{{Key: uint32(0), Value: BPFProgSlowPath}}},
		},
		Programs: map[string]*ebpf.ProgramSpec{"from_lo": hook("from_lo"), "to_lo": hook("to_lo"), BPFProgSlowPath: tc(BPFProgSlowPath,
			asm.StoreImm(asm.R10, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, 0).WithReference("counters"),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
		)},
	}
}

func id(t *testing.T, p *ebpf.Program, err error) ebpf.ProgramID {
	t.Helper()
	require.NoError(t, err)
	i, err := programID(p)
	require.NoError(t, err)
	return i
}

func mustLoad(t *testing.T, digest string, o Options) *Objects {
	t.Helper()
	objs, err := load(testSpec(), digest, o)
	require.NoError(t, err)
	t.Cleanup(func() { objs.Close() })
	return objs
}

func programIDOf(t *testing.T, set interface {
	Program(string) (*ebpf.Program, error)
}, name string) ebpf.ProgramID {
	t.Helper()
	p, err := set.Program(name)
	return id(t, p, err)
}

func TestLoadKeepsWhatIsPinned(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	_, err := OpenMaps(o)
	require.ErrorIs(t, err, ErrNotLoaded)
	_, err = OpenPrograms(o)
	require.ErrorIs(t, err, ErrNotLoaded)

	first := mustLoad(t, "aa", o)
	m, err := first.Map("counters")
	require.NoError(t, err)
	require.NoError(t, m.Put(uint32(0), uint64(42)))
	was := programIDOf(t, first, "from_lo")
	require.NoError(t, first.Close())

	maps, err := OpenMaps(o)
	require.NoError(t, err)
	defer maps.Close()
	m, err = maps.Map("counters")
	require.NoError(t, err)
	require.EqualValues(t, 42, count(t, m))
	_, err = maps.Map("nonesuch")
	require.ErrorIs(t, err, ErrNotLoaded)

	set, err := OpenPrograms(o)
	require.NoError(t, err)
	defer set.Close()
	require.Equal(t, "aa", set.Digest())
	require.Equal(t, was, programIDOf(t, set, "from_lo"))

	require.Equal(t, was, programIDOf(t, mustLoad(t, "aa", o), "from_lo"), "loaded again for nothing")
}

func TestLoadUpgrades(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		o := testOptions(t)
		first := mustLoad(t, "aa", o)
		old, err := first.Program("from_lo")
		require.NoError(t, err)
		was := id(t, old, nil)
		_, err = Attach(old, "from_lo", 1, Ingress, o.BPFFS)
		require.NoError(t, err)
		p, err := first.Program("to_lo")
		require.NoError(t, err)
		_, err = Attach(p, "to_lo", 1, Egress, o.BPFFS)
		require.NoError(t, err)

		next := mustLoad(t, "bb", o)
		require.Len(t, next.Replaced, 2)
		list, err := Attachments(o.BPFFS)
		require.NoError(t, err)
		require.Len(t, list, 2)
		for _, a := range list {
			require.Equal(t, kind, a.Kind)
			require.Empty(t, a.Problem)
		}
		require.NotEqual(t, was, programIDOf(t, next, "from_lo"))
		set, err := OpenPrograms(o)
		require.NoError(t, err)
		defer set.Close()
		require.Equal(t, "bb", set.Digest())
		sets, err := os.ReadDir(programsDir(o.BPFFS))
		require.NoError(t, err)
		require.Len(t, sets, 2, "the old set stays behind") // current, bb-…

		m, err := next.Map("counters")
		require.NoError(t, err)
		newSender(t).send(t, 5)
		require.EqualValues(t, 10, count(t, m), "each hook sees a packet once")
	})
}

// A program that the new build does not have is detached.
func TestLoadDropsPrograms(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	first := mustLoad(t, "aa", o)
	p, err := first.Program("to_lo")
	require.NoError(t, err)
	_, err = Attach(p, "to_lo", 1, Egress, o.BPFFS)
	require.NoError(t, err)

	spec := testSpec()
	delete(spec.Programs, "to_lo")
	next, err := load(spec, "bb", o)
	require.NoError(t, err)
	defer next.Close()
	list, err := Attachments(o.BPFFS)
	require.NoError(t, err)
	require.Empty(t, list)
}

// The table of the slow path is there while the programs are attached, though no process has it
// open, and though its set is loaded again.
func TestSlowPath(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	objs := mustLoad(t, "aa", o)
	p, err := objs.Program("from_lo")
	require.NoError(t, err)
	p, err = p.Clone()
	require.NoError(t, err)
	defer p.Close()
	counters, err := OpenMaps(o)
	require.NoError(t, err)
	defer counters.Close()
	m, err := counters.Map("counters")
	require.NoError(t, err)
	dir := objs.ProgramSet.dir
	require.NoError(t, objs.Close())
	counts := func(what string) {
		t.Helper()
		was := count(t, m)
		verdict, _, err := p.Test(make([]byte, 64))
		require.NoError(t, err)
		require.Equal(t, int32(-1), int32(verdict))
		require.Equal(t, was+1, count(t, m), what)
	}
	counts("loaded")

	require.NoError(t, os.Remove(filepath.Join(dir, "to_lo")))
	mustLoad(t, "aa", o)
	counts("loaded again")

	require.NoError(t, os.Remove(filepath.Join(dir, BPFMapSlowPaths)))
	again := mustLoad(t, "aa", o)
	p, err = again.Program("from_lo")
	require.NoError(t, err)
	counts("its table was missing")
}

// A process that was killed left half a set, or new maps beside old programs.
func TestLoadMends(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	first := mustLoad(t, "aa", o)
	was := programIDOf(t, first, "to_lo")
	require.NoError(t, os.Remove(filepath.Join(first.ProgramSet.dir, "from_lo")))
	second := mustLoad(t, "aa", o)
	require.NotEqual(t, was, programIDOf(t, second, "to_lo"))

	was = programIDOf(t, second, "to_lo")
	require.NoError(t, os.Remove(filepath.Join(mapsDir(o.BPFFS), "counters")))
	third := mustLoad(t, "aa", o)
	require.NotEqual(t, was, programIDOf(t, third, "to_lo"), "programs of other maps")
}

func TestLoadLayout(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	first := mustLoad(t, "aa", o)
	was := programIDOf(t, first, "from_lo")

	spec := testSpec()
	spec.Maps["counters"].ValueSize = 16
	_, err := load(spec, "bb", o)
	require.ErrorIs(t, err, ErrLayout)
	require.ErrorContains(t, err, "maps/counters")
	require.ErrorContains(t, err, "value: 16 bytes were 8")
	require.NoDirExists(t, nextDir(o.BPFFS))
	set, err := OpenPrograms(o)
	require.NoError(t, err)
	defer set.Close()
	require.Equal(t, was, programIDOf(t, set, "from_lo"), "changed all the same")

	same := o
	same.Sizes = Sizes{}
	kept := mustLoad(t, "aa", same)
	m, err := kept.Map("flows4")
	require.NoError(t, err)
	require.EqualValues(t, 2*o.Sizes.FlowTable, m.MaxEntries())

	dropping := o
	dropping.DropFlows = true
	spec = testSpec()
	spec.Maps["counters"].ValueSize = 16
	objs, err := load(spec, "bb", dropping)
	require.NoError(t, err)
	defer objs.Close()
	require.Equal(t, []string{"counters"}, objs.Migration.Maps)
}

// What fails, and what succeeds, leaves no descriptor open.
func TestNoLeaks(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		o := testOptions(t)
		descriptors := func() int {
			entries, err := os.ReadDir("/proc/self/fd")
			require.NoError(t, err)
			return len(entries)
		}
		round := func(digest string) {
			objs, err := load(testSpec(), digest, o)
			require.NoError(t, err)
			defer objs.Close()
			p, err := objs.Program("from_lo")
			require.NoError(t, err)
			_, err = Attach(p, "from_lo", 1, Ingress, o.BPFFS)
			require.NoError(t, err)
			require.NoError(t, Claim(o))
			_, err = Attachments(o.BPFFS)
			require.NoError(t, err)
			_, err = Attach(p, "from_lo", 4711, Ingress, o.BPFFS)
			require.Error(t, err)
			bad := testSpec()
			bad.Maps["counters"].ValueSize = 16
			_, err = load(bad, "cc", o)
			require.ErrorIs(t, err, ErrLayout)
			require.NoError(t, Detach("from_lo", 1, o.BPFFS))
		}
		round("aa")
		runtime.GC()
		was := descriptors()
		gc := debug.SetGCPercent(-1) // which would close what is forgotten
		defer debug.SetGCPercent(gc)
		for i := range 10 {
			round([]string{"aa", "bb"}[i%2])
		}
		require.LessOrEqual(t, descriptors(), was)
	})
}

func TestLoadVerifierError(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	spec := testSpec()
	spec.Programs["from_lo"].Instructions = asm.Instructions{
		asm.Mov.Imm(asm.R1, 0),
		asm.LoadMem(asm.R0, asm.R1, 0, asm.Word),
		asm.Return(),
	}
	_, err := load(spec, "aa", o)
	require.ErrorContains(t, err, "program from_lo: ")
	require.ErrorContains(t, err, "R1 invalid mem access")
	require.NotContains(t, err.Error(), "\n")
	require.Contains(t, VerifierLog(err), "\n")
	require.Contains(t, sprintfPlus(err), VerifierLog(err))
	_, err = OpenPrograms(o)
	require.ErrorIs(t, err, ErrNotLoaded)
}

func TestUninstall(t *testing.T) {
	eachKind(t, func(t *testing.T, kind string) {
		o := testOptions(t)
		require.NoError(t, Uninstall(o), "nothing there")
		objs := mustLoad(t, "aa", o)
		m, err := objs.Map("counters")
		require.NoError(t, err)
		p, err := objs.Program("from_lo")
		require.NoError(t, err)
		_, err = Attach(p, "from_lo", 1, Ingress, o.BPFFS)
		require.NoError(t, err)

		require.NoError(t, Uninstall(o))
		require.NoDirExists(t, o.BPFFS)
		newSender(t).send(t, 1)
		require.Zero(t, count(t, m), "still attached")
		require.NoError(t, Claim(o))
		require.NoError(t, Uninstall(o))
	})
}
