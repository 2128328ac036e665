// SPDX-License-Identifier: Apache-2.0

package link

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// sources finds the source address that the kernel would give a packet by a
// route. It asks once per next hop, not per route.
type sources struct {
	h      *netlink.Handle
	family int
	known  map[sourceKey]netip.Addr
	addrs  []netlink.Addr // of the host, widest scope first
	own    map[netip.Addr]bool
}

type sourceKey struct {
	ifindex int
	to      netip.Addr
}

func newSources(h *netlink.Handle, family int) (*sources, error) {
	s := &sources{h: h, family: family, known: make(map[sourceKey]netip.Addr), own: make(map[netip.Addr]bool)}
	var err error
	s.addrs, err = dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, family) })
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	slices.SortStableFunc(s.addrs, func(a, b netlink.Addr) int { return cmp.Compare(a.Scope, b.Scope) })
	for _, a := range s.addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			s.own[p.Addr()] = true
		}
	}
	return s, nil
}

// of asks for the way to the gateway: the kernel chooses an IPv4 source by the
// next hop (fib_info_update_nhc_saddr). An IPv6 source is chosen by device and
// destination (RFC 6724), so it asks for an address within the prefix.
func (s *sources) of(hop Hop, dst netip.Prefix) netip.Addr {
	to := hop.Gateway
	if s.family == netlink.FAMILY_V6 || !to.Is4() {
		to = s.within(dst)
	}
	key := sourceKey{hop.Ifindex, to}
	if a, ok := s.known[key]; ok {
		return a
	}
	a := s.ask(hop.Ifindex, to)
	s.known[key] = a
	return a
}

// within is an address of the prefix's that is not the host's own.
func (s *sources) within(p netip.Prefix) netip.Addr {
	if p.Addr().Is6() && p.Bits() < 3 {
		return netip.MustParseAddr("2000::1") // global unicast
	}
	for a := p.Addr().Next(); a.IsValid() && p.Contains(a); a = a.Next() {
		if !s.own[a] {
			return a
		}
	}
	return p.Addr()
}

func (s *sources) ask(ifindex int, to netip.Addr) netip.Addr {
	got, err := s.h.RouteGetWithOptions(to.AsSlice(), &netlink.RouteGetOptions{OifIndex: ifindex})
	if err == nil {
		for _, g := range got {
			if a, ok := netip.AddrFromSlice(g.Src); ok && g.LinkIndex == ifindex {
				return a
			}
		}
	}
	return s.primary(ifindex)
}

// primary is the device's first address with the widest scope.
func (s *sources) primary(ifindex int) netip.Addr {
	for _, a := range s.addrs {
		if p, ok := prefixOf(a.IPNet); ok && a.LinkIndex == ifindex {
			return p.Addr()
		}
	}
	return netip.Addr{}
}
