// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/maps"
)

// widen opens the doors of a running container to a family that it has just got,
// without closing them: connections through them go on. A port that is taken in
// the new family stays as it is, with a warning.
func (o *op) widen(c *Container) error {
	server4, server6 := gatewayEndpoint(c, false), gatewayEndpoint(c, true)
	keys, batches, err := o.batches(c.ID)
	if err != nil {
		return err
	}
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	for i, b := range batches {
		specs, err := b.parsed()
		if err != nil {
			return err
		}
		var wider []door
		for j := range b.Doors {
			d := &b.Doors[j]
			k := slices.IndexFunc(specs, func(s hostSpec) bool { return s.index == d.Spec && s.First == d.Port && s.proto == d.Proto })
			if k < 0 {
				continue
			}
			s := specs[k]
			want, err := o.bindAddrs(c, &s, server4, server6)
			if err != nil {
				return err
			}
			have := b.Binds[d.Bind]
			extra := slices.DeleteFunc(slices.Clone(want), func(a netip.Addr) bool { return slices.Contains(have, a) })
			if len(extra) == 0 {
				continue
			}
			fixed := s
			fixed.held = c.Held
			fixed.HostFirst, fixed.HostLast = d.Host, d.Host+uint16(d.Count-1)
			if err := ns.Do(func() error { _, err := o.choosePort(&fixed, extra, 0); return err }); err != nil {
				o.m.warn("container %s: %s: %v", c.Name, s.Raw, err)
				continue
			}
			pub := maps.Publication{Endpoint4: slotOf(server4), Endpoint6: slotOf(server6), HostPort: d.Host, Port: d.Port, Sources: s.From, Held: c.Held}
			if err := o.openExtra(*d, pub, extra); err != nil {
				return err
			}
			// The sets are shared between doors: this one gets its own.
			b.Binds = append(b.Binds, append(slices.Clone(have), extra...))
			d.Bind = len(b.Binds) - 1
			wider = append(wider, *d)
		}
		if len(wider) == 0 {
			continue
		}
		if err := o.putBatch(keys[i], b); err != nil {
			return err
		}
		if err := o.hostPortsChanged(); err != nil {
			return err
		}
	}
	return nil
}

// openExtra makes more addresses lead to a door that is open.
func (o *op) openExtra(d door, pub maps.Publication, extra []netip.Addr) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	o.rebuild = true
	if err := t.Rules.SetPublication(d.Rule, pub); err != nil {
		return err
	}
	for _, addr := range extra {
		o.undo.add("publication", func() error { return t.Ports.Unpublish(d.binding(addr)) })
		if err := t.Ports.Publish(d.binding(addr)); err != nil {
			return err
		}
	}
	return nil
}

func slotOf(ep *Endpoint) uint32 {
	if ep == nil {
		return 0
	}
	return ep.Slot
}

// narrow closes the doors of a running container to IPv6, whose only endpoint ep
// is about to go, and leaves them open to IPv4.
func (o *op) narrow(c *Container) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	keys, batches, err := o.batches(c.ID)
	if err != nil {
		return err
	}
	o.rebuild = true
	server4 := gatewayEndpoint(c, false)
	for i, b := range batches {
		specs, err := b.parsed()
		if err != nil {
			return err
		}
		for j := range b.Doors {
			d := &b.Doors[j]
			var keep []netip.Addr
			for _, addr := range b.Binds[d.Bind] {
				if addr.Is4() {
					keep = append(keep, addr)
				} else if err := t.Ports.Unpublish(d.binding(addr)); err != nil {
					return err
				}
			}
			pub := maps.Publication{Endpoint4: slotOf(server4), HostPort: d.Host, Port: d.Port, Held: c.Held}
			if k := slices.IndexFunc(specs, func(s hostSpec) bool { return s.index == d.Spec }); k >= 0 {
				pub.Sources = specs[k].From
			}
			if err := t.Rules.SetPublication(d.Rule, pub); err != nil {
				return err
			}
			b.Binds = append(b.Binds, keep)
			d.Bind = len(b.Binds) - 1
		}
		if len(b.Doors) == 0 {
			continue
		}
		if err := o.putBatch(keys[i], b); err != nil {
			return err
		}
		if err := o.hostPortsChanged(); err != nil {
			return err
		}
	}
	return nil
}

// onlyIPv6 says whether ep is the one endpoint by which a container is reached by
// IPv6, while IPv4 goes by another.
func onlyIPv6(c *Container, ep *Endpoint) bool {
	if gatewayEndpoint(c, true) != ep || gatewayEndpoint(c, false) == ep || gatewayEndpoint(c, false) == nil {
		return false
	}
	return !slices.ContainsFunc(endpointsOf(c), func(other *Endpoint) bool {
		return other != ep && other.IPv6.IsValid() && !other.Internal
	})
}
