// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io/fs"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Patrol looks again and again whether all that is recorded is still attached: the
// kernel tells nobody that a TCX or cgroup link was detached by force, or that a pin was
// removed. A look is a system call or two for each attachment.
type Patrol struct {
	pins    string
	seed    maphash.Seed
	records uint64 // hash of the records of the last look

	programs string // the set that ids are of
	ids      map[string]ebpf.ProgramID
	clsact   map[string]bool // records, by name
}

// Sight is what a Patrol saw.
type Sight struct {
	Records int  // attachments recorded
	Changed bool // some were recorded or removed since the last look
	Lost    int  // do not do their work
}

// NewPatrol looks at nothing yet. Its first look finds all records new.
func NewPatrol(pins string) *Patrol { return &Patrol{pins: pins, seed: maphash.MakeSeed()} }

// Look takes a look, on a thread in the namespace of the devices. With filters it looks
// at clsact filters, too, which is expensive: the kernel tells by netlink when one is gone,
// unless it goes with its device.
func (p *Patrol) Look(filters bool) (s Sight, err error) {
	if err := p.learn(); err != nil {
		return s, err
	}
	here, err := NetnsCookie()
	if err != nil {
		return s, err
	}
	records, err := readRecords(p.pins)
	if err != nil {
		return s, err
	}
	var hash maphash.Hash
	hash.SetSeed(p.seed)
	set, err := OpenPrograms(Options{BPFFS: p.pins})
	if err != nil {
		return s, err
	}
	defer set.Close()
	slow := set.slowPath()
	for _, r := range records {
		_, _ = hash.WriteString(r.name() + " ")
		if r.ifindex != 0 && r.cookie != here {
			continue // another namespace's, left over
		}
		s.Records++
		good, err := p.good(r, set, here, filters)
		if err != nil {
			return s, err
		}
		if !good || r.ifindex != 0 && !slow {
			s.Lost++
		}
	}
	s.Changed = hash.Sum64() != p.records
	p.records = hash.Sum64()
	return s, nil
}

// good says whether a program is where its record says.
func (p *Patrol) good(r record, set *ProgramSet, here uint64, filters bool) (bool, error) {
	if r.ifindex != 0 && !p.clsact[r.name()] {
		want, err := p.id(set, r.program)
		if err != nil {
			return false, err
		}
		on, err := link.QueryPrograms(link.QueryOptions{Target: r.ifindex, Attach: tcxType(directionOf(r.program))})
		if err == nil {
			for _, x := range on.Programs {
				if x.ID == want {
					return true, nil
				}
			}
		}
		// The device is gone, or this is no TCX.
	}
	if p.clsact[r.name()] && !filters && exists(r.ifindex) {
		return true, nil
	}
	a, _, err := inspect(r, set, here, p.pins)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // removed just now
	}
	if err != nil {
		return false, err
	}
	if a.Kind == KindClsact && a.Problem == "" {
		p.clsact[r.name()] = true
	} else {
		delete(p.clsact, r.name())
	}
	return a.Problem == "", nil
}

// exists says whether the namespace of the calling thread has a device; in doubt it has.
func exists(ifindex int) bool {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(fd)
	device, err := unix.NewIfreq("")
	if err != nil {
		return true
	}
	device.SetUint32(uint32(ifindex))
	return !errors.Is(unix.IoctlIfreq(fd, unix.SIOCGIFNAME, device), unix.ENODEV)
}

// learn forgets what it knows when other programs are current.
func (p *Patrol) learn() error {
	set, err := OpenPrograms(Options{BPFFS: p.pins})
	if err != nil || set.dir == p.programs {
		return err
	}
	p.programs, p.ids, p.clsact = set.dir, make(map[string]ebpf.ProgramID), make(map[string]bool)
	return nil
}

// id is that of a program of the set.
func (p *Patrol) id(set *ProgramSet, name string) (ebpf.ProgramID, error) {
	if id, known := p.ids[name]; known {
		return id, nil
	}
	prog, err := set.Program(name)
	if errors.Is(err, ErrNotLoaded) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	id, err := programID(prog)
	if err != nil {
		return 0, fmt.Errorf("program %s: %w", name, err)
	}
	p.ids[name] = id
	return id, nil
}

// directionOf is where a program is attached: those that begin with to_ see what leaves.
func directionOf(program string) Direction {
	if strings.HasPrefix(program, "to_") {
		return Egress
	}
	return Ingress
}
