// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
	"golang.org/x/sys/unix"
)

// replaceAll gives every attachment its program of set, in place. A program
// that set does not have is detached.
func replaceAll(pins string, set *ProgramSet) ([]Attachment, error) {
	here, err := NetnsCookie()
	if err != nil {
		return nil, err
	}
	records, err := readRecords(pins)
	if err != nil {
		return nil, err
	}
	// The world last: it may not find a program that knows less than those behind it.
	slices.SortStableFunc(records, func(a, b record) int {
		last := func(r record) int { return map[bool]int{true: 1}[r.program == BPFProgFromUplink] }
		return last(a) - last(b)
	})
	var replaced []Attachment
	for _, r := range records {
		prog, err := set.Program(r.program)
		if errors.Is(err, ErrNotLoaded) {
			if err := detach(r, here, pins); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		a, err := replace(r, prog, here, pins)
		if err != nil {
			return nil, err
		}
		if a.Changed {
			replaced = append(replaced, a)
		}
	}
	return replaced, nil
}

// replace leaves alone what is dead, or in another namespace: there is nothing
// to keep up.
func replace(r record, prog *ebpf.Program, here uint64, pins string) (a Attachment, err error) {
	a = Attachment{Program: r.program, Ifindex: r.ifindex}
	object, err := pin.Load(r.path(pins), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return a, fmt.Errorf("%s: %w", r, err)
	}
	defer object.Close()
	if l, ok := object.(link.Link); ok {
		info, err := l.Info()
		if err != nil {
			return a, fmt.Errorf("%s: %w", r, err)
		}
		a.Kind = KindCgroup
		if tcx := info.TCX(); tcx != nil {
			a.Kind, a.Direction = KindTCX, tcxDirection(tcx)
		}
		a.Changed, err = update(l, prog)
		if errors.Is(err, unix.ENOLINK) {
			return Attachment{}, nil
		}
		if err != nil {
			return a, fmt.Errorf("%s: %w", r, err)
		}
		return a, nil
	}
	if r.cookie != here {
		return a, nil
	}
	a.Kind = KindClsact
	for _, dir := range []Direction{Ingress, Egress} {
		f, err := ourFilter(r, dir)
		if err != nil {
			return a, err
		}
		if f != nil && f.Name == filterPrefix+r.program {
			a.Direction = dir
			a.Changed, err = attachClsact(prog, r, dir, pins)
			return a, err
		}
	}
	return a, nil
}
