// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// What a caller may want to tell apart in an error of Allocate.
var (
	ErrInUse     = errors.New("address already in use")
	ErrExhausted = errors.New("no available addresses on this pool")
)

// maxTries bounds the search where used never says no; more addresses than that
// are not handed out anywhere.
const maxTries = 1 << 22

// Allocate returns a free address of prefix. used says in O(1) whether an
// address is taken, the gateway's included.
//
// With want: that one (it may lie outside of rng, as in Docker), ErrInUse, or an
// error that says why it cannot be. Else the first free one of rng (of prefix
// when rng is zero) from next on, wrapping around; a zero next, or one outside of
// rng, begins at rng's first address. With none free: ErrExhausted.
//
// Never given: IPv4's network and broadcast address, except in a /31 (RFC 3021)
// or /32; IPv6's subnet-router anycast address (RFC 4291 section 2.6.1), except in a
// /127 (RFC 6164) or /128.
func Allocate(prefix, rng netip.Prefix, want netip.Addr, next netip.Addr, used func(netip.Addr) bool) (netip.Addr, error) {
	prefix, rng = plain(prefix), plain(rng)
	if want.IsValid() {
		want = want.Unmap()
		if err := checkAddr(want, prefix); err != nil {
			return netip.Addr{}, fmt.Errorf("invalid address %s: %w", want, err)
		}
		if used(want) {
			return netip.Addr{}, fmt.Errorf("address %s: %w", want, ErrInUse)
		}
		return want, nil
	}
	if !prefix.IsValid() {
		return netip.Addr{}, errors.New("no subnet")
	}
	if !rng.IsValid() {
		rng = prefix
	}
	if err := CheckRange(rng, prefix); err != nil {
		return netip.Addr{}, err
	}
	s := spanOf(rng)
	start := next.Unmap()
	if !rng.Contains(start) {
		start = s.first
	}
	addr := start
	for range maxTries {
		if reserved(addr, prefix) == "" && !used(addr) {
			return addr, nil
		}
		if addr == s.last {
			addr = s.first
		} else {
			addr = addr.Next()
		}
		if addr == start {
			break
		}
	}
	return netip.Addr{}, fmt.Errorf("%s: %w", rng, ErrExhausted)
}

// Gateway returns the address that a network's bridge gets when none was asked
// for: the first that could be given in rng (in prefix when rng is zero).
func Gateway(prefix, rng netip.Prefix) (netip.Addr, error) {
	return Allocate(prefix, rng, netip.Addr{}, netip.Addr{}, func(netip.Addr) bool { return false })
}

// reserved names what an address stands for that nobody may have; "" for one
// that can be given.
func reserved(a netip.Addr, prefix netip.Prefix) string {
	if a.BitLen()-prefix.Bits() < 2 {
		return ""
	}
	first := a == prefix.Addr()
	switch {
	case first && a.Is4():
		return "network"
	case first:
		return "subnet-router anycast"
	case a.Is4() && a == lastAddr(prefix):
		return "broadcast"
	}
	return ""
}

// MACFor is Docker's rule: 02:42 and the IPv4 address. An IPv6 address gives 02:42
// and four bytes of its hash.
func MACFor(addr netip.Addr) net.HardwareAddr {
	mac := net.HardwareAddr{0x02, 0x42, 0, 0, 0, 0}
	if addr = addr.Unmap(); addr.Is4() {
		b := addr.As4()
		copy(mac[2:], b[:])
	} else {
		b := addr.As16()
		sum := sha256.Sum256(b[:])
		copy(mac[2:], sum[:])
	}
	return mac
}

// LinkLocal is the address that the kernel gives an interface with this 48-bit
// MAC: fe80::/64 and the modified EUI-64 (RFC 4291 appendix A). The zero Addr for
// a MAC of another length.
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	if len(mac) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 0, 0, 0, 0, 0, 0,
		mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]})
}
