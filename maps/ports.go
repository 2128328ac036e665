// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/cilium/ebpf"
)

// ErrPublished says that a host port leads somewhere else already.
var ErrPublished = errors.New("port is published already")

// Ports lead host ports to publications.
//
// Those for all addresses of a family are in the arrays ports4 and ports6, which
// are mapped into memory: publishing a range is stores, no system calls. Those
// for one address are in the hash ports_addr, and a bit in the array tells the
// programs to look there. A set bit without an entry costs a lookup; an entry
// without the bit would not work: so the bit is set first and cleared last.
type Ports struct {
	src   Source
	addrs table[loader.BPFPortKey, uint32]
}

// Binding is a range of host ports that leads to one publication.
type Binding struct {
	Proto Proto      // TCP, UDP, SCTP
	Addr  netip.Addr // 0.0.0.0 or ::, all addresses of that family; or one address
	First uint16     // 1 to 65535
	Count int        // 1 to 65535, ending at 65535 at most
	Rule  uint32     // see Rules
}

const (
	portRule      = uint32(loader.BPFPortSlotPORT_RULE)
	portAddresses = uint32(loader.BPFPortSlotPORT_ADDRESSES)
	portCount     = int(loader.BPFLimitsPORTS)

	// Arrays in memory have their values on 8-byte boundaries.
	slotSize = 8

	// Entries in one system call.
	batchSize = 8192
)

// Publish makes the ports of b lead to b.Rule. ErrPublished, and nothing done,
// when one of them leads elsewhere; the same again changes nothing.
func (p *Ports) Publish(b Binding) error {
	if b.Rule == 0 || b.Rule > portRule {
		return fmt.Errorf("rule %d: not 1 to %d", b.Rule, portRule)
	}
	port, taken, err := p.Conflict(b)
	if err != nil {
		return err
	}
	if taken {
		return fmt.Errorf("%s %s: %w", netip.AddrPortFrom(b.Addr, port), b.Proto, ErrPublished)
	}
	if b.Addr.IsUnspecified() {
		return p.edit(b, func(_ int, slot uint32) uint32 { return slot&portAddresses | b.Rule })
	}
	if err := p.edit(b, func(_ int, slot uint32) uint32 { return slot | portAddresses }); err != nil {
		return err
	}
	m, err := p.addrs.open()
	if err != nil {
		return err
	}
	keys, rules := b.keys(), slices.Repeat([]uint32{b.Rule}, b.Count)
	for i := 0; i < len(keys); i += batchSize {
		end := min(i+batchSize, len(keys))
		if _, err := m.BatchUpdate(keys[i:end], rules[i:end], nil); err != nil {
			return errors.Join(p.addrs.wrap(err), p.Unpublish(b))
		}
	}
	return nil
}

// Unpublish undoes Publish: of the ports of b, those that lead to b.Rule lead
// nowhere. None is fine.
func (p *Ports) Unpublish(b Binding) error {
	if err := b.check(); err != nil {
		return err
	}
	if b.Addr.IsUnspecified() {
		return p.edit(b, func(_ int, slot uint32) uint32 {
			if slot&portRule == b.Rule {
				return slot & portAddresses
			}
			return slot
		})
	}
	var gone []loader.BPFPortKey
	kept := make([]bool, b.Count) // by other addresses, or other rules
	want := toAddr(b.Addr)
	err := p.inRange(b, func(i int, k loader.BPFPortKey, rule uint32) {
		if k.Addr == want && rule == b.Rule {
			gone = append(gone, k)
		} else {
			kept[i] = true
		}
	})
	if err != nil {
		return err
	}
	m, err := p.addrs.open()
	if err != nil {
		return err
	}
	for chunk := range slices.Chunk(gone, batchSize) {
		if _, err := m.BatchDelete(chunk, nil); err != nil {
			return p.addrs.wrap(err)
		}
	}
	return p.edit(b, func(i int, slot uint32) uint32 {
		if kept[i] {
			return slot | portAddresses
		}
		return slot & portRule
	})
}

// Conflict finds the first port of b that leads to another rule than b.Rule: all
// addresses of a family conflict with each single one of it.
func (p *Ports) Conflict(b Binding) (port uint16, taken bool, err error) {
	if err := b.check(); err != nil {
		return 0, false, err
	}
	var some bool
	first := b.Count
	err = p.edit(b, func(i int, slot uint32) uint32 {
		if rule := slot & portRule; rule != 0 && rule != b.Rule {
			first = min(first, i)
		}
		some = some || slot&portAddresses != 0
		return slot
	})
	if err != nil {
		return 0, false, err
	}
	if some {
		want := toAddr(b.Addr)
		err = p.inRange(b, func(i int, k loader.BPFPortKey, rule uint32) {
			if rule != b.Rule && (b.Addr.IsUnspecified() || k.Addr == want) {
				first = min(first, i)
			}
		})
	}
	if err != nil || first == b.Count {
		return 0, false, err
	}
	return b.First + uint16(first), true, nil
}

