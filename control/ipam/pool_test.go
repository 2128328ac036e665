// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, pfx(s))
	}
	return out
}

// Docker's networks, one after the other, as its documentation lists them.
func TestDefaultPoolsInOrder(t *testing.T) {
	require.NoError(t, CheckPools(DefaultPools))
	var want []string
	for i := 17; i <= 31; i++ {
		want = append(want, fmt.Sprintf("172.%d.0.0/16", i))
	}
	for i := 0; i < 256; i += 16 {
		want = append(want, fmt.Sprintf("192.168.%d.0/20", i))
	}
	var taken []netip.Prefix
	for _, w := range want {
		p, err := NextNetwork(DefaultPools, taken)
		require.NoError(t, err)
		require.Equal(t, w, p.String())
		taken = append(taken, p)
	}
	_, err := NextNetwork(DefaultPools, taken)
	require.ErrorIs(t, err, ErrNoNetwork)
	require.EqualError(t, err, "all predefined address pools have been fully subnetted")

	p, err := NextNetwork(DefaultPools, slices.Delete(taken, 3, 4))
	require.NoError(t, err)
	require.Equal(t, "172.20.0.0/16", p.String(), "what is given back is given again")
}

func TestNextNetwork(t *testing.T) {
	small := []Pool{{pfx("10.0.0.0/22"), 24}}
	six := []Pool{{pfx("fd00:1::/62"), 64}}
	tests := []struct {
		name  string
		pools []Pool
		taken []netip.Prefix
		want  string // "" is ErrNoNetwork
	}{
		{"nothing taken", DefaultPools, nil, "172.17.0.0/16"},
		{"default routes take nothing", DefaultPools, prefixes("0.0.0.0/0", "::/0"), "172.17.0.0/16"},
		{"a host route in the first", DefaultPools, prefixes("172.17.3.4/32"), "172.18.0.0/16"},
		{"a route over several pools", DefaultPools, prefixes("172.16.0.0/12"), "192.168.0.0/20"},
		{"half of the internet", DefaultPools, prefixes("128.0.0.0/1"), ""},
		{"elsewhere", DefaultPools, prefixes("10.0.0.0/8", "172.16.0.0/16", "fd00::/8"), "172.17.0.0/16"},
		{"host bits are masked", DefaultPools, prefixes("172.17.255.254/16"), "172.18.0.0/16"},
		{"v4-mapped", DefaultPools, prefixes("::ffff:172.17.0.0/112"), "172.18.0.0/16"},
		{"unsorted, nested", small, prefixes("10.0.2.0/24", "10.0.0.0/23", "10.0.0.128/25"), "10.0.3.0/24"},
		{"a gap", small, prefixes("10.0.0.0/24", "10.0.2.0/23"), "10.0.1.0/24"},
		{"full", small, prefixes("10.0.0.0/24", "10.0.1.0/25", "10.0.2.7/32", "10.0.3.255/32"), ""},
		{"next pool", append(slices.Clone(small), Pool{pfx("10.9.0.0/16"), 24}), prefixes("10.0.0.0/8", "10.9.0.0/16"), ""},
		{"second pool", append(slices.Clone(small), Pool{pfx("10.9.0.0/16"), 24}), prefixes("10.0.0.0/16"), "10.9.0.0/24"},
		{"IPv6", six, prefixes("fd00:1::/64", "fd00:1:0:1::5/128", "0.0.0.0/1"), "fd00:1:0:2::/64"},
		{"IPv6 full", six, prefixes("fd00:1::/63", "fd00:1:0:2::/63"), ""},
		{"the last addresses there are", []Pool{{pfx("255.255.255.0/24"), 25}}, prefixes("255.255.255.0/25"), "255.255.255.128/25"},
		{"and no more", []Pool{{pfx("255.255.255.0/24"), 25}}, prefixes("255.255.255.0/24"), ""},
		{"nonsense is passed over", []Pool{{netip.Prefix{}, 24}, {pfx("10.0.0.0/24"), 16}, {pfx("10.0.0.0/24"), 33}, small[0]}, nil, "10.0.0.0/24"},
		{"invalid taken", small, []netip.Prefix{{}}, "10.0.0.0/24"},
		{"huge pool, far along", []Pool{{pfx("fd00::/8"), 64}}, prefixes("fd00::/9"), "fd80::/64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := NextNetwork(tt.pools, tt.taken)
			if tt.want == "" {
				require.ErrorIs(t, err, ErrNoNetwork)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got.String())
		})
	}
}

