// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/btf"
	"github.com/stretchr/testify/require"
)

// Each word of the seed is in the programs, where the object's was.
func TestPlant(t *testing.T) {
	spec, err := LoadBPF()
	require.NoError(t, err)
	constants := func(p *ebpf.ProgramSpec) (list []int64) {
		for _, ins := range p.Instructions {
			if op := ins.OpCode; op.Class().IsALU() && op.ALUOp() == asm.Mov && op.Source() == asm.ImmSource {
				list = append(list, ins.Constant)
			}
		}
		return list
	}
	before := constants(spec.Programs[BPFProgFromUplink])
	seed := Seed{0x80000000, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0xfffffffe}
	seed.plant(spec)
	for name, p := range spec.Programs {
		for _, word := range ObjectSeed {
			require.NotContains(t, constants(p), int64(word), name)
		}
	}
	after := constants(spec.Programs[BPFProgFromUplink])
	require.Len(t, after, len(before))
	planted := map[int64]int64{}
	for i := range before {
		if before[i] != after[i] {
			planted[before[i]] = after[i]
		}
	}
	want := map[int64]int64{}
	for i, word := range ObjectSeed {
		want[int64(word)] = int64(int32(seed[i]))
	}
	require.Equal(t, want, planted)
}

func mapIn(t *testing.T, m *Maps, name string) *ebpf.Map {
	t.Helper()
	em, err := m.Map(name)
	require.NoError(t, err)
	return em
}

func seedIn(t *testing.T, m *Maps) Seed {
	t.Helper()
	s, err := SeedOf(mapIn(t, m, BPFMapSeeds))
	require.NoError(t, err)
	return s
}

func TestSeed(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	made := func() Seed {
		m, err := CreateMaps(o)
		require.NoError(t, err)
		defer m.Close()
		return seedIn(t, m)
	}
	m, err := CreateMaps(o)
	require.NoError(t, err)
	require.NoError(t, mapIn(t, m, BPFMapSeeds).Put(uint32(0), BPFSeed{}), "who made it was killed before it was filled")
	require.NoError(t, m.Close())
	first := made()
	require.NotContains(t, first, uint32(0), "one word in 2^32 is")
	require.Equal(t, first, made())
	require.NotEqual(t, first, ObjectSeed)
	o = testOptions(t)
	require.NotEqual(t, first, made(), "another host's")
}

// someFlow is a flow's two entries, established.
func someFlow(family uint8, n byte) (first, reply BPFFlow) {
	addr := func(last byte) BPFAddr {
		raw := [16]byte{0xfd, n, 15: last}
		if family == 4 {
			raw = [16]byte{10: 0xff, 11: 0xff, 12: 10, 13: n, 15: last}
		}
		return BPFAddr{W: *(*[4]uint32)(unsafe.Pointer(&raw))}
	}
	listed := uint8(BPFFlowFlagsFLOW_LISTED)
	first = BPFFlow{
		Tuple: BPFTuple{Saddr: addr(1), Daddr: addr(2), Sport: 1, Dport: 2, Proto: 6, Family: family},
		Saddr: addr(1), Daddr: addr(3), Sport: 1, Dport: 4, ZoneTwin: 7, State: uint8(BPFFlowStateFLOW_ESTABLISHED),
		Flags: listed, Packets: 42, Owner: 5, Dst: BPFRef{Id: 5, Gen: 6}, Timeout: 7000, Nexthop: addr(9),
	}
	reply = BPFFlow{
		Tuple: twin(&first), Saddr: addr(2), Daddr: addr(1), Sport: 2, Dport: 1, State: first.State,
		Flags: listed | uint8(BPFFlowFlagsFLOW_REPLY), Packets: 41, Owner: 5, Src: first.Dst, Timeout: 7000,
	}
	return first, reply
}

// carriedOver requires that the flow is in the tables of now, by the digests of now.
func carriedOver(t *testing.T, m *Maps, first, reply BPFFlow) {
	t.Helper()
	seed, flows := seedIn(t, m), mapIn(t, m, listed[tableOf(first.Tuple)])
	var a, b BPFFlow
	require.NoError(t, flows.Lookup(seed.Digest(first.Tuple), &a))
	require.NoError(t, flows.Lookup(seed.Digest(reply.Tuple), &b))
	require.Equal(t, a.Slot, b.Slot)
	var s BPFSlot
	require.NoError(t, mapIn(t, m, BPFMapSlots).Lookup(a.Slot, &s))
	require.Equal(t, BPFSlot{Digest: seed.Digest(first.Tuple), Family: uint32(first.Tuple.Family), Owner: first.Dst}, s)
	first.Slot, reply.Slot = a.Slot, a.Slot
	require.Equal(t, first, a)
	require.Equal(t, reply, b)
}

// halfOpenOver is the same of a half-open flow's entry.
func halfOpenOver(t *testing.T, m *Maps, f BPFFlow) {
	t.Helper()
	var got BPFFlow
	require.NoError(t, mapIn(t, m, halfOpen[tableOf(f.Tuple)]).Lookup(seedIn(t, m).Digest(f.Tuple), &got))
	require.Equal(t, f, got)
}

