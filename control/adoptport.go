// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// adoptedKey is the batch of everything that an engine publishes of a container.
func adoptedKey(container string) string { return container + "/adopted" }

// opening is a range of host ports on a set of addresses, of an engine's choice.
type opening struct {
	proto      maps.Proto
	addrs      []netip.Addr
	host, port uint16 // first
	count      int
}

// spec is the opening as a -p.
func (x opening) spec() string {
	numbers := func(first uint16) string {
		if x.count == 1 {
			return fmt.Sprint(first)
		}
		return fmt.Sprintf("%d-%d", first, int(first)+x.count-1)
	}
	s := numbers(x.host) + ":" + numbers(x.port) + "/" + x.proto.String()
	if len(x.addrs) > 1 {
		return s
	}
	if a := x.addrs[0]; a.Is6() {
		return "[" + a.String() + "]:" + s
	}
	return x.addrs[0].String() + ":" + s
}

func (x opening) key() string { return fmt.Sprint(x.proto, x.addrs, x.host, x.port, x.count) }

// openings are an engine's ports with neighbours taken together, those of all IPv4 and all
// IPv6 addresses too: a range is one rule. What cannot be is a problem, a line each.
func openings(list []AdoptedPort, v4, v6 bool) (found []opening, problems []string) {
	type single struct {
		proto maps.Proto
		addr  netip.Addr
		host  uint16
		port  uint16
	}
	var singles []single
	for _, p := range list {
		proto, err := maps.ParseProto(p.Proto)
		addr := p.HostIP.Unmap()
		where := netip.AddrPortFrom(addr, p.HostPort)
		switch {
		case err != nil:
			problems = append(problems, fmt.Sprintf("port %s: %v", where, err))
		case !addr.IsValid() || addr.Zone() != "" || p.HostPort == 0 || p.Port == 0:
			problems = append(problems, fmt.Sprintf("port %s to %d: not valid", where, p.Port))
		case proto == maps.SCTP && p.HostPort != p.Port:
			problems = append(problems, fmt.Sprintf("port %s: sctp needs the same port on both sides", where))
		case addr.Is4() && !v4 || addr.Is6() && !v6:
			// An engine publishes on all addresses whatever the container has.
			if !addr.IsUnspecified() {
				problems = append(problems, fmt.Sprintf("port %s: the container has no address of its family", where))
			}
		default:
			singles = append(singles, single{proto, addr, p.HostPort, p.Port})
		}
	}
	slices.SortFunc(singles, func(a, b single) int {
		if a.proto != b.proto {
			return int(a.proto) - int(b.proto)
		}
		if c := a.addr.Compare(b.addr); c != 0 {
			return c
		}
		return int(a.host) - int(b.host)
	})
	for i, s := range singles {
		if i > 0 && s == singles[i-1] {
			continue
		}
		if n := len(found); n > 0 {
			last := &found[n-1]
			if last.proto == s.proto && last.addrs[0] == s.addr && int(last.host)+last.count == int(s.host) && int(last.port)+last.count == int(s.port) {
				last.count++
				continue
			}
		}
		found = append(found, opening{s.proto, []netip.Addr{s.addr}, s.host, s.port, 1})
	}
	return joinFamilies(found), problems
}

// joinFamilies makes one of what is open on all IPv4 addresses and on all IPv6 ones.
func joinFamilies(list []opening) []opening {
	at := make(map[string]int)
	var joined []opening
	for _, x := range list {
		if len(x.addrs) == 1 && x.addrs[0].IsUnspecified() {
			key := fmt.Sprint(x.proto, x.host, x.port, x.count)
			if i, ok := at[key]; ok {
				joined[i].addrs = append(joined[i].addrs, x.addrs[0])
				continue
			}
			at[key] = len(joined)
		}
		joined = append(joined, x)
	}
	return joined
}

// adoptPorts makes the doors of a container those that its engine has chosen. Doors that
// stay keep their flows. One that clashes with what is published already is a problem, and
// keeps nothing else from opening.
func (o *op) adoptPorts(c *Container, want *AdoptedContainer) error {
	old, _, err := store.Get[portBatch](o.tx, bucketPorts, adoptedKey(c.ID))
	if err != nil {
		return err
	}
	server4, server6 := gatewayEndpoint(c, false), gatewayEndpoint(c, true)
	expected := c.Netns == "" // then its addresses are not known yet
	list, problems := openings(want.Ports, expected || server4 != nil, expected || server6 != nil)
	c.Problems = append(c.Problems, problems...)

	kept := make(map[string]door)
	for _, d := range old.Doors {
		kept[opening{d.Proto, old.Binds[d.Bind], d.Host, d.Port, d.Count}.key()] = d
	}
	next := &portBatch{}
	var fresh []opening
	changed := len(list) != len(old.Doors)
	for _, x := range list {
		d, ok := kept[x.key()]
		if !ok {
			fresh, changed = append(fresh, x), true
			continue
		}
		delete(kept, x.key())
		d = next.add(x, d.Rule)
		if err := o.openDoor(next, d, c.publication(d)); err != nil {
			return err
		}
	}
	if err := o.closeDoors(c, &old, kept); err != nil {
		return err
	}
	if err := o.openAdopted(c, next, fresh); err != nil {
		return errors.Join(err, store.Put(o.tx, bucketPorts, adoptedKey(c.ID), next))
	}
	if !changed {
		return o.syncRouted(c, true)
	}
	if err := o.hostPortsChanged(); err != nil {
		return err
	}
	if n := len(want.Ports); n > 0 {
		o.did("container %s: %d ports published, in %d ranges", c.Name, n, len(next.Doors))
	}
	if err := o.putBatch(adoptedKey(c.ID), next); err != nil {
		return err
	}
	return o.syncRouted(c, true)
}

