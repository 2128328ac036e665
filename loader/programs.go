// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
)

// ProgramSet opens the pinned programs that are attached, when they are first
// asked for. They may be those of another build of bpfnet.
type ProgramSet struct {
	dir  string // of the set
	mu   sync.Mutex
	open map[string]*ebpf.Program
}

// OpenPrograms loads nothing. ErrNotLoaded when there are no pins.
func OpenPrograms(o Options) (*ProgramSet, error) {
	dir := programsDir(o.bpffs())
	set, err := os.Readlink(filepath.Join(dir, current))
	if err != nil {
		return nil, missing("programs", filepath.Join(dir, current), err)
	}
	return openSet(filepath.Join(dir, set)), nil
}

func openSet(dir string) *ProgramSet {
	return &ProgramSet{dir: dir, open: make(map[string]*ebpf.Program)}
}

// Program is the program of that name, one of the BPFProg constants. It stays
// open until Close. ErrNotLoaded when it is not pinned.
func (p *ProgramSet) Program(name string) (*ebpf.Program, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ep := p.open[name]; ep != nil {
		return ep, nil
	}
	path := filepath.Join(p.dir, name)
	ep, err := ebpf.LoadPinnedProgram(path, nil)
	if err != nil {
		return nil, missing("program "+name, path, err)
	}
	p.open[name] = ep
	return ep, nil
}

// Digest names the object that the set was loaded from.
func (p *ProgramSet) Digest() string {
	digest, _, _ := strings.Cut(filepath.Base(p.dir), "-")
	return digest
}

// slowPath says whether the set's programs have their slow path: somebody may have removed
// the pin of its table.
func (p *ProgramSet) slowPath() bool {
	_, err := os.Lstat(filepath.Join(p.dir, BPFMapSlowPaths))
	return err == nil
}

// Close closes the handles; the pinned programs live on.
func (p *ProgramSet) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for name, ep := range p.open {
		errs = append(errs, ep.Close())
		delete(p.open, name)
	}
	return errors.Join(errs...)
}

// Digest names the object in this binary; a ProgramSet with another one was
// loaded by another build.
func Digest() string { return digest(_BPFBytes) }

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

const current = "current"

func programsDir(bpffs string) string { return filepath.Join(bpffs, "programs") }

// setName names programs of one object that use one generation of the pinned
// maps: when pins of maps were removed and made anew, programs are loaded anew.
func setName(digest string, m *Maps) (string, error) {
	names := make([]string, 0, len(m.open))
	for name := range m.open {
		names = append(names, name)
	}
	slices.Sort(names)
	h := sha256.New()
	for _, name := range names {
		info, err := m.open[name].Info()
		if err != nil {
			return "", fmt.Errorf("map %s: %w", name, err)
		}
		id, ok := info.ID()
		if !ok {
			return "", fmt.Errorf("map %s: no id", name)
		}
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(id)))
	}
	return digest + "-" + hex.EncodeToString(h.Sum(nil)[:4]), nil
}

// loadSet opens the set called name, or loads and pins it. Half a set, left by
// a process that was killed, is made anew.
func loadSet(spec *ebpf.CollectionSpec, m *Maps, o Options, name string) (*ProgramSet, map[string]string, error) {
	dir := filepath.Join(programsDir(o.bpffs()), name)
	set := openSet(dir)
	complete := o.Log == 0
	for program := range spec.Programs {
		if _, err := set.Program(program); errors.Is(err, ErrNotLoaded) {
			complete = false
		} else if err != nil {
			set.Close()
			return nil, nil, err
		}
	}
	slow := filepath.Join(dir, BPFMapSlowPaths)
	tails, err := ebpf.LoadPinnedMap(slow, nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		set.Close()
		return nil, nil, fmt.Errorf("map %s: %s: %w", BPFMapSlowPaths, slow, pathCause(err))
	}
	defer tails.Close()
	if complete && tails != nil {
		return set, nil, nil
	}
	set.Close()

	open := maps.Clone(m.open)
	if tails != nil {
		open[BPFMapSlowPaths] = tails // programs that are attached may have it
	}
	if seeds := m.open[BPFMapSeeds]; seeds != nil {
		seed, err := SeedOf(seeds)
		if err != nil {
			return nil, nil, err
		}
		seed.plant(spec)
	}
	loaded, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: open,
		Programs:        ebpf.ProgramOptions{LogLevel: o.Log},
	})
	if err != nil {
		return nil, nil, programError(err)
	}
	defer loaded.Close()
	logs := make(map[string]string)
	for program, ep := range loaded.Programs {
		logs[program] = ep.VerifierLog
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, nil, fmt.Errorf("programs %s: %w", dir, pathCause(err))
	}
	if err := makeDir(dir); err != nil {
		return nil, nil, err
	}
	// The kernel empties this table when it is neither pinned nor open.
	if err := loaded.Maps[BPFMapSlowPaths].Pin(slow); err != nil {
		return nil, nil, fmt.Errorf("map %s: pin %s: %w", BPFMapSlowPaths, slow, err)
	}
	for program, ep := range loaded.Programs {
		path := filepath.Join(dir, program)
		if err := ep.Pin(path); err != nil {
			return nil, nil, fmt.Errorf("program %s: pin %s: %w", program, path, err)
		}
		delete(loaded.Programs, program)
		set.open[program] = ep
	}
	return set, logs, nil
}

// choose makes set the current one, and removes all others.
func choose(bpffs string, set *ProgramSet) error {
	dir, name := programsDir(bpffs), filepath.Base(set.dir)
	link := filepath.Join(dir, current)
	if old, err := os.Readlink(link); err != nil || old != name {
		next := filepath.Join(dir, "next")
		os.Remove(next)
		if err := os.Symlink(name, next); err != nil {
			return fmt.Errorf("programs %s: %w", next, err)
		}
		if err := os.Rename(next, link); err != nil {
			return fmt.Errorf("programs %s: %w", link, err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("programs %s: %w", dir, pathCause(err))
	}
	for _, e := range entries {
		if e.Name() == current || e.Name() == name {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("programs %s: %w", e.Name(), pathCause(err))
		}
	}
	return nil
}
