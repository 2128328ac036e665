// SPDX-License-Identifier: Apache-2.0

package link

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route is the way to a prefix that no longer one has, as the host would take it.
type Route struct {
	Dst  netip.Prefix // masked; of length 0 for the default route
	Hops []Hop        // none: the prefix is not reached (blackhole, unreachable, prohibit)

	// Broadcast is the index of the device whose broadcast address Dst is; 0: it is none.
	Broadcast int

	throw bool // look on by the next rule
}

// Hop is one way to the next router. One of more weight is there several times.
type Hop struct {
	Ifindex int
	Gateway netip.Addr // zero: on the link; may be IPv6 for an IPv4 Dst (RFC 5549)
	Source  netip.Addr // what the kernel gives a packet of the host's that has no source yet; zero: the host has none
	MTU     int        // bytes: the route's own, else the device's
}

// maxHops bounds the hops of one route, weights included.
const maxHops = 16

// reader makes Routes of the kernel's.
type reader struct {
	family  int
	devices map[int]*netlink.LinkAttrs
	sources *sources
}

func newReader(h *netlink.Handle, family int) (*reader, error) {
	links, err := dump(h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("devices: %w", err)
	}
	r := &reader{family: family, devices: make(map[int]*netlink.LinkAttrs, len(links))}
	for _, l := range links {
		r.devices[l.Attrs().Index] = l.Attrs()
	}
	r.sources, err = newSources(h, family)
	return r, err
}

// table gives the routes of one table, by prefix: of several for one prefix the one with
// the lowest metric. Routes to link-local and multicast prefixes, for a type of service,
// and over devices that are down are left out. The list is sorted in place.
func (r *reader) table(list []netlink.Route) map[netip.Prefix]Route {
	// The kernel lists routes to one prefix by metric, but says so nowhere.
	slices.SortStableFunc(list, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	found := make(map[netip.Prefix]Route, len(list))
	for _, one := range list {
		dst := dstOf(one, r.family)
		if _, seen := found[dst]; seen || one.Tos != 0 || dst.Addr().IsMulticast() ||
			dst.Addr().Is6() && dst.Addr().IsLinkLocalUnicast() {
			continue
		}
		route := Route{Dst: dst}
		switch one.Type {
		case unix.RTN_UNICAST:
			var alive bool
			if route.Hops, alive = r.hops(one, dst); !alive {
				continue
			}
		case unix.RTN_THROW:
			route.throw = true
		case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT, unix.RTN_LOCAL:
		default:
			continue
		}
		found[dst] = route
	}
	return found
}

// hops are the next hops that are up; alive is false when none is. A route to lo has
// none, and leads nowhere.
func (r *reader) hops(route netlink.Route, dst netip.Prefix) (hops []Hop, alive bool) {
	list := route.MultiPath
	if len(list) == 0 {
		list = []*netlink.NexthopInfo{{LinkIndex: route.LinkIndex, Gw: route.Gw, Via: route.Via, Flags: route.Flags}}
	}
	var weights []int
	for _, n := range list {
		// A route without carrier is taken all the same, unless ignore_routes_with_linkdown
		// is set: then the kernel says that it is dead.
		dev := r.devices[n.LinkIndex]
		if n.Flags&unix.RTNH_F_DEAD != 0 || dev == nil || dev.RawFlags&unix.IFF_UP == 0 {
			continue
		}
		alive = true
		if dev.RawFlags&unix.IFF_LOOPBACK != 0 {
			continue
		}
		hop := Hop{Ifindex: n.LinkIndex, Gateway: gatewayOf(n.Gw, n.Via), MTU: cmp.Or(route.MTU, dev.MTU)}
		var given bool
		if hop.Source, given = netip.AddrFromSlice(route.Src); !given {
			hop.Source = r.sources.of(hop, dst)
		}
		hop.Source = hop.Source.Unmap()
		hops, weights = append(hops, hop), append(weights, n.Hops+1)
	}
	return weigh(hops, weights), alive
}

// weigh repeats hops by their weight, as far as there is room.
func weigh(hops []Hop, weights []int) (list []Hop) {
	if len(hops) < 2 {
		return hops
	}
	sum, least := 0, weights[0]
	for _, w := range weights {
		sum, least = sum+w, min(least, w)
	}
	for i, h := range hops {
		n := max(1, weights[i]/least)
		if sum > maxHops*least {
			n = max(1, weights[i]*maxHops/sum)
		}
		list = append(list, slices.Repeat([]Hop{h}, n)...)
	}
	return list[:min(len(list), maxHops)]
}

// tableRoutes lists one table, or with RT_TABLE_UNSPEC all.
func tableRoutes(h *netlink.Handle, family, table int) ([]netlink.Route, error) {
	filter := &netlink.Route{Table: table}
	list, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("routes: %w", err)
	}
	return list, nil
}

func dstOf(r netlink.Route, family int) netip.Prefix {
	if p, ok := prefixOf(r.Dst); ok {
		return p.Masked()
	}
	return everything(family)
}

// everything is the prefix of length 0.
func everything(family int) netip.Prefix {
	if family == netlink.FAMILY_V4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func gatewayOf(gw net.IP, via netlink.Destination) netip.Addr {
	if v, ok := via.(*netlink.Via); ok && len(gw) == 0 {
		gw = v.Addr
	}
	a, _ := netip.AddrFromSlice(gw)
	return a.Unmap()
}

// ExistingRoutes lists the prefixes that the host knows a way to, in any table, or
// has an address in, sorted and without doubles; default routes and multicast are
// left out. A new network must not overlap them.
func ExistingRoutes(host *netns.NS) ([]netip.Prefix, error) {
	var found []netip.Prefix
	err := withHandle(host, func(h *netlink.Handle) error {
		for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			list, err := tableRoutes(h, f, unix.RT_TABLE_UNSPEC)
			if err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
				return err
			}
			for _, r := range list {
				p := dstOf(r, f)
				if p.Bits() > 0 && !p.Addr().IsMulticast() && r.Type != unix.RTN_BROADCAST {
					found = append(found, p)
				}
			}
		}
		addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("addresses: %w", err)
		}
		for _, a := range addrs {
			if p, ok := prefixOf(a.IPNet); ok {
				found = append(found, p.Masked())
			}
			if p, ok := prefixOf(a.Peer); ok {
				found = append(found, p.Masked())
			}
		}
		return nil
	})
	slices.SortFunc(found, ComparePrefix)
	return slices.Compact(found), err
}

// ComparePrefix orders IPv4 before IPv6, then by address, then the wider first.
func ComparePrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
