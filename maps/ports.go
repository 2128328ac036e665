// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
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
// for one address are in the hash ports_addr, and a slot of the array counts how many
// addresses publish its port: the programs look there only if it is not 0. A count
// without an entry costs a lookup; an entry that is not counted would not work: so it
// is counted first, and discounted last. Recount mends what a killed process left.
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
	portAddress   = portRule + 1 // one of portAddresses
	portCount     = int(loader.BPFLimitsPORTS)

	// Arrays in memory have their values on 8-byte boundaries.
	slotSize = 8

	// Entries in one system call.
	batchSize = 8192

	// Up to so many entries are looked up one by one; beyond, reading the whole hash is faster.
	fewKeys = 512
)

// A PublishedError says which port of which binding leads somewhere else already.
// It is an ErrPublished.
type PublishedError struct {
	Binding
	Port uint16
}

func (e *PublishedError) Error() string {
	return fmt.Sprintf("%s %s: %v", netip.AddrPortFrom(e.Addr, e.Port), e.Proto, ErrPublished)
}

// Is makes errors.Is(err, ErrPublished) true.
func (e *PublishedError) Is(target error) bool { return target == ErrPublished }

// Publish makes the ports of all bindings lead to their rules: all or none. A
// *PublishedError when a port leads elsewhere, or to two of the bindings; the same again
// changes nothing. Thousands in one call take a fraction of what they take one by one.
func (p *Ports) Publish(list ...Binding) error {
	have, err := p.entries(list)
	if err != nil {
		return err
	}
	var fresh []Binding // what led nowhere before, in ranges
	var keys []loader.BPFPortKey
	var rules []uint32
	for i := range list {
		b := &list[i]
		if b.Rule == 0 || b.Rule > portRule {
			err = fmt.Errorf("rule %d: not 1 to %d", b.Rule, portRule)
		} else {
			var at []int
			if at, err = p.claim(b, have); err == nil {
				fresh = append(fresh, b.parts(at)...)
				if b.Addr.IsUnspecified() {
					at = nil
				}
				for _, i := range at {
					keys, rules = append(keys, b.key(i)), append(rules, b.Rule)
					have[b.key(i)] = b.Rule
				}
			}
		}
		if err != nil {
			return errors.Join(err, p.unclaim(fresh))
		}
	}
	if err := p.enter(keys, rules); err != nil {
		return errors.Join(err, p.leave(keys), p.unclaim(fresh))
	}
	return nil
}

// claim writes the array for one binding, and returns the places of its range that led
// nowhere: those of one address are to be entered in ports_addr.
func (p *Ports) claim(b *Binding, have map[loader.BPFPortKey]uint32) (at []int, err error) {
	if port, taken, err := p.conflict(b, have); err != nil || taken {
		return nil, cmp.Or[error](err, &PublishedError{*b, port})
	}
	any, full := b.Addr.IsUnspecified(), false
	err = p.edit(*b, func(i int, slot uint32) uint32 {
		own := any && slot&portRule != 0
		if !any {
			_, own = have[b.key(i)]
		}
		switch {
		case own:
			return slot
		case any:
			slot |= b.Rule
		case slot&portAddresses == portAddresses:
			full = true
			return slot
		default:
			slot += portAddress
		}
		at = append(at, i)
		return slot
	})
	if err == nil && full {
		err = fmt.Errorf("ports from %d on, %s: published on %d addresses, there is no room for more", b.First, b.Proto, portAddresses/portAddress)
		err = errors.Join(err, p.unclaim(b.parts(at)))
	}
	return at, err
}

// unclaim takes back what claim wrote.
func (p *Ports) unclaim(parts []Binding) error {
	var errs []error
	for _, b := range parts {
		errs = append(errs, p.edit(b, func(_ int, slot uint32) uint32 {
			if b.Addr.IsUnspecified() {
				return slot & portAddresses
			}
			return slot - portAddress
		}))
	}
	return errors.Join(errs...)
}

