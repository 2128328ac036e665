// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// LayoutError is of a pinned map that cannot be carried over to what this binary
// asks for. It is an ErrLayout.
type LayoutError struct {
	Map    string // its pin
	Reason string
	Flows  int // that would end if it were made anew
}

func (e *LayoutError) Error() string {
	return fmt.Sprintf("map %s: %v: %s; %d flows would end", e.Map, ErrLayout, e.Reason, e.Flows)
}

func (e *LayoutError) Unwrap() error { return ErrLayout }

// difference says what a pinned map has other than ms, in a few words; empty: nothing.
// The kernel keeps the type information of keys and values, of which sizes tell only
// half; maps without are taken as they are.
func difference(ms *ebpf.MapSpec, em *ebpf.Map) (string, error) {
	if err := ms.Compatible(em); err != nil {
		if !errors.Is(err, ebpf.ErrMapIncompatible) {
			return "", err
		}
		return strings.TrimSuffix(err.Error(), ": "+ebpf.ErrMapIncompatible.Error()), nil
	}
	for _, typ := range []btf.Type{ms.Key, ms.Value} {
		now, ok := typ.(*btf.Struct)
		if !ok {
			continue
		}
		then, err := pinnedStruct(em, now.Name)
		if err != nil {
			return "", err
		}
		if then == nil {
			continue
		}
		if layout(now) != layout(then) {
			return fmt.Sprintf("struct %s has other fields", now.Name), nil
		}
	}
	return "", nil
}

// layout says where the fields of a type are, and what.
func layout(t btf.Type) string {
	switch t := btf.UnderlyingType(t).(type) {
	case *btf.Struct:
		var b strings.Builder
		for _, m := range members(t.Members, 0) {
			fmt.Fprintf(&b, "%s %d+%d %s;", m.Name, m.Offset, m.BitfieldSize, layout(m.Type))
		}
		return "{" + b.String() + "}"
	case *btf.Array:
		return fmt.Sprintf("%d of %s", t.Nelems, layout(t.Type))
	case *btf.Int:
		return fmt.Sprintf("%s %d", t.Encoding, t.Size)
	default:
		return fmt.Sprintf("%T %d", t, size(t))
	}
}

// pinnedStruct is a struct as the type information of a map in the kernel has it;
// nil when the map has none.
func pinnedStruct(em *ebpf.Map, name string) (*btf.Struct, error) {
	handle, err := em.Handle()
	if err != nil {
		return nil, nil
	}
	defer handle.Close()
	types, err := handle.Spec(nil)
	if err != nil {
		return nil, fmt.Errorf("type information: %w", err)
	}
	var s *btf.Struct
	if err := types.TypeByName(name, &s); err != nil {
		return nil, fmt.Errorf("struct %s: %w", name, err)
	}
	return s, nil
}

// conversion copies a key or value of one layout into another: its fields by their
// names. A field that is new starts at zero, so zero has to mean what was before there
// was such a field; a field that changes its meaning has to change its name.
type conversion struct {
	size  int // of the result
	spans []span
}

type span struct{ from, to, n int }

func (c conversion) apply(old []byte) []byte {
	out := make([]byte, c.size)
	for _, s := range c.spans {
		copy(out[s.to:s.to+s.n], old[s.from:s.from+s.n])
	}
	return out
}

// convert makes the conversion from what is pinned, of size bytes, to typ; as a key it
// must not lose a field, or two keys could become one.
func convert(em *ebpf.Map, size int, typ btf.Type, newSize int, key bool) (conversion, error) {
	c := conversion{size: newSize}
	if now, ok := typ.(*btf.Struct); ok {
		then, err := pinnedStruct(em, now.Name)
		if err != nil {
			return c, err
		}
		if then != nil {
			return c, c.structs(then, now, 0, 0, key)
		}
	}
	if size != newSize {
		return c, fmt.Errorf("%d bytes were %d", newSize, size)
	}
	c.spans = []span{{0, 0, size}}
	return c, nil
}

// Members that the kernel keeps for itself.
var opaque = map[string]bool{"bpf_timer": true, "bpf_spin_lock": true}

func (c *conversion) structs(then, now *btf.Struct, from, to int, key bool) error {
	old := make(map[string]btf.Member)
	for _, m := range members(then.Members, 0) {
		old[m.Name] = m
	}
	for _, m := range members(now.Members, 0) {
		was, ok := old[m.Name]
		delete(old, m.Name)
		if !ok || opaque[btf.UnderlyingType(m.Type).TypeName()] {
			continue
		}
		if m.BitfieldSize != 0 || was.BitfieldSize != 0 {
			return fmt.Errorf("struct %s: %s is a bit field", now.Name, m.Name)
		}
		if err := c.value(was.Type, m.Type, from+int(was.Offset.Bytes()), to+int(m.Offset.Bytes()), key); err != nil {
			return fmt.Errorf("struct %s: %s: %w", now.Name, m.Name, err)
		}
	}
	for name := range old {
		if key && !strings.HasPrefix(name, "pad") {
			return fmt.Errorf("struct %s: %s is gone", now.Name, name)
		}
	}
	return nil
}

// members has those of unions without a name among the struct's own.
func members(list []btf.Member, at btf.Bits) (flat []btf.Member) {
	for _, m := range list {
		m.Offset += at
		if u, ok := m.Type.(*btf.Union); ok && m.Name == "" {
			flat = append(flat, members(u.Members, m.Offset)...)
		} else {
			flat = append(flat, m)
		}
	}
	return flat
}

func (c *conversion) value(then, now btf.Type, from, to int, key bool) error {
	then, now = btf.UnderlyingType(then), btf.UnderlyingType(now)
	a, b := size(then), size(now)
	switch now := now.(type) {
	case *btf.Struct:
		then, ok := then.(*btf.Struct)
		if !ok {
			return errors.New("was no struct")
		}
		return c.structs(then, now, from, to, key)
	case *btf.Array:
		then, ok := then.(*btf.Array)
		if !ok {
			return errors.New("was no array")
		}
		if then.Nelems > now.Nelems {
			return fmt.Errorf("%d elements were %d", now.Nelems, then.Nelems)
		}
		was, is := size(then.Type), size(now.Type)
		for i := range int(then.Nelems) {
			if err := c.value(then.Type, now.Type, from+i*was, to+i*is, key); err != nil {
				return err
			}
		}
		return nil
	case *btf.Int:
		// Little-endian: a number that grew keeps its low bytes where they were.
		old, ok := then.(*btf.Int)
		if !ok || a > b || a < b && (old.Encoding == btf.Signed || now.Encoding == btf.Signed) {
			return fmt.Errorf("%s was %s", now.Name, then.TypeName())
		}
	default:
		if a != b {
			return fmt.Errorf("%d bytes were %d", b, a)
		}
	}
	c.spans = append(c.spans, span{from, to, a})
	return nil
}

func size(t btf.Type) int {
	n, err := btf.Sizeof(t)
	if err != nil {
		return 0
	}
	return n
}
