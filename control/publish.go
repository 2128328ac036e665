// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/store"
)

// Publish adds ports to a running container: all of them or none.
func (m *Manager) Publish(ref string, specs ...string) ([]Publication, error) {
	read, err := parseSpecs(specs)
	if err != nil {
		return nil, err
	}
	var list []Publication
	err = m.change(notFound("No such container: %s", ref), func(o *op) error {
		c, err := o.openDoors(ref)
		if err != nil {
			return err
		}
		b := &portBatch{Specs: specs, read: read}
		if err := o.raiseBatch(c, b, nil); err != nil {
			return err
		}
		if err := store.Put(o.tx, bucketPorts, batchKey(c.ID), b); err != nil {
			return err
		}
		if list, err = b.publications(c.ID); err != nil {
			return err
		}
		if err := o.syncRouted(c, true); err != nil {
			return err
		}
		return o.refreshClients(c)
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// Unpublish takes ports away that were published with these specs: all of them or
// none. A spec without a host port means all with that container port; one without an
// address or from= means whatever was said of those.
func (m *Manager) Unpublish(ref string, specs ...string) error {
	wanted, err := parseSpecs(specs)
	if err != nil {
		return err
	}
	return m.change(notFound("No such container: %s", ref), func(o *op) error {
		c, err := ownContainer(o, ref)
		if err != nil {
			return err
		}
		keys, batches, err := o.batches(c.ID)
		if err != nil {
			return err
		}
		found := make([]bool, len(wanted))
		meant := make([]map[int]bool, len(batches))
		for i, b := range batches {
			if meant[i], err = b.meant(wanted, found); err != nil {
				return err
			}
		}
		if i := slices.Index(found, false); i >= 0 {
			why, err := wanted[i].within(batches)
			if err != nil {
				return err
			}
			return notFound("container %s: %s is not published%s", c.Name, wanted[i].Raw, why)
		}
		// Only now: a door that was closed and is opened again has lost its flows.
		for i, b := range batches {
			if len(meant[i]) == 0 {
				continue
			}
			if err := o.closeSpecs(b, meant[i]); err != nil {
				return err
			}
			if err := o.putBatch(keys[i], b); err != nil {
				return err
			}
		}
		if err := o.syncRouted(c, true); err != nil {
			return err
		}
		return o.refreshClients(c)
	})
}

// Publications lists the doors of a container, in the order in which they were asked for.
func (m *Manager) Publications(ref string) ([]Publication, error) {
	var list []Publication
	ok, err := m.view(func(o *op) error {
		c, err := findContainer(o.tx, ref)
		if err != nil || !o.up(c) {
			return err
		}
		_, batches, err := o.batches(c.ID)
		if err != nil {
			return err
		}
		for _, b := range batches {
			some, err := b.publications(c.ID)
			if err != nil {
				return err
			}
			list = append(list, some...)
		}
		return nil
	})
	if err == nil && !ok {
		err = notFound("No such container: %s", ref)
	}
	return list, err
}

// openDoors finds a container that can publish ports now.
func (o *op) openDoors(ref string) (*Container, error) {
	c, err := ownContainer(o, ref)
	if err != nil {
		return nil, err
	}
	switch {
	case !o.up(c):
		return nil, conflict("container %s is not running", c.Name)
	case c.Mode == ModeContainer:
		return nil, conflict("container %s: shares the network of another container: publish there", c.Name)
	case c.Mode != ModeNetwork:
		return nil, conflict("container %s: has no network of its own (%s)", c.Name, c.Mode)
	}
	return c, nil
}

// meant are the specs of a batch, by index, that the wanted ones mean; those of the wanted
// that mean one are marked as found.
func (b *portBatch) meant(wanted []hostSpec, found []bool) (drop map[int]bool, err error) {
	given, err := b.parsed()
	if err != nil {
		return nil, err
	}
	drop = make(map[int]bool)
	same := make(map[string]int, len(wanted))
	at := make(map[protoPort][]int, len(wanted))
	for j := range wanted {
		same[wanted[j].String()] = j
		key := protoPort{wanted[j].proto, wanted[j].First}
		at[key] = append(at[key], j)
	}
	for i := range given {
		if j, ok := same[given[i].String()]; ok {
			drop[given[i].index], found[j] = true, true
		}
	}
	from := make(map[int][]netip.Prefix, len(given))
	for i := range given {
		from[given[i].index] = given[i].From
	}
	for _, d := range b.Doors {
		for _, j := range at[protoPort{d.Proto, d.Port}] {
			if wanted[j].leadsTo(d, b.Binds[d.Bind]) && (wanted[j].From == nil || slices.Equal(wanted[j].From, from[d.Spec])) {
				drop[d.Spec], found[j] = true, true
			}
		}
	}
	return drop, nil
}

// closeSpecs closes the doors of some of a batch's specs, and forgets those.
func (o *op) closeSpecs(b *portBatch, drop map[int]bool) error {
	keep := &portBatch{Derived: b.Derived, Binds: b.Binds}
	renumber := make(map[int]int)
	for i, s := range b.Specs {
		if !drop[i] {
			renumber[i] = len(keep.Specs)
			keep.Specs = append(keep.Specs, s)
		}
	}
	var rules []uint32
	var closed []door
	for _, d := range b.Doors {
		if !drop[d.Spec] {
			d.Spec = renumber[d.Spec]
			keep.Doors = append(keep.Doors, d)
			continue
		}
		o.rebuild = true
		if err := o.closeDoor(b, d); err != nil {
			return err
		}
		rules, closed = append(rules, d.Rule), append(closed, d)
	}
	if err := o.release(closed); err != nil {
		return err
	}
	if err := o.hostPortsChanged(); err != nil {
		return err
	}
	*b = *keep
	return giveNumbers(o.tx, numRules, rules...)
}

// publications is the batch as users see it.
func (b *portBatch) publications(container string) ([]Publication, error) {
	specs, err := b.parsed()
	if err != nil {
		return nil, err
	}
	n := 0
	for _, d := range b.Doors {
		n += len(b.Binds[d.Bind])
	}
	list := make([]Publication, 0, n)
	for _, d := range b.Doors {
		spec := &specs[d.Spec] // one line is one spec
		for _, addr := range b.Binds[d.Bind] {
			list = append(list, Publication{
				Rule: d.Rule, Container: container, Spec: spec.Raw, Proto: d.Proto.String(), HostIP: addr,
				HostPort: d.Host, Port: d.Port, Count: uint32(d.Count), From: spec.From,
			})
		}
	}
	return list, nil
}
