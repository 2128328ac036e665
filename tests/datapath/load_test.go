// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// programs are loaded once: it takes longer than any test does. They are not closed
// before the process ends.
var programs = sync.OnceValues(func() (objs loader.BPFObjects, err error) {
	spec, err := loader.LoadBPF()
	if err != nil {
		return objs, err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	// Looked through for each test, and never full here. (TestLastPort fills flows4.)
	for _, name := range []string{"flows6", "half4", "half6"} {
		spec.Maps[name].MaxEntries = 8192
	}
	return objs, spec.LoadAndAssign(&objs, nil)
})

// inUse says that a world has the programs; there is one at a time.
var inUse sync.Mutex

// load gives a test the programs with empty tables.
func load(t testing.TB) loader.BPFObjects {
	t.Helper()
	objs, err := programs()
	require.NoError(t, err)
	require.True(t, inUse.TryLock(), "two worlds at once")
	t.Cleanup(inUse.Unlock)

	// The timer first: a value with one that is written over loses it.
	var sweeper loader.BPFSweeper
	require.NoError(t, objs.Sweepers.Lookup(uint32(0), &sweeper))
	require.NoError(t, objs.Sweepers.Put(uint32(0), loader.BPFSweeper{}))
	for i := range sweeper.Fresh { // no slot above was ever used
		require.NoError(t, objs.Slots.Put(i, loader.BPFSlot{}))
	}
	tables := reflect.ValueOf(objs.BPFMaps)
	for i := range tables.NumField() {
		m := tables.Field(i).Interface().(*ebpf.Map)
		// AnyPort is of sockets, and goes with them; SlowPaths is of the programs.
		if m == objs.Slots || m == objs.AnyPort || m == objs.SlowPaths {
			continue
		}
		require.NoError(t, empty(m), "%v", m)
	}
	return objs
}

// empty makes a table what it is at first.
func empty(m *ebpf.Map) error {
	switch m.Type() {
	case ebpf.Array, ebpf.PerCPUArray:
		return zero(m)
	case ebpf.Queue:
		var value []byte
		for {
			if err := m.LookupAndDelete(nil, &value); errors.Is(err, ebpf.ErrKeyNotExist) {
				return nil
			} else if err != nil {
				return err
			}
		}
	default:
		// Each key by the one before it: to look for the first again takes the kernel through
		// all that is empty already.
		for key, err := m.NextKeyBytes(nil); key != nil || err != nil; {
			if err != nil {
				return err
			}
			next, nextErr := m.NextKeyBytes(key)
			if err := m.Delete(key); err != nil {
				return err
			}
			key, err = next, nextErr
		}
		if left, err := m.NextKeyBytes(nil); left != nil || err != nil {
			return fmt.Errorf("not empty: %x %v", left, err)
		}
		return nil
	}
}

// zero is empty for arrays.
func zero(m *ebpf.Map) error {
	const mmapable = 1 << 10
	if m.Flags()&mmapable != 0 {
		memory, err := m.Memory()
		if err != nil {
			return err
		}
		_, err = memory.WriteAt(make([]byte, memory.Size()), 0)
		return err
	}
	if m.Type() == ebpf.PerCPUArray {
		values := make([][]byte, ebpf.MustPossibleCPU())
		for i := range values {
			values[i] = make([]byte, m.ValueSize())
		}
		for i := range m.MaxEntries() {
			if err := m.Put(i, values); err != nil {
				return err
			}
		}
		return nil
	}
	keys := make([]uint32, m.MaxEntries())
	for i := range keys {
		keys[i] = uint32(i)
	}
	value := reflect.ArrayOf(int(m.ValueSize()), reflect.TypeFor[byte]())
	values := reflect.MakeSlice(reflect.SliceOf(value), len(keys), len(keys))
	_, err := m.BatchUpdate(keys, values.Interface(), nil)
	return err
}
