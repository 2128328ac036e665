// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
)

// special are ranges that no network can be on: addresses in them mean something
// to every host. Sources: RFC 6890's registries.
var special = []struct {
	prefix netip.Prefix
	what   string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "unspecified addresses"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback addresses"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local addresses"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast addresses"},
	{netip.MustParsePrefix("255.255.255.255/32"), "the broadcast address"},
	{netip.MustParsePrefix("::/128"), "the unspecified address"},
	{netip.MustParsePrefix("::1/128"), "the loopback address"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4 addresses"},
	{netip.MustParsePrefix("fe80::/10"), "link-local addresses"},
	{netip.MustParsePrefix("ff00::/8"), "multicast addresses"},
}

// CheckSubnet says why p cannot be a network's subnet: bits set behind its
// length (Docker's rule and words), a length that makes no sense (IPv4 /8 to /31,
// IPv6 /8 to /127: a gateway and a container at least), or addresses that are
// special on every host.
func CheckSubnet(p netip.Prefix) error {
	if !p.IsValid() {
		return errors.New("invalid subnet: invalid CIDR block notation")
	}
	if p != p.Masked() {
		return fmt.Errorf("invalid subnet %s: it should be %s", p, p.Masked())
	}
	for _, s := range special {
		// Compared as they are written: ::ffff:a.b.c.d is no IPv4 subnet.
		if s.prefix.Overlaps(p) && p.Bits() > 0 {
			return fmt.Errorf("invalid subnet %s: it has %s", p, s.what)
		}
	}
	if err := checkLength(p.Bits(), p.Addr().Is4()); err != nil {
		return fmt.Errorf("invalid subnet %s: %w", p, err)
	}
	return nil
}

func checkLength(bits int, v4 bool) error {
	family, longest := "IPv6", 127
	if v4 {
		family, longest = "IPv4", 31
	}
	if bits < 8 {
		return fmt.Errorf("a prefix of %s cannot be shorter than /8", family)
	}
	if bits > longest {
		return fmt.Errorf("no room for a gateway and a container: /%d at most", longest)
	}
	return nil
}

// CheckGateway says why gateway cannot be the bridge's address on subnet.
func CheckGateway(gateway netip.Addr, subnet netip.Prefix) error {
	if err := checkAddr(gateway, subnet); err != nil {
		return fmt.Errorf("invalid gateway %s: %w", gateway, err)
	}
	return nil
}

// CheckAddress says why a container cannot have addr (--ip, --ip6) on subnet.
func CheckAddress(addr netip.Addr, subnet netip.Prefix) error {
	if err := checkAddr(addr, subnet); err != nil {
		return fmt.Errorf("invalid address %s: %w", addr, err)
	}
	return nil
}

// CheckRange says why rng (--ip-range, fixed-cidr) cannot be where subnet's
// addresses come from.
func CheckRange(rng, subnet netip.Prefix) error {
	switch {
	case !rng.IsValid():
		return errors.New("invalid ip-range: invalid CIDR block notation")
	case rng.Addr().BitLen() != subnet.Addr().BitLen():
		return fmt.Errorf("invalid ip-range %s: parent subnet is an %s block", rng, family(subnet.Addr()))
	case rng.Bits() < subnet.Bits():
		return fmt.Errorf("invalid ip-range %s: CIDR block is bigger than its parent subnet %s", rng, subnet)
	case rng != rng.Masked():
		return fmt.Errorf("invalid ip-range %s: it should be %s", rng, rng.Masked())
	case !subnet.Overlaps(rng):
		return fmt.Errorf("invalid ip-range %s: parent subnet %s doesn't contain ip-range", rng, subnet)
	}
	return nil
}

func checkAddr(a netip.Addr, subnet netip.Prefix) error {
	switch {
	case !a.IsValid() || a.Zone() != "":
		return errors.New("not an address")
	case !subnet.IsValid():
		return errors.New("no subnet")
	case a.BitLen() != subnet.Addr().BitLen():
		return fmt.Errorf("parent subnet is an %s block", family(subnet.Addr()))
	case !subnet.Contains(a):
		return fmt.Errorf("parent subnet %s doesn't contain this address", subnet)
	}
	if what := reserved(a, subnet.Masked()); what != "" {
		return fmt.Errorf("it is the %s address of %s", what, subnet)
	}
	return nil
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}
