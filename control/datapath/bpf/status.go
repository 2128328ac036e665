// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	stdmaps "maps"
	"slices"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
)

// Status lists hooks, tables, counters and drops.
func (p *Path) Status(s *datapath.Status) error {
	t, err := p.tables()
	if errors.Is(err, loader.ErrLayout) {
		s.Problem("%v", err)
		return nil
	}
	if err != nil {
		s.Problem("%v: run bpfnet reconcile", err)
		return nil
	}
	names, err := p.devices()
	if err != nil {
		return err
	}
	if err := p.hookStatus(s, names); err != nil {
		return err
	}
	fill, err := t.Fill()
	if err != nil {
		return err
	}
	for _, f := range fill {
		s.Tables = append(s.Tables, datapath.TableStatus{Name: f.Name, Used: f.Used, Size: f.Size, Refused: f.Refused})
	}
	if s.Counters, err = t.Counters.Read(); err != nil {
		return err
	}
	return p.dropStatus(s, t, names)
}

// hookStatus lists the programs, and finds devices that lack one.
func (p *Path) hookStatus(s *datapath.Status, names map[int]string) error {
	list, err := p.attachments()
	if err != nil {
		s.Problem("%v: run bpfnet reconcile", err)
		return nil
	}
	have := make(map[string]bool)
	s.FastPath = len(list) > 0
	for _, a := range list {
		hook := datapath.HookStatus{Device: p.host.Cgroup(), Program: a.Program, Kind: a.Kind, OK: a.Problem == ""}
		if a.Ifindex != 0 {
			hook.Device = fmt.Sprintf("device %d", a.Ifindex)
			if name := names[a.Ifindex]; name != "" {
				hook.Device = name
			}
		}
		if !hook.OK {
			s.FastPath = false
			s.Problem("%s on %s: %s: run bpfnet reconcile", a.Program, hook.Device, a.Problem)
		}
		have[a.Program+" "+hook.Device] = true
		s.Hooks = append(s.Hooks, hook)
	}
	want := p.wantedHooks()
	for _, device := range slices.Sorted(stdmaps.Keys(want)) {
		for _, prog := range want[device] {
			if !have[prog+" "+device] {
				s.FastPath = false
				s.Hooks = append(s.Hooks, datapath.HookStatus{Device: device, Program: prog})
				s.Problem("%s is not on %s: run bpfnet reconcile", prog, device)
			}
		}
	}
	return nil
}

// wantedHooks is which programs belong on which of the host's devices.
func (p *Path) wantedHooks() map[string][]string {
	want := map[string][]string{"lo": {loader.BPFProgFromLo}}
	networks, _ := p.host.Networks()
	for _, n := range networks {
		if n.Bridge != "" {
			want[n.Bridge] = []string{loader.BPFProgToBridge}
		}
	}
	endpoints, _ := p.host.Endpoints()
	for _, e := range endpoints {
		want[e.Device] = []string{loader.BPFProgFromEndpoint, loader.BPFProgToEndpoint}
	}
	if up, err := p.host.Uplinks(); err == nil {
		for _, l := range up {
			in, out := uplinkPrograms(l)
			want[l.Name] = []string{in, out}
		}
	}
	return want
}

// Wrong says whether a program is missing somewhere.
func (p *Path) Wrong(look datapath.Patrol) (bool, error) {
	ns, err := p.host.Netns()
	if err != nil {
		return false, err
	}
	names, err := p.devices()
	if err != nil {
		return false, err
	}
	var sight datapath.Sight
	var on map[int][]string
	err = ns.Do(func() (err error) {
		if sight, err = look.(*patrol).look(true); err == nil {
			on, err = loader.Devices(p.host.Pins())
		}
		return err
	})
	if err != nil || sight.Lost > 0 {
		return true, nil // pins are missing, too, or cannot be read
	}
	have := make(map[string]bool)
	for index, programs := range on {
		for _, prog := range programs {
			have[names[index]+" "+prog] = true
		}
	}
	for device, programs := range p.wantedHooks() {
		for _, prog := range programs {
			if !have[device+" "+prog] {
				return true, nil
			}
		}
	}
	return false, nil
}

func (p *Path) dropStatus(s *datapath.Status, t *maps.Tables, names map[int]string) error {
	drops, err := t.Counters.Drops()
	if err != nil {
		return err
	}
	endpoints, err := p.host.Endpoints()
	if err != nil {
		return err
	}
	owner := make(map[int]string)
	for _, e := range endpoints {
		owner[e.Ifindex] = e.Container
	}
	gone := make(map[string]uint64)
	for _, d := range drops {
		name := names[d.Ifindex]
		if name == "" {
			gone[d.Reason.String()] += d.Packets
			continue
		}
		s.Drops = append(s.Drops, datapath.DropStatus{Device: name, Container: owner[d.Ifindex], Reason: d.Reason.String(), Packets: d.Packets})
	}
	for _, reason := range slices.Sorted(stdmaps.Keys(gone)) {
		s.Drops = append(s.Drops, datapath.DropStatus{Device: datapath.GoneDevice, Reason: reason, Packets: gone[reason]})
	}
	return nil
}
