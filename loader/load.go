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

	Migration // of maps with another layout or size

	logs map[string]string
}

// Load makes the kernel have this binary's maps and programs: it opens what is
// pinned, creates what is missing, carries maps over that have another layout or size,
// and puts the programs in the place of older ones wherever those are attached, without
// a moment in which none is. It runs in the network namespace of the calling thread, the
// host's. ArmSweep has to follow.
//
// ErrLayout when a pinned map cannot be carried over; nothing is changed then.
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

	if err := setOwner(o.bpffs(), o.Owner); err != nil {
		return nil, err
	}
	if err := resume(o.bpffs()); err != nil {
		return nil, err
	}
	m, changed, err := openMaps(spec, o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	late := leftOver(spec, o.bpffs(), m)
	g, err := migrate(spec, o, m, changed)
	if err != nil {
		return nil, err
	}
	if g != nil {
		defer g.close()
	}
	if late != nil {
		defer late.close()
	}
	if err := m.create(spec); err != nil {
		return nil, err
	}
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
	objects := &Objects{Maps: m, ProgramSet: set, logs: logs}
	if g != nil {
		late = g.flows
		if err = g.copy(); err == nil {
			err = g.commit()
		}
		if err != nil {
			g.resumeSweep()
			return nil, err
		}
		if late != nil {
			if err := late.freeze(); err != nil {
				return nil, err
			}
		}
		objects.Migration = g.done
	}
	if objects.Replaced, err = replaceAll(o.bpffs(), set); err != nil {
		return nil, err
	}
	if late != nil {
		if err := late.finish(); err != nil {
			return nil, err
		}
	}
	if err := os.RemoveAll(oldDir(o.bpffs())); err != nil {
		return nil, fmt.Errorf("maps %s: %w", oldDir(o.bpffs()), pathCause(err))
	}
	if err := choose(o.bpffs(), set); err != nil {
		return nil, err
	}
	return objects, nil
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
	for _, sub := range []string{linksDir(dir), programsDir(dir), mapsDir(dir), nextDir(dir), readyDir(dir), oldDir(dir), ownerPath(dir)} {
		if err := os.RemoveAll(sub); err != nil {
			return fmt.Errorf("bpffs %s: %w", sub, pathCause(err))
		}
	}
	return Unmount(dir)
}
