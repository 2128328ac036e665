// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func addr(s string) netip.Addr {
	if s == "" {
		return netip.Addr{}
	}
	return netip.MustParseAddr(s)
}

func TestAllocate(t *testing.T) {
	tests := []struct {
		name              string
		prefix, rng       string
		want, next        string
		used              []string
		expect, expectErr string
	}{
		{"first of a /16", "172.17.0.0/16", "", "", "", nil, "172.17.0.1", ""},
		{"after the gateway", "172.17.0.0/16", "", "", "", []string{"172.17.0.1"}, "172.17.0.2", ""},
		{"lowest free", "172.17.0.0/16", "", "", "", []string{"172.17.0.1", "172.17.0.3"}, "172.17.0.2", ""},
		{"a .255 and .0 inside", "172.17.0.0/16", "172.17.0.255/32", "", "", nil, "172.17.0.255", ""},
		{"range start is given", "172.17.0.0/16", "172.17.5.0/24", "", "", nil, "172.17.5.0", ""},
		{"range at the subnet's start", "172.17.0.0/16", "172.17.0.0/24", "", "", nil, "172.17.0.1", ""},
		{"range at the subnet's end", "10.0.0.0/24", "10.0.0.254/31", "", "", []string{"10.0.0.254"}, "", "10.0.0.254/31: no available addresses on this pool"},
		{"no broadcast", "10.0.0.0/30", "", "", "", []string{"10.0.0.1", "10.0.0.2"}, "", "10.0.0.0/30: no available addresses on this pool"},
		{"/31 first", "10.0.0.0/31", "", "", "", nil, "10.0.0.0", ""},
		{"/31 second", "10.0.0.0/31", "", "", "", []string{"10.0.0.0"}, "10.0.0.1", ""},
		{"/32", "10.0.0.7/32", "", "", "", nil, "10.0.0.7", ""},
		{"host bits", "10.0.0.7/24", "", "", "", nil, "10.0.0.1", ""},
		{"IPv6 first", "fd00::/64", "", "", "", nil, "fd00::1", ""},
		{"IPv6 no broadcast", "fd00::/126", "", "", "", []string{"fd00::1", "fd00::2"}, "fd00::3", ""},
		{"IPv6 full", "fd00::/126", "", "", "", []string{"fd00::1", "fd00::2", "fd00::3"}, "", "fd00::/126: no available addresses on this pool"},
		{"IPv6 /127", "fd00::/127", "", "", "", nil, "fd00::", ""},
		{"IPv6 range", "fd00::/64", "fd00::1:0/112", "", "", nil, "fd00::1:0", ""},

		{"next", "10.0.0.0/24", "", "", "10.0.0.9", nil, "10.0.0.9", ""},
		{"next used", "10.0.0.0/24", "", "", "10.0.0.9", []string{"10.0.0.9"}, "10.0.0.10", ""},
		{"next wraps over broadcast and network", "10.0.0.0/24", "", "", "10.0.0.254", []string{"10.0.0.254"}, "10.0.0.1", ""},
		{"next is the broadcast", "10.0.0.0/24", "", "", "10.0.0.255", nil, "10.0.0.1", ""},
		{"next wraps in the range", "10.0.0.0/24", "10.0.0.16/30", "", "10.0.0.19", []string{"10.0.0.19"}, "10.0.0.16", ""},
		{"next before itself only", "10.0.0.0/29", "", "", "10.0.0.3", []string{"10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.1"}, "10.0.0.2", ""},
		{"next outside of the range", "10.0.0.0/24", "10.0.0.16/30", "", "10.0.0.99", nil, "10.0.0.16", ""},
		{"next of another family", "10.0.0.0/24", "", "", "fd00::1", nil, "10.0.0.1", ""},
		{"next at the end of everything", "ffff:ffff:ffff:ffff::/64", "", "", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", []string{"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"}, "ffff:ffff:ffff:ffff::1", ""},

		{"wanted", "10.0.0.0/24", "", "10.0.0.77", "", nil, "10.0.0.77", ""},
		{"wanted v4-mapped", "10.0.0.0/24", "", "::ffff:10.0.0.77", "", nil, "10.0.0.77", ""},
		{"wanted outside of the range", "10.0.0.0/24", "10.0.0.16/30", "10.0.0.77", "", nil, "10.0.0.77", ""},
		{"wanted used", "10.0.0.0/24", "", "10.0.0.77", "", []string{"10.0.0.77"}, "", "address 10.0.0.77: address already in use"},
		{"wanted elsewhere", "10.0.0.0/24", "", "10.0.1.1", "", nil, "", "invalid address 10.0.1.1: parent subnet 10.0.0.0/24 doesn't contain this address"},
		{"wanted family", "10.0.0.0/24", "", "fd00::1", "", nil, "", "invalid address fd00::1: parent subnet is an IPv4 block"},
		{"wanted network", "10.0.0.0/24", "", "10.0.0.0", "", nil, "", "invalid address 10.0.0.0: it is the network address of 10.0.0.0/24"},
		{"wanted broadcast", "10.0.0.0/24", "", "10.0.0.255", "", nil, "", "invalid address 10.0.0.255: it is the broadcast address of 10.0.0.0/24"},
		{"wanted anycast", "fd00::/64", "", "fd00::", "", nil, "", "invalid address fd00::: it is the subnet-router anycast address of fd00::/64"},
		{"wanted zone", "fe80::/64", "", "fe80::1%eth0", "", nil, "", "invalid address fe80::1%eth0: not an address"},

		{"range elsewhere", "10.0.0.0/24", "10.1.0.0/28", "", "", nil, "", "invalid ip-range 10.1.0.0/28: parent subnet 10.0.0.0/24 doesn't contain ip-range"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			used := map[netip.Addr]bool{}
			for _, u := range tt.used {
				used[addr(u)] = true
			}
			var rng netip.Prefix
			if tt.rng != "" {
				rng = pfx(tt.rng)
			}
			got, err := Allocate(pfx(tt.prefix), rng, addr(tt.want), addr(tt.next), func(a netip.Addr) bool { return used[a] })
			if tt.expectErr != "" {
				require.EqualError(t, err, tt.expectErr)
				require.False(t, got.IsValid())
				return
			}
			require.NoError(t, err)
			require.Equal(t, addr(tt.expect), got)
		})
	}
}

