// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"

	"github.com/bpfnet/bpfnet/loader"
)

// epoch counts the changes of endpoints and rules: the programs compare the
// generations behind a flow only when it has moved.
type epoch struct{ src Source }

// advance is called after a generation was written. It is a store into mapped
// memory: publishing 10,000 ports changes 10,000 generations.
func (e epoch) advance() error {
	m, err := e.src.Map(loader.BPFMapClocks)
	if err != nil {
		return err
	}
	memory, err := m.Memory()
	if err != nil {
		return fmt.Errorf("map %s: %w", loader.BPFMapClocks, err)
	}
	b := make([]byte, 4)
	if _, err := memory.ReadAt(b, 0); err != nil {
		return fmt.Errorf("map %s: %w", loader.BPFMapClocks, err)
	}
	// A new flow has epoch 0, which must never be the current one.
	binary.NativeEndian.PutUint32(b, max(1, binary.NativeEndian.Uint32(b)+1))
	if _, err := memory.WriteAt(b, 0); err != nil {
		return fmt.Errorf("map %s: %w", loader.BPFMapClocks, err)
	}
	return nil
}

// versioned is a table of which the values have a generation.
type versioned[K comparable, V any] struct {
	table[K, V]
	epoch epoch
}

func (t versioned[K, V]) put(k K, v V) error {
	if err := t.table.put(k, v); err != nil {
		return err
	}
	return t.epoch.advance()
}
