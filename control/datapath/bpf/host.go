// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"slices"
	"time"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
)

// pins are where the host's programs and maps are.
func (p *Path) pins() loader.Options {
	return loader.Options{BPFFS: p.host.Pins(), Owner: p.host.Owner()}
}

// Install loads programs and maps, and attaches what the host's devices need.
func (p *Path) Install() error {
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	if err := ns.Do(func() error { return loader.Claim(p.pins()) }); err != nil {
		return err
	}
	p.host.Undo("programs and maps", func() error {
		return ns.Do(func() error { return loader.Uninstall(p.pins()) })
	})
	if err := p.loadPrograms(); err != nil {
		return err
	}
	lo := p.host.Lo()
	if *lo, err = link.PrepareLo(ns); err != nil {
		return err
	}
	p.host.Undo("lo", func() error { return link.RestoreLo(ns, *lo) })
	if err := p.Refresh(); err != nil {
		return err
	}
	return p.armSweep()
}

// Resume makes sure of programs, maps and settings.
func (p *Path) Resume() error {
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	if err := ns.Do(func() error { return loader.Claim(p.pins()) }); err != nil {
		return err
	}
	if err := p.loadPrograms(); err != nil {
		return err
	}
	err = ns.Do(func() error {
		gone, err := loader.Prune(p.host.Pins())
		if len(gone) > 0 {
			p.host.Did("pins: %d of devices that are gone removed", len(gone))
		}
		return err
	})
	if err != nil {
		return err
	}
	lo, err := link.PrepareLo(ns)
	if err != nil {
		return err
	}
	if p.host.New() {
		*p.host.Lo() = lo
	}
	return p.armSweep()
}

// Remove leaves no program, map or pin behind.
func (p *Path) Remove() error {
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	if err := link.RestoreLo(ns, *p.host.Lo()); err != nil {
		return err
	}
	return ns.Do(func() error { return loader.Uninstall(p.pins()) })
}

// loadPrograms makes the kernel have this binary's programs and maps. It upgrades.
func (p *Path) loadPrograms() error {
	if err := p.load(); err != nil {
		return priced(err)
	}
	return p.Configure()
}

func (p *Path) load() error {
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	opts, err := p.loaderOptions()
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		obj, err := loader.Load(opts)
		if err != nil {
			return err
		}
		p.loaded(obj)
		return obj.Close()
	})
}

func (p *Path) armSweep() error {
	return p.withProgram(loader.BPFProgSweep, loader.ArmSweep)
}

// Settings that nobody has asked to change yet.
const (
	icmpRate    = 1000 // errors a second
	sweepPeriod = 100 * time.Millisecond
)

// Configure tells the programs what the configuration says.
func (p *Path) Configure() error {
	t, err := p.tables()
	if err != nil {
		return err
	}
	s, err := p.host.Settings()
	if err != nil {
		return err
	}
	was, err := t.Settings.Get()
	if err != nil {
		return err
	}
	if len(was.Pool) > 0 {
		p.host.Undo("settings", func() error { return t.Settings.Set(was) })
	}
	return t.Settings.Set(maps.Config{
		NetnsCookie: p.host.Cookie(),
		Quota:       s.Quota,
		Pool:        s.Pool,
		Timeouts:    s.Timeouts,
		ICMPRate:    icmpRate,
		Sweep:       sweepPeriod,
	})
}

func indices(up []link.Uplink) map[int]bool {
	set := make(map[int]bool, len(up))
	for _, l := range up {
		set[l.Index] = true
	}
	return set
}

// Refresh brings hooks, addresses and routes up to date with the host's devices.
func (p *Path) Refresh() error {
	up, err := p.host.Uplinks()
	if err != nil {
		return err
	}
	for _, l := range up {
		if err := p.attachUplink(l); err != nil {
			return err
		}
	}
	if err := p.attach(loader.BPFProgFromLo, 1, "lo", loader.Ingress); err != nil {
		return err
	}
	isUplink := indices(up)
	if err := p.detachOldUplinks(up); err != nil {
		return err
	}
	if err := p.attachBindGuard(); err != nil {
		return err
	}
	return p.refreshHostTables(isUplink)
}

// attachUplink puts the programs on a device, unless that has gone meanwhile.
func (p *Path) attachUplink(l link.Uplink) error {
	in, out := uplinkPrograms(l)
	err := p.attach(in, l.Index, l.Name, loader.Ingress)
	if err == nil {
		err = p.attach(out, l.Index, l.Name, loader.Egress)
	}
	if err == nil {
		return nil
	}
	if seen, err2 := p.devices(); err2 == nil && seen[l.Index] == "" {
		return nil
	}
	return err
}

// devices are the names of the host's devices.
func (p *Path) devices() (map[int]string, error) {
	ns, err := p.host.Netns()
	if err != nil {
		return nil, err
	}
	return link.Names(ns)
}

var allUplinkPrograms = []string{loader.BPFProgFromUplink, loader.BPFProgToUplink, loader.BPFProgToParent, loader.BPFProgFromTunnel, loader.BPFProgToTunnel}

// uplinkPrograms are the two that belong on an uplink: tun, WireGuard and their like have no
// Ethernet header.
func uplinkPrograms(l link.Uplink) (in, out string) {
	if !l.Ethernet {
		return loader.BPFProgFromTunnel, loader.BPFProgToTunnel
	}
	if l.Parent {
		return loader.BPFProgFromUplink, loader.BPFProgToParent
	}
	return loader.BPFProgFromUplink, loader.BPFProgToUplink
}

// detachOldUplinks takes our programs off devices that are uplinks no more, or of another kind.
func (p *Path) detachOldUplinks(up []link.Uplink) error {
	wanted := make(map[int][]string)
	for _, l := range up {
		in, out := uplinkPrograms(l)
		wanted[l.Index] = []string{in, out}
	}
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	var on map[int][]string
	err = ns.Do(func() (err error) {
		on, err = loader.Devices(p.host.Pins())
		return err
	})
	if err != nil {
		return err
	}
	for ifindex, programs := range on {
		for _, name := range programs {
			if slices.Contains(wanted[ifindex], name) || !slices.Contains(allUplinkPrograms, name) {
				continue
			}
			if err := p.detach(name, ifindex); err != nil {
				return err
			}
			why := "no uplink any more"
			if len(wanted[ifindex]) > 0 {
				why = "another takes its place"
			}
			p.host.Did("device %d: %s detached, %s", ifindex, name, why)
		}
	}
	return nil
}