func TestAllocateErrors(t *testing.T) {
	free := func(netip.Addr) bool { return false }
	full := func(netip.Addr) bool { return true }
	_, err := Allocate(pfx("10.0.0.0/24"), netip.Prefix{}, addr("10.0.0.1"), netip.Addr{}, full)
	require.ErrorIs(t, err, ErrInUse)
	_, err = Allocate(pfx("10.0.0.0/24"), netip.Prefix{}, netip.Addr{}, netip.Addr{}, full)
	require.ErrorIs(t, err, ErrExhausted)
	_, err = Allocate(netip.Prefix{}, netip.Prefix{}, netip.Addr{}, netip.Addr{}, free)
	require.EqualError(t, err, "no subnet")
	_, err = Allocate(netip.Prefix{}, netip.Prefix{}, addr("10.0.0.1"), netip.Addr{}, free)
	require.EqualError(t, err, "invalid address 10.0.0.1: no subnet")
	start := time.Now()
	_, err = Allocate(pfx("fd00::/64"), netip.Prefix{}, netip.Addr{}, netip.Addr{}, full)
	require.ErrorIs(t, err, ErrExhausted, "the search ends even where addresses do not")
	require.Less(t, time.Since(start), 10*time.Second)
}

// A subnet filled to the last address: each once, and none of the reserved.
func TestAllocateAll(t *testing.T) {
	for _, tt := range []struct {
		prefix string
		n      int
	}{{"10.0.0.0/20", 4094}, {"fd00::/116", 4095}, {"10.0.0.4/31", 2}} {
		for _, rotate := range []bool{false, true} {
			used := map[netip.Addr]bool{}
			var next netip.Addr
			for range tt.n {
				a, err := Allocate(pfx(tt.prefix), netip.Prefix{}, netip.Addr{}, next, func(a netip.Addr) bool { return used[a] })
				require.NoError(t, err)
				require.False(t, used[a])
				require.NoError(t, CheckAddress(a, pfx(tt.prefix)))
				used[a] = true
				if rotate {
					next = a.Next()
				}
			}
			_, err := Allocate(pfx(tt.prefix), netip.Prefix{}, netip.Addr{}, next, func(a netip.Addr) bool { return used[a] })
			require.ErrorIs(t, err, ErrExhausted)
		}
	}
}

func TestGateway(t *testing.T) {
	for _, tt := range []struct{ prefix, rng, want string }{
		{"172.17.0.0/16", "", "172.17.0.1"},
		{"172.17.0.0/16", "172.17.5.0/24", "172.17.5.0"},
		{"fd00::/64", "", "fd00::1"},
		{"10.0.0.8/31", "", "10.0.0.8"},
	} {
		var rng netip.Prefix
		if tt.rng != "" {
			rng = pfx(tt.rng)
		}
		got, err := Gateway(pfx(tt.prefix), rng)
		require.NoError(t, err)
		require.Equal(t, addr(tt.want), got)
	}
}

func TestMACFor(t *testing.T) {
	require.Equal(t, "02:42:ac:11:00:02", MACFor(addr("172.17.0.2")).String())
	require.Equal(t, "02:42:ac:11:00:02", MACFor(addr("::ffff:172.17.0.2")).String())
	six := MACFor(addr("fd00::2"))
	require.Equal(t, six, MACFor(addr("fd00::2")))
	require.NotEqual(t, six, MACFor(addr("fd00::3")))
	require.Len(t, six, 6)
	require.Equal(t, net.HardwareAddr{2, 0x42}, six[:2])
	require.NotPanics(t, func() { MACFor(netip.Addr{}) })
}

func TestLinkLocal(t *testing.T) {
	mac, err := net.ParseMAC("02:42:ac:11:00:02")
	require.NoError(t, err)
	require.Equal(t, addr("fe80::42:acff:fe11:2"), LinkLocal(mac))
	mac, err = net.ParseMAC("34:56:78:9a:bc:de") // RFC 4291 appendix A: the universal bit is inverted
	require.NoError(t, err)
	require.Equal(t, addr("fe80::3656:78ff:fe9a:bcde"), LinkLocal(mac))
	require.False(t, LinkLocal(nil).IsValid())
	require.False(t, LinkLocal(make(net.HardwareAddr, 8)).IsValid())
}

func BenchmarkAllocate(b *testing.B) {
	used := map[netip.Addr]bool{}
	a := addr("fd00::1")
	for range 16_000 {
		used[a] = true
		a = a.Next()
	}
	isUsed := func(a netip.Addr) bool { return used[a] }
	b.Run("first free of 16,000 used", func(b *testing.B) {
		for b.Loop() {
			_, _ = Allocate(pfx("fd00::/64"), netip.Prefix{}, netip.Addr{}, netip.Addr{}, isUsed)
		}
	})
	b.Run("next", func(b *testing.B) {
		for b.Loop() {
			_, _ = Allocate(pfx("fd00::/64"), netip.Prefix{}, netip.Addr{}, a, isUsed)
		}
	})
}
