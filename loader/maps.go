// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
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

// createMaps also writes the sizes that it found or made into spec.
func createMaps(spec *ebpf.CollectionSpec, o Options) (*Maps, error) {
	if err := rlimit.RemoveMemlock(); err != nil {
		return nil, fmt.Errorf("memlock limit: %w", err)
	}
	dir := mapsDir(o.bpffs())
	if err := Mount(o.bpffs()); err != nil {
		return nil, err
	}
	if err := makeDir(dir); err != nil {
		return nil, err
	}
	fixed := o.Sizes.apply(spec)
	m := &Maps{dir: dir, open: make(map[string]*ebpf.Map)}
	// All that are there first: ErrLayout leaves nothing new behind.
	var absent []*ebpf.MapSpec
	for name, ms := range spec.Maps {
		if ms.Pinning != ebpf.PinByName {
			continue
		}
		em, err := openMap(ms, dir, resizable[name] && !fixed[name])
		if errors.Is(err, fs.ErrNotExist) {
			absent = append(absent, ms)
			continue
		}
		if err != nil {
			m.Close()
			return nil, err
		}
		m.open[name] = em
	}
	for _, ms := range absent {
		em, err := ebpf.NewMapWithOptions(ms, ebpf.MapOptions{PinPath: dir})
		if err != nil {
			m.Close()
			return nil, fmt.Errorf("map %s: %w", ms.Name, err)
		}
		m.open[ms.Name] = em
	}
	return m, nil
}

// The maps whose size Sizes sets.
var resizable = map[string]bool{
	BPFMapFlows4: true, BPFMapFlows6: true, BPFMapHalf4: true, BPFMapHalf6: true,
	BPFMapSlots: true, BPFMapFreeSlots: true,
}

// openMap opens a pinned map that fits ms; fs.ErrNotExist when there is none.
func openMap(ms *ebpf.MapSpec, dir string, anySize bool) (*ebpf.Map, error) {
	path := filepath.Join(dir, ms.Name)
	em, err := ebpf.LoadPinnedMap(path, nil)
	if err != nil {
		return nil, fmt.Errorf("map %s: %s: %w", ms.Name, path, err)
	}
	if anySize {
		ms.MaxEntries = em.MaxEntries()
	}
	err = ms.Compatible(em)
	if err == nil {
		err = sameStructs(ms, em)
	}
	if err != nil {
		em.Close()
		diff := strings.TrimSuffix(err.Error(), ": "+ebpf.ErrMapIncompatible.Error())
		return nil, fmt.Errorf("map %s: %w (%s): uninstall and init again, which ends all connections", path, ErrLayout, diff)
	}
	return em, nil
}

// sameStructs compares the fields of keys and values, of which sizes tell only
// half: the kernel keeps the type information of the map. Maps without are
// taken as they are.
func sameStructs(ms *ebpf.MapSpec, em *ebpf.Map) error {
	handle, err := em.Handle()
	if err != nil {
		return nil
	}
	defer handle.Close()
	pinned, err := handle.Spec(nil)
	if err != nil {
		return fmt.Errorf("type information: %w", err)
	}
	for _, typ := range []btf.Type{ms.Key, ms.Value} {
		want, ok := typ.(*btf.Struct)
		if !ok {
			continue
		}
		var have *btf.Struct
		if err := pinned.TypeByName(want.Name, &have); err != nil {
			return fmt.Errorf("struct %s: %w", want.Name, err)
		}
		var format btf.GoFormatter
		now, err := format.TypeDeclaration(want.Name, want)
		if err != nil {
			return err
		}
		then, err := format.TypeDeclaration(want.Name, have)
		if err != nil {
			return err
		}
		if now != then {
			return fmt.Errorf("struct %s has other fields", want.Name)
		}
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
