// SPDX-License-Identifier: Apache-2.0

package loader

import "unsafe"

func asFlow(value []byte) *BPFFlow {
	f := new(BPFFlow)
	copy((*[unsafe.Sizeof(*f)]byte)(unsafe.Pointer(f))[:], value)
	return f
}

// twin is where the other direction of f arrives: bpf/lib/table.h, twin_of.
func twin(f *BPFFlow) BPFTuple {
	t := BPFTuple{Saddr: f.Daddr, Daddr: f.Saddr, Sport: f.Dport, Dport: f.Sport, Zone: f.ZoneTwin, Proto: f.Tuple.Proto, Family: f.Tuple.Family}
	if f.Flags&uint8(BPFFlowFlagsFLOW_TO_IPV4) != 0 {
		t.Family = 4
	} else if f.Flags&uint8(BPFFlowFlagsFLOW_TO_IPV6) != 0 {
		t.Family = 6
	}
	return t
}