// The walk against trying every subnet of every pool.
func TestNextNetworkAgainstSlow(t *testing.T) {
	slow := func(pools []Pool, taken []netip.Prefix) (netip.Prefix, error) {
		for _, pool := range pools {
			for a := pool.Base.Addr(); pool.Base.Contains(a); {
				p := netip.PrefixFrom(a, pool.Size)
				if !slices.ContainsFunc(taken, func(t netip.Prefix) bool { return t.Bits() > 0 && t.Overlaps(p) }) {
					return p, nil
				}
				a = lastAddr(p).Next()
			}
		}
		return netip.Prefix{}, ErrNoNetwork
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	addr := func() netip.Addr {
		return netip.AddrFrom4([4]byte{10, byte(rnd.IntN(2)), byte(rnd.IntN(256)), byte(rnd.IntN(256))})
	}
	found := 0
	for range 3000 {
		var pools []Pool
		for range 1 + rnd.IntN(3) {
			bits := 16 + rnd.IntN(9)
			pools = append(pools, Pool{netip.PrefixFrom(addr(), bits).Masked(), bits + rnd.IntN(6)})
		}
		var taken []netip.Prefix
		for range rnd.IntN(40) {
			taken = append(taken, netip.PrefixFrom(addr(), 16+rnd.IntN(17)))
		}
		want, wantErr := slow(pools, taken)
		got, err := NextNetwork(pools, taken)
		require.Equal(t, wantErr, err, "%v %v", pools, taken)
		require.Equal(t, want, got, "%v %v", pools, taken)
		if err == nil {
			found++
		}
	}
	require.Greater(t, found, 500)
	require.Less(t, found, 2900)
}

func TestNextNetworkManyTaken(t *testing.T) {
	pools := []Pool{{pfx("10.0.0.0/8"), 24}}
	var taken []netip.Prefix
	for i := range 1 << 16 {
		taken = append(taken, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24))
	}
	last := taken[len(taken)-1]
	rand.Shuffle(len(taken), func(i, j int) { taken[i], taken[j] = taken[j], taken[i] })
	i := slices.Index(taken, last)
	start := time.Now()
	got, err := NextNetwork(pools, slices.Delete(taken, i, i+1))
	require.NoError(t, err)
	require.Equal(t, last, got)
	require.Less(t, time.Since(start), 2*time.Second, "65,535 networks")
}

func TestCheckPools(t *testing.T) {
	tests := []struct {
		pool Pool
		want string
	}{
		{Pool{pfx("10.0.0.0/8"), 24}, ""},
		{Pool{pfx("10.0.0.0/8"), 8}, ""},
		{Pool{pfx("fd00::/8"), 64}, ""},
		{Pool{netip.Prefix{}, 24}, "invalid address pool: no base"},
		{Pool{pfx("10.0.0.0/16"), 15}, "invalid address pool 10.0.0.0/16: size 15: it should be 16 to 32"},
		{Pool{pfx("10.0.0.0/16"), 33}, "invalid address pool 10.0.0.0/16: size 33: it should be 16 to 32"},
		{Pool{pfx("10.0.0.0/16"), 32}, "invalid address pool 10.0.0.0/16: size 32: no room for a gateway and a container: /31 at most"},
		{Pool{pfx("10.0.0.1/16"), 24}, "invalid address pool 10.0.0.1/16: invalid subnet 10.0.0.1/16: it should be 10.0.0.0/16"},
		{Pool{pfx("127.0.0.0/8"), 24}, "invalid address pool 127.0.0.0/8: invalid subnet 127.0.0.0/8: it has loopback addresses"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.pool), func(t *testing.T) {
			err := CheckPools([]Pool{DefaultPools[0], tt.pool})
			if tt.want == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, tt.want)
		})
	}
}

func TestOverlapping(t *testing.T) {
	taken := prefixes("0.0.0.0/0", "10.1.0.0/16", "fd00:1::/64")
	for _, tt := range []struct{ p, want string }{
		{"10.1.2.0/24", "10.1.0.0/16"},
		{"10.0.0.0/8", "10.1.0.0/16"},
		{"10.2.0.0/16", ""},
		{"fd00::/16", "fd00:1::/64"},
		{"fd00:2::/64", ""},
	} {
		got, ok := Overlapping(pfx(tt.p), taken)
		require.Equal(t, tt.want != "", ok, tt.p)
		if ok {
			require.Equal(t, tt.want, got.String())
		}
	}
}

func TestULA(t *testing.T) {
	sum := sha256.Sum256([]byte("host"))
	want := fmt.Sprintf("fd%02x:%02x%02x:%02x%02x", sum[0], sum[1], sum[2], sum[3], sum[4])
	p := ULA([]byte("host"), 7)
	require.Equal(t, 64, p.Bits())
	require.Equal(t, p, p.Masked())
	require.Equal(t, pfx(want+":7::/64"), p)
	require.NotEqual(t, ULA([]byte("other"), 7), p)
	require.Equal(t, pfx(want+"::/64"), ULA([]byte("host"), 0))
	require.Equal(t, pfx(want+":ffff::/64"), ULA([]byte("host"), 65535))
	require.Equal(t, ULA([]byte("host"), 1), ULA([]byte("host"), 65537), "the low 16 bits")
	require.True(t, pfx("fd00::/8").Overlaps(p))
	require.NoError(t, CheckSubnet(p))
}
