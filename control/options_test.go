// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// What contradicts itself is refused before anything is looked at.
func TestNetworkOptions(t *testing.T) {
	no := false
	addrs := func(list ...string) (out []netip.Addr) {
		for _, a := range list {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	both := prefixes("10.5.0.0/16", "fd00:5::/64")
	for text, o := range map[string]NetworkOptions{
		"cannot configure multiple gateways (10.5.0.1, 10.5.0.2) on the same subnet (10.5.0.0/16)":     {Subnets: both, Gateways: addrs("10.5.0.1", "10.5.0.2")},
		"cannot configure multiple gateways (fd00:5::1, fd00:5::2) on the same subnet (fd00:5::/64)":   {Subnets: both, Gateways: addrs("fd00:5::1", "10.5.0.1", "fd00:5::2")},
		"cannot configure multiple ranges (10.5.1.0/24, 10.5.2.0/24) on the same subnet (10.5.0.0/16)": {Subnets: both, Ranges: prefixes("10.5.1.0/24", "10.5.2.0/24")},
		"conflicting options: full cone and an internal network, whose containers are not masqueraded": {FullCone: true, Internal: true},
		"conflicting options: full cone and a routed network, whose containers are not masqueraded":    {FullCone: true, Routed: true},
		"conflicting options: full cone and no masquerade":                                             {FullCone: true, Masquerade: &no},
		"conflicting options: an internal network and gateway mode routed":                             {Internal: true, Routed: true},
		"": {Subnets: both, Gateways: addrs("10.5.0.1", "fd00:5::1"), Ranges: prefixes("10.5.1.0/24", "fd00:5::/80"), FullCone: true},
	} {
		o.Name = "net"
		if err := CheckNetwork(o); text == "" {
			require.NoError(t, err)
		} else {
			require.EqualError(t, err, text)
			require.ErrorIs(t, err, ErrInvalid)
		}
	}
}

func TestContainerOptions(t *testing.T) {
	for text, o := range map[string]ContainerOptions{
		`dns-search: "a b" is no word`:                               {DNSSearch: []string{"a b"}},
		`dns-option: "" is no word`:                                  {DNSOptions: []string{""}},
		`expose: port "0": invalid port: 0: not between 1 and 65535`: {Expose: []string{"0"}},
	} {
		err := o.check()
		require.EqualError(t, err, text)
		require.ErrorIs(t, err, ErrInvalid)
	}
}
