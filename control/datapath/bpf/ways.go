// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"hash/fnv"
	stdmaps "maps"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/maps"
)

// wayPair is how a container's packets go, by IPv4 and by IPv6.
type wayPair struct{ v4, v6 link.Way }

func (w wayPair) key() string { return w.v4.Key() + "/ " + w.v6.Key() }

// usual says whether all containers go one way, the usual one.
func usual(p link.Policies) bool { return p.V4.Usual() && p.V6.Usual() }

func usualWay(p link.Policies) wayPair { return wayPair{p.V4.UsualWay(), p.V6.UsualWay()} }

// wayOf is the way of an endpoint's packets: the host's rules see them come in by device, the
// bridge or, without one, the cable.
func wayOf(p link.Policies, e maps.Endpoint, device string) wayPair {
	w := usualWay(p)
	if e.IPv4.IsValid() {
		w.v4 = p.V4.Way(device, e.IPv4)
	}
	if e.IPv6.IsValid() {
		w.v6 = p.V6.Way(device, e.IPv6)
	}
	return w
}

// ways are the tables of routes that the endpoints need.
type ways struct {
	tables map[uint32]wayPair // by number
	of     map[uint32]uint32  // number by slot, those of number 0 left out
}

// chooseWays gives every endpoint a table; those that go the same way share one.
// A way has the same number each time, so that nobody has to remember it.
func (p *Path) chooseWays(t *maps.Tables, pol link.Policies) (w ways, err error) {
	w = ways{map[uint32]wayPair{0: usualWay(pol)}, make(map[uint32]uint32)}
	if usual(pol) {
		return w, nil
	}
	networks, err := p.host.Networks()
	if err != nil {
		return w, err
	}
	bridges := make(map[uint32]string, len(networks))
	for _, n := range networks {
		bridges[n.Number] = n.Bridge
	}
	known, err := p.host.Endpoints()
	if err != nil {
		return w, err
	}
	cables := make(map[uint32]string, len(known))
	for _, e := range known {
		cables[e.Slot] = e.Device
	}
	endpoints, err := t.Endpoints.List()
	if err != nil {
		return w, err
	}
	for slot, e := range endpoints {
		if number := w.number(wayOf(pol, e.Endpoint, cmp.Or(bridges[e.Network], cables[slot]))); number != 0 {
			w.of[slot] = number
		}
	}
	return w, nil
}

