// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

// dropLeftovers removes what is ours by its name and in no record: a command was
// killed while it made it.
func (o *op) dropLeftovers(networks []*Network, live []*Container) error {
	seen, err := o.observe()
	if err != nil {
		return err
	}
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	wanted := make(map[string]bool)
	slots, numbers := make(map[uint32]bool), make(map[uint32]bool)
	members := make(map[uint32][]uint32)
	byID := make(map[string]*Network)
	for _, n := range networks {
		wanted[n.Bridge], numbers[n.Number], byID[n.ID] = true, true, n
		members[n.Number] = nil
	}
	for _, c := range live {
		for _, ep := range c.Endpoints {
			if ep.Slot != 0 && byID[ep.Network] != nil {
				wanted[ep.HostIf], slots[ep.Slot] = true, true
				wanted[peerName(ep.HostIf)] = byID[ep.Network].Driver != ""
				num := byID[ep.Network].Number
				members[num] = append(members[num], ep.Slot)
			}
		}
	}
	notes := o.m.notes()
	for name, l := range seen.devices {
		switch {
		case wanted[name]:
		case strings.HasPrefix(name, vethPrefix) && l.Type() == "veth":
			if err := link.DeleteVeth(ns, name); err != nil {
				return err
			}
			o.did("device %s: removed, nobody's", name)
		case l.Type() == "bridge" && (strings.HasPrefix(name, bridgePrefix) || name == defaultBridge || notes["bridge "+name]):
			if err := link.DeleteBridge(ns, name); err != nil {
				return err
			}
			o.did("bridge %s: removed, nobody's", name)
		}
	}
	devices := make(map[int]bool)
	for name, l := range seen.devices {
		if wanted[name] {
			devices[l.Attrs().Index] = true
		}
	}
	err = o.path().Keep(datapath.Wanted{Slots: slots, Networks: numbers, Members: members, Devices: devices})
	if err != nil {
		return err
	}
	if _, err := keepNumbers(o.tx, numSlots, slots); err != nil {
		return err
	}
	if _, err := keepNumbers(o.tx, numNetworks, numbers); err != nil {
		return err
	}
	if err := o.dropNeighbors(byID, live, seen); err != nil {
		return err
	}
	return o.dropFiles()
}

// dropNeighbors removes what we told the host of addresses that no endpoint has: on
// bridges that are not ours too, where others' entries stay.
func (o *op) dropNeighbors(networks map[string]*Network, live []*Container, seen *observed) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	have, err := link.OwnNeighbors(ns)
	if err != nil {
		return err
	}
	wanted := make(map[link.Neighbor]bool)
	for _, c := range live {
		for _, ep := range c.Endpoints {
			if ep.Slot == 0 || networks[ep.Network] == nil {
				continue
			}
			if bridge := seen.devices[networks[ep.Network].Bridge]; bridge != nil {
				for _, a := range endpointAddrs(ep) {
					wanted[link.Neighbor{Ifindex: bridge.Attrs().Index, Addr: a}] = true
				}
			}
		}
	}
	for _, n := range have {
		if wanted[n] {
			continue
		}
		if err := link.DelNeighbors(ns, n.Ifindex, []netip.Addr{n.Addr}); err != nil {
			return err
		}
		name := fmt.Sprint(n.Ifindex)
		if l := seen.byIndex[n.Ifindex]; l != nil {
			name = l.Attrs().Name
		}
		o.did("device %s: neighbor %s: removed, nobody's", name, n.Addr)
	}
	return nil
}

// dropFiles removes directories and namespaces of containers that are in no record.
func (o *op) dropFiles() error {
	for _, kind := range []string{dirNetns, dirContainers} {
		dir := filepath.Join(o.m.root, kind)
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			c, known, err := store.Get[Container](o.tx, bucketContainers, e.Name())
			if err != nil {
				return err
			}
			path := filepath.Join(dir, e.Name())
			switch {
			case known && (kind == dirContainers || c.State != StateExited):
				continue
			case !hexRule.MatchString(e.Name()):
				continue // not a name that we give
			case kind == dirNetns:
				err = netns.Unpersist(path)
			default:
				err = os.RemoveAll(path)
			}
			if err != nil {
				return err
			}
			o.did("%s: removed, nobody's", path)
		}
	}
	return nil
}
