// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// keyTuple reads the keys of a table of flows that was made before digests: its keys are
// tuples, struct key4 or key6, of that layout. nil when the values have the tuples.
func keyTuple(em *ebpf.Map) (func(key []byte) BPFTuple, error) {
	flow, err := pinnedStruct(em, "flow")
	if err != nil {
		return nil, err
	}
	if flow == nil || slices.ContainsFunc(flow.Members, func(m btf.Member) bool { return m.Name == "tuple" }) {
		return nil, nil
	}
	family, name := uint8(4), "key4"
	s, err := pinnedStruct(em, name)
	if errors.Is(err, btf.ErrNotFound) {
		family, name = 6, "key6"
		s, err = pinnedStruct(em, name)
	}
	if err != nil {
		return nil, err
	}
	at := make(map[string]int)
	for _, m := range s.Members {
		at[m.Name] = int(m.Offset.Bytes())
	}
	addr := 4
	if family == 6 {
		addr = 16
	}
	for field, size := range map[string]int{"saddr": addr, "daddr": addr, "sport": 2, "dport": 2, "zone": 4, "proto": 1} {
		if i, ok := at[field]; !ok || i+size > int(em.KeySize()) {
			return nil, fmt.Errorf("struct %s: no %s", name, field)
		}
	}
	return func(key []byte) BPFTuple {
		return BPFTuple{
			Saddr: keyAddr(key[at["saddr"]:][:addr]), Daddr: keyAddr(key[at["daddr"]:][:addr]),
			Sport: binary.NativeEndian.Uint16(key[at["sport"]:]), Dport: binary.NativeEndian.Uint16(key[at["dport"]:]),
			Zone: binary.NativeEndian.Uint32(key[at["zone"]:]), Proto: key[at["proto"]], Family: family,
		}
	}, nil
}

// keyAddr is of 4 or 16 bytes in network order.
func keyAddr(b []byte) (a BPFAddr) {
	to := (*[16]byte)(unsafe.Pointer(&a.W))
	if len(b) == 4 {
		to[10], to[11] = 0xff, 0xff
	}
	copy(to[16-len(b):], b)
	return a
}
