// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Objects are the maps and programs after Load.
type Objects struct {
	*Maps
	*ProgramSet

	// Replaced lists the attachments whose program Load replaced, in place.
	Replaced []Attachment

	logs map[string]string
}

// Load makes the kernel have this binary's maps and programs: it opens what is
// pinned, creates what is missing, and puts the programs in the place of older
// ones wherever those are attached, without a moment in which none is. It runs
// in the network namespace of the calling thread, the host's.
//
// ErrLayout when a pinned map cannot be used; nothing is changed then.
func Load(o Options) (*Objects, error) {
	spec, err := LoadBPF()
	if err != nil {
		return nil, fmt.Errorf("object: %w", err)
	}
	return load(spec, Digest(), o)
}

func load(spec *ebpf.CollectionSpec, digest string, o Options) (_ *Objects, err error) {
	if err := Mount(o.bpffs()); err != nil {
		return nil, err
	}
	unlock, err := lock(o.bpffs())
	if err != nil {
		return nil, err
	}
	defer unlock()

	m, err := createMaps(spec, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	if err := makeDir(programsDir(o.bpffs())); err != nil {
		return nil, err
	}
	if err := makeDir(linksDir(o.bpffs())); err != nil {
		return nil, err
	}
	name, err := setName(digest, m)
	if err != nil {
		return nil, err
	}
	set, logs, err := loadSet(spec, m, o, name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			set.Close()
		}
	}()
	replaced, err := replaceAll(o.bpffs(), set)
	if err != nil {
		return nil, err
	}
	if err := choose(o.bpffs(), set); err != nil {
		return nil, err
	}
	return &Objects{Maps: m, ProgramSet: set, Replaced: replaced, logs: logs}, nil
}

// Close closes the handles; everything pinned lives on.
func (o *Objects) Close() error {
	return errors.Join(o.Maps.Close(), o.ProgramSet.Close())
}

// VerifierLog is the verifier's log of a program that passed, when Options.Log
// asked for one.
func (o *Objects) VerifierLog(program string) string { return o.logs[program] }

// lock serialises Loads on one directory of pins.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("bpffs %s: %w", dir, pathCause(err))
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, fmt.Errorf("bpffs %s: lock: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// Uninstall detaches everything that is attached under these pins, in the
// network namespace of the calling thread, and removes them. Missing is fine.
func Uninstall(o Options) error {
	dir := o.bpffs()
	if on, err := onBPFFS(nearest(dir)); err != nil || !on {
		return err
	}
	if err := detachAll(dir); err != nil {
		return err
	}
	for _, sub := range []string{linksDir(dir), programsDir(dir), mapsDir(dir)} {
		if err := os.RemoveAll(sub); err != nil {
			return fmt.Errorf("bpffs %s: %w", sub, pathCause(err))
		}
	}
	return Unmount(dir)
}
