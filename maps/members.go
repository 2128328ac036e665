// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
)

// Members of a network are its endpoints, whom a broadcast reaches: numbered
// without holes. The programs reach the first MAX_MEMBERS of them.

// AddMember puts an endpoint on a network's list. On it already is fine.
func (n *Networks) AddMember(num, slot uint32) error {
	if slot == 0 || slot >= MaxEndpoints {
		return fmt.Errorf("endpoint %d: not 1 to %d", slot, MaxEndpoints-1)
	}
	have, err := n.Members(num)
	if err != nil || slices.Contains(have, slot) {
		return err
	}
	if err := n.members.put(loader.BPFMemberKey{Network: num, Index: uint32(len(have))}, slot); err != nil {
		return err
	}
	return n.setMemberCount(num, len(have)+1)
}

// RemoveMember takes an endpoint off a network's list. Not on it is fine.
func (n *Networks) RemoveMember(num, slot uint32) error {
	for {
		have, err := n.Members(num)
		if err != nil {
			return err
		}
		i := slices.Index(have, slot)
		if i < 0 {
			return nil
		}
		// The last takes its place. A process that is killed here leaves the last
		// on the list twice: one broadcast too many, until SetMembers.
		last := len(have) - 1
		if i != last {
			if err := n.members.put(loader.BPFMemberKey{Network: num, Index: uint32(i)}, have[last]); err != nil {
				return err
			}
		}
		if err := n.setMemberCount(num, last); err != nil {
			return err
		}
		if err := n.members.del(loader.BPFMemberKey{Network: num, Index: uint32(last)}); err != nil {
			return err
		}
	}
}

// SetMembers makes the list hold exactly slots; the same again changes nothing.
func (n *Networks) SetMembers(num uint32, slots []uint32) error {
	have, err := n.Members(num)
	if err != nil {
		return err
	}
	sorted := func(s []uint32) []uint32 { s = slices.Clone(s); slices.Sort(s); return s }
	if slices.Equal(sorted(have), sorted(slots)) {
		return nil
	}
	if len(slots) < len(have) {
		if err := n.setMemberCount(num, len(slots)); err != nil {
			return err
		}
	}
	for i := range max(len(slots), len(have)) {
		k := loader.BPFMemberKey{Network: num, Index: uint32(i)}
		if i < len(slots) {
			err = n.members.put(k, slots[i])
		} else {
			err = n.members.del(k)
		}
		if err != nil {
			return err
		}
	}
	return n.setMemberCount(num, len(slots))
}

// Members is a network's list, in the programs' order.
func (n *Networks) Members(num uint32) ([]uint32, error) {
	w, _, err := n.number(num)
	if err != nil {
		return nil, err
	}
	slots := make([]uint32, 0, w.Members)
	for i := range w.Members {
		slot, _, err := n.members.get(loader.BPFMemberKey{Network: num, Index: i})
		if err != nil {
			return nil, err
		}
		slots = append(slots, slot)
	}
	return slots, nil
}

func (n *Networks) setMemberCount(num uint32, count int) error {
	w, _, err := n.number(num)
	if err != nil || w.Members == uint32(count) {
		return err
	}
	w.Members = uint32(count)
	return n.networks.put(num, w)
}
