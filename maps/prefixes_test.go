// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSpread(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for _, s := range []string{"::/0", "::/1", "::/64", "::/80", "::ff00:0:0/88", "::/96", "::fffe:0:0/95", "2000::/3", "fd00::/8", "0.0.0.0/0", "10.0.0.0/8"} {
		whole := prefix(s)
		parts := spread(whole)
		require.Equal(t, []netip.Prefix{whole}, gather(parts), s)
		for range 1000 {
			raw := whole.Addr().As16()
			for i := rng.IntN(16); i < 16; i++ {
				raw[i] = byte(rng.Uint32())
			}
			a := netip.AddrFrom16(raw)
			if whole.Addr().Is4() {
				a = a.Unmap()
			}
			want := whole.Contains(a) && (whole.Addr().Is4() || !a.Is4In6())
			got := slices.ContainsFunc(parts, func(p netip.Prefix) bool { return p.Contains(a) })
			require.Equal(t, want, got, "%s in %s", a, s)
		}
	}
	require.Len(t, spread(prefix("::/0")), 96)
	require.Equal(t, []netip.Prefix{prefix("10.0.0.0/8"), prefix("::/0")}, gather(append(spread(prefix("::/0")), prefix("10.0.0.0/8"))))
}
