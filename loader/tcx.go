// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// attachTCX attaches behind all programs of the hook, and pins the link.
// ErrNotSupported on a kernel without TCX.
func attachTCX(prog *ebpf.Program, r record, dir Direction, pins string) error {
	if os.Getenv(NoTCX) == "1" {
		return ebpf.ErrNotSupported
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: r.ifindex,
		Program:   prog,
		Attach:    tcxType(dir),
		Anchor:    link.Tail(),
	})
	if err != nil {
		return fmt.Errorf("%s: %w", r, err)
	}
	defer l.Close() // detaches what could not be pinned
	if err := l.Pin(r.path(pins)); err != nil {
		return fmt.Errorf("%s: pin %s: %w", r, r.path(pins), err)
	}
	return nil
}

// aliveTCX says whether a link still has its device: the kernel takes it away
// when the device goes, and when somebody detaches the link by force.
func aliveTCX(l link.Link) (bool, error) {
	info, err := l.Info()
	if err != nil {
		return false, err
	}
	tcx := info.TCX()
	if tcx == nil {
		return false, errors.New("pin is not of a tcx link")
	}
	return tcx.Ifindex != 0, nil
}

func tcxType(dir Direction) ebpf.AttachType {
	if dir == Egress {
		return ebpf.AttachTCXEgress
	}
	return ebpf.AttachTCXIngress
}

func tcxDirection(info *link.TCXInfo) Direction {
	if ebpf.AttachType(info.AttachType) == ebpf.AttachTCXEgress {
		return Egress
	}
	return Ingress
}