func (o *op) closeDoors(c *Container, b *portBatch, doors map[string]door) error {
	var rules []uint32
	var closed []door
	for _, d := range doors {
		o.rebuild = true
		if err := o.closeDoor(b, d); err != nil {
			return err
		}
		rules, closed = append(rules, d.Rule), append(closed, d)
	}
	if len(closed) > 0 && !c.Held {
		if err := o.release(closed); err != nil {
			return err
		}
	}
	return giveNumbers(o.tx, numRules, rules...)
}

// openAdopted opens doors, all in one go. Where a port leads elsewhere already, the rest
// of its range opens; a container that holds one although it is gone is finished first.
func (o *op) openAdopted(c *Container, b *portBatch, list []opening) error {
	if len(list) == 0 {
		return nil
	}
	t, err := o.tables()
	if err != nil {
		return err
	}
	looked := make(map[maps.Binding]bool)
	for {
		rules, err := takeNumbers(o.tx, numRules, len(list))
		if err != nil {
			return err
		}
		try := &portBatch{Specs: slices.Clone(b.Specs), Binds: slices.Clone(b.Binds), Doors: slices.Clone(b.Doors)}
		first := len(try.Doors)
		var bindings []maps.Binding
		for i, x := range list {
			d := try.add(x, rules[i])
			if err := o.prepareDoor(try, d, c.publication(d)); err != nil {
				return err
			}
			for _, addr := range try.Binds[d.Bind] {
				bindings = append(bindings, d.binding(addr))
			}
		}
		err = t.Ports.Publish(bindings...)
		var taken *maps.PublishedError
		switch {
		case err == nil:
			*b = *try
			if c.Held {
				return nil
			}
			return o.reserve(b.Doors[first:])
		case !errors.As(err, &taken):
			return err
		}
		if one := (maps.Binding{Proto: taken.Proto, Addr: taken.Addr, First: taken.Port, Count: 1}); !looked[one] {
			looked[one] = true
			if err := o.reapHolders(one); err != nil {
				return err
			}
		} else {
			c.Problems = append(c.Problems, fmt.Sprintf("port %s/%s: is published by another container, and leads there still", netip.AddrPortFrom(taken.Addr, taken.Port), taken.Proto))
			list = without(list, taken)
		}
		for _, d := range try.Doors[first:] {
			if err := t.Rules.Clear(d.Rule); err != nil {
				return err
			}
		}
		if err := giveNumbers(o.tx, numRules, rules...); err != nil {
			return err
		}
		if len(list) == 0 {
			return nil
		}
	}
}

// without is the list without one port that is taken on one address.
func without(list []opening, taken *maps.PublishedError) (rest []opening) {
	for _, x := range list {
		at := int(taken.Port) - int(x.host)
		if x.proto != taken.Proto || !slices.Contains(x.addrs, taken.Addr) || at < 0 || at >= x.count {
			rest = append(rest, x)
			continue
		}
		if others := slices.DeleteFunc(slices.Clone(x.addrs), func(a netip.Addr) bool { return a == taken.Addr }); len(others) > 0 {
			rest = append(rest, opening{x.proto, others, taken.Port, x.port + uint16(at), 1})
		}
		if at > 0 {
			rest = append(rest, opening{x.proto, x.addrs, x.host, x.port, at})
		}
		if n := x.count - at - 1; n > 0 {
			rest = append(rest, opening{x.proto, x.addrs, x.host + uint16(at+1), x.port + uint16(at+1), n})
		}
	}
	return rest
}

// add appends a door to the batch.
func (b *portBatch) add(x opening, rule uint32) door {
	bind := slices.IndexFunc(b.Binds, func(have []netip.Addr) bool { return slices.Equal(have, x.addrs) })
	if bind < 0 {
		bind = len(b.Binds)
		b.Binds = append(b.Binds, x.addrs)
	}
	d := door{Spec: len(b.Specs), Bind: bind, Rule: rule, Proto: x.proto, Host: x.host, Port: x.port, Count: x.count}
	b.Specs, b.Doors, b.read = append(b.Specs, x.spec()), append(b.Doors, d), nil
	return d
}
