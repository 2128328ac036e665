// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// ErrKernel says that the kernel lacks something that bpfnet cannot do without.
var ErrKernel = errors.New("this kernel lacks what bpfnet needs")

// Features says what the running kernel can do.
type Features struct {
	TCX           bool // else clsact is used
	RedirectPeer  bool
	RedirectNeigh bool
	Timer         bool
	CheckMTU      bool
	PostBind      bool
	SetRetval     bool // binds of published ports get EADDRINUSE, else EPERM
	Mmapable      bool // arrays in user memory
	LPMTrie       bool
	Queue         bool
	BTF           bool // of the kernel
}

// Map has the features by the names that users see.
func (f Features) Map() map[string]bool {
	m := make(map[string]bool)
	for _, x := range f.list() {
		m[x.name] = x.have
	}
	return m
}

type feature struct {
	name     string
	have     bool
	optional bool
}

func (f Features) list() []feature {
	return []feature{
		{"tcx", f.TCX, true},
		{"bpf_redirect_peer", f.RedirectPeer, false},
		{"bpf_redirect_neigh", f.RedirectNeigh, false},
		{"bpf_timer", f.Timer, false},
		{"bpf_check_mtu", f.CheckMTU, false},
		{"post_bind", f.PostBind, false},
		{"bpf_set_retval", f.SetRetval, true},
		{"mmapable arrays", f.Mmapable, false},
		{"LPM tries", f.LPMTrie, false},
		{"queues", f.Queue, false},
		{"BTF (/sys/kernel/btf/vmlinux)", f.BTF, false},
	}
}

// missing is ErrKernel with the names of what is missing, or nil.
func (f Features) missing() error {
	var names []string
	for _, x := range f.list() {
		if !x.have && !x.optional {
			names = append(names, x.name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrKernel, strings.Join(names, ", "))
}

// Probe asks the kernel what it can do, by trying. ErrKernel, with the features
// all the same, when something is missing that bpfnet needs.
func Probe() (Features, error) {
	var f Features
	helper := func(t ebpf.ProgramType, h asm.BuiltinFunc) func() error {
		return func() error { return features.HaveProgramHelper(t, h) }
	}
	for _, p := range []struct {
		have *bool
		ask  func() error
	}{
		{&f.TCX, probeTCX},
		{&f.RedirectPeer, helper(ebpf.SchedCLS, asm.FnRedirectPeer)},
		{&f.RedirectNeigh, helper(ebpf.SchedCLS, asm.FnRedirectNeigh)},
		{&f.Timer, helper(ebpf.SchedCLS, asm.FnTimerInit)},
		{&f.CheckMTU, helper(ebpf.SchedCLS, asm.FnCheckMtu)},
		{&f.PostBind, probePostBind},
		{&f.SetRetval, helper(ebpf.CGroupSock, asm.FnSetRetval)},
		{&f.Mmapable, func() error { return features.HaveMapFlag(features.BPF_F_MMAPABLE) }},
		{&f.LPMTrie, func() error { return features.HaveMapType(ebpf.LPMTrie) }},
		{&f.Queue, func() error { return features.HaveMapType(ebpf.Queue) }},
		{&f.BTF, probeBTF},
	} {
		err := p.ask()
		switch {
		case errors.Is(err, unix.ENOSYS):
			return f, fmt.Errorf("%w: bpf(2) (CONFIG_BPF_SYSCALL)", ErrKernel)
		case errors.Is(err, unix.EPERM):
			return f, fmt.Errorf("kernel features: bpf(2) asks for CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: %w", unix.EPERM)
		}
		if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			return f, fmt.Errorf("kernel features: %w", err)
		}
		*p.have = err == nil
	}
	return f, f.missing()
}

// probeTCX attaches to a device that no kernel has, and sees what it says.
func probeTCX() error {
	if os.Getenv(NoTCX) == "1" {
		return ebpf.ErrNotSupported
	}
	prog, err := passing(ebpf.SchedCLS, ebpf.AttachNone)
	if err != nil {
		return err
	}
	defer prog.Close()
	l, err := link.AttachTCX(link.TCXOptions{Interface: 1<<31 - 1, Program: prog, Attach: ebpf.AttachTCXIngress})
	if err == nil {
		l.Close()
	}
	if errors.Is(err, ebpf.ErrNotSupported) {
		return err
	}
	return nil
}

func probePostBind() error {
	prog, err := passing(ebpf.CGroupSock, ebpf.AttachCGroupInet4PostBind)
	if err != nil {
		return ebpf.ErrNotSupported
	}
	return prog.Close()
}

func probeBTF() error {
	if _, err := os.Stat("/sys/kernel/btf/vmlinux"); err != nil {
		return ebpf.ErrNotSupported
	}
	return nil
}

// passing is the smallest program of a type.
func passing(t ebpf.ProgramType, at ebpf.AttachType) (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type:         t,
		AttachType:   at,
		License:      "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
	})
}
