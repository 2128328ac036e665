// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// carrier takes flows over into new tables while programs go on with the old ones: first
// everything, then what has changed since, before the programs are replaced and once
// more afterwards. In between nobody may open a flow: who tries is refused, with
// REASON_QUOTA, and tries again.
type carrier struct {
	open    map[string]*ebpf.Map // of now
	flows   [2]*move             // IPv4, IPv6; nil: they stay
	half    [2]*move
	now     [2]*ebpf.Map // tables of established flows that are in force from now on
	seed    *Seed
	carried map[BPFTuple]listing
	counted *ebpf.Map // endpoints, if they are new as well
	old     *move     // of the settings
	next    uint32    // slot that was never given
	spare   []uint32  // given, and free again
	handed  bool      // slots come from the queue
	used    bool      // the new programs are at work
	closers []*move
}

// listing is a carried flow's place.
type listing struct {
	slot  uint32
	owner BPFRef
}

// Slots that flows which come late may have.
const spareSlots = 4096

// fullError says that a table has no room for what lives.
type fullError struct {
	name string
	room uint32
}

func (e *fullError) Error() string {
	return fmt.Sprintf("more live flows than the %d entries there is room for", e.room)
}

func newCarrier(m *Maps, find func(string) *move, rebuild bool) *carrier {
	c := &carrier{open: m.open, carried: make(map[BPFTuple]listing)}
	c.old = find(BPFMapSettings)
	if mv := find(BPFMapEndpoints); mv != nil {
		c.counted = mv.now
	}
	for i, name := range []string{BPFMapFlows4, BPFMapFlows6} {
		c.now[i] = m.open[name]
		if rebuild {
			c.flows[i] = find(name)
		}
		c.half[i] = find(halfOpen[i])
	}
	return c
}

// prepare fills the tables, until little has changed since the last look.
func (c *carrier) prepare() error {
	for range 3 {
		n, err := c.sync()
		if err != nil {
			return err
		}
		if n < spareSlots/4 {
			break
		}
	}
	return c.hand()
}

