// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
)

// Attachments lists what is recorded under the directory of pins, and whether
// it does its work: attached, with the program that is current. It looks at
// devices of the calling thread's network namespace.
func Attachments(pins string) ([]Attachment, error) {
	records, err := readRecords(pins)
	if err != nil || len(records) == 0 {
		return nil, err
	}
	here, err := NetnsCookie()
	if err != nil {
		return nil, err
	}
	set, err := OpenPrograms(Options{BPFFS: pins})
	if err != nil {
		return nil, err
	}
	defer set.Close()
	list := make([]Attachment, 0, len(records))
	for _, r := range records {
		a, _, err := inspect(r, set, here, pins)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

// Prune removes the records of devices and cgroups that are gone, and says
// which. It looks at devices of the calling thread's network namespace.
func Prune(pins string) ([]Attachment, error) {
	records, err := readRecords(pins)
	if err != nil || len(records) == 0 {
		return nil, err
	}
	here, err := NetnsCookie()
	if err != nil {
		return nil, err
	}
	set := openSet(programsDir(pins))
	defer set.Close()
	var pruned []Attachment
	for _, r := range records {
		a, dead, err := inspect(r, set, here, pins)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !dead {
			continue
		}
		if err != nil {
			return nil, err
		}
		if err := detach(r, here, pins); err != nil {
			return nil, err
		}
		pruned = append(pruned, a)
	}
	return pruned, nil
}

// inspect says what is behind a record; dead: nothing that could come back.
func inspect(r record, set *ProgramSet, here uint64, pins string) (a Attachment, dead bool, err error) {
	a = Attachment{Program: r.program, Ifindex: r.ifindex}
	object, err := pin.Load(r.path(pins), nil)
	if err != nil {
		return a, false, fmt.Errorf("%s: %w", r, err)
	}
	defer object.Close()

	var id ebpf.ProgramID
	if l, ok := object.(link.Link); ok {
		info, err := l.Info()
		if err != nil {
			return a, false, fmt.Errorf("%s: %w", r, err)
		}
		id = info.Program
		if tcx := info.TCX(); tcx != nil {
			a.Kind, a.Direction = KindTCX, tcxDirection(tcx)
			if tcx.Ifindex != uint32(r.ifindex) || r.cookie != here {
				a.Problem = "not attached: detached by force, or the device is gone"
				return a, tcx.Ifindex == 0, nil
			}
		} else if cg := info.Cgroup(); cg != nil {
			a.Kind = KindCgroup
			if cg.CgroupId == 0 {
				a.Problem = "not attached: detached by force, or the cgroup is gone"
				return a, true, nil
			}
		}
	} else {
		a.Kind = KindClsact
		if r.cookie != here {
			a.Problem = "in another network namespace"
			return a, true, nil
		}
		var found bool
		for _, dir := range []Direction{Ingress, Egress} {
			f, err := ourFilter(r, dir)
			if err != nil && !errors.Is(err, errTaken) {
				return a, false, err
			}
			if f != nil && f.Name == filterPrefix+r.program {
				id, a.Direction, found = ebpf.ProgramID(f.Id), dir, true
			}
		}
		if !found {
			a.Problem = "not attached: the filter or the device is gone"
			return a, true, nil
		}
	}

	prog, err := set.Program(r.program)
	if errors.Is(err, ErrNotLoaded) {
		a.Problem = "no such program is loaded"
		return a, false, nil
	}
	if err != nil {
		return a, false, err
	}
	want, err := programID(prog)
	if err != nil {
		return a, false, fmt.Errorf("%s: %w", r, err)
	}
	if id != want {
		a.Problem = fmt.Sprintf("another program is attached (id %d, not %d)", id, want)
	} else if r.ifindex != 0 && !set.slowPath() {
		a.Problem = "the pin of its slow path is gone"
	}
	return a, false, nil
}
