// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
)

// Seed is what digests are made with, the secret of one host's tables: struct seed in
// bpf/lib/types.h.
type Seed [BPFLimitsSEED_WORDS]uint32

// ObjectSeed is the seed of programs as they are in the object: for tests, as everybody
// knows it. Load gives programs that of the host.
var ObjectSeed = func() (s Seed) {
	for i := range s {
		s[i] = uint32(BPFLimitsSEED) + uint32(i)
	}
	return s
}()

// SeedOf reads the seed of a host's tables from their map BPFMapSeeds; all zero: nobody has
// drawn it yet. It fails as a lookup in that map does.
func SeedOf(seeds *ebpf.Map) (Seed, error) {
	var s BPFSeed
	if err := seeds.Lookup(uint32(0), &s); err != nil {
		return Seed{}, fmt.Errorf("map %s: %w", BPFMapSeeds, err)
	}
	return s.Words, nil
}

// drawSeed fills a map of seeds that is new, or that nobody came to fill: no programs have
// been loaded with it then.
func drawSeed(seeds *ebpf.Map) error {
	if s, err := SeedOf(seeds); err != nil || s != (Seed{}) {
		return err
	}
	var s BPFSeed
	rand.Read((*[unsafe.Sizeof(s.Words)]byte)(unsafe.Pointer(&s.Words))[:]) // it never fails
	if err := seeds.Put(uint32(0), &s); err != nil {
		return fmt.Errorf("map %s: %w", BPFMapSeeds, err)
	}
	return nil
}

// plant puts the seed into programs that are yet to be loaded.
func (s Seed) plant(spec *ebpf.CollectionSpec) {
	for _, p := range spec.Programs {
		for i := range p.Instructions {
			ins := &p.Instructions[i]
			n := ins.Constant - int64(BPFLimitsSEED)
			if op := ins.OpCode; op.Class().IsALU() && op.ALUOp() == asm.Mov && op.Source() == asm.ImmSource && 0 <= n && n < int64(len(s)) {
				ins.Constant = int64(int32(s[n]))
			}
		}
	}
}

// Digest is the key of t in the tables of flows: NH (RFC 4418 section 5.2.2) as
// bpf/lib/digest.h computes it, of addresses and ports as on the wire.
func (s Seed) Digest(t BPFTuple) uint64 {
	nh := func(x, y uint32, i int) uint64 { return uint64(x+s[i]) * uint64(y+s[i+1]) }
	var ports [4]byte
	binary.NativeEndian.PutUint16(ports[:], t.Sport)
	binary.NativeEndian.PutUint16(ports[2:], t.Dport)
	a, b := t.Saddr.W, t.Daddr.W
	sum := nh(binary.NativeEndian.Uint32(ports[:]), t.Zone, 0) + nh(a[3], b[3], 2) + nh(uint32(t.Proto)|uint32(t.Family)<<8, 0, 4)
	if t.Family == 6 {
		sum += nh(a[0], a[1], 6) + nh(a[2], b[2], 8) + nh(b[0], b[1], 10)
	}
	return sum
}
