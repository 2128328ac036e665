// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
)

// Maps opens pinned maps when they are first asked for.
type Maps struct {
	dir  string
	mu   sync.Mutex
	open map[string]*ebpf.Map
}

// OpenMaps opens no map yet, and loads nothing. ErrNotLoaded when there are no pins.
func OpenMaps(o Options) (*Maps, error) {
	dir := mapsDir(o.bpffs())
	if _, err := os.Stat(dir); err != nil {
		return nil, missing("maps", dir, err)
	}
	return &Maps{dir: dir, open: make(map[string]*ebpf.Map)}, nil
}

// Map is the map of that name, one of the BPFMap constants. It stays open until
// Close. ErrNotLoaded when it is not pinned.
func (m *Maps) Map(name string) (*ebpf.Map, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if em := m.open[name]; em != nil {
		return em, nil
	}
	path := filepath.Join(m.dir, name)
	em, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, missing("map "+name, path, err)
	}
	m.open[name] = em
	return em, nil
}

// Close closes the handles; the pinned maps live on.
func (m *Maps) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for name, em := range m.open {
		errs = append(errs, em.Close())
		delete(m.open, name)
	}
	return errors.Join(errs...)
}

// CreateMaps opens the pinned maps and makes those that are missing; it loads
// no program. Load does it, too.
func CreateMaps(o Options) (*Maps, error) {
	spec, err := LoadBPF()
	if err != nil {
		return nil, fmt.Errorf("object: %w", err)
	}
	return createMaps(spec, o)
}

// createMaps makes what is missing. What is pinned otherwise is an error.
func createMaps(spec *ebpf.CollectionSpec, o Options) (*Maps, error) {
	m, changed, err := openMaps(spec, o)
	if err != nil {
		return nil, err
	}
	for _, c := range changed {
		c.old.Close()
		if err == nil {
			path := filepath.Join(m.dir, c.spec.Name)
			err = fmt.Errorf("map %s: %w (%s)", path, ErrLayout, c.why)
		}
	}
	if err == nil {
		err = m.create(spec)
	}
	if err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// change is a pinned map that is not as the spec says.
type change struct {
	spec *ebpf.MapSpec
	old  *ebpf.Map
	why  string
}

// openMaps opens the pinned maps that fit, and those that do not; it makes none. It
// writes the sizes that it finds into spec.
func openMaps(spec *ebpf.CollectionSpec, o Options) (m *Maps, changed []change, err error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, nil, fmt.Errorf("memlock limit: %w", err)
	}
	dir := mapsDir(o.bpffs())
	if err := Mount(o.bpffs()); err != nil {
		return nil, nil, err
	}
	if err := makeDir(dir); err != nil {
		return nil, nil, err
	}
	fixed := o.Sizes.apply(spec)
	m = &Maps{dir: dir, open: make(map[string]*ebpf.Map)}
	defer func() {
		if err != nil {
			m.Close()
			closeOld(changed)
		}
	}()
	for name, ms := range spec.Maps {
		if ms.Pinning != ebpf.PinByName {
			continue
		}
		path := filepath.Join(dir, name)
		em, err := ebpf.LoadPinnedMap(path, nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("map %s: %s: %w", name, path, err)
		}
		if resizable[name] && !fixed[name] {
			ms.MaxEntries = em.MaxEntries()
		}
		why, err := difference(ms, em)
		if err != nil {
			em.Close()
			return nil, nil, fmt.Errorf("map %s: %w", path, err)
		}
		if why != "" {
			changed = append(changed, change{ms, em, why})
		} else {
			m.open[name] = em
		}
	}
	if m.open[BPFMapSeeds] == nil && spec.Maps[BPFMapSeeds] != nil {
		for _, name := range slices.Concat(listed, halfOpen) {
			if em := m.open[name]; em != nil {
				delete(m.open, name)
				changed = append(changed, change{spec.Maps[name], em, "the seed of its digests is gone"})
			}
		}
	}
	slices.SortFunc(changed, func(a, b change) int { return strings.Compare(a.spec.Name, b.spec.Name) })
	return m, changed, nil
}

func closeOld(changed []change) {
	for _, c := range changed {
		c.old.Close()
	}
}

// create makes the maps that are neither open nor pinned.
func (m *Maps) create(spec *ebpf.CollectionSpec) error {
	for name, ms := range spec.Maps {
		if ms.Pinning != ebpf.PinByName || m.open[name] != nil {
			continue
		}
		em, err := ebpf.NewMapWithOptions(ms, ebpf.MapOptions{PinPath: m.dir})
		if err != nil {
			return fmt.Errorf("map %s: %w", name, err)
		}
		m.open[name] = em
	}
	if seeds := m.open[BPFMapSeeds]; seeds != nil {
		return drawSeed(seeds)
	}
	return nil
}

// The maps whose size Sizes sets.
var resizable = map[string]bool{
	BPFMapFlows4: true, BPFMapFlows6: true, BPFMapHalf4: true, BPFMapHalf6: true,
	BPFMapSlots: true, BPFMapFreeSlots: true,
}

// Fits says whether the pinned maps are as this binary reads and writes them: nil when
// they are, or when there are none. It looks only when another build's programs are
// loaded. ErrLayout: Load mends it.
func Fits(o Options) error {
	set, err := OpenPrograms(o)
	if errors.Is(err, ErrNotLoaded) {
		return nil
	}
	if err != nil {
		return err
	}
	defer set.Close()
	if set.Digest() == Digest() {
		return nil
	}
	spec, err := LoadBPF()
	if err != nil {
		return fmt.Errorf("object: %w", err)
	}
	m, changed, err := openMaps(spec, Options{BPFFS: o.BPFFS})
	if err != nil {
		return err
	}
	defer m.Close()
	defer closeOld(changed)
	if len(changed) > 0 {
		c := changed[0]
		return fmt.Errorf("map %s: %w (%s): of another build of bpfnet: run bpfnet reconcile, of the newer one", filepath.Join(m.dir, c.spec.Name), ErrLayout, c.why)
	}
	return nil
}

func missing(object, path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w: no %s", object, ErrNotLoaded, path)
	}
	return fmt.Errorf("%s: %s: %w", object, path, pathCause(err))
}

func mapsDir(bpffs string) string { return filepath.Join(bpffs, "maps") }
