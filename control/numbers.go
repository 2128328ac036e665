// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"math/bits"

	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// numbers hands out small integers, lowest first from where it last stopped,
// so that a number comes back as late as possible. One record of the store per
// kind, of a size that does not depend on how many are in use.
type numbers struct {
	Next uint32 `json:"next"`
	Used []byte `json:"used"` // bit n: n is in use
}

// Kinds of numbers.
const (
	numSlots    = "slots"    // indices of the endpoints map
	numNetworks = "networks" // rule ids of networks
	numRules    = "rules"    // rule ids of publications and links
)

type bounds struct{ first, end uint32 }

var numberBounds = map[string]bounds{
	numSlots:    {1, maps.MaxEndpoints},
	numNetworks: {1, maps.MaxNetworks},
	numRules:    {maps.FirstRule, maps.MaxRules},
}

// takeNumbers reserves n numbers of a kind.
func takeNumbers(tx *store.Tx, kind string, n int) ([]uint32, error) {
	rec, _, err := store.Get[numbers](tx, bucketNumbers, kind)
	if err != nil {
		return nil, err
	}
	b := numberBounds[kind]
	if size := int(b.end+7) / 8; len(rec.Used) != size {
		used := make([]byte, size)
		copy(used, rec.Used)
		rec.Used = used
	}
	out := rec.take(b, n)
	if len(out) < n {
		return nil, fmt.Errorf("%s: all %d are in use", kind, b.end-b.first)
	}
	return out, store.Put(tx, bucketNumbers, kind, rec)
}

func (r *numbers) take(b bounds, n int) []uint32 {
	if n == 0 {
		return nil
	}
	out := make([]uint32, 0, n)
	if r.Next < b.first || r.Next >= b.end {
		r.Next = b.first
	}
	i := r.Next
	for left := b.end - b.first; left > 0; left-- {
		if r.Used[i/8]&(1<<(i%8)) == 0 {
			r.Used[i/8] |= 1 << (i % 8)
			out = append(out, i)
		}
		if i++; i == b.end {
			i = b.first
		}
		if len(out) == n {
			r.Next = i
			break
		}
	}
	return out
}

// giveNumbers frees numbers; those that are free already do no harm.
func giveNumbers(tx *store.Tx, kind string, list ...uint32) error {
	if len(list) == 0 {
		return nil
	}
	rec, ok, err := store.Get[numbers](tx, bucketNumbers, kind)
	if err != nil || !ok {
		return err
	}
	for _, i := range list {
		if int(i/8) < len(rec.Used) {
			rec.Used[i/8] &^= 1 << (i % 8)
		}
	}
	return store.Put(tx, bucketNumbers, kind, rec)
}

// keepNumbers marks exactly the given numbers as used, and says how many it corrected.
func keepNumbers(tx *store.Tx, kind string, want map[uint32]bool) (int, error) {
	rec, _, err := store.Get[numbers](tx, bucketNumbers, kind)
	if err != nil {
		return 0, err
	}
	used := make([]byte, int(numberBounds[kind].end+7)/8)
	for i := range want {
		used[i/8] |= 1 << (i % 8)
	}
	wrong := 0
	for i := range used {
		var old byte
		if i < len(rec.Used) {
			old = rec.Used[i]
		}
		wrong += bits.OnesCount8(old ^ used[i])
	}
	if wrong == 0 {
		return 0, nil
	}
	rec.Used = used
	return wrong, store.Put(tx, bucketNumbers, kind, rec)
}
