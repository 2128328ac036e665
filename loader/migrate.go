// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
)

// Maps of which the layout or the size has changed are made anew. The programs in force
// go on with the old ones until everything has been copied; then each is replaced in
// place, by one that uses the new maps. So at no moment there is nobody on a hook, or
// somebody who looks into an empty table.
//
// The pins say how far it got, and Load goes on from there:
//
//	maps-next   being filled: thrown away
//	maps-ready  filled: its maps have yet to take their places in maps
//	maps-old    what was in those places; programs may still use it
func nextDir(bpffs string) string  { return filepath.Join(bpffs, "maps-next") }
func readyDir(bpffs string) string { return filepath.Join(bpffs, "maps-ready") }
func oldDir(bpffs string) string   { return filepath.Join(bpffs, "maps-old") }

// Migration is what became of maps that had to be made anew.
type Migration struct {
	Maps    []string // their names
	Carried int      // established flows
	Dropped bool     // no flow was carried, by Options.DropFlows
	Ended   int      // established flows that ended by that
}

type migration struct {
	bpffs string
	maps  *Maps
	moves []*move
	flows *carrier
	done  Migration
}

// move is what happens to one map.
type move struct {
	change
	now        *ebpf.Map
	key, value conversion
	tuple      func(key []byte) BPFTuple // of a table of flows, if its values do not have it
	empty      bool                      // nothing is copied
}

// The tables of flows. An established flow is in several at once: they are made anew
// together, and the list of slots with all that belongs to it is written afresh.
var (
	listed   = []string{BPFMapFlows4, BPFMapFlows6, BPFMapSlots, BPFMapFreeSlots, BPFMapSweepers}
	halfOpen = []string{BPFMapHalf4, BPFMapHalf6}
)

// migrate makes the maps that have changed, and puts them into m; nothing is copied yet,
// and nothing that is pinned changes. nil when there is nothing to do. changed becomes
// the migration's to close.
func migrate(spec *ebpf.CollectionSpec, o Options, m *Maps, changed []change) (_ *migration, err error) {
	g := &migration{bpffs: o.bpffs(), maps: m}
	for _, c := range changed {
		g.moves = append(g.moves, &move{change: c})
	}
	whole := !slices.ContainsFunc(slices.Concat(listed, halfOpen), func(name string) bool { return spec.Maps[name] == nil })
	// The endpoints count the flows on the list.
	rebuild := whole && slices.ContainsFunc(append(listed[:len(listed):len(listed)], BPFMapEndpoints), func(name string) bool { return m.open[name] == nil }) &&
		slices.ContainsFunc(listed, func(name string) bool { return m.open[name] != nil || g.find(name) != nil })
	if rebuild {
		g.renew(spec, listed)
	}
	if len(g.moves) > 0 && whole {
		g.renew(spec, []string{BPFMapSettings}) // see freeze
	}
	if len(g.moves) == 0 {
		return nil, nil
	}
	defer func() {
		if err != nil {
			g.close()
			os.RemoveAll(nextDir(g.bpffs))
		}
	}()
	if err := g.convert(spec, o.DropFlows, whole); err != nil {
		return nil, err
	}
	if err := makeDir(nextDir(g.bpffs)); err != nil {
		return nil, err
	}
	for _, mv := range g.moves {
		mv.now, err = ebpf.NewMapWithOptions(mv.spec, ebpf.MapOptions{PinPath: nextDir(g.bpffs)})
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", mv.spec.Name, err)
		}
		m.open[mv.spec.Name] = mv.now
		g.done.Maps = append(g.done.Maps, mv.spec.Name)
	}
	if whole && !g.done.Dropped {
		g.flows = newCarrier(m, g.find, rebuild)
	}
	return g, nil
}

func (g *migration) find(name string) *move {
	for _, mv := range g.moves {
		if mv.spec.Name == name {
			return mv
		}
	}
	return nil
}

// renew makes maps anew that could have stayed.
func (g *migration) renew(spec *ebpf.CollectionSpec, names []string) {
	for _, name := range names {
		if em := g.maps.open[name]; em != nil && g.find(name) == nil {
			delete(g.maps.open, name)
			g.moves = append(g.moves, &move{change: change{spec: spec.Maps[name], old: em}})
		}
	}
}

// convert finds out how each map is copied. What cannot be is an error that names the
// price, or starts empty when the price is paid: then all flows end, because what they
// refer to may be gone.
func (g *migration) convert(spec *ebpf.CollectionSpec, drop, whole bool) error {
	dropping := false
	for _, mv := range g.moves {
		name := mv.spec.Name
		if name == BPFMapSlots || name == BPFMapFreeSlots || name == BPFMapSweepers {
			continue
		}
		err := mv.conversions()
		if err == nil {
			continue
		}
		if !drop {
			return g.refuse(name, err)
		}
		mv.empty, dropping = true, true
	}
	if !dropping || !whole {
		return nil
	}
	g.done.Dropped, g.done.Ended = true, g.established()
	g.renew(spec, slices.Concat(listed, halfOpen))
	for _, mv := range g.moves {
		if slices.Contains(listed, mv.spec.Name) || slices.Contains(halfOpen, mv.spec.Name) {
			mv.empty = true
		}
	}
	return nil
}

// refuse says what it would cost to make the map anew.
func (g *migration) refuse(name string, reason error) error {
	return &LayoutError{Map: filepath.Join(g.maps.dir, name), Reason: reason.Error(), Flows: g.established()}
}

// established counts the flows of the old tables.
func (g *migration) established() (n int) {
	for _, name := range []string{BPFMapFlows4, BPFMapFlows6} {
		em := g.maps.open[name]
		if mv := g.find(name); mv != nil {
			em = mv.old
		}
		if em != nil {
			_ = each(em, func(_, _ []byte) error { n++; return nil })
		}
	}
	return n / 2
}

