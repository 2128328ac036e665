// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrClaimed says that another bpfnet, with other pins, works in this network
// namespace; ErrOwned, that one with another store has these pins.
var (
	ErrClaimed = errors.New("another bpfnet runs in this network namespace")
	ErrOwned   = errors.New("another bpfnet has its programs there")
)

// lo has this ifindex in every network namespace.
const loopback = 1

// Claim checks that no bpfnet but the one with these pins works in the calling
// thread's network namespace: from_lo on lo is the mark. ErrClaimed otherwise. The pins may
// be nobody else's either: ErrOwned.
func Claim(o Options) error {
	pins := o.bpffs()
	if err := checkOwner(pins, o.Owner); err != nil {
		return err
	}
	cookie, err := NetnsCookie()
	if err != nil {
		return err
	}
	r := record{program: BPFProgFromLo, ifindex: loopback, cookie: cookie}
	if err := claimTCX(r, pins); err != nil {
		return err
	}
	f, err := ourFilter(r, Ingress)
	if err != nil {
		return err
	}
	if f == nil || f.Name != filterPrefix+r.program {
		return nil
	}
	own, err := ebpf.LoadPinnedProgram(r.path(pins), nil)
	if err == nil {
		defer own.Close()
		if id, err := programID(own); err != nil {
			return fmt.Errorf("%s: %w", r, err)
		} else if int(id) == f.Id {
			return nil
		}
	}
	return fmt.Errorf("%w (program %d, %s on lo): uninstall it first", ErrClaimed, f.Id, r.program)
}

func claimTCX(r record, pins string) error {
	on, err := link.QueryPrograms(link.QueryOptions{Target: loopback, Attach: ebpf.AttachTCXIngress})
	if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	var own link.ID
	if l, err := link.LoadPinnedLink(r.path(pins), nil); err == nil {
		info, err := l.Info()
		l.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", r, err)
		}
		own = info.ID
	}
	for _, p := range on.Programs {
		if id, ok := p.LinkID(); ok && id == own {
			continue
		}
		prog, err := ebpf.NewProgramFromID(p.ID)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return fmt.Errorf("lo: program %d: %w", p.ID, err)
		}
		info, err := prog.Info()
		prog.Close()
		if err != nil {
			return fmt.Errorf("lo: program %d: %w", p.ID, err)
		}
		if info.Name == r.program {
			return fmt.Errorf("%w (program %d, %s on lo): uninstall it first", ErrClaimed, p.ID, r.program)
		}
	}
	return nil
}

// ownerPath is a symbolic link to the owner's file.
func ownerPath(pins string) string { return filepath.Join(pins, "owner") }

// checkOwner says ErrOwned when the pins are those of an owner that is still there.
func checkOwner(pins, owner string) error {
	has, err := os.Stat(ownerPath(pins))
	if err != nil || owner == "" { // nobody's, or of one who is gone
		return nil
	}
	if is, err := os.Stat(owner); err == nil && os.SameFile(is, has) {
		return nil
	}
	who, err := os.Readlink(ownerPath(pins))
	if err != nil {
		return fmt.Errorf("bpffs %s: %w", pins, pathCause(err))
	}
	return fmt.Errorf("bpffs %s: %w, whose store is %s: use its --root, or another --bpffs", pins, ErrOwned, who)
}

// setOwner writes down whose the pins are.
func setOwner(pins, owner string) error {
	if owner == "" {
		return nil
	}
	if err := checkOwner(pins, owner); err != nil {
		return err
	}
	if who, err := os.Readlink(ownerPath(pins)); err == nil && who == owner {
		return nil
	}
	err := os.Remove(ownerPath(pins))
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = os.Symlink(owner, ownerPath(pins))
	}
	if err != nil {
		return fmt.Errorf("bpffs %s: %w", ownerPath(pins), errors.Unwrap(err))
	}
	return nil
}
