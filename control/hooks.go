// SPDX-License-Identifier: Apache-2.0

package control

import (
	"github.com/cilium/ebpf"

	"github.com/bpfnet/bpfnet/loader"
)

// programs opens the pinned programs once per command.
func (o *op) programs() (*loader.ProgramSet, error) {
	if o.progs == nil {
		set, err := loader.OpenPrograms(loader.Options{BPFFS: o.host.BPFFS})
		if err != nil {
			return nil, err
		}
		o.progs = set
		o.shut = append(o.shut, set.Close)
	}
	return o.progs, nil
}

// withProgram runs fn with a pinned program, in the host's namespace.
func (o *op) withProgram(name string, fn func(*ebpf.Program) error) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	set, err := o.programs()
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
func (o *op) attach(name string, ifindex int, device string, dir loader.Direction) error {
	return o.withProgram(name, func(p *ebpf.Program) error {
		a, err := loader.Attach(p, name, ifindex, dir, o.host.BPFFS)
		if err != nil {
			return err
		}
		if a.Changed {
			o.did("device %s: %s attached (%s %s)", device, name, a.Kind, dir)
			o.undo.add("attach "+name, func() error { return o.detach(name, ifindex) })
		}
		return nil
	})
}

func (o *op) detach(name string, ifindex int) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	return ns.Do(func() error { return loader.Detach(name, ifindex, o.host.BPFFS) })
}

func (o *op) attachments() ([]loader.Attachment, error) {
	ns, err := o.hostNetns()
	if err != nil {
		return nil, err
	}
	var list []loader.Attachment
	err = ns.Do(func() (err error) {
		list, err = loader.Attachments(o.host.BPFFS)
		return err
	})
	return list, err
}

func (o *op) attachBindGuard() error {
	set, err := o.programs()
	if err != nil {
		return err
	}
	var guard loader.BindGuard
	for name, p := range map[string]**ebpf.Program{
		loader.BPFProgBind4: &guard.Bind4, loader.BPFProgBind6: &guard.Bind6,
		loader.BPFProgPostBind4: &guard.PostBind4, loader.BPFProgPostBind6: &guard.PostBind6,
	} {
		if *p, err = set.Program(name); err != nil {
			return err
		}
	}
	changed, err := loader.AttachBindGuard(o.host.Cgroup, guard, o.host.BPFFS)
	if changed {
		o.did("cgroup %s: bind guard attached", o.host.Cgroup)
	}
	return err
}
