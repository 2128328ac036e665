// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func requireError(t *testing.T, want string, err error) {
	t.Helper()
	if want == "" {
		require.NoError(t, err)
	} else {
		require.EqualError(t, err, want)
	}
}

func TestCheckSubnet(t *testing.T) {
	tests := []struct{ subnet, want string }{
		{"10.0.0.0/8", ""},
		{"192.168.1.0/24", ""},
		{"10.1.2.0/30", ""},
		{"10.1.2.0/31", ""},
		{"240.0.0.0/8", ""},
		{"255.255.0.0/17", ""},
		{"fd00::/8", ""},
		{"2001:db8::/64", ""},
		{"fd00::4/126", ""},
		{"fd00::4/127", ""},
		{"10.0.0.5/24", "invalid subnet 10.0.0.5/24: it should be 10.0.0.0/24"},
		{"fd00::5/64", "invalid subnet fd00::5/64: it should be fd00::/64"},
		{"10.1.2.3/32", "invalid subnet 10.1.2.3/32: no room for a gateway and a container: /31 at most"},
		{"fd00::1/128", "invalid subnet fd00::1/128: no room for a gateway and a container: /127 at most"},
		{"0.0.0.0/0", "invalid subnet 0.0.0.0/0: a prefix of IPv4 cannot be shorter than /8"},
		{"32.0.0.0/7", "invalid subnet 32.0.0.0/7: a prefix of IPv4 cannot be shorter than /8"},
		{"::/0", "invalid subnet ::/0: a prefix of IPv6 cannot be shorter than /8"},
		{"2000::/3", "invalid subnet 2000::/3: a prefix of IPv6 cannot be shorter than /8"},
		{"0.0.0.0/8", "invalid subnet 0.0.0.0/8: it has unspecified addresses"},
		{"0.1.0.0/16", "invalid subnet 0.1.0.0/16: it has unspecified addresses"},
		{"127.0.0.0/8", "invalid subnet 127.0.0.0/8: it has loopback addresses"},
		{"127.5.0.0/16", "invalid subnet 127.5.0.0/16: it has loopback addresses"},
		{"169.254.0.0/16", "invalid subnet 169.254.0.0/16: it has link-local addresses"},
		{"169.254.7.0/24", "invalid subnet 169.254.7.0/24: it has link-local addresses"},
		{"224.0.0.0/8", "invalid subnet 224.0.0.0/8: it has multicast addresses"},
		{"239.1.1.0/24", "invalid subnet 239.1.1.0/24: it has multicast addresses"},
		{"255.255.255.0/24", "invalid subnet 255.255.255.0/24: it has the broadcast address"},
		{"64.0.0.0/2", "invalid subnet 64.0.0.0/2: it has loopback addresses"},
		{"::/64", "invalid subnet ::/64: it has the unspecified address"},
		{"::/8", "invalid subnet ::/8: it has the unspecified address"},
		{"::1/128", "invalid subnet ::1/128: it has the loopback address"},
		{"::ffff:10.0.0.0/120", "invalid subnet ::ffff:10.0.0.0/120: it has IPv4 addresses"},
		{"fe80::/64", "invalid subnet fe80::/64: it has link-local addresses"},
		{"ff05::/64", "invalid subnet ff05::/64: it has multicast addresses"},
	}
	for _, tt := range tests {
		t.Run(tt.subnet, func(t *testing.T) {
			requireError(t, tt.want, CheckSubnet(pfx(tt.subnet)))
		})
	}
	require.EqualError(t, CheckSubnet(netip.Prefix{}), "invalid subnet: invalid CIDR block notation")
}

func TestCheckGateway(t *testing.T) {
	tests := []struct{ gateway, subnet, want string }{
		{"10.0.0.1", "10.0.0.0/24", ""},
		{"10.0.0.254", "10.0.0.0/24", ""},
		{"10.0.0.0", "10.0.0.0/31", ""},
		{"fd00::1", "fd00::/64", ""},
		{"fd00::ffff:ffff:ffff:ffff", "fd00::/64", ""},
		{"10.0.1.1", "10.0.0.0/24", "invalid gateway 10.0.1.1: parent subnet 10.0.0.0/24 doesn't contain this address"},
		{"10.0.0.0", "10.0.0.0/24", "invalid gateway 10.0.0.0: it is the network address of 10.0.0.0/24"},
		{"10.0.0.255", "10.0.0.0/24", "invalid gateway 10.0.0.255: it is the broadcast address of 10.0.0.0/24"},
		{"fd00::", "fd00::/64", "invalid gateway fd00::: it is the subnet-router anycast address of fd00::/64"},
		{"fd00::1", "10.0.0.0/24", "invalid gateway fd00::1: parent subnet is an IPv4 block"},
		{"10.0.0.1", "fd00::/64", "invalid gateway 10.0.0.1: parent subnet is an IPv6 block"},
		{"", "fd00::/64", "invalid gateway invalid IP: not an address"},
	}
	for _, tt := range tests {
		t.Run(tt.gateway+" "+tt.subnet, func(t *testing.T) {
			requireError(t, tt.want, CheckGateway(addr(tt.gateway), pfx(tt.subnet)))
		})
	}
}

func TestCheckRange(t *testing.T) {
	tests := []struct{ rng, subnet, want string }{
		{"10.0.0.0/24", "10.0.0.0/16", ""},
		{"10.0.0.0/16", "10.0.0.0/16", ""},
		{"10.0.5.7/32", "10.0.0.0/16", ""},
		{"fd00::1:0/112", "fd00::/64", ""},
		{"10.0.0.0/15", "10.0.0.0/16", "invalid ip-range 10.0.0.0/15: CIDR block is bigger than its parent subnet 10.0.0.0/16"},
		{"10.0.0.1/24", "10.0.0.0/16", "invalid ip-range 10.0.0.1/24: it should be 10.0.0.0/24"},
		{"10.1.0.0/24", "10.0.0.0/16", "invalid ip-range 10.1.0.0/24: parent subnet 10.0.0.0/16 doesn't contain ip-range"},
		{"fd00::/112", "10.0.0.0/16", "invalid ip-range fd00::/112: parent subnet is an IPv4 block"},
		{"10.0.0.0/24", "fd00::/64", "invalid ip-range 10.0.0.0/24: parent subnet is an IPv6 block"},
	}
	for _, tt := range tests {
		t.Run(tt.rng+" "+tt.subnet, func(t *testing.T) {
			requireError(t, tt.want, CheckRange(pfx(tt.rng), pfx(tt.subnet)))
		})
	}
	require.EqualError(t, CheckRange(netip.Prefix{}, pfx("10.0.0.0/8")), "invalid ip-range: invalid CIDR block notation")
}
