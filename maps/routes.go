// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
)

// Routes are the ways to the world, in tables: each endpoint uses one of them.
type Routes struct {
	table  table[loader.BPFRouteKey, loader.BPFRoute]
	tables table[uint32, uint32] // by slot of the endpoint
	epoch  epoch
}

// Route is where packets to a prefix go that no longer prefix of the table has.
type Route struct {
	Table  uint32 // below HopTables; 0: of endpoints that were given none
	Prefix netip.Prefix
	Hops   []Hop // one; none: no way; several, MaxHops at most: each flow takes one
}

// Hop is a way to the next router.
type Hop struct {
	Ifindex int
	MTU     int        // bytes, 68 to 65535
	NextHop netip.Addr // zero: on-link
	Source  netip.Addr // the host's address that masquerade uses; zero: none
}

const (
	// MaxHops is how many hops a route may have.
	MaxHops = int(loader.BPFLimitsMAX_HOPS)
	// HopTables is above the numbers of tables: those from it on are of hops.
	HopTables = uint32(1) << 31
)

// Replace makes the tables hold exactly these routes, one for a prefix of a table,
// and says how many entries it changed. First it adds what is new, then it calls
// between (nil: nothing), then it removes what is stale. Changed makes flows obey.
func (r *Routes) Replace(routes []Route, between func() error) (changed int, err error) {
	want, err := routeEntries(routes)
	if err != nil {
		return 0, err
	}
	// Hops before the routes that lead to them.
	for k, w := range want {
		if k.Table >= HopTables {
			if err := r.table.put(k, w); err != nil {
				return 0, err
			}
		}
	}
	return replace(r.table, want, between)
}

// Changed makes the programs look whether the flows' ways still hold: call it after
// routes, tables of endpoints or addresses of the host have changed.
func (r *Routes) Changed() error { return r.epoch.advance() }

// SetTable says which table an endpoint uses; an empty slot's is 0.
func (r *Routes) SetTable(slot, number uint32) error {
	if slot == 0 || slot >= MaxEndpoints {
		return fmt.Errorf("endpoint %d: not 1 to %d", slot, MaxEndpoints-1)
	}
	return r.tables.put(slot, number)
}

// Tables are the tables of all endpoints that do not use 0.
func (r *Routes) Tables() (map[uint32]uint32, error) {
	used := make(map[uint32]uint32)
	err := r.tables.each(func(slot, number uint32) error {
		if number != 0 {
			used[slot] = number
		}
		return nil
	})
	return used, err
}

// routeEntries are the entries of the map. A table's longer prefixes are written over
// the parts of a shorter one (see spread).
func routeEntries(routes []Route) (map[loader.BPFRouteKey]loader.BPFRoute, error) {
	routes = slices.Clone(routes)
	slices.SortStableFunc(routes, func(a, b Route) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), a.Prefix.Bits()-b.Prefix.Bits())
	})
	type place struct {
		table  uint32
		prefix netip.Prefix
	}
	seen := make(map[place]bool, len(routes))
	want := make(map[loader.BPFRouteKey]loader.BPFRoute, len(routes))
	for _, route := range routes {
		at := place{route.Table, route.Prefix.Masked()}
		if seen[at] {
			return nil, fmt.Errorf("route %s: given twice", route.Prefix)
		}
		seen[at] = true
		w, err := route.wire(want)
		if err != nil {
			return nil, fmt.Errorf("route %s: %w", route.Prefix, err)
		}
		for _, part := range spread(route.Prefix) {
			p, err := toPrefix(part)
			if err != nil {
				return nil, fmt.Errorf("route %s: %w", route.Prefix, err)
			}
			want[loader.BPFRouteKey{Prefixlen: 32 + p.Prefixlen, Table: route.Table, Addr: p.Addr}] = w
		}
	}
	return want, nil
}

