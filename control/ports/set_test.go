// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func set(t *testing.T, text string) Set {
	t.Helper()
	s, err := ParseSet(text)
	require.NoError(t, err)
	return s
}

func TestSetText(t *testing.T) {
	tests := []struct {
		in, out string
		n       int
	}{
		{"", "", 0},
		{"\n", "", 0},
		{"1-5,7\n", "1-5,7", 6},
		{"7,1-5,3", "1-5,7", 6},
		{"1,2,3", "1-3", 3},
		{"0", "0", 1},
		{"65535", "65535", 1},
		{"0-65535", "0-65535", 65536},
		{"63,64", "63-64", 2},
		{"62-65,127,128,192", "62-65,127-128,192", 7},
		{"32768-60999", "32768-60999", 28232},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			s := set(t, tt.in)
			require.Equal(t, tt.out, s.String())
			require.Equal(t, tt.n, s.Len())
			require.Equal(t, s, set(t, s.String()))
		})
	}
	for _, bad := range []string{"x", "1-", "-1", "1-2-3", "2-1", "65536", "1-65536", "1,,2", "1;2", "1, 2", "1\n2"} {
		s, err := ParseSet(bad)
		require.ErrorContains(t, err, "invalid port range", bad)
		require.Equal(t, Set{}, s)
	}
}

func TestSetJSON(t *testing.T) {
	type record struct {
		Reserved Set `json:"reserved"`
	}
	in := record{set(t, "1-5,7")}
	b, err := json.Marshal(in)
	require.NoError(t, err)
	require.JSONEq(t, `{"reserved":"1-5,7"}`, string(b))
	var out record
	require.NoError(t, json.Unmarshal(b, &out))
	require.Equal(t, in, out)
	require.Error(t, json.Unmarshal([]byte(`{"reserved":"70000"}`), &out))
}

// The bitmap against a map, and all operations with it.
func TestSetAgainstMap(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	random := func() (s Set, m map[uint16]bool) {
		m = map[uint16]bool{}
		for range rnd.IntN(30) {
			first := rnd.IntN(65536)
			r := Range{uint16(first), uint16(min(65535, first+rnd.IntN(300)))}
			s.AddRange(r)
			for p := int(r.First); p <= int(r.Last); p++ {
				m[uint16(p)] = true
			}
		}
		for range rnd.IntN(30) {
			p := uint16(rnd.IntN(65536))
			s.Remove(p)
			delete(m, p)
		}
		return s, m
	}
	for range 50 {
		a, ma := random()
		b, mb := random()
		union, minus, both := a.Union(&b), a.Minus(&b), a.Intersect(&b)
		for i := range 65536 {
			p := uint16(i)
			if ma[p] != a.Has(p) || (ma[p] || mb[p]) != union.Has(p) || (ma[p] && !mb[p]) != minus.Has(p) || (ma[p] && mb[p]) != both.Has(p) {
				t.Fatalf("port %d of %s and %s", p, a, b)
			}
		}
		require.Equal(t, len(ma), a.Len())
		require.Len(t, slices.Collect(a.All()), len(ma))
		require.True(t, slices.IsSorted(slices.Collect(a.All())))
		require.Equal(t, a, set(t, a.String()))
		for _, chunk := range a.chunks(40) {
			require.LessOrEqual(t, len(chunk), 40)
		}
		joined := ""
		for _, chunk := range a.chunks(40) {
			joined += "," + strings.TrimSpace(string(chunk))
		}
		require.Equal(t, a, set(t, strings.Trim(joined, ",")))
	}
	all := Set{}
	all.AddRange(Range{0, 65535})
	for r := range all.Ranges() {
		require.Equal(t, Range{0, 65535}, r)
	}
	for range all.All() {
		break
	}
	for range all.Ranges() {
		break
	}
}

func TestRange(t *testing.T) {
	require.Equal(t, 28232, Range{32768, 60999}.Len())
	require.Equal(t, 65536, Range{0, 65535}.Len())
	require.Equal(t, 0, Range{5, 4}.Len())
	require.True(t, Range{5, 6}.Contains(6))
	require.False(t, Range{5, 6}.Contains(7))
	require.Equal(t, "5-6", Range{5, 6}.String())
	require.Equal(t, "5", Range{5, 5}.String())
}

func TestReserve(t *testing.T) {
	eph := Range{100, 119} // twenty: ten at most
	tests := []struct {
		name                string
		want, mine, current string
		next, mineNext      string
		complete            bool
	}{
		{"nothing", "", "", "", "", "", true},
		{"one", "105", "", "", "105", "105", true},
		{"outside of the range", "80,105,8080", "", "", "105", "105", true},
		{"others stay", "105", "", "7,110,9000", "7,105,110,9000", "105", true},
		{"another's is not ours", "105-106", "", "105", "105-106", "106", true},
		{"and stays when unpublished", "", "106", "105-106", "105", "", true},
		{"unpublished", "101", "101-103", "101-103,500", "101,500", "101", true},
		{"lost by somebody's write", "101-103", "101-103", "500", "101-103,500", "101-103", true},
		{"ours outside of a changed range", "300", "300", "300", "", "", true},
		{"half", "100-109", "", "", "100-109", "100-109", true},
		{"more than half", "100-110", "", "", "100-109", "100-109", false},
		{"ours first", "100-112", "112", "112", "100-108,112", "100-108,112", false},
		{"others count", "100-109", "", "115-119", "100-104,115-119", "100-104", false},
		{"others have half", "100", "", "110-119", "110-119", "", false},
		{"others have more", "100", "", "105-119", "105-119", "", false},
		{"others have all", "105", "", "100-119", "100-119", "", true},
		{"shrinks when others come", "100-107", "100-107", "100-107,112-119", "100-101,112-119", "100-101", false},
		{"others outside do not count", "100-109", "", "1-99", "1-109", "100-109", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			next, mine, complete := Reserve(set(t, tt.want), set(t, tt.mine), set(t, tt.current), eph)
			require.Equal(t, tt.next, next.String())
			require.Equal(t, tt.mineNext, mine.String())
			require.Equal(t, tt.complete, complete)
			next2, mine2, complete2 := Reserve(set(t, tt.want), mine, next, eph)
			require.Equal(t, next, next2, "again changes nothing")
			require.Equal(t, mine, mine2)
			require.Equal(t, complete, complete2)
		})
	}
	// Small and odd ranges leave the host something, always.
	for n := range 6 {
		var want Set
		want.AddRange(Range{1000, 1010})
		next, mine, _ := Reserve(want, Set{}, Set{}, Range{1000, uint16(1000 + n)})
		require.Equal(t, (n+1)/2, mine.Len())
		require.Equal(t, mine, next)
	}
}
