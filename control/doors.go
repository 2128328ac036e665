// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/control/ports"
	"github.com/bpfnet/bpfnet/maps"
)

// raiseBatch opens the doors of a batch. Of before it takes the host ports, where
// they are free.
func (o *op) raiseBatch(c *Container, b *portBatch, before []door) error {
	b.Doors, b.Binds = nil, nil
	if c.Mode == ModeHost {
		o.m.warn("Published ports are discarded when using host network mode")
		return nil
	}
	if c.Mode != ModeNetwork || len(b.Specs) == 0 {
		return nil
	}
	server4, server6 := gatewayEndpoint(c, false), gatewayEndpoint(c, true)
	if server4 == nil && server6 == nil {
		o.m.warn("container %s: is on internal networks only: its ports are not published", c.Name)
		return nil
	}
	specs, err := b.parsed()
	if err != nil {
		return err
	}
	rules, err := takeNumbers(o.tx, numRules, len(specs))
	if err != nil {
		return err
	}
	last := make(map[int]uint16, len(before))
	for _, d := range before {
		last[d.Spec] = d.Host
	}
	type bindKey struct {
		first netip.Addr
		n     int
	}
	binds := make(map[bindKey]int)
	b.Doors = make([]door, 0, len(specs))
	for i := range specs {
		s := &specs[i]
		addrs, err := o.bindAddrs(c, s, server4, server6)
		if err != nil {
			return err
		}
		key := bindKey{addrs[0], len(addrs)}
		bind, ok := binds[key]
		if !ok {
			bind = len(b.Binds)
			binds[key] = bind
			b.Binds = append(b.Binds, addrs)
		}
		b.Doors = append(b.Doors, door{
			Spec: s.index, Bind: bind, Rule: rules[i], Proto: s.proto, Host: last[s.index], Port: s.First, Count: s.Count(),
		})
	}
	pub := maps.Publication{}
	if server4 != nil {
		pub.Endpoint4 = server4.Slot
	}
	if server6 != nil {
		pub.Endpoint6 = server6.Slot
	}
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	if err := ns.Do(func() error { return o.openAll(b, specs, pub) }); err != nil {
		return err
	}
	return o.reserve(b.Doors)
}

// outrunLimit bounds how often a random port is chosen again because a process of
// the host's was faster.
const outrunLimit = 8

// openAll chooses the host ports of a batch and opens its doors, one after the
// other, so that they see each other. It runs on a thread in the host's namespace.
func (o *op) openAll(b *portBatch, specs []hostSpec, pub maps.Publication) error {
	open := func(i int) (err error) {
		d, s := &b.Doors[i], &specs[i]
		if d.Host, err = o.choosePort(s, b.Binds[d.Bind], d.Host); err != nil {
			return err
		}
		pub.HostPort, pub.Port, pub.Sources = d.Host, d.Port, s.From
		return o.openDoor(b, *d, pub)
	}
	for i := range b.Doors {
		if err := open(i); err != nil {
			return err
		}
	}
	for try := 0; ; try++ {
		snap, err := ports.HostPorts()
		if err != nil {
			return err
		}
		lost := false
		for i := range b.Doors {
			d := &b.Doors[i]
			err := d.outrun(snap, b.Binds[d.Bind])
			if err == nil {
				continue
			}
			if !specs[i].chooses() || try == outrunLimit {
				return err
			}
			lost = true
			if err := o.closeDoor(b, *d); err != nil {
				return err
			}
			d.Host = 0
			if err := open(i); err != nil {
				return err
			}
		}
		if !lost {
			return o.hostPortsChanged()
		}
	}
}

// hostPortsChanged makes the programs judge again what containers send to the
// host, where a port now leads somewhere else.
func (o *op) hostPortsChanged() error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	return t.Rules.HostPortsChanged()
}

// openDoor writes one door into the kernel's maps.
func (o *op) openDoor(b *portBatch, d door, pub maps.Publication) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	o.undo.add("publication", func() error { return o.closeDoor(b, d) })
	if err := t.Rules.SetPublication(d.Rule, pub); err != nil {
		return err
	}
	for _, addr := range b.Binds[d.Bind] {
		if err := t.Ports.Publish(d.binding(addr)); err != nil {
			return err
		}
	}
	return nil
}

// closeDoor takes one door out of the kernel's maps; one that is not there is fine.
func (o *op) closeDoor(b *portBatch, d door) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	for _, addr := range b.Binds[d.Bind] {
		if err := t.Ports.Unpublish(d.binding(addr)); err != nil {
			return err
		}
	}
	return t.Rules.Clear(d.Rule)
}

func (d door) binding(addr netip.Addr) maps.Binding {
	return maps.Binding{Proto: d.Proto, Addr: addr, First: d.Host, Count: d.Count, Rule: d.Rule}
}
