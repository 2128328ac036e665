// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
)

// SetNetwork writes a network's entry of the kernel's maps, and puts the program on its bridge.
func (p *Path) SetNetwork(number uint32, n maps.Network, device string) error {
	t, err := p.tables()
	if err != nil {
		return err
	}
	if err := t.Networks.Set(number, n); err != nil {
		return err
	}
	if n.Bridge == 0 {
		return nil
	}
	return p.attach(loader.BPFProgToBridge, n.Bridge, device, loader.Egress)
}

// ClearNetwork takes the program off the bridge, and the network out of the maps.
func (p *Path) ClearNetwork(number uint32, bridge int) error {
	t, err := p.tables()
	if err != nil {
		return err
	}
	if bridge != 0 {
		if err := p.detach(loader.BPFProgToBridge, bridge); err != nil {
			return err
		}
	}
	return t.Networks.Clear(number)
}

// Bridge is the ifindex of a network's bridge, as the programs know it.
func (p *Path) Bridge(number uint32) (ifindex int, ok bool, err error) {
	t, err := p.tables()
	if err != nil {
		return 0, false, err
	}
	nw, ok, err := t.Networks.Get(number)
	return nw.Bridge, ok, err
}

// SetEndpoint writes an endpoint's entry, puts it on its network's list, and the programs
// on its device.
func (p *Path) SetEndpoint(slot uint32, e maps.Endpoint, dev datapath.EndpointDevice) error {
	t, err := p.tables()
	if err != nil {
		return err
	}
	if err := t.Endpoints.Set(slot, e); err != nil {
		return err
	}
	if err := p.routeEndpoint(t, slot, e, cmp.Or(dev.Bridge, dev.Name)); err != nil {
		return err
	}
	if err := t.Networks.AddMember(e.Network, slot); err != nil {
		return err
	}
	if e.Child {
		return nil // its parent's are there
	}
	return p.ShutDevice(e.Ifindex, dev.Name)
}

// ClearEndpoint takes an endpoint out of the maps.
func (p *Path) ClearEndpoint(slot, network uint32) error {
	t, err := p.tables()
	if err != nil {
		return err
	}
	if err := t.Networks.RemoveMember(network, slot); err != nil {
		return err
	}
	if err := t.Endpoints.Clear(slot); err != nil {
		return err
	}
	return t.Routes.SetTable(slot, 0)
}

// Keep empties the entries of the maps that belong to nobody, and detaches endpoint and
// bridge programs of devices that are not ours any more.
func (p *Path) Keep(w datapath.Wanted) error {
	t, err := p.tables()
	if err != nil {
		return err
	}
	live, err := t.Endpoints.List()
	if err != nil {
		return err
	}
	for slot := range live {
		if !w.Slots[slot] {
			if err := t.Endpoints.Clear(slot); err != nil {
				return err
			}
			p.host.Did("endpoint %d: cleared, nobody's", slot)
		}
	}
	nums, err := t.Networks.List()
	if err != nil {
		return err
	}
	for _, num := range nums {
		if !w.Networks[num] {
			if err := t.Networks.Clear(num); err != nil {
				return err
			}
			p.host.Did("network %d: cleared, nobody's", num)
		}
	}
	for num, list := range w.Members {
		if err := t.Networks.SetMembers(num, list); err != nil {
			return err
		}
	}
	devices, err := t.Devices.List()
	if err != nil {
		return err
	}
	for index, d := range devices {
		stale := d.Endpoint != 0 && (!w.Slots[d.Endpoint] || live[d.Endpoint].Ifindex != index) ||
			d.Network != 0 && !w.Networks[d.Network]
		if stale {
			if err := t.Devices.Delete(index); err != nil {
				return err
			}
		}
	}
	return p.dropPins(w.Devices)
}

func (p *Path) dropPins(wanted map[int]bool) error {
	list, err := p.attachments()
	if err != nil {
		return err
	}
	for _, a := range list {
		switch a.Program {
		case loader.BPFProgFromEndpoint, loader.BPFProgToEndpoint, loader.BPFProgToBridge:
		default:
			continue
		}
		if wanted[a.Ifindex] {
			continue
		}
		if err := p.detach(a.Program, a.Ifindex); err != nil {
			return err
		}
	}
	return nil
}
