// SPDX-License-Identifier: Apache-2.0

// Package ipam chooses subnets for networks and addresses within them. It is
// pure: what is taken comes from the caller, and what is chosen is only an answer.
package ipam

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// Pool gives networks prefixes of Size bits out of Base.
type Pool struct {
	Base netip.Prefix
	Size int
}

// DefaultPools are Docker's default-address-pools, in Docker's order.
var DefaultPools = []Pool{
	{netip.MustParsePrefix("172.17.0.0/16"), 16},
	{netip.MustParsePrefix("172.18.0.0/16"), 16},
	{netip.MustParsePrefix("172.19.0.0/16"), 16},
	{netip.MustParsePrefix("172.20.0.0/14"), 16},
	{netip.MustParsePrefix("172.24.0.0/14"), 16},
	{netip.MustParsePrefix("172.28.0.0/14"), 16},
	{netip.MustParsePrefix("192.168.0.0/16"), 20},
}

// ErrNoNetwork says that no pool has a free prefix.
var ErrNoNetwork = errors.New("all predefined address pools have been fully subnetted")

// CheckPools says what is wrong with configured pools.
func CheckPools(pools []Pool) error {
	for _, p := range pools {
		if !p.Base.IsValid() {
			return errors.New("invalid address pool: no base")
		}
		if p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen() {
			return fmt.Errorf("invalid address pool %s: size %d: it should be %d to %d",
				p.Base, p.Size, p.Base.Bits(), p.Base.Addr().BitLen())
		}
		if err := CheckSubnet(p.Base); err != nil {
			return fmt.Errorf("invalid address pool %s: %w", p.Base, err)
		}
		if err := checkLength(p.Size, p.Base.Addr().Is4()); err != nil {
			return fmt.Errorf("invalid address pool %s: size %d: %w", p.Base, p.Size, err)
		}
	}
	return nil
}

// NextNetwork returns the first prefix of the pools, in their order, that
// overlaps nothing in taken: other networks and the host's routes, of any
// family, in any order. A default route in taken takes nothing. No prefix left:
// ErrNoNetwork. A pool of another family than the wanted one is the caller's to
// leave out.
func NextNetwork(pools []Pool, taken []netip.Prefix) (netip.Prefix, error) {
	sorted := make([]span, 0, len(taken))
	for _, t := range taken {
		if t = plain(t); t.IsValid() && t.Bits() > 0 {
			sorted = append(sorted, spanOf(t))
		}
	}
	slices.SortFunc(sorted, func(a, b span) int {
		return cmp.Or(a.first.Compare(b.first), b.last.Compare(a.last))
	})
	for _, pool := range pools {
		if p, ok := nextInPool(pool, sorted); ok {
			return p, nil
		}
	}
	return netip.Prefix{}, ErrNoNetwork
}

// nextInPool walks the pool and the sorted list at once.
func nextInPool(pool Pool, taken []span) (netip.Prefix, bool) {
	base := plain(pool.Base)
	if !base.IsValid() || pool.Size < base.Bits() || pool.Size > base.Addr().BitLen() {
		return netip.Prefix{}, false
	}
	end := spanOf(base).last
	candidate := netip.PrefixFrom(base.Addr(), pool.Size)
	for _, t := range taken {
		s := spanOf(candidate)
		if t.last.BitLen() != s.last.BitLen() || t.last.Less(s.first) {
			continue
		}
		if s.last.Less(t.first) {
			break // and so are all that follow
		}
		after := t.last // the candidate goes to the first boundary behind it
		if after.Less(s.last) {
			after = s.last
		}
		next := spanOf(netip.PrefixFrom(after, pool.Size).Masked()).last.Next()
		if !next.IsValid() || end.Less(next) {
			return netip.Prefix{}, false
		}
		candidate = netip.PrefixFrom(next, pool.Size)
	}
	return candidate, true
}

// Overlapping returns the first of taken that shares addresses with p; a default
// route does not count.
func Overlapping(p netip.Prefix, taken []netip.Prefix) (netip.Prefix, bool) {
	p = plain(p)
	for _, t := range taken {
		if u := plain(t); u.IsValid() && u.Bits() > 0 && u.Overlaps(p) {
			return t, true
		}
	}
	return netip.Prefix{}, false
}

// ULA returns subnet n (its low 16 bits) of the host's unique local /48: fd, and
// 40 bits of a hash of the host's identity as the global id (RFC 4193 section 3.2).
func ULA(seed []byte, n uint32) netip.Prefix {
	sum := sha256.Sum256(seed)
	var b [16]byte
	b[0] = 0xfd
	copy(b[1:6], sum[:])
	b[6], b[7] = byte(n>>8), byte(n)
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// span is a prefix as its first and last address.
type span struct{ first, last netip.Addr }

func spanOf(p netip.Prefix) span { return span{p.Masked().Addr(), lastAddr(p)} }

// plain masks the host's bits and writes v4-mapped IPv6 as IPv4.
func plain(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// lastAddr is IPv4's broadcast address of p.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().As16()
	for i := p.Bits() + 128 - p.Addr().BitLen(); i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}
