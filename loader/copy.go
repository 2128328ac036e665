// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// copy enters what the old map has into the new one, converted. Arrays are all zero at
// first, and so is what they do not copy.
func (mv *move) copy() error {
	switch mv.old.Type() {
	case ebpf.PerCPUArray, ebpf.PerCPUHash, ebpf.LRUCPUHash:
		return mv.copyPerCPU()
	case ebpf.Queue, ebpf.Stack:
		return errors.New("cannot be read without being emptied")
	}
	array := mv.old.Type() == ebpf.Array
	n := 0
	return each(mv.old, func(k, v []byte) error {
		if array && zero(v) {
			return nil
		}
		n++
		return mv.put(mv.key.apply(k), mv.value.apply(v))
	})
}

func (mv *move) copyPerCPU() error {
	var key []byte
	var cpus [][]byte
	array := mv.old.Type() == ebpf.PerCPUArray
	it := mv.old.Iterate()
	for it.Next(&key, &cpus) {
		all := true
		out := make([][]byte, len(cpus))
		for i, v := range cpus {
			all = all && zero(v)
			out[i] = mv.value.apply(v)
		}
		if array && all {
			continue
		}
		if err := mv.put(mv.key.apply(key), out); err != nil {
			return err
		}
	}
	// Entries that come and go keep an iteration from its end: these are counters.
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return err
	}
	return nil
}

func (mv *move) put(key []byte, value any) error {
	err := mv.now.Put(key, value)
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("more entries than the %d there is room for", mv.now.MaxEntries())
	}
	return err
}

func zero(b []byte) bool {
	for _, x := range b {
		if x != 0 {
			return false
		}
	}
	return true
}

// each calls f with every entry of a map, bytes that are f's for the call. Entries that
// come and go meanwhile may be missed.
func each(m *ebpf.Map, f func(key, value []byte) error) error {
	rows := func(n int, size uint32) reflect.Value {
		return reflect.MakeSlice(reflect.SliceOf(reflect.ArrayOf(int(size), reflect.TypeFor[byte]())), n, n)
	}
	var cursor ebpf.MapBatchCursor
	for n := min(int(m.MaxEntries()), 4096); ; n *= 2 { // a bucket of a hash table must fit
		keys, values := rows(n, m.KeySize()), rows(n, m.ValueSize())
		for {
			got, err := m.BatchLookup(&cursor, keys.Interface(), values.Interface(), nil)
			if errors.Is(err, unix.ENOSPC) {
				break
			}
			last := errors.Is(err, ebpf.ErrKeyNotExist)
			if err != nil && !last {
				return err
			}
			for i := range got {
				if err := f(keys.Index(i).Bytes(), values.Index(i).Bytes()); err != nil {
					return err
				}
			}
			if last {
				return nil
			}
		}
	}
}
