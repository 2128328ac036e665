// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
)

// Routes are the host's routes by way of uplinks.
type Routes struct {
	table table[loader.BPFPrefix, loader.BPFRoute]
}

// Route is the best route for a prefix.
type Route struct {
	Prefix  netip.Prefix
	Ifindex int
	MTU     int        // bytes, 68 to 65535
	NextHop netip.Addr // zero: on-link
	Source  netip.Addr // the host's address that masquerade uses; zero: none
}

// Replace makes the table hold exactly these routes, one for a prefix, and says
// how many entries it changed.
func (r *Routes) Replace(routes []Route) (changed int, err error) {
	routes = slices.Clone(routes)
	slices.SortStableFunc(routes, func(a, b Route) int { return a.Prefix.Bits() - b.Prefix.Bits() })
	seen := make(map[netip.Prefix]bool, len(routes))
	want := make(map[loader.BPFPrefix]loader.BPFRoute, len(routes))
	for _, route := range routes {
		w, err := route.wire()
		if err != nil {
			return 0, fmt.Errorf("route %s: %w", route.Prefix, err)
		}
		if seen[route.Prefix.Masked()] {
			return 0, fmt.Errorf("route %s: given twice", route.Prefix)
		}
		seen[route.Prefix.Masked()] = true
		for _, part := range spread(route.Prefix) {
			k, err := toPrefix(part)
			if err != nil {
				return 0, fmt.Errorf("route %s: %w", route.Prefix, err)
			}
			want[k] = w // over that of a shorter prefix
		}
	}
	return replace(r.table, want)
}

// List is all routes, sorted. An IPv6 default route that others cut into may
// come as its parts.
func (r *Routes) List() (routes []Route, err error) {
	by := make(map[loader.BPFRoute][]netip.Prefix)
	err = r.table.each(func(k loader.BPFPrefix, w loader.BPFRoute) error {
		by[w] = append(by[w], fromPrefix(k))
		return nil
	})
	for w, prefixes := range by {
		for _, p := range gather(prefixes) {
			routes = append(routes, fromRoute(p, w))
		}
	}
	slices.SortFunc(routes, func(a, b Route) int { return comparePrefixes(a.Prefix, b.Prefix) })
	return routes, err
}

// Lookup is the route that the programs use for an address.
func (r *Routes) Lookup(a netip.Addr) (route Route, ok bool, err error) {
	k, err := toPrefix(netip.PrefixFrom(a, a.BitLen()))
	if err != nil {
		return route, false, err
	}
	w, ok, err := r.table.get(k)
	if err != nil || !ok {
		return route, false, err
	}
	return fromRoute(netip.Prefix{}, w), true, nil
}

func (r Route) wire() (w loader.BPFRoute, err error) {
	if !r.Prefix.IsValid() {
		return w, errors.New("prefix: not valid")
	}
	if r.Ifindex <= 0 {
		return w, fmt.Errorf("device %d: not positive", r.Ifindex)
	}
	mtu, err := toMTU(r.MTU)
	return loader.BPFRoute{
		Ifindex: uint32(r.Ifindex), Mtu: mtu, Nexthop: toAddr(r.NextHop), Source: toAddr(r.Source),
	}, err
}

func fromRoute(p netip.Prefix, w loader.BPFRoute) Route {
	return Route{Prefix: p, Ifindex: int(w.Ifindex), MTU: int(w.Mtu), NextHop: fromAddr(w.Nexthop), Source: fromAddr(w.Source)}
}
