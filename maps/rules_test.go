// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net/netip"
	"testing"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/stretchr/testify/require"
)

func TestPublication(t *testing.T) {
	r := newTables(t).Rules
	const num = FirstRule + 7
	gen := func() uint32 {
		g, err := r.Gen(num)
		require.NoError(t, err)
		return g
	}
	check := func(p Publication) {
		t.Helper()
		require.NoError(t, r.SetPublication(num, p))
		got, ok, err := r.Publication(num)
		require.NoError(t, err)
		require.True(t, ok)
		require.Equal(t, p, got)
	}
	p := Publication{Endpoint4: 3, Endpoint6: 4, HostPort: 8080, Port: 80}
	check(p)
	require.EqualValues(t, 1, gen())
	check(p)
	require.EqualValues(t, 1, gen(), "the same again is a change")
	p.Endpoint6 = 0
	check(p)
	p.Endpoint6 = 6
	check(p)
	p.Endpoint6 = 0
	check(p)
	require.EqualValues(t, 1, gen(), "a family that comes or goes ends no flow of the other")
	p.Endpoint4 = 9
	check(p)
	require.EqualValues(t, 2, gen(), "another server")

	p.Sources = []netip.Prefix{prefix("203.0.113.0/24"), prefix("2001:db8::/32")}
	check(p)
	require.EqualValues(t, 3, gen())
	other := Publication{Endpoint4: 5, HostPort: 1, Port: 1, Sources: p.Sources}
	require.NoError(t, r.SetPublication(num+1, other))
	check(p)
	require.EqualValues(t, 3, gen())
	p.Sources, p.Endpoint6 = p.Sources[1:], 7
	check(p)
	require.EqualValues(t, 4, gen(), "who lost the right keeps the connection")
	p.Sources = nil
	check(p)
	require.EqualValues(t, 5, gen())
	p.Held = true
	check(p)
	p.Held = false
	check(p)
	n, err := r.sources.count()
	require.NoError(t, err)
	require.Equal(t, 2, n)

	require.NoError(t, r.SetLink(num+2))
	require.NoError(t, r.LinkChanged(num+2))
	changed, err := r.Gen(num + 2)
	require.NoError(t, err)
	require.EqualValues(t, 2, changed)
	publications, links, err := r.List()
	require.NoError(t, err)
	require.Equal(t, []uint32{num, num + 1}, publications)
	require.Equal(t, []uint32{num + 2}, links)

	require.NoError(t, r.Clear(num))
	require.NoError(t, r.Clear(num))
	require.EqualValues(t, 6, gen())
	_, ok, err := r.Publication(num)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, r.Clear(num+1))
	n, err = r.sources.count()
	require.NoError(t, err)
	require.Zero(t, n)

	require.Error(t, r.SetPublication(FirstRule-1, p), "a network's number")
	require.Error(t, r.SetLink(MaxRules))
	require.Error(t, r.SetPublication(num, Publication{Sources: []netip.Prefix{{}}}))
}

// from=::/0 is everybody by IPv6, and nobody by IPv4.
func TestPublicationForIPv6(t *testing.T) {
	r := newTables(t).Rules
	p := Publication{Endpoint4: 1, HostPort: 80, Port: 80, Sources: []netip.Prefix{prefix("::/0")}}
	require.NoError(t, r.SetPublication(FirstRule, p))
	got, _, err := r.Publication(FirstRule)
	require.NoError(t, err)
	require.Equal(t, p, got)
	allowed := func(a string) bool {
		_, ok, err := r.sources.get(loader.BPFSourceKey{Prefixlen: 32 + 128, Rule: FirstRule, Addr: toAddr(ip(a))})
		require.NoError(t, err)
		return ok
	}
	require.True(t, allowed("2001:db8::1"))
	require.True(t, allowed("::1"))
	require.False(t, allowed("192.0.2.1"))
}

func TestLinks(t *testing.T) {
	l := newTables(t).Links
	k := Link{Client: 1, Server: 2, Proto: TCP, Port: 80}
	know := Link{Client: 1, Server: 2}
	require.NoError(t, l.Set(k, FirstRule))
	require.NoError(t, l.Set(know, FirstRule))
	list, err := l.List()
	require.NoError(t, err)
	require.Equal(t, map[Link]uint32{k: FirstRule, know: FirstRule}, list)
	require.NoError(t, l.Delete(k))
	require.NoError(t, l.Delete(k))
	list, err = l.List()
	require.NoError(t, err)
	require.Equal(t, map[Link]uint32{know: FirstRule}, list)
}

func TestDevices(t *testing.T) {
	d := newTables(t).Devices
	require.NoError(t, d.SetEndpoint(70000, 3))
	require.NoError(t, d.SetBridge(5, 4))
	require.Error(t, d.SetBridge(0, 4))
	list, err := d.List()
	require.NoError(t, err)
	require.Equal(t, map[int]Device{70000: {Endpoint: 3}, 5: {Network: 4}}, list)
	require.NoError(t, d.Delete(5))
	require.NoError(t, d.Delete(5))
}