func (p *Ports) enter(keys []loader.BPFPortKey, rules []uint32) error {
	if len(keys) == 0 {
		return nil
	}
	m, err := p.addrs.open()
	if err != nil {
		return err
	}
	for i := 0; i < len(keys); i += batchSize {
		end := min(i+batchSize, len(keys))
		if _, err := m.BatchUpdate(keys[i:end], rules[i:end], nil); err != nil {
			return p.addrs.wrap(err)
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
	have, err := p.entries([]Binding{b})
	if err != nil {
		return err
	}
	var at []int
	for i := range b.Count {
		if have[b.key(i)] == b.Rule && b.Rule != 0 {
			at = append(at, i)
		}
	}
	keys := make([]loader.BPFPortKey, len(at))
	for j, i := range at {
		keys[j] = b.key(i)
	}
	if err := p.leave(keys); err != nil {
		return err
	}
	return p.unclaim(b.parts(at))
}

// leave is fine with keys that are not there.
func (p *Ports) leave(keys []loader.BPFPortKey) error {
	m, err := p.addrs.open()
	if err != nil {
		return err
	}
	for len(keys) > 0 {
		n, err := m.BatchDelete(keys[:min(len(keys), batchSize)], nil)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			n++
		} else if err != nil {
			return p.addrs.wrap(err)
		}
		keys = keys[n:]
	}
	return nil
}

// Conflict finds the first port of b that leads to another rule than b.Rule: all
// addresses of a family conflict with each single one of it.
func (p *Ports) Conflict(b Binding) (port uint16, taken bool, err error) {
	have, err := p.entries([]Binding{b})
	if err != nil {
		return 0, false, err
	}
	return p.conflict(&b, have)
}

func (p *Ports) conflict(b *Binding, have map[loader.BPFPortKey]uint32) (port uint16, taken bool, err error) {
	first, any := b.Count, b.Addr.IsUnspecified()
	err = p.edit(*b, func(i int, slot uint32) uint32 {
		rule := slot & portRule
		taken := rule != 0 && rule != b.Rule
		if slot&portAddresses != 0 {
			if any {
				taken = true
			} else if rule, ok := have[b.key(i)]; ok && rule != b.Rule {
				taken = true
			}
		}
		if taken {
			first = min(first, i)
		}
		return slot
	})
	if err != nil || first == b.Count {
		return 0, false, err
	}
	return b.First + uint16(first), true, nil
}

// entries are what ports_addr has for the addresses and ports of the bindings, and
// perhaps more.
func (p *Ports) entries(list []Binding) (map[loader.BPFPortKey]uint32, error) {
	have := make(map[loader.BPFPortKey]uint32)
	var counted []loader.BPFPortKey
	for _, b := range list {
		err := p.edit(b, func(i int, slot uint32) uint32 {
			if slot&portAddresses != 0 && !b.Addr.IsUnspecified() {
				counted = append(counted, b.key(i))
			}
			return slot
		})
		if err != nil {
			return nil, err
		}
	}
	if len(counted) > fewKeys {
		return p.addrs.all()
	}
	for _, k := range counted {
		rule, ok, err := p.addrs.get(k)
		if err != nil {
			return nil, err
		}
		if ok {
			have[k] = rule
		}
	}
	return have, nil
}

// Recount counts anew how many single addresses publish each port.
func (p *Ports) Recount() error {
	counts := make(map[loader.BPFPortKey]uint32) // by any address of the family
	err := p.addrs.each(func(k loader.BPFPortKey, _ uint32) error {
		k.Addr = toAddr(anyOf(fromAddr(k.Addr)))
		counts[k] += portAddress
		return nil
	})
	if err != nil {
		return err
	}
	return everyArray(func(b Binding) error {
		k := b.key(0)
		return p.edit(b, func(i int, slot uint32) uint32 {
			k.Port = toBE16(b.First + uint16(i))
			return slot&portRule | counts[k]
		})
	})
}

// everyArray calls f with all ports of every array.
func everyArray(f func(Binding) error) error {
	for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		for _, proto := range []Proto{TCP, UDP, SCTP} {
			if err := f(Binding{Proto: proto, Addr: any, First: 1, Count: portCount - 1}); err != nil {
				return err
			}
		}
	}
	return nil
}

func anyOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// At is the rule that a packet for addr and port finds; for an unspecified
// address, what all addresses of its family share.
func (p *Ports) At(proto Proto, addr netip.Addr, port uint16) (rule uint32, ok bool, err error) {
	b := Binding{Proto: proto, Addr: addr, First: port, Count: 1}
	if err := b.check(); err != nil {
		return 0, false, err
	}
	if !addr.IsUnspecified() {
		if rule, ok, err = p.addrs.get(b.key(0)); err != nil || ok {
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
	err := everyArray(func(b Binding) error {
		return p.edit(b, func(i int, slot uint32) uint32 {
			if rule := slot & portRule; rule != 0 {
				single = append(single, Binding{b.Proto, b.Addr, b.First + uint16(i), 1, rule})
			}
			return slot
		})
	})
	if err != nil {
		return nil, err
	}
	err = p.addrs.each(func(k loader.BPFPortKey, rule uint32) error {
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

// key is that of the i-th port in ports_addr.
func (b Binding) key(i int) loader.BPFPortKey {
	return loader.BPFPortKey{Addr: toAddr(b.Addr), Port: toBE16(b.First + uint16(i)), Proto: uint8(b.Proto)}
}

// parts are the places of b's range as bindings, as few as can be. at is sorted.
func (b Binding) parts(at []int) (list []Binding) {
	for j, i := range at {
		if j > 0 && at[j-1] == i-1 {
			list[len(list)-1].Count++
			continue
		}
		part := b
		part.First, part.Count = b.First+uint16(i), 1
		list = append(list, part)
	}
	return list
}
