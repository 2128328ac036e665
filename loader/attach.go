// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/pin"
)

// Direction is of packets at a device.
type Direction int

const (
	Ingress Direction = iota // packets that the device received
	Egress                   // packets that the device is about to send
)

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Kinds of attachment.
const (
	KindTCX    = "tcx"
	KindClsact = "clsact"
	KindCgroup = "cgroup"
)

// Attachment is a program of ours on a device or cgroup.
type Attachment struct {
	Program   string
	Ifindex   int // of the device; 0 for KindCgroup
	Direction Direction
	Kind      string
	Changed   bool   // this call attached or replaced it
	Problem   string // why it does not do its work, in a few words; empty: it does
}

// NoTCX is an environment variable: when it is 1, new attachments use clsact.
const NoTCX = "BPFNET_NO_TCX"

// Attach puts prog, called name, on a device of the calling thread's network
// namespace, after all programs that are there, and records it under the
// directory of pins. An attachment that exists gets prog in place; one that has
// it already is left alone. Where the kernel has no TCX, clsact is used.
func Attach(prog *ebpf.Program, name string, ifindex int, dir Direction, pins string) (Attachment, error) {
	a := Attachment{Program: name, Ifindex: ifindex, Direction: dir}
	cookie, err := NetnsCookie()
	if err != nil {
		return a, err
	}
	if err := makeDir(linksDir(pins)); err != nil {
		return a, err
	}
	r := record{program: name, ifindex: ifindex, cookie: cookie}
	object, err := pin.Load(r.path(pins), nil)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return a, fmt.Errorf("%s: %w", r, err)
	}
	if err == nil {
		defer object.Close()
		l, ok := object.(link.Link)
		if !ok {
			a.Kind = KindClsact
			a.Changed, err = attachClsact(prog, r, dir, pins)
			return a, err
		}
		a.Kind = KindTCX
		alive, err := aliveTCX(l)
		if err != nil {
			return a, fmt.Errorf("%s: %w", r, err)
		}
		if alive {
			if a.Changed, err = update(l, prog); err != nil {
				return a, fmt.Errorf("%s: %w", r, err)
			}
			return a, nil
		}
		if err := os.Remove(r.path(pins)); err != nil {
			return a, fmt.Errorf("%s: %w", r, err)
		}
	}

	a.Kind, a.Changed = KindTCX, true
	err = attachTCX(prog, r, dir, pins)
	if errors.Is(err, ebpf.ErrNotSupported) {
		a.Kind = KindClsact
		a.Changed, err = attachClsact(prog, r, dir, pins)
	}
	return a, err
}

// Detach undoes Attach. Nothing attached, or the device gone, is fine.
func Detach(name string, ifindex int, pins string) error {
	cookie, err := NetnsCookie()
	if err != nil {
		return err
	}
	return detach(record{program: name, ifindex: ifindex, cookie: cookie}, cookie, pins)
}

// detach takes one attachment down; here is the namespace of this thread.
func detach(r record, here uint64, pins string) error {
	object, err := pin.Load(r.path(pins), nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	defer object.Close()
	if l, ok := object.(link.Link); ok {
		if err := l.Detach(); err != nil {
			return fmt.Errorf("%s: %w", r, err)
		}
	} else if r.cookie == here {
		if err := detachClsact(r, pins); err != nil {
			return err
		}
	}
	if err := os.Remove(r.path(pins)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", r, pathCause(err))
	}
	return nil
}

// detachAll leaves an empty directory of links.
func detachAll(pins string) error {
	here, err := NetnsCookie()
	if err != nil {
		return err
	}
	records, err := readRecords(pins)
	if err != nil {
		return err
	}
	for _, r := range records {
		if err := detach(r, here, pins); err != nil {
			return err
		}
	}
	return nil
}

// update gives a link another program in place.
func update(l link.Link, prog *ebpf.Program) (changed bool, err error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	id, err := programID(prog)
	if err != nil || info.Program == id {
		return false, err
	}
	return true, l.Update(prog)
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("program without an id")
	}
	return id, nil
}