// At is the rule that a packet for addr and port finds; for an unspecified
// address, what all addresses of its family share.
func (p *Ports) At(proto Proto, addr netip.Addr, port uint16) (rule uint32, ok bool, err error) {
	b := Binding{Proto: proto, Addr: addr, First: port, Count: 1}
	if err := b.check(); err != nil {
		return 0, false, err
	}
	if !addr.IsUnspecified() {
		if rule, ok, err = p.addrs.get(b.keys()[0]); err != nil || ok {
			return rule, ok, err
		}
	}
	err = p.edit(b, func(_ int, slot uint32) uint32 {
		rule = slot & portRule
		return slot
	})
	return rule, rule != 0, err
}

// List is everything published, in ranges as long as they can be, sorted.
func (p *Ports) List() ([]Binding, error) {
	var single []Binding
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for _, proto := range []Proto{TCP, UDP, SCTP} {
			b := Binding{Proto: proto, Addr: any, First: 1, Count: portCount - 1}
			err := p.edit(b, func(i int, slot uint32) uint32 {
				if rule := slot & portRule; rule != 0 {
					single = append(single, Binding{proto, any, uint16(i + 1), 1, rule})
				}
				return slot
			})
			if err != nil {
				return nil, err
			}
		}
	}
	err := p.addrs.each(func(k loader.BPFPortKey, rule uint32) error {
		single = append(single, Binding{Proto(k.Proto), fromAddr(k.Addr), fromBE16(k.Port), 1, rule})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return joined(single), nil
}

// joined sorts bindings and makes ranges of neighbours that lead the same way.
func joined(single []Binding) []Binding {
	slices.SortFunc(single, func(a, b Binding) int {
		if c := a.Addr.Compare(b.Addr); c != 0 {
			return c
		}
		if c := int(a.Proto) - int(b.Proto); c != 0 {
			return c
		}
		return int(a.First) - int(b.First)
	})
	var list []Binding
	for _, b := range single {
		if n := len(list); n > 0 {
			last := &list[n-1]
			if last.Addr == b.Addr && last.Proto == b.Proto && last.Rule == b.Rule && int(last.First)+last.Count == int(b.First) {
				last.Count++
				continue
			}
		}
		list = append(list, b)
	}
	return list
}

// inRange calls f with every entry of ports_addr on one of b's ports, with the
// port's place in b's range.
func (p *Ports) inRange(b Binding, f func(i int, k loader.BPFPortKey, rule uint32)) error {
	is4 := b.Addr.Is4()
	return p.addrs.each(func(k loader.BPFPortKey, rule uint32) error {
		i := int(fromBE16(k.Port)) - int(b.First)
		if Proto(k.Proto) == b.Proto && i >= 0 && i < b.Count && fromAddr(k.Addr).Is4() == is4 {
			f(i, k, rule)
		}
		return nil
	})
}

// edit passes the array's slots of b's ports through f, and stores what changed.
func (p *Ports) edit(b Binding, f func(i int, slot uint32) uint32) error {
	if err := b.check(); err != nil {
		return err
	}
	index, err := b.Proto.index()
	if err != nil {
		return err
	}
	name := loader.BPFMapPorts6
	if b.Addr.Is4() {
		name = loader.BPFMapPorts4
	}
	memory, err := p.memory(name)
	if err != nil {
		return err
	}
	offset := int64(index*portCount+int(b.First)) * slotSize
	slots := make([]byte, b.Count*slotSize)
	if _, err := memory.ReadAt(slots, offset); err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	changed := false
	for i := range b.Count {
		at := slots[i*slotSize:]
		old := binary.NativeEndian.Uint32(at)
		if next := f(i, old); next != old {
			binary.NativeEndian.PutUint32(at, next)
			changed = true
		}
	}
	if !changed {
		return nil
	}
	if _, err := memory.WriteAt(slots, offset); err != nil {
		return fmt.Errorf("map %s: %w", name, err)
	}
	return nil
}

func (p *Ports) memory(name string) (*ebpf.Memory, error) {
	m, err := p.src.Map(name)
	if err != nil {
		return nil, err
	}
	want := uint32(loader.BPFProtoIndexPROTO_COUNT) * uint32(portCount)
	if m.MaxEntries() != want || m.ValueSize() != 4 {
		return nil, fmt.Errorf("map %s: %w (%d entries, not %d)", name, loader.ErrLayout, m.MaxEntries(), want)
	}
	memory, err := m.Memory()
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", name, err)
	}
	return memory, nil
}

func (b Binding) check() error {
	if _, err := b.Proto.index(); err != nil {
		return err
	}
	if !b.Addr.IsValid() || b.Addr.Is4In6() || b.Addr.Zone() != "" {
		return fmt.Errorf("address %s: not a plain IPv4 or IPv6 address", b.Addr)
	}
	if b.First == 0 || b.Count < 1 || int(b.First)+b.Count > portCount {
		return fmt.Errorf("ports %d, %d of them: not within 1 to %d", b.First, b.Count, portCount-1)
	}
	return nil
}

func (b Binding) keys() []loader.BPFPortKey {
	keys := make([]loader.BPFPortKey, b.Count)
	addr := toAddr(b.Addr)
	for i := range keys {
		keys[i] = loader.BPFPortKey{Addr: addr, Port: toBE16(b.First + uint16(i)), Proto: uint8(b.Proto)}
	}
	return keys
}
