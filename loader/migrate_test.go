// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"
)

var (
	u16 = &btf.Int{Name: "unsigned short", Size: 2}
	u32 = &btf.Int{Name: "unsigned int", Size: 4}
	u64 = &btf.Int{Name: "unsigned long long", Size: 8}
	s32 = &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	s64 = &btf.Int{Name: "long long", Size: 8, Encoding: btf.Signed}
)

// field is of a struct that a test lays out without holes.
type field struct {
	name string
	typ  btf.Type
}

func layOut(name string, fields ...field) *btf.Struct {
	s := &btf.Struct{Name: name}
	for _, f := range fields {
		s.Members = append(s.Members, btf.Member{Name: f.name, Type: f.typ, Offset: btf.Bits(8 * s.Size)})
		s.Size += uint32(size(f.typ))
	}
	return s
}

// withTable is the test's object with a table of those keys and values.
func withTable(typ ebpf.MapType, entries uint32, key, value btf.Type) *ebpf.CollectionSpec {
	spec := testSpec()
	spec.Maps["table"] = &ebpf.MapSpec{Name: "table", Type: typ, MaxEntries: entries, Pinning: ebpf.PinByName,
		Key: key, Value: value, KeySize: uint32(size(key)), ValueSize: uint32(size(value))}
	return spec
}

func table(t *testing.T, o *Objects) *ebpf.Map {
	t.Helper()
	m, err := o.Map("table")
	require.NoError(t, err)
	return m
}

// Fields are carried by their names, into whatever the new layout is.
func TestMigrateFields(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	key := layOut("key", field{"x", u32}, field{"pad", u32})
	ref := layOut("ref", field{"id", u32}, field{"gen", u32})
	first, err := load(withTable(ebpf.Hash, 64, key, layOut("value", field{"a", u32}, field{"b", u16}, field{"c", u16},
		field{"r", ref}, field{"l", &btf.Array{Index: u32, Type: u16, Nelems: 2}})), "aa", o)
	require.NoError(t, err)
	type value struct {
		A    uint32
		B, C uint16
		R    [2]uint32
		L    [2]uint16
	}
	for i := range uint32(64) {
		require.NoError(t, table(t, first).Put([2]uint32{i, 0}, value{i, 2, 3, [2]uint32{4, 5}, [2]uint16{6, 7}}))
	}
	was := programIDOf(t, first, "from_lo")
	require.NoError(t, first.Close())

	wider := layOut("ref", field{"gen", u64}, field{"fresh", u32}, field{"id", u32})
	next, err := load(withTable(ebpf.LRUHash, 1024, layOut("key", field{"y", u32}, field{"x", u32}), layOut("value",
		field{"l", &btf.Array{Index: u32, Type: u32, Nelems: 3}}, field{"a", u32}, field{"r", wider}, field{"new", u32}, field{"b", u32})), "bb", o)
	require.NoError(t, err)
	defer next.Close()
	require.Equal(t, []string{"table"}, next.Migration.Maps)
	require.NotEqual(t, was, programIDOf(t, next, "from_lo"))
	type wide struct {
		L         [3]uint32
		A         uint32
		Gen       uint64
		Fresh, ID uint32
		New, B    uint32
	}
	for i := range uint32(64) {
		var got wide
		require.NoError(t, table(t, next).Lookup([2]uint32{0, i}, &got))
		require.Equal(t, wide{[3]uint32{6, 7}, i, 5, 0, 4, 0, 2}, got)
	}
	for _, dir := range []string{nextDir(o.BPFFS), readyDir(o.BPFFS), oldDir(o.BPFFS)} {
		require.NoDirExists(t, dir)
	}
	kept, err := next.Map("counters")
	require.NoError(t, err)
	info, err := kept.Info()
	require.NoError(t, err)
	require.Equal(t, "counters", info.Name)
	again, err := load(withTable(ebpf.LRUHash, 1024, layOut("key", field{"y", u32}, field{"x", u32}), layOut("value",
		field{"l", &btf.Array{Index: u32, Type: u32, Nelems: 3}}, field{"a", u32}, field{"r", wider}, field{"new", u32}, field{"b", u32})), "bb", o)
	require.NoError(t, err)
	defer again.Close()
	require.Empty(t, again.Migration.Maps, "once more for nothing")
}