// wire puts the hops of a route that has several into want.
func (r Route) wire(want map[loader.BPFRouteKey]loader.BPFRoute) (w loader.BPFRoute, err error) {
	switch {
	case !r.Prefix.IsValid():
		return w, errors.New("prefix: not valid")
	case r.Table >= HopTables:
		return w, fmt.Errorf("table %d: not below %d", r.Table, HopTables)
	case len(r.Hops) > MaxHops:
		return w, fmt.Errorf("%d hops: more than %d", len(r.Hops), MaxHops)
	case len(r.Hops) == 0:
		return w, nil
	case len(r.Hops) == 1:
		return r.Hops[0].wire()
	}
	hops := make([]loader.BPFRoute, len(r.Hops))
	hash := fnv.New32a()
	for i, h := range r.Hops {
		if hops[i], err = h.wire(); err != nil {
			return w, err
		}
		_ = binary.Write(hash, binary.NativeEndian, []uint32{hops[i].Ifindex, uint32(hops[i].Mtu)})
		_ = binary.Write(hash, binary.NativeEndian, append(hops[i].Nexthop.W[:], hops[i].Source.W[:]...))
	}
	// The same hops have the same table, and others never one that is in use: a flow
	// finds either the old hops or the new ones.
	number := HopTables | hash.Sum32()
	for !hopsFit(want, number, hops) {
		number = HopTables | (number + 1)
	}
	for i, h := range hops {
		want[hopKey(number, i)] = h
	}
	return loader.BPFRoute{Ifindex: number, Hops: uint16(len(hops))}, nil
}

// hopsFit says whether a table of hops is free or has just these.
func hopsFit(want map[loader.BPFRouteKey]loader.BPFRoute, number uint32, hops []loader.BPFRoute) bool {
	_, used := want[hopKey(number, 0)]
	_, longer := want[hopKey(number, len(hops))]
	if !used {
		return true
	}
	for i, h := range hops {
		if want[hopKey(number, i)] != h {
			return false
		}
	}
	return !longer
}

// hopKey is of route_hop's making in bpf/lib/route.h.
func hopKey(number uint32, index int) loader.BPFRouteKey {
	k := loader.BPFRouteKey{Prefixlen: 32 + 128, Table: number}
	k.Addr.W[3] = uint32(index)
	return k
}

// List is all routes, sorted by table. An IPv6 default route that others cut into may
// come as its parts.
func (r *Routes) List() (routes []Route, err error) {
	type kind struct {
		table uint32
		route loader.BPFRoute
	}
	by := make(map[kind][]netip.Prefix)
	hops := make(map[loader.BPFRouteKey]loader.BPFRoute)
	err = r.table.each(func(k loader.BPFRouteKey, w loader.BPFRoute) error {
		if k.Table >= HopTables {
			hops[k] = w
			return nil
		}
		at := kind{k.Table, w}
		by[at] = append(by[at], fromPrefix(loader.BPFPrefix{Prefixlen: k.Prefixlen - 32, Addr: k.Addr}))
		return nil
	})
	for at, prefixes := range by {
		for _, p := range gather(prefixes) {
			routes = append(routes, Route{at.table, p, hopsOf(at.route, func(i int) loader.BPFRoute { return hops[hopKey(at.route.Ifindex, i)] })})
		}
	}
	slices.SortFunc(routes, func(a, b Route) int {
		return cmp.Or(cmp.Compare(a.Table, b.Table), comparePrefixes(a.Prefix, b.Prefix))
	})
	return routes, err
}

// Lookup is the hops that the programs find in a table for an address; ok is false
// when there is no way.
func (r *Routes) Lookup(number uint32, a netip.Addr) (hops []Hop, ok bool, err error) {
	p, err := toPrefix(netip.PrefixFrom(a, a.BitLen()))
	if err != nil {
		return nil, false, err
	}
	w, ok, err := r.table.get(loader.BPFRouteKey{Prefixlen: 32 + p.Prefixlen, Table: number, Addr: p.Addr})
	if err != nil || !ok {
		return nil, false, err
	}
	hops = hopsOf(w, func(i int) loader.BPFRoute {
		hop, _, e := r.table.get(hopKey(w.Ifindex, i))
		err = errors.Join(err, e)
		return hop
	})
	return hops, len(hops) > 0, err
}

func hopsOf(w loader.BPFRoute, hop func(i int) loader.BPFRoute) (hops []Hop) {
	if w.Ifindex == 0 {
		return nil
	}
	if w.Hops == 0 {
		return []Hop{fromHop(w)}
	}
	for i := range int(w.Hops) {
		hops = append(hops, fromHop(hop(i)))
	}
	return hops
}

func (h Hop) wire() (w loader.BPFRoute, err error) {
	if h.Ifindex <= 0 {
		return w, fmt.Errorf("device %d: not positive", h.Ifindex)
	}
	mtu, err := toMTU(h.MTU)
	return loader.BPFRoute{Ifindex: uint32(h.Ifindex), Mtu: mtu, Nexthop: toAddr(h.NextHop), Source: toAddr(h.Source)}, err
}

func fromHop(w loader.BPFRoute) Hop {
	return Hop{Ifindex: int(w.Ifindex), MTU: int(w.Mtu), NextHop: fromAddr(w.Nexthop), Source: fromAddr(w.Source)}
}
