// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/netip"
	"slices"
)

// The longest-prefix tables hold IPv4 as v4-mapped addresses, and an IPv6 prefix
// as short as ::/0 would match those, too: with no IPv4 default route, IPv4
// would take the IPv6 one. Such a prefix is written as the parts of it that are
// beside ::ffff:0:0/96: 96 of them at most.

var v4Mapped = netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff}), v4Bits)

// spread is p, or the parts of it that are not v4-mapped.
func spread(p netip.Prefix) []netip.Prefix {
	p = p.Masked()
	if p.Addr().Is4() || p.Bits() >= v4Bits || !p.Contains(v4Mapped.Addr()) {
		return []netip.Prefix{p}
	}
	parts := make([]netip.Prefix, 0, v4Bits-p.Bits())
	for bits := p.Bits() + 1; bits <= v4Bits; bits++ {
		raw := v4Mapped.Addr().As16()
		raw[(bits-1)/8] ^= 0x80 >> ((bits - 1) % 8)
		parts = append(parts, netip.PrefixFrom(netip.AddrFrom16(raw), bits).Masked())
	}
	return parts
}

// gather undoes spread, and sorts.
func gather(prefixes []netip.Prefix) []netip.Prefix {
	have := make(map[netip.Prefix]bool, len(prefixes))
	for _, p := range prefixes {
		have[p] = true
	}
	for bits := range v4Bits {
		whole := netip.PrefixFrom(v4Mapped.Addr(), bits).Masked()
		parts := spread(whole)
		if slices.ContainsFunc(parts, func(p netip.Prefix) bool { return !have[p] }) {
			continue
		}
		for _, p := range parts {
			delete(have, p)
		}
		have[whole] = true
		break
	}
	var list []netip.Prefix
	for p := range have {
		list = append(list, p)
	}
	slices.SortFunc(list, comparePrefixes)
	return list
}