// What cannot be carried is refused, with the reason, and nothing has changed.
func TestMigrateRefuses(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	key, value := layOut("key", field{"x", u32}, field{"y", u32}), layOut("value", field{"a", u32}, field{"s", s32}, field{"l", &btf.Array{Index: u32, Type: u32, Nelems: 2}})
	first, err := load(withTable(ebpf.Hash, 64, key, value), "aa", o)
	require.NoError(t, err)
	for i := range uint32(3) {
		require.NoError(t, table(t, first).Put([2]uint32{i, 0}, [4]uint32{i, 2, 3, 4}))
	}
	was := programIDOf(t, first, "from_lo")
	require.NoError(t, first.Close())
	for why, spec := range map[string]*ebpf.CollectionSpec{
		"key: struct key: y is gone":                withTable(ebpf.Hash, 64, layOut("key", field{"x", u32}), value),
		"a: unsigned short was unsigned int":        withTable(ebpf.Hash, 64, key, layOut("value", field{"a", u16})),
		"s: long long was int":                      withTable(ebpf.Hash, 64, key, layOut("value", field{"s", s64})),
		"l: 1 elements were 2":                      withTable(ebpf.Hash, 64, key, layOut("value", field{"l", &btf.Array{Index: u32, Type: u32, Nelems: 1}})),
		"l: was no struct":                          withTable(ebpf.Hash, 64, key, layOut("value", field{"l", layOut("x", field{"y", u64})})),
		"more entries than the 2 there is room for": withTable(ebpf.Hash, 2, key, value),
	} {
		_, err := load(spec, "bb", o)
		var layout *LayoutError
		require.ErrorAs(t, err, &layout, why)
		require.ErrorIs(t, err, ErrLayout)
		require.ErrorContains(t, err, why)
		require.ErrorContains(t, err, filepath.Join(mapsDir(o.BPFFS), "table"))
		require.NoDirExists(t, oldDir(o.BPFFS))
	}
	same, err := load(withTable(ebpf.Hash, 64, key, value), "aa", o)
	require.NoError(t, err)
	defer same.Close()
	require.Equal(t, was, programIDOf(t, same, "from_lo"), "changed all the same")
	var got [4]uint32
	require.NoError(t, table(t, same).Lookup([2]uint32{2, 0}, &got))
	require.Equal(t, [4]uint32{2, 2, 3, 4}, got)
	require.NoDirExists(t, nextDir(o.BPFFS))
}

// A process that was killed while it moved the maps: whoever loads next goes on.
func TestMigrateResumes(t *testing.T) {
	newNetns(t)
	wide, narrow := layOut("value", field{"a", u64}, field{"b", u64}), layOut("value", field{"a", u64})
	for name, kill := range map[string]func(t *testing.T, g *migration){
		"before all is copied": func(t *testing.T, g *migration) {},
		"before the exchange": func(t *testing.T, g *migration) {
			require.NoError(t, g.copy())
			require.NoError(t, os.Rename(nextDir(g.bpffs), readyDir(g.bpffs)))
		},
		"in the exchange": func(t *testing.T, g *migration) {
			require.NoError(t, g.copy())
			require.NoError(t, os.Rename(nextDir(g.bpffs), readyDir(g.bpffs)))
			require.NoError(t, makeDir(oldDir(g.bpffs)))
			require.NoError(t, os.Rename(filepath.Join(mapsDir(g.bpffs), "table"), filepath.Join(oldDir(g.bpffs), "table")))
		},
		"after it": func(t *testing.T, g *migration) {
			require.NoError(t, g.copy())
			require.NoError(t, g.commit())
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t)
			first, err := load(withTable(ebpf.Hash, 64, u32, narrow), "aa", o)
			require.NoError(t, err)
			require.NoError(t, table(t, first).Put(uint32(7), uint64(42)))
			require.NoError(t, first.Close())
			spec := withTable(ebpf.Hash, 64, u32, wide)
			m, changed, err := openMaps(spec, o)
			require.NoError(t, err)
			g, err := migrate(spec, o, m, changed)
			require.NoError(t, err)
			kill(t, g)
			g.close()
			m.Close()

			next, err := load(withTable(ebpf.Hash, 64, u32, wide), "bb", o)
			require.NoError(t, err)
			defer next.Close()
			var got [2]uint64
			require.NoError(t, table(t, next).Lookup(uint32(7), &got))
			require.Equal(t, [2]uint64{42, 0}, got)
			for _, dir := range []string{nextDir(o.BPFFS), readyDir(o.BPFFS), oldDir(o.BPFFS)} {
				require.NoDirExists(t, dir)
			}
		})
	}
}

// Arrays and counters per CPU.
func TestMigrateArrays(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	narrow, wide := layOut("value", field{"a", u64}), layOut("value", field{"b", u32}, field{"pad", u32}, field{"a", u64})
	cpus := ebpf.MustPossibleCPU()
	for typ, check := range map[ebpf.MapType]bool{ebpf.Array: false, ebpf.PerCPUArray: true, ebpf.LRUCPUHash: true} {
		first, err := load(withTable(typ, 64, u32, narrow), "aa", o)
		require.NoError(t, err)
		one := make([]uint64, cpus)
		for i := range one {
			one[i] = uint64(40 + i)
		}
		var put any = one
		if !check {
			put = uint64(40)
		}
		require.NoError(t, table(t, first).Put(uint32(5), put))
		require.NoError(t, first.Close())
		next, err := load(withTable(typ, 128, u32, wide), "bb", o)
		require.NoError(t, err)
		if check {
			var got [][2]uint64
			require.NoError(t, table(t, next).Lookup(uint32(5), &got))
			for i := range got {
				require.Equal(t, [2]uint64{0, uint64(40 + i)}, got[i])
			}
		} else {
			var got [2]uint64
			require.NoError(t, table(t, next).Lookup(uint32(5), &got))
			require.Equal(t, [2]uint64{0, 40}, got)
		}
		require.NoError(t, next.Close())
		require.NoError(t, Uninstall(o))
	}
}