// Tables that had tuples for keys, as they were before digests.
func TestMigrateKeys(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	spec, err := LoadBPF()
	require.NoError(t, err)
	be32, be16, u8 := &btf.Typedef{Name: "__be32", Type: u32}, &btf.Typedef{Name: "__be16", Type: u16}, &btf.Int{Name: "unsigned char", Size: 1}
	is := spec.Maps[BPFMapFlows4].Value.(*btf.Struct)
	addr := member(is, "saddr")
	key := func(name string, addr btf.Type) *btf.Struct {
		return layOut(name, field{"saddr", addr}, field{"daddr", addr}, field{"sport", be16}, field{"dport", be16}, field{"zone", u32},
			field{"proto", u8}, field{"pad", &btf.Array{Index: u32, Type: u8, Nelems: 7}})
	}
	was := &btf.Struct{Name: "flow"}
	for _, m := range members(is.Members, 0) {
		if m.Name == "tuple" || m.Name == "expect" {
			continue
		}
		was.Members = append(was.Members, btf.Member{Name: m.Name, Type: m.Type, Offset: btf.Bits(8 * was.Size)})
		was.Size += uint32(size(m.Type))
	}
	was.Members = append(was.Members, btf.Member{Name: "expect", Type: u32, Offset: btf.Bits(8 * was.Size)})
	was.Size += 4
	for name, k := range map[string]*btf.Struct{BPFMapFlows4: key("key4", be32), BPFMapHalf4: key("key4", be32), BPFMapFlows6: key("key6", addr), BPFMapHalf6: key("key6", addr)} {
		ms := spec.Maps[name]
		ms.Key, ms.KeySize, ms.Value, ms.ValueSize = k, k.Size, was, was.Size
	}
	delete(spec.Maps, BPFMapSeeds)
	o.Sizes.apply(spec)
	old := &Maps{dir: mapsDir(o.BPFFS), open: make(map[string]*ebpf.Map)}
	require.NoError(t, Mount(o.BPFFS))
	require.NoError(t, makeDir(old.dir))
	require.NoError(t, old.create(spec))
	defer old.Close()

	// enter writes an entry of now as it was then.
	enter := func(name string, f BPFFlow, expect uint32) {
		em := mapIn(t, old, name)
		raw := (*[unsafe.Sizeof(f)]byte)(unsafe.Pointer(&f))
		value := make([]byte, was.Size)
		for _, m := range was.Members {
			if m.Name != "expect" {
				now := members(is.Members, 0)
				i := slices.IndexFunc(now, func(x btf.Member) bool { return x.Name == m.Name })
				copy(value[m.Offset.Bytes():][:size(m.Type)], raw[now[i].Offset.Bytes():])
			}
		}
		binary.NativeEndian.PutUint32(value[was.Size-4:], expect)
		tuple := (*[unsafe.Sizeof(f.Tuple)]byte)(unsafe.Pointer(&f.Tuple))
		k := append([]byte{}, tuple[:]...)
		if f.Tuple.Family == 4 {
			k = slices.Concat(tuple[12:16], tuple[28:])
		}
		k = append(k[:len(k)-3], 0, 0, 0, 0, 0, 0, 0) // without the family
		require.NoError(t, em.Put(k, value))
	}
	type pair struct{ first, reply BPFFlow }
	var flows []pair
	var open []BPFFlow
	for n := range byte(3) {
		for _, family := range []uint8{4, 6} {
			first, reply := someFlow(family, n)
			flows = append(flows, pair{first, reply})
			enter(listed[tableOf(first.Tuple)], first, 4711)
			enter(listed[tableOf(reply.Tuple)], reply, 0)
			half, _ := someFlow(family, 100+n)
			half.Flags, half.State = 0, uint8(BPFFlowStateFLOW_ANSWERED)
			enter(halfOpen[tableOf(half.Tuple)], half, 4712)
			half.Slot = 4712 // one word with expect
			open = append(open, half)
		}
	}
	require.NoError(t, old.Close())

	objs, err := Load(o)
	require.NoError(t, err)
	defer objs.Close()
	require.Equal(t, len(flows), objs.Migration.Carried)
	for _, f := range flows {
		carriedOver(t, objs.Maps, f.first, f.reply)
	}
	for _, f := range open {
		halfOpenOver(t, objs.Maps, f)
	}
	again, err := Load(o)
	require.NoError(t, err)
	defer again.Close()
	require.Empty(t, again.Migration.Maps, "once more for nothing")
}

func member(s *btf.Struct, name string) btf.Type {
	for _, m := range s.Members {
		if m.Name == name {
			return m.Type
		}
	}
	return nil
}

// Somebody has removed the seed's pin: flows are found by another from then on.
func TestMigrateSeed(t *testing.T) {
	newNetns(t)
	o := testOptions(t)
	objs, err := Load(o)
	require.NoError(t, err)
	defer objs.Close()
	seed := seedIn(t, objs.Maps)
	first, reply := someFlow(6, 1)
	half, _ := someFlow(4, 2)
	half.Flags = 0
	for _, f := range []BPFFlow{first, reply} {
		require.NoError(t, mapIn(t, objs.Maps, BPFMapFlows6).Put(seed.Digest(f.Tuple), f))
	}
	require.NoError(t, mapIn(t, objs.Maps, BPFMapHalf4).Put(seed.Digest(half.Tuple), half))
	require.NoError(t, os.Remove(filepath.Join(mapsDir(o.BPFFS), BPFMapSeeds)))

	next, err := Load(o)
	require.NoError(t, err)
	defer next.Close()
	require.NotEqual(t, seed, seedIn(t, next.Maps))
	require.Equal(t, 1, next.Migration.Carried)
	carriedOver(t, next.Maps, first, reply)
	halfOpenOver(t, next.Maps, half)
}
