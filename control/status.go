// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"cmp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/datapath/bpf"
)

// Status says how the host is: hooks, tables, counters, and what is wrong.
func (m *Manager) Status() (*Status, error) {
	s := &Status{Root: m.root, Counters: map[string]uint64{}}
	s.Kernel = kernelRelease()
	var lack error
	s.Features, lack = bpf.Probe()
	ok, err := m.view(func(o *op) error { return o.status(s) })
	if err != nil {
		return nil, err
	}
	if lack != nil && s.Datapath != DatapathIPTables {
		s.Problem("%v", lack)
	}
	if !ok {
		s.Datapath, s.BPFFS, s.Netns, s.Cgroup = DatapathBPF, m.o.BPFFS, m.o.Netns, m.o.Cgroup
		s.Problem("this host is not set up: run bpfnet init")
	}
	return s, nil
}

// Ready says what keeps containers from being attached: of the kernel, or of the store.
func (m *Manager) Ready() error {
	probe := func(kind string) error { return kinds[cmp.Or(kind, DatapathBPF)].probe() }
	ok, err := m.view(func(o *op) error {
		if _, err := m.unsettled(o.host); err != nil {
			return err
		}
		return probe(o.host.Datapath)
	})
	if err == nil && !ok {
		err = probe(m.o.Datapath)
	}
	return err
}

func (o *op) status(s *Status) error {
	h := o.host
	s.Datapath, s.Netns, s.BPFFS, s.Cgroup = h.Datapath, h.Netns, h.BPFFS, h.Cgroup
	why, err := o.m.unsettled(h)
	if err != nil {
		s.Problem("%v", err)
		return nil
	}
	if why != "" {
		s.Problem("%s: run bpfnet reconcile", why)
	}
	if named := h.Config.Uplinks; len(named) > 0 {
		up, err := o.uplinks()
		if err != nil {
			return err
		}
		if len(up) == 0 {
			s.Problem("uplink %s: no such device: nobody reaches a published port; bpfnet init --uplink %s takes what there is", strings.Join(named, ", "), allUplinks)
		}
	}
	if err := o.engineProblems(s); err != nil {
		return err
	}
	return o.path().Status(s)
}

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	release, _, _ := bytes.Cut(u.Release[:], []byte{0})
	return string(release)
}
