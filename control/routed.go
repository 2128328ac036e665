// SPDX-License-Identifier: Apache-2.0

package control

import (
	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// syncRouted opens what is published of a container on its own addresses, on the
// networks that are routed: link entries from nobody in particular (client 0) to
// each container port. up is false when the container is on its way down.
func (o *op) syncRouted(c *Container, up bool) error {
	for _, ep := range endpointsOf(c) {
		if ep.Slot == 0 {
			continue
		}
		n, _, err := store.Get[Network](o.tx, bucketNetworks, ep.Network)
		if err != nil {
			return err
		}
		if !n.Routed {
			continue
		}
		want := make(map[maps.Link]uint32)
		if up {
			if want, err = o.routedPorts(c, ep.Slot); err != nil {
				return err
			}
		}
		if err := o.setRouted(ep.Slot, want); err != nil {
			return err
		}
	}
	return nil
}

// routedPorts are the container ports of all doors, once each.
func (o *op) routedPorts(c *Container, slot uint32) (map[maps.Link]uint32, error) {
	_, batches, err := o.batches(c.ID)
	if err != nil {
		return nil, err
	}
	want := make(map[maps.Link]uint32)
	for _, b := range batches {
		for _, d := range b.Doors {
			for i := range d.Count {
				if len(want) == maxLinkPorts {
					o.m.warn("container %s: more than %d ports: the rest is not reached by its own address", c.Name, maxLinkPorts)
					return want, nil
				}
				want[maps.Link{Server: slot, Proto: d.Proto, Port: d.Port + uint16(i)}] = d.Rule
			}
		}
	}
	return want, nil
}

func (o *op) setRouted(slot uint32, want map[maps.Link]uint32) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	have, err := t.Links.List()
	if err != nil {
		return err
	}
	for l, rule := range have {
		if l.Client != 0 || l.Server != slot || want[l] == rule {
			continue
		}
		o.undo.add("routed port", func() error { return t.Links.Set(l, rule) })
		if err := t.Links.Delete(l); err != nil {
			return err
		}
	}
	for l, rule := range want {
		if have[l] == rule {
			continue
		}
		o.undo.add("routed port", func() error { return t.Links.Delete(l) })
		if err := t.Links.Set(l, rule); err != nil {
			return err
		}
	}
	return nil
}