// number is the table of a way.
func (w *ways) number(way wayPair) uint32 {
	key := way.key()
	if key == w.tables[0].key() {
		return 0
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	for number := h.Sum32() % maps.HopTables; ; number = (number + 1) % maps.HopTables {
		if other, taken := w.tables[number]; number != 0 && (!taken || other.key() == key) {
			w.tables[number] = way
			return number
		}
	}
}

// refreshRoutes tells the programs the ways to the world: of all endpoints, by the
// host's rules and routes. changed says whether flows have to look again.
func (p *Path) refreshRoutes(isUplink map[int]bool) (changed bool, err error) {
	ns, err := p.host.Netns()
	if err != nil {
		return false, err
	}
	t, err := p.tables()
	if err != nil {
		return false, err
	}
	pol, err := link.ReadPolicies(ns)
	if err != nil {
		return false, err
	}
	w, err := p.chooseWays(t, pol)
	if err != nil {
		return false, err
	}
	own, err := p.ownSubnets()
	if err != nil {
		return false, err
	}
	var want []maps.Route
	for number, way := range w.tables {
		for _, r := range append(pol.V4.Routes(way.v4), pol.V6.Routes(way.v6)...) {
			if r.Broadcast != 0 && !isUplink[r.Broadcast] {
				continue // nobody is sent that way anyhow
			}
			hops := hopsBy(r.Hops, isUplink)
			if len(hops) > 0 || !own[r.Dst] { // what is for a network the programs know without
				want = append(want, maps.Route{Table: number, Prefix: r.Dst, Hops: hops})
			}
		}
	}
	moved := 0
	n, err := t.Routes.Replace(want, func() error {
		moved, err = p.setTables(t, w.of)
		return err
	})
	if n > 0 {
		p.host.Did("routes: %d changes", n)
	}
	if moved > 0 {
		p.host.Did("routes: %d containers take another way, by the host's rules", moved)
	}
	return n+moved > 0, err
}

func (p *Path) ownSubnets() (map[netip.Prefix]bool, error) {
	networks, err := p.host.Networks()
	own := make(map[netip.Prefix]bool)
	for _, n := range networks {
		for _, s := range n.Subnets {
			own[s] = true
		}
	}
	return own, err
}

// hopsBy are the hops by way of uplinks: by another device nobody is reached.
func hopsBy(hops []link.Hop, isUplink map[int]bool) (list []maps.Hop) {
	for _, h := range hops {
		if isUplink[h.Ifindex] {
			list = append(list, maps.Hop{Ifindex: h.Ifindex, MTU: max(68, min(h.MTU, 65535)), NextHop: h.Gateway, Source: h.Source})
		}
	}
	return list
}

// setTables gives the slots their tables, and the others none.
func (p *Path) setTables(t *maps.Tables, want map[uint32]uint32) (moved int, err error) {
	have, err := t.Routes.Tables()
	if err != nil {
		return 0, err
	}
	for slot, number := range want {
		if have[slot] != number {
			if err := t.Routes.SetTable(slot, number); err != nil {
				return moved, err
			}
			moved++
		}
	}
	for slot := range have {
		if _, wanted := want[slot]; !wanted {
			if err := t.Routes.SetTable(slot, 0); err != nil {
				return moved, err
			}
			moved++
		}
	}
	return moved, nil
}

// routeEndpoint gives an endpoint its way to the world. The routes are read only if
// nobody went that way before.
func (p *Path) routeEndpoint(t *maps.Tables, slot uint32, e maps.Endpoint, device string) error {
	if p.rules == nil {
		ns, err := p.host.Netns()
		if err != nil {
			return err
		}
		rules, err := link.ReadRules(ns)
		if err != nil {
			return err
		}
		p.rules = &rules
	}
	if usual(*p.rules) {
		return t.Routes.SetTable(slot, 0) // whoever had the slot before may have had another
	}
	have, err := t.Routes.Tables()
	if err != nil {
		return err
	}
	w := ways{tables: map[uint32]wayPair{0: usualWay(*p.rules)}}
	number := w.number(wayOf(*p.rules, e, device))
	if number == 0 || slices.Contains(slices.Collect(stdmaps.Values(have)), number) {
		return t.Routes.SetTable(slot, number)
	}
	up, err := p.host.Uplinks()
	if err != nil {
		return err
	}
	_, err = p.refreshRoutes(indices(up))
	return err
}

// refreshHostTables brings addresses and routes up to date; flows obey at once.
func (p *Path) refreshHostTables(isUplink map[int]bool) error {
	routes := false
	addrs, err := p.replaceAddrs(func() (err error) {
		routes, err = p.refreshRoutes(isUplink)
		return err
	})
	if err != nil || !addrs && !routes {
		return err
	}
	return p.waysChanged()
}

// RefreshAddrs tells the programs all addresses that the host has.
func (p *Path) RefreshAddrs() error {
	changed, err := p.replaceAddrs(nil)
	if err != nil || !changed {
		return err
	}
	return p.waysChanged()
}

func (p *Path) waysChanged() error {
	t, err := p.tables()
	if err != nil {
		return err
	}
	return t.Routes.Changed()
}

// replaceAddrs calls between when the new addresses are known and the lost ones still are.
func (p *Path) replaceAddrs(between func() error) (changed bool, err error) {
	ns, err := p.host.Netns()
	if err != nil {
		return false, err
	}
	t, err := p.tables()
	if err != nil {
		return false, err
	}
	addrs, err := link.HostAddrs(ns)
	if err != nil {
		return false, err
	}
	want := make(map[netip.Addr]int, len(addrs))
	for _, a := range addrs {
		want[a.Addr] = a.Ifindex
	}
	// A bridge's link-local address comes with its first port.
	networks, err := p.host.Networks()
	if err != nil {
		return false, err
	}
	for _, n := range networks {
		nw, ok, err := t.Networks.Get(n.Number)
		if err != nil {
			return false, err
		}
		if ok && !n.Foreign {
			want[nw.LinkLocal] = nw.Bridge
		}
	}
	old, err := t.HostAddresses.List()
	if err != nil {
		return false, err
	}
	n, err := t.HostAddresses.Replace(want, between)
	if n > 0 {
		p.host.Undo("host addresses", func() error {
			_, err := t.HostAddresses.Replace(old, nil)
			return err
		})
		p.host.Did("host addresses: %d changes", n)
	}
	return n > 0, err
}