// sync carries what is new, drops what has ended, and says how much that was.
func (c *carrier) sync() (n int, err error) {
	if c.seed == nil {
		seed, err := SeedOf(c.open[BPFMapSeeds])
		if err != nil {
			return 0, err
		}
		c.seed = &seed
	}
	seen := make(map[BPFTuple]bool, len(c.carried))
	var first []*BPFFlow
	replies := make(map[BPFTuple]*BPFFlow)
	for _, mv := range c.flows {
		if mv == nil {
			continue
		}
		err := each(mv.old, func(k, v []byte) error {
			f := mv.flow(k, v)
			switch reply := f.Flags&uint8(BPFFlowFlagsFLOW_REPLY) != 0; {
			case reply && c.has(twin(f)):
			case reply:
				replies[f.Tuple] = f
			case c.has(f.Tuple):
				seen[f.Tuple] = true
			default:
				first = append(first, f)
			}
			return nil
		})
		if err != nil {
			return n, err
		}
	}
	for _, f := range first {
		reply := replies[twin(f)]
		if reply == nil {
			continue // half a flow is one that ends or begins just now
		}
		done, err := c.carry(f, reply)
		if done {
			seen[f.Tuple] = true
			n++
		}
		if err != nil {
			return n, err
		}
	}
	for t, l := range c.carried {
		if !seen[t] {
			if err := c.drop(t, l); err != nil {
				return n, err
			}
			n++
		}
	}
	for i, mv := range c.half {
		if mv != nil && !mv.empty {
			if err := c.syncHalf(mv, i); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

func (c *carrier) has(t BPFTuple) bool {
	_, ok := c.carried[t]
	return ok
}

// tableOf is where the established flows of t's family are: an index of listed.
func tableOf(t BPFTuple) int {
	if t.Family == 4 {
		return 0
	}
	return 1
}

// carry enters one flow.
func (c *carrier) carry(first, reply *BPFFlow) (bool, error) {
	slot, ok := c.take()
	if !ok {
		if c.handed {
			return false, nil // thousands in milliseconds: too late to refuse
		}
		return false, &fullError{BPFMapSlots, c.open[BPFMapSlots].MaxEntries()}
	}
	owner := first.Dst
	if first.Src.Id == first.Owner {
		owner = first.Src
	}
	// As the programs do it: the slot, the reply, the initiator's entry. Epoch 0: what
	// it refers to is looked at again.
	s := BPFSlot{Digest: c.seed.Digest(first.Tuple), Family: uint32(first.Tuple.Family), Owner: owner}
	if err := c.open[BPFMapSlots].Put(slot, &s); err != nil {
		return false, fmt.Errorf("map %s: %w", BPFMapSlots, err)
	}
	for _, f := range []*BPFFlow{reply, first} {
		i := tableOf(f.Tuple)
		f.Slot, f.Epoch = slot, 0
		err := c.now[i].Update(c.seed.Digest(f.Tuple), f, ebpf.UpdateNoExist)
		if errors.Is(err, ebpf.ErrKeyExist) {
			continue // the new programs know it
		}
		if errors.Is(err, unix.E2BIG) {
			return false, &fullError{listed[i], c.now[i].MaxEntries()}
		}
		if err != nil {
			return false, fmt.Errorf("map %s: %w", listed[i], err)
		}
	}
	c.carried[first.Tuple] = listing{slot, owner}
	return true, nil
}

func (c *carrier) take() (slot uint32, ok bool) {
	if c.handed {
		return slot, c.open[BPFMapFreeSlots].LookupAndDelete(nil, &slot) == nil
	}
	if n := len(c.spare); n > 0 {
		slot, c.spare = c.spare[n-1], c.spare[:n-1]
		return slot, true
	}
	if c.next >= c.open[BPFMapSlots].MaxEntries() {
		return 0, false
	}
	c.next++
	return c.next - 1, true
}

// drop ends a flow that the old programs have ended.
func (c *carrier) drop(t BPFTuple, l listing) error {
	delete(c.carried, t)
	var f BPFFlow
	err := c.now[tableOf(t)].Lookup(c.seed.Digest(t), &f)
	if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && (f.Slot != l.slot || f.Tuple != t) {
		return nil
	}
	if err != nil {
		return err
	}
	// Once it is used, the sweep frees the slot; the quota has been given back already,
	// unless endpoints are new.
	s := BPFSlot{}
	if c.used {
		s = BPFSlot{Digest: c.seed.Digest(t), Family: uint32(t.Family)}
		if c.counted != nil {
			s.Owner = l.owner
		}
	}
	if err := c.open[BPFMapSlots].Put(l.slot, &s); err != nil {
		return err
	}
	for _, x := range []BPFTuple{t, twin(&f)} {
		if err := c.now[tableOf(x)].Delete(c.seed.Digest(x)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	switch {
	case c.used:
	case c.handed:
		return c.open[BPFMapFreeSlots].Put(nil, l.slot)
	default:
		c.spare = append(c.spare, l.slot)
	}
	return nil
}

// syncHalf carries half-open flows: those that are missing, and those that got further.
func (c *carrier) syncHalf(mv *move, family int) error {
	state := make(map[uint64]uint8)
	err := each(mv.now, func(k, v []byte) error {
		state[binary.NativeEndian.Uint64(k)] = asFlow(v).State
		return nil
	})
	if err != nil {
		return err
	}
	return each(mv.old, func(k, v []byte) error {
		f := mv.flow(k, v)
		f.Epoch = 0
		key := c.seed.Digest(f.Tuple)
		flag := ebpf.UpdateNoExist
		if s, ok := state[key]; ok {
			if s >= f.State {
				return nil
			}
			flag = ebpf.UpdateAny
		}
		if raw, err := c.now[family].LookupBytes(key); err != nil || raw != nil {
			return err
		}
		err := mv.now.Update(key, f, flag)
		if errors.Is(err, ebpf.ErrKeyExist) || errors.Is(err, unix.ENOMEM) {
			return nil // under pressure half-open flows go
		}
		return err
	})
}

// freeze keeps the old programs from opening flows, which the new ones would not know:
// they would hand the packets that follow to the host, whose stack resets what it does not
// know. Then it takes over what they have opened until now.
func (c *carrier) freeze() error {
	if c.old == nil {
		return nil
	}
	value, err := c.old.old.LookupBytes(uint32(0))
	if err != nil {
		return fmt.Errorf("map %s: %w", BPFMapSettings, err)
	}
	quota := int(unsafe.Offsetof(BPFConfig{}.Quota))
	for _, s := range c.old.value.spans {
		if s.to <= quota && quota < s.to+s.n {
			clear(value[s.from+quota-s.to:][:unsafe.Sizeof(BPFConfig{}.Quota)])
		}
	}
	if err := c.old.old.Put(uint32(0), value); err != nil {
		return fmt.Errorf("map %s: %w", BPFMapSettings, err)
	}
	if _, err = c.sync(); err != nil {
		return err
	}
	err = c.count()
	c.used = true
	return err
}

// hand gives the list to the new programs, which are not attached yet.
func (c *carrier) hand() error {
	if c.flows[0] == nil && c.flows[1] == nil {
		return nil
	}
	size := c.open[BPFMapSlots].MaxEntries()
	free := c.spare
	for c.next < size && len(free) < spareSlots {
		free = append(free, c.next)
		c.next++
	}
	for _, slot := range free {
		if err := c.open[BPFMapFreeSlots].Put(nil, slot); err != nil {
			return fmt.Errorf("map %s: %w", BPFMapFreeSlots, err)
		}
	}
	var settings BPFConfig
	if err := c.open[BPFMapSettings].Lookup(uint32(0), &settings); err != nil {
		return fmt.Errorf("map %s: %w", BPFMapSettings, err)
	}
	settings.Slots = size
	if err := c.open[BPFMapSettings].Put(uint32(0), &settings); err != nil {
		return fmt.Errorf("map %s: %w", BPFMapSettings, err)
	}
	c.spare, c.handed = nil, true
	return c.count()
}

// count writes how many flows there are, in all and by endpoint.
func (c *carrier) count() error {
	if c.flows[0] == nil && c.flows[1] == nil {
		return nil
	}
	s := BPFSweeper{Fresh: c.next}
	flows := make(map[BPFRef]uint32)
	for t, l := range c.carried {
		flows[l.owner]++
		if t.Family == 4 {
			s.Used4++
		} else {
			s.Used6++
		}
	}
	if err := c.open[BPFMapSweepers].Put(uint32(0), &s); err != nil {
		return fmt.Errorf("map %s: %w", BPFMapSweepers, err)
	}
	if c.counted == nil {
		return nil
	}
	err := each(c.counted, func(id, value []byte) error {
		e := (*BPFEndpoint)(unsafe.Pointer(&value[0]))
		n := flows[BPFRef{Id: binary.NativeEndian.Uint32(id), Gen: e.Gen}]
		if e.Flows == n {
			return nil
		}
		e.Flows = n
		return c.counted.Put(id, value)
	})
	if err != nil {
		return fmt.Errorf("map %s: %w", BPFMapEndpoints, err)
	}
	return nil
}

// finish is for when all programs use the new tables.
func (c *carrier) finish() error {
	_, err := c.sync()
	return err
}

func (c *carrier) close() {
	for _, mv := range c.closers {
		mv.old.Close()
	}
}