func TestHostAddresses(t *testing.T) {
	h := newTables(t).HostAddresses
	replace := func(changed int, want map[netip.Addr]int) {
		t.Helper()
		n, err := h.Replace(want, nil)
		require.NoError(t, err)
		require.Equal(t, changed, n)
		have, err := h.List()
		require.NoError(t, err)
		require.Equal(t, want, have)
	}
	one := map[netip.Addr]int{ip("127.0.0.1"): 1, ip("::1"): 1, ip("192.0.2.1"): 2, ip("fe80::1"): 2}
	replace(4, one)
	replace(0, one)
	replace(3, map[netip.Addr]int{ip("127.0.0.1"): 1, ip("::1"): 1, ip("192.0.2.1"): 3, ip("192.0.2.2"): 3})
	replace(4, map[netip.Addr]int{})
	for _, bad := range []map[netip.Addr]int{{{}: 1}, {ip("0.0.0.0"): 1}, {ip("10.0.0.1"): 0}} {
		_, err := h.Replace(bad, nil)
		require.Error(t, err)
	}
}

func TestRoutes(t *testing.T) {
	r := newTables(t).Routes
	replaced := func(routes ...Route) int {
		t.Helper()
		n, err := r.Replace(routes, nil)
		require.NoError(t, err)
		return n
	}
	listed := func(routes ...Route) {
		t.Helper()
		list, err := r.List()
		require.NoError(t, err)
		require.Equal(t, routes, list)
	}
	def := Route{Prefix: prefix("0.0.0.0/0"), Hops: []Hop{{Ifindex: 2, MTU: 1500, NextHop: ip("192.0.2.254"), Source: ip("192.0.2.1")}}}
	def6 := Route{Prefix: prefix("::/0"), Hops: []Hop{{Ifindex: 2, MTU: 1500, NextHop: ip("fe80::1"), Source: ip("2001:db8::1")}}}
	lan := Route{Prefix: prefix("192.0.2.0/24"), Hops: []Hop{{Ifindex: 3, MTU: 9000, Source: ip("192.0.2.1")}}}
	require.Equal(t, 2+96, replaced(def, def6, lan))
	listed(def, lan, def6)
	lookup := func(number uint32, a string, want ...Hop) {
		t.Helper()
		got, ok, err := r.Lookup(number, ip(a))
		require.NoError(t, err)
		require.Equal(t, len(want) > 0, ok)
		require.Equal(t, want, got)
	}
	lookup(0, "192.0.2.7", lan.Hops...)
	lookup(0, "198.51.100.7", def.Hops...)
	lookup(0, "2001:db8::7", def6.Hops...)
	lan.Hops = []Hop{{Ifindex: 3, MTU: 1400, Source: ip("192.0.2.1")}}
	require.Equal(t, 2, replaced(def6, lan))
	lookup(0, "192.0.2.7", lan.Hops...)
	lookup(0, "198.51.100.7") // the IPv6 default route is none of IPv4's
	lookup(0, "2001:db8::7", def6.Hops...)
	require.Zero(t, replaced(def6, lan))
	listed(lan, def6)

	six := Route{Prefix: prefix("2000::/3"), Hops: []Hop{{Ifindex: 9, MTU: 1500}}}
	replaced(six, def6)
	lookup(0, "2001:db8::7", six.Hops...)
	lookup(0, "fd00::7", def6.Hops...)
	replaced(def6)
	lookup(0, "2001:db8::7", def6.Hops...)

	for _, bad := range [][]Route{
		{{Prefix: prefix("0.0.0.0/0"), Hops: []Hop{{MTU: 1500}}}}, {def, def}, {{Hops: def.Hops}},
		{{Prefix: prefix("0.0.0.0/0"), Hops: []Hop{{Ifindex: 1}}}}, {{Table: HopTables, Prefix: prefix("0.0.0.0/0")}},
		{{Prefix: prefix("0.0.0.0/0"), Hops: make([]Hop, MaxHops+1)}},
	} {
		_, err := r.Replace(bad, nil)
		require.Error(t, err)
	}

	// A prefix without a way hides the shorter ones; tables do not see each other.
	hole, other := Route{Prefix: prefix("10.0.0.0/8")}, Route{Table: 7, Prefix: prefix("0.0.0.0/0"), Hops: lan.Hops}
	replaced(def, hole, other)
	listed(def, hole, other)
	lookup(0, "10.1.2.3")
	lookup(7, "10.1.2.3", lan.Hops...)
	lookup(8, "10.1.2.3")

	// Several hops: those of equal routes are kept once, and change as one.
	both := []Hop{def.Hops[0], lan.Hops[0]}
	many := []Route{{Prefix: def.Prefix, Hops: both}, {Prefix: hole.Prefix, Hops: both}, {Table: 7, Prefix: def.Prefix, Hops: both}}
	replaced(many...)
	listed(many...)
	lookup(7, "192.0.2.1", both...)
	n, err := r.table.count()
	require.NoError(t, err)
	require.Equal(t, 3+2, n)
	require.Zero(t, replaced(many...))
	// Longer and shorter lists that begin alike are told apart.
	many[1].Hops = append(both, both[0])
	replaced(many...)
	listed(many...)
	called := false
	n, err = r.Replace(nil, func() error { called = true; return nil })
	require.NoError(t, err)
	require.Equal(t, 3+2+3, n)
	require.True(t, called)
	require.NoError(t, r.SetTable(3, 7))
	require.NoError(t, r.SetTable(4, 0))
	require.Error(t, r.SetTable(0, 7))
	used, err := r.Tables()
	require.NoError(t, err)
	require.Equal(t, map[uint32]uint32{3: 7}, used)
}
