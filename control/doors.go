// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
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
		s.held = c.Held
		addrs, err := o.bindAddrs(c, s, server4, server6)
		if err != nil {
			return addressKind(err)
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
	pub := maps.Publication{Held: c.Held}
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
		return addressKind(err)
	}
	if c.Held {
		return nil
	}
	return o.reserve(b.Doors)
}

// outrunLimit bounds how often a random port is chosen again because a process of
// the host's was faster.
const outrunLimit = 8

// openAll chooses the host ports of a batch and opens its doors: those that leave no
// choice all at once, then the others one after the other, so that they see each other.
// It runs on a thread in the host's namespace.
func (o *op) openAll(b *portBatch, specs []hostSpec, pub maps.Publication) error {
	set := func(i int) maps.Publication {
		d, s := &b.Doors[i], &specs[i]
		pub := pub
		pub.HostPort, pub.Port, pub.Sources = d.Host, d.Port, s.From
		return pub
	}
	open := func(i int) (err error) {
		d, s := &b.Doors[i], &specs[i]
		if d.Host, err = o.choosePort(s, b.Binds[d.Bind], d.Host); err != nil {
			return err
		}
		return o.openDoor(b, *d, set(i))
	}
	var fixed []maps.Binding
	for i := range b.Doors {
		d, s := &b.Doors[i], &specs[i]
		if s.chooses() {
			continue
		}
		var err error
		if d.Host, err = o.unheldPort(s, b.Binds[d.Bind]); err != nil {
			return err
		}
		if err := o.prepareDoor(b, *d, set(i)); err != nil {
			return err
		}
		for _, addr := range b.Binds[d.Bind] {
			fixed = append(fixed, d.binding(addr))
		}
	}
	if err := o.publishFixed(fixed); err != nil {
		return err
	}
	for i := range b.Doors {
		if !specs[i].chooses() {
			continue
		}
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
			if err == nil || specs[i].held {
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

// publishFixed publishes all of a list; a container that holds one of the ports although
// it is gone is finished first.
func (o *op) publishFixed(list []maps.Binding) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	looked := make(map[maps.Binding]bool)
	for {
		err := t.Ports.Publish(list...)
		var taken *maps.PublishedError
		if !errors.As(err, &taken) {
			return err
		}
		if looked[taken.Binding] {
			return bindError(taken.Addr, taken.Port, ports.ErrAllocated)
		}
		looked[taken.Binding] = true
		if err := o.reapHolders(taken.Binding); err != nil {
			return err
		}
	}
}

// openDoor writes one door into the kernel's maps.
func (o *op) openDoor(b *portBatch, d door, pub maps.Publication) error {
	if err := o.prepareDoor(b, d, pub); err != nil {
		return err
	}
	t, err := o.tables()
	if err != nil {
		return err
	}
	list := make([]maps.Binding, 0, 2)
	for _, addr := range b.Binds[d.Bind] {
		list = append(list, d.binding(addr))
	}
	return t.Ports.Publish(list...)
}

// prepareDoor writes the rule to which the ports of a door are to lead.
func (o *op) prepareDoor(b *portBatch, d door, pub maps.Publication) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	o.undo.add("publication", func() error { return o.closeDoor(b, d) })
	return t.Rules.SetPublication(d.Rule, pub)
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
