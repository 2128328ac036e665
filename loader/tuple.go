// SPDX-License-Identifier: Apache-2.0

package loader

import "unsafe"

// tuple is one direction of a flow, as a key of the new layout.
type tuple struct {
	key    BPFKey6 // BPFKey4 in its first bytes when family is 4
	family uint32
}

func (t tuple) index() int {
	if t.family == 4 {
		return 0
	}
	return 1
}

func (t tuple) bytes() []byte {
	raw := (*[unsafe.Sizeof(t.key)]byte)(unsafe.Pointer(&t.key))
	if t.family == 4 {
		return append([]byte{}, raw[:unsafe.Sizeof(BPFKey4{})]...)
	}
	return append([]byte{}, raw[:]...)
}

func asTuple(key []byte, index int) tuple {
	t := tuple{family: 4}
	if index == 1 {
		t.family = 6
	}
	copy((*[unsafe.Sizeof(t.key)]byte)(unsafe.Pointer(&t.key))[:], key)
	return t
}

func asFlow(value []byte) *BPFFlow {
	f := new(BPFFlow)
	copy((*[unsafe.Sizeof(*f)]byte)(unsafe.Pointer(f))[:], value)
	return f
}

// twin is where the other direction of f arrives, f's own being t: bpf/lib/flow.h,
// twin_of.
func twin(t tuple, f *BPFFlow) tuple {
	proto := t.key.Proto
	if t.family == 4 {
		proto = (*BPFKey4)(unsafe.Pointer(&t.key)).Proto
	}
	family := t.family
	if f.Flags&uint8(BPFFlowFlagsFLOW_TO_IPV4) != 0 {
		family = 4
	} else if f.Flags&uint8(BPFFlowFlagsFLOW_TO_IPV6) != 0 {
		family = 6
	}
	if family == 4 {
		key := BPFKey4{Saddr: f.Daddr.W[3], Daddr: f.Saddr.W[3], Sport: f.Dport, Dport: f.Sport, Zone: f.ZoneTwin, Proto: proto}
		return asTuple((*[unsafe.Sizeof(key)]byte)(unsafe.Pointer(&key))[:], 0)
	}
	return tuple{BPFKey6{Saddr: f.Daddr, Daddr: f.Saddr, Sport: f.Dport, Dport: f.Sport, Zone: f.ZoneTwin, Proto: proto}, 6}
}
