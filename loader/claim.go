// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrClaimed says that another bpfnet, with other pins, works in this network
// namespace.
var ErrClaimed = errors.New("another bpfnet runs in this network namespace")

// lo has this ifindex in every network namespace.
const loopback = 1

// Claim checks that no bpfnet but the one with these pins works in the calling
// thread's network namespace: from_lo on lo is the mark. ErrClaimed otherwise.
func Claim(pins string) error {
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
