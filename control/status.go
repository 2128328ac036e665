// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/loader"
)

// Status says how the host is: hooks, tables, counters, and what is wrong.
func (m *Manager) Status() (*Status, error) {
	s := &Status{Root: m.root, Counters: map[string]uint64{}}
	s.Kernel = kernelRelease()
	features, err := loader.Probe()
	s.Features = features.Map()
	if err != nil {
		s.problem("%v", err)
	}
	ok, err := m.view(func(o *op) error { return o.status(s) })
	if err != nil {
		return nil, err
	}
	if !ok {
		s.Datapath, s.BPFFS, s.Netns, s.Cgroup = DatapathBPF, m.o.BPFFS, m.o.Netns, m.o.Cgroup
		s.problem("this host is not set up: run bpfnet init")
	}
	return s, nil
}

func (s *Status) problem(format string, a ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, a...))
}

func (o *op) status(s *Status) error {
	h := o.host
	s.Datapath, s.Netns, s.BPFFS, s.Cgroup = h.Datapath, h.Netns, h.BPFFS, h.Cgroup
	why, err := o.m.unsettled(h)
	if err != nil {
		s.problem("%v", err)
		return nil
	}
	if why != "" {
		s.problem("%s: run bpfnet reconcile", why)
	}
	t, err := o.tables()
	if errors.Is(err, loader.ErrLayout) {
		s.problem("%v", err)
		return nil
	}
	if err != nil {
		s.problem("%v: run bpfnet reconcile", err)
		return nil
	}
	seen, err := o.observe()
	if err != nil {
		return err
	}
	if err := o.hookStatus(s, seen); err != nil {
		return err
	}
	fill, err := t.Fill()
	if err != nil {
		return err
	}
	for _, f := range fill {
		s.Tables = append(s.Tables, TableStatus{f.Name, f.Used, f.Size, f.Refused})
	}
	if s.Counters, err = t.Counters.Read(); err != nil {
		return err
	}
	return o.dropStatus(s, seen)
}

// hookStatus lists the programs, and finds devices that lack one.
func (o *op) hookStatus(s *Status, seen *observed) error {
	list, err := o.attachments()
	if err != nil {
		s.problem("%v: run bpfnet reconcile", err)
		return nil
	}
	have := make(map[string]bool)
	s.FastPath = len(list) > 0
	for _, a := range list {
		hook := HookStatus{Device: o.host.Cgroup, Program: a.Program, Kind: a.Kind, OK: a.Problem == ""}
		if a.Ifindex != 0 {
			hook.Device = fmt.Sprintf("device %d", a.Ifindex)
			if l := seen.byIndex[a.Ifindex]; l != nil {
				hook.Device = l.Attrs().Name
			}
		}
		if !hook.OK {
			s.FastPath = false
			s.problem("%s on %s: %s: run bpfnet reconcile", a.Program, hook.Device, a.Problem)
		}
		have[a.Program+" "+hook.Device] = true
		s.Hooks = append(s.Hooks, hook)
	}
	for device, programs := range o.wantedHooks(seen) {
		for _, p := range programs {
			if !have[p+" "+device] {
				s.FastPath = false
				s.problem("%s is not on %s: run bpfnet reconcile", p, device)
			}
		}
	}
	return nil
}

// wantedHooks is which programs belong on which of the host's devices.
func (o *op) wantedHooks(seen *observed) map[string][]string {
	want := map[string][]string{"lo": {loader.BPFProgFromLo}}
	_ = store.Each(o.tx, bucketNetworks, func(_ string, n Network) error {
		want[n.Bridge] = []string{loader.BPFProgToBridge}
		return nil
	})
	_ = store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
		for _, ep := range c.Endpoints {
			if ep.Slot != 0 {
				want[ep.HostIf] = []string{loader.BPFProgFromEndpoint, loader.BPFProgToEndpoint}
			}
		}
		return nil
	})
	if ours, err := o.claims(); err == nil {
		for _, l := range link.UplinksAmong(slices.Collect(maps.Values(seen.devices)), o.host.Config.Uplinks, ours) {
			in, out := uplinkPrograms(l)
			want[l.Name] = []string{in, out}
		}
	}
	return want
}

func (o *op) dropStatus(s *Status, seen *observed) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	drops, err := t.Counters.Drops()
	if err != nil {
		return err
	}
	owner := make(map[int]string)
	err = store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
		for _, ep := range c.Endpoints {
			if ep.Slot != 0 {
				owner[ep.HostIndex] = c.Name
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	gone := make(map[string]uint64)
	for _, d := range drops {
		l := seen.byIndex[d.Ifindex]
		if l == nil {
			gone[d.Reason.String()] += d.Packets
			continue
		}
		s.Drops = append(s.Drops, DropStatus{Device: l.Attrs().Name, Container: owner[d.Ifindex], Reason: d.Reason.String(), Packets: d.Packets})
	}
	for _, reason := range slices.Sorted(maps.Keys(gone)) {
		s.Drops = append(s.Drops, DropStatus{Device: goneDevice, Reason: reason, Packets: gone[reason]})
	}
	return nil
}

// goneDevice stands for all devices that are there no more: their names went with
// them, and what they dropped stays in the sums.
const goneDevice = "(gone)"

func kernelRelease() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	release, _, _ := bytes.Cut(u.Release[:], []byte{0})
	return string(release)
}
