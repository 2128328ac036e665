// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"

	"github.com/cilium/ebpf"

	"github.com/bpfnet/bpfnet/loader"
)

// programs opens the pinned programs once per command.
func (p *Path) programs() (*loader.ProgramSet, error) {
	if p.progs == nil {
		set, err := loader.OpenPrograms(loader.Options{BPFFS: p.host.Pins()})
		if err != nil {
			return nil, err
		}
		p.progs = set
		p.shut = append(p.shut, set.Close)
	}
	return p.progs, nil
}

// withProgram runs fn with a pinned program, in the host's namespace.
func (p *Path) withProgram(name string, fn func(*ebpf.Program) error) error {
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	set, err := p.programs()
	if err != nil {
		return err
	}
	prog, err := set.Program(name)
	if err != nil {
		return err
	}
	return ns.Do(func() error { return fn(prog) })
}

// attach puts a program on a device of the host, or leaves it there.
func (p *Path) attach(name string, ifindex int, device string, dir loader.Direction) error {
	return p.withProgram(name, func(prog *ebpf.Program) error {
		a, err := loader.Attach(prog, name, ifindex, dir, p.host.Pins())
		if err != nil {
			return err
		}
		if a.Changed {
			p.host.Did("device %s: %s attached (%s %s)", device, name, a.Kind, dir)
			p.host.Undo("attach "+name, func() error { return p.detach(name, ifindex) })
		}
		return nil
	})
}

func (p *Path) detach(name string, ifindex int) error {
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	return ns.Do(func() error { return loader.Detach(name, ifindex, p.host.Pins()) })
}

// ShutDevice attaches the programs: what they do not know they drop.
func (p *Path) ShutDevice(ifindex int, name string) error {
	if err := p.attach(loader.BPFProgFromEndpoint, ifindex, name, loader.Ingress); err != nil {
		return err
	}
	return p.attach(loader.BPFProgToEndpoint, ifindex, name, loader.Egress)
}

// DropDevice detaches the programs of an endpoint.
func (p *Path) DropDevice(ifindex int) error {
	return errors.Join(p.detach(loader.BPFProgFromEndpoint, ifindex), p.detach(loader.BPFProgToEndpoint, ifindex))
}

func (p *Path) attachments() ([]loader.Attachment, error) {
	ns, err := p.host.Netns()
	if err != nil {
		return nil, err
	}
	var list []loader.Attachment
	err = ns.Do(func() (err error) {
		list, err = loader.Attachments(p.host.Pins())
		return err
	})
	return list, err
}

func (p *Path) attachBindGuard() error {
	set, err := p.programs()
	if err != nil {
		return err
	}
	var guard loader.BindGuard
	for name, prog := range map[string]**ebpf.Program{
		loader.BPFProgBind4: &guard.Bind4, loader.BPFProgBind6: &guard.Bind6,
		loader.BPFProgPostBind4: &guard.PostBind4, loader.BPFProgPostBind6: &guard.PostBind6,
	} {
		if *prog, err = set.Program(name); err != nil {
			return err
		}
	}
	changed, err := loader.AttachBindGuard(p.host.Cgroup(), guard, p.host.Pins())
	if changed {
		p.host.Did("cgroup %s: bind guard attached", p.host.Cgroup())
	}
	return err
}
