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

// Route is one way to the world, as the host would take it.
type Route struct {
	Dst     netip.Prefix // masked; of length 0 for the default route
	Ifindex int
	Gateway netip.Addr // zero: on the link; may be IPv6 for an IPv4 Dst (RFC 5549)
	Source  netip.Addr // what the kernel gives a packet of the host's that has no source yet; zero: the host has none
	MTU     int        // bytes: the route's own, else the device's
}

// Routes is a snapshot of the main table's unicast routes of one family
// (netlink.FAMILY_V4 or FAMILY_V6), sorted by prefix: of several for one prefix the one
// with the lowest metric, of several next hops the first. Routes to lo, to link-local
// prefixes, to nowhere (blackhole, unreachable, prohibit) and over devices that are
// down are left out.
func Routes(host *netns.NS, family int) ([]Route, error) {
	var found []Route
	err := withHandle(host, func(h *netlink.Handle) error {
		links, err := dump(h.LinkList)
		if err != nil {
			return fmt.Errorf("devices: %w", err)
		}
		devices := make(map[int]*netlink.LinkAttrs, len(links))
		for _, l := range links {
			devices[l.Attrs().Index] = l.Attrs()
		}
		list, err := tableRoutes(h, family, unix.RT_TABLE_MAIN)
		if err != nil {
			return err
		}
		// The kernel lists routes to one prefix by metric, but says so nowhere.
		slices.SortStableFunc(list, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })

		src, err := newSources(h, family)
		if err != nil {
			return err
		}
		seen := make(map[netip.Prefix]bool)
		for _, r := range list {
			one, ok := unicast(r, family, devices)
			if !ok || seen[one.Dst] {
				continue
			}
			seen[one.Dst] = true
			if one.Source, ok = netip.AddrFromSlice(r.Src); !ok {
				one.Source = src.of(one)
			}
			one.Source = one.Source.Unmap()
			found = append(found, one)
		}
		return nil
	})
	slices.SortFunc(found, func(a, b Route) int { return ComparePrefix(a.Dst, b.Dst) })
	return found, err
}

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

func unicast(r netlink.Route, family int, devices map[int]*netlink.LinkAttrs) (Route, bool) {
	// A route without carrier is taken all the same, unless ignore_routes_with_linkdown
	// is set: then the kernel says that it is dead.
	const dead = unix.RTNH_F_DEAD
	if r.Type != unix.RTN_UNICAST || r.Tos != 0 {
		return Route{}, false
	}
	one := Route{Dst: dstOf(r, family), Ifindex: r.LinkIndex, Gateway: gatewayOf(r.Gw, r.Via), MTU: r.MTU}
	alive := r.Flags&dead == 0
	if len(r.MultiPath) > 0 {
		alive = false
		for _, hop := range r.MultiPath {
			if hop.Flags&dead == 0 {
				one.Ifindex, one.Gateway, alive = hop.LinkIndex, gatewayOf(hop.Gw, hop.Via), true
				break
			}
		}
	}
	dev := devices[one.Ifindex]
	if !alive || dev == nil || dev.RawFlags&unix.IFF_LOOPBACK != 0 || dev.RawFlags&unix.IFF_UP == 0 {
		return Route{}, false
	}
	if one.Dst.Addr().IsLinkLocalUnicast() && one.Dst.Addr().Is6() || one.Dst.Addr().IsMulticast() {
		return Route{}, false
	}
	if one.MTU == 0 {
		one.MTU = dev.MTU
	}
	return one, true
}

func dstOf(r netlink.Route, family int) netip.Prefix {
	if p, ok := prefixOf(r.Dst); ok {
		return p.Masked()
	}
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