func (mv *move) conversions() (err error) {
	ms := mv.spec
	if slices.Contains(listed[:2], ms.Name) || slices.Contains(halfOpen, ms.Name) {
		if mv.tuple, err = keyTuple(mv.old); err != nil {
			return fmt.Errorf("key: %w", err)
		}
	} else if mv.key, err = convert(mv.old, int(mv.old.KeySize()), ms.Key, int(ms.KeySize), true); err != nil {
		return fmt.Errorf("key: %w", err)
	}
	if mv.value, err = convert(mv.old, int(mv.old.ValueSize()), ms.Value, int(ms.ValueSize), false); err != nil {
		return fmt.Errorf("value: %w", err)
	}
	return nil
}

// flow is an entry of a table of flows.
func (mv *move) flow(key, value []byte) *BPFFlow {
	f := asFlow(mv.value.apply(value))
	if mv.tuple != nil {
		f.Tuple = mv.tuple(key)
	}
	return f
}

// copy fills the new maps; the programs in force do not know them.
func (g *migration) copy() error {
	if mv := g.find(BPFMapSweepers); mv != nil {
		if err := pauseSweep(mv.old); err != nil {
			return err
		}
	}
	for _, mv := range g.moves {
		name := mv.spec.Name
		if mv.empty || g.flows != nil && (slices.Contains(listed, name) || slices.Contains(halfOpen, name)) {
			continue
		}
		if err := mv.copy(); err != nil {
			return g.refuse(name, err)
		}
	}
	if g.flows == nil {
		return nil
	}
	err := g.flows.prepare()
	if err == nil {
		g.done.Carried = len(g.flows.carried)
	}
	var full *fullError
	if errors.As(err, &full) {
		return g.refuse(full.name, full)
	}
	return err
}

// pauseSweep stops the sweep, or it would give back slots, and with them quota, of both
// tables: writing the sweeper cancels its timer (kernel/bpf/arraymap.c,
// bpf_obj_free_fields). ArmSweep starts it again.
func pauseSweep(em *ebpf.Map) error {
	value, err := em.LookupBytes(uint32(0))
	if err == nil && value != nil {
		err = em.Put(uint32(0), value)
	}
	if err != nil {
		return fmt.Errorf("map %s: %w", BPFMapSweepers, err)
	}
	return nil
}

// resumeSweep is for a copy that failed: the old programs go on.
func (g *migration) resumeSweep() {
	set, err := OpenPrograms(Options{BPFFS: g.bpffs})
	if err != nil {
		return
	}
	defer set.Close()
	if p, err := set.Program(BPFProgSweep); err == nil {
		_ = ArmSweep(p)
	}
}

// commit puts the new maps into their places.
func (g *migration) commit() error {
	if err := os.Rename(nextDir(g.bpffs), readyDir(g.bpffs)); err != nil {
		return fmt.Errorf("maps %s: %w", nextDir(g.bpffs), err)
	}
	return exchange(g.bpffs)
}

func (g *migration) close() {
	for _, mv := range g.moves {
		mv.old.Close()
	}
}

// exchange can be repeated after it was cut short.
func exchange(bpffs string) error {
	if err := makeDir(oldDir(bpffs)); err != nil {
		return err
	}
	entries, err := os.ReadDir(readyDir(bpffs))
	if err != nil {
		return fmt.Errorf("maps %s: %w", readyDir(bpffs), pathCause(err))
	}
	for _, e := range entries {
		place, old := filepath.Join(mapsDir(bpffs), e.Name()), filepath.Join(oldDir(bpffs), e.Name())
		if _, err := os.Stat(old); errors.Is(err, fs.ErrNotExist) {
			if err := os.Rename(place, old); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("map %s: %w", place, err)
			}
		}
		if err := os.Rename(filepath.Join(readyDir(bpffs), e.Name()), place); err != nil {
			return fmt.Errorf("map %s: %w", place, err)
		}
	}
	if err := os.Remove(readyDir(bpffs)); err != nil {
		return fmt.Errorf("maps %s: %w", readyDir(bpffs), pathCause(err))
	}
	return nil
}

// resume finishes, or throws away, what a process that was killed left.
func resume(bpffs string) error {
	if err := os.RemoveAll(nextDir(bpffs)); err != nil {
		return fmt.Errorf("maps %s: %w", nextDir(bpffs), pathCause(err))
	}
	if _, err := os.Stat(readyDir(bpffs)); err != nil {
		return nil
	}
	return exchange(bpffs)
}

// leftOver is the carrier of a migration that was cut short after its commit: what the
// old programs entered until now is in maps-old. nil when there was none.
func leftOver(spec *ebpf.CollectionSpec, bpffs string, m *Maps) *carrier {
	var moves []*move
	for _, name := range slices.Concat(listed[:2], halfOpen) {
		em, err := ebpf.LoadPinnedMap(filepath.Join(oldDir(bpffs), name), nil)
		if err != nil {
			continue
		}
		mv := &move{change: change{spec: spec.Maps[name], old: em}, now: m.open[name]}
		if mv.spec == nil || mv.now == nil || mv.conversions() != nil {
			em.Close()
			continue
		}
		moves = append(moves, mv)
	}
	if len(moves) == 0 {
		return nil
	}
	g := &migration{moves: moves, maps: m}
	c := newCarrier(m, g.find, g.find(BPFMapFlows4) != nil && g.find(BPFMapFlows6) != nil)
	c.closers, c.handed, c.used = moves, true, true
	return c
}
