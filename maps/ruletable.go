// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"

	"github.com/bpfnet/bpfnet/loader"
)

// ruleTable is the rules array, mapped into memory: publishing 10,000 ports writes
// 10,000 rules.
type ruleTable struct {
	table[uint32, loader.BPFRule]
	epoch epoch
}

const (
	ruleSize   = int64(unsafe.Sizeof(loader.BPFRule{}))
	ruleStride = (ruleSize + slotSize - 1) / slotSize * slotSize
)

func (t ruleTable) get(num uint32) (w loader.BPFRule, ok bool, err error) {
	memory, err := t.memory(num)
	if err != nil {
		return w, false, err
	}
	raw := (*[ruleSize]byte)(unsafe.Pointer(&w))
	if _, err := memory.ReadAt(raw[:], int64(num)*ruleStride); err != nil {
		return w, false, t.wrap(err)
	}
	return w, true, nil
}

func (t ruleTable) put(num uint32, w loader.BPFRule) error {
	memory, err := t.memory(num)
	if err != nil {
		return err
	}
	raw := (*[ruleSize]byte)(unsafe.Pointer(&w))
	// The generation, which is first in the struct, is written last: a flow that is
	// decided in between is judged again.
	at := int64(num) * ruleStride
	const gen = int64(unsafe.Sizeof(w.Gen))
	if _, err := memory.WriteAt(raw[gen:], at+gen); err != nil {
		return t.wrap(err)
	}
	if _, err := memory.WriteAt(raw[:gen], at); err != nil {
		return t.wrap(err)
	}
	return t.epoch.advance()
}

// each is table's, by numbers, from memory: by batches of elements the kernel takes ten
// times as long for an array of 131,072.
func (t ruleTable) each(f func(uint32, loader.BPFRule) error) error {
	m, err := t.open()
	if err != nil {
		return err
	}
	memory, err := t.memory(0)
	if err != nil {
		return err
	}
	const most = 1024 // rules at once
	var rules [most][ruleStride / 8]uint64
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&rules)), most*ruleStride)
	for first := uint32(0); first < m.MaxEntries(); first += most {
		n := min(most, m.MaxEntries()-first)
		if _, err := memory.ReadAt(raw[:int64(n)*ruleStride], int64(first)*ruleStride); err != nil {
			return t.wrap(err)
		}
		for i := range n {
			if err := f(first+i, *(*loader.BPFRule)(unsafe.Pointer(&rules[i]))); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t ruleTable) memory(num uint32) (*ebpf.Memory, error) {
	m, err := t.open()
	if err != nil {
		return nil, err
	}
	if num >= m.MaxEntries() {
		return nil, fmt.Errorf("rule %d: not below %d", num, m.MaxEntries())
	}
	memory, err := m.Memory()
	if err != nil {
		return nil, t.wrap(err)
	}
	return memory, nil
}
