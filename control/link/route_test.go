// SPDX-License-Identifier: Apache-2.0

package link

import (
	"net/netip"
	"testing"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

type routeHost struct {
	t    *testing.T
	h    *netlink.Handle
	list []Route
}

func (r *routeHost) add(dst string, change func(*netlink.Route)) {
	r.t.Helper()
	p := netip.MustParsePrefix(dst)
	route := &netlink.Route{Dst: ipNet(p), Family: family(p.Addr())}
	change(route)
	require.NoError(r.t, r.h.RouteAdd(route), dst)
}

func (r *routeHost) find(dst string) (Route, bool) {
	r.t.Helper()
	for _, one := range r.list {
		if one.Dst == netip.MustParsePrefix(dst) {
			return one, true
		}
	}
	return Route{}, false
}

func (r *routeHost) require(dst string, want ...Hop) {
	r.t.Helper()
	got, ok := r.find(dst)
	require.True(r.t, ok, dst)
	require.Equal(r.t, want, got.Hops)
}

func policyOf(t *testing.T, ns *netns.NS, family int) *Policy {
	t.Helper()
	p, err := ReadPolicies(ns)
	require.NoError(t, err)
	return map[int]*Policy{netlink.FAMILY_V4: p.V4, netlink.FAMILY_V6: p.V6}[family]
}

// usual are the routes of a host without rules of its own.
func usual(t *testing.T, ns *netns.NS, family int) []Route {
	t.Helper()
	p := policyOf(t, ns, family)
	require.True(t, p.Usual())
	return p.Routes(p.UsualWay())
}

func TestRoutesIPv4(t *testing.T) {
	ns, h := newNS(t)
	r := &routeHost{t: t, h: h}
	require.NoError(t, h.LinkSetUp(getLink(t, h, "lo")))
	eth0 := uplink(t, h, "eth0", "192.0.2.1/24", "192.0.2.5/24", "10.1.0.1/16").Attrs().Index
	eth1 := uplink(t, h, "eth1", "198.51.100.1/24").Attrs().Index
	require.NoError(t, h.LinkSetMTU(getLink(t, h, "eth1"), 1400))
	down := uplink(t, h, "eth2", "203.0.113.1/24")
	bare := uplink(t, h, "eth3").Attrs().Index
	gw := func(ifindex int, gw string) func(*netlink.Route) {
		return func(r *netlink.Route) { r.LinkIndex, r.Gw = ifindex, netip.MustParseAddr(gw).AsSlice() }
	}
	on := func(ifindex int) func(*netlink.Route) {
		return func(r *netlink.Route) { r.LinkIndex, r.Scope = ifindex, netlink.SCOPE_LINK }
	}

	r.add("0.0.0.0/0", gw(eth0, "192.0.2.254"))
	r.add("0.0.0.0/0", func(r *netlink.Route) { gw(eth1, "198.51.100.254")(r); r.Priority = 50 })
	r.add("10.2.0.0/16", func(r *netlink.Route) { gw(eth0, "10.1.0.254")(r); r.MTU = 1300 })
	r.add("10.3.0.0/16", func(r *netlink.Route) {
		gw(eth0, "192.0.2.254")(r)
		r.Src = netip.MustParseAddr("192.0.2.5").AsSlice()
	})
	r.add("10.4.0.0/16", func(r *netlink.Route) { gw(eth0, "192.0.2.254")(r); r.Priority = 200 })
	r.add("10.4.0.0/16", func(r *netlink.Route) { gw(eth1, "198.51.100.254")(r); r.Priority = 100 })
	r.add("10.5.0.0/16", func(r *netlink.Route) {
		r.MultiPath = []*netlink.NexthopInfo{
			{LinkIndex: eth1, Gw: netip.MustParseAddr("198.51.100.9").AsSlice()},
			{LinkIndex: eth0, Gw: netip.MustParseAddr("192.0.2.9").AsSlice()}}
	})
	r.add("10.6.0.0/16", on(eth1))
	r.add("10.7.0.0/16", on(bare))
	r.add("10.66.0.0/16", func(r *netlink.Route) { r.Type = unix.RTN_BLACKHOLE })
	r.add("10.67.0.0/16", func(r *netlink.Route) { r.Type = unix.RTN_UNREACHABLE })
	r.add("10.68.0.0/16", on(1))
	r.add("10.69.0.0/16", func(r *netlink.Route) { on(eth0)(r); r.Table = 77 })
	r.add("10.70.0.0/16", on(down.Attrs().Index))
	require.NoError(t, h.LinkSetDown(getLink(t, h, "peer-eth2"))) // no carrier
	setSysctl(t, ns, "ipv4/conf/eth2/ignore_routes_with_linkdown", "1")
	require.Eventually(t, func() bool {
		return getLink(t, h, "eth2").Attrs().OperState != netlink.OperUp
	}, 5*time.Second, time.Millisecond)

	r.list = usual(t, ns, netlink.FAMILY_V4)
	a := netip.MustParseAddr
	r.require("0.0.0.0/0", Hop{Ifindex: eth0, Gateway: a("192.0.2.254"), Source: a("192.0.2.1"), MTU: 1500})
	r.require("192.0.2.0/24", Hop{Ifindex: eth0, Source: a("192.0.2.1"), MTU: 1500})
	r.require("10.1.0.0/16", Hop{Ifindex: eth0, Source: a("10.1.0.1"), MTU: 1500})
	r.require("198.51.100.0/24", Hop{Ifindex: eth1, Source: a("198.51.100.1"), MTU: 1400})
	r.require("10.2.0.0/16", Hop{Ifindex: eth0, Gateway: a("10.1.0.254"), Source: a("10.1.0.1"), MTU: 1300})
	r.require("10.3.0.0/16", Hop{Ifindex: eth0, Gateway: a("192.0.2.254"), Source: a("192.0.2.5"), MTU: 1500})
	r.require("10.4.0.0/16", Hop{Ifindex: eth1, Gateway: a("198.51.100.254"), Source: a("198.51.100.1"), MTU: 1400})
	r.require("10.5.0.0/16", Hop{Ifindex: eth1, Gateway: a("198.51.100.9"), Source: a("198.51.100.1"), MTU: 1400},
		Hop{Ifindex: eth0, Gateway: a("192.0.2.9"), Source: a("192.0.2.1"), MTU: 1500})
	for _, nowhere := range []string{"10.66.0.0/16", "10.67.0.0/16", "10.68.0.0/16"} {
		r.require(nowhere)
	}
	for _, broadcast := range []string{"10.1.255.255/32", "127.255.255.255/32", "192.0.2.255/32", "198.51.100.255/32", "203.0.113.255/32"} {
		r.require(broadcast)
	}
	r.require("10.6.0.0/16", Hop{Ifindex: eth1, Source: a("198.51.100.1"), MTU: 1400})
	// A device without an address borrows one, as the kernel does.
	got, ok := r.find("10.7.0.0/16")
	require.True(t, ok)
	require.Equal(t, bare, got.Hops[0].Ifindex)
	require.Len(t, r.list, 18, "%v", r.list)

	// What the kernel itself chooses, for an address in each prefix.
	for _, one := range r.list {
		dst := one.Dst.Addr().Next().Next()
		if len(one.Hops) != 1 {
			continue // nowhere, or one of two, by a hash
		}
		if one.Dst.Bits() == 0 {
			dst = a("8.8.8.8")
		}
		got, err := h.RouteGet(dst.AsSlice())
		require.NoError(t, err)
		require.Equal(t, got[0].Src.String(), one.Hops[0].Source.String(), one.Dst.String())
		require.Equal(t, got[0].LinkIndex, one.Hops[0].Ifindex, one.Dst.String())
	}

	setSysctl(t, ns, "ipv4/conf/eth2/ignore_routes_with_linkdown", "0")
	require.Len(t, usual(t, ns, netlink.FAMILY_V4), 20, "a route without carrier counts, as for the kernel")

	existing, err := ExistingRoutes(ns)
	require.NoError(t, err)
	for _, p := range prefixes("10.66.0.0/16", "10.69.0.0/16", "10.70.0.0/16", "203.0.113.0/24") {
		require.Contains(t, existing, p)
	}
}

func TestRoutesIPv6(t *testing.T) {
	ns, h := newNS(t)
	r := &routeHost{t: t, h: h}
	eth0 := uplink(t, h, "eth0", "2001:db8:1::1/64", "fd00:1::1/64").Attrs().Index
	eth1 := uplink(t, h, "eth1", "fd00:2::1/64").Attrs().Index
	gw := func(ifindex int, gw string) func(*netlink.Route) {
		return func(r *netlink.Route) { r.LinkIndex, r.Gw = ifindex, netip.MustParseAddr(gw).AsSlice() }
	}
	r.add("::/0", gw(eth0, "fe80::1"))
	r.add("fd00:3::/48", gw(eth0, "fe80::2"))
	r.add("2001:db8:9::/48", func(r *netlink.Route) { gw(eth1, "fd00:2::9")(r); r.MTU = 1280 })
	r.add("2001:db8:a::/48", func(r *netlink.Route) {
		gw(eth0, "fe80::3")(r)
		r.Src = netip.MustParseAddr("fd00:1::1").AsSlice()
	})
	r.add("2001:db8:b::/48", func(r *netlink.Route) {
		r.MultiPath = []*netlink.NexthopInfo{
			{LinkIndex: eth1, Gw: netip.MustParseAddr("fd00:2::9").AsSlice()},
			{LinkIndex: eth0, Gw: netip.MustParseAddr("fe80::9").AsSlice()}}
	})
	r.add("2001:db8:66::/48", func(r *netlink.Route) { r.Type = unix.RTN_UNREACHABLE })

	r.list = usual(t, ns, netlink.FAMILY_V6)
	a := netip.MustParseAddr
	r.require("::/0", Hop{Ifindex: eth0, Gateway: a("fe80::1"), Source: a("2001:db8:1::1"), MTU: 1500})
	r.require("2001:db8:1::/64", Hop{Ifindex: eth0, Source: a("2001:db8:1::1"), MTU: 1500})
	r.require("fd00:1::/64", Hop{Ifindex: eth0, Source: a("fd00:1::1"), MTU: 1500})
	r.require("fd00:3::/48", Hop{Ifindex: eth0, Gateway: a("fe80::2"), Source: a("fd00:1::1"), MTU: 1500})
	r.require("2001:db8:9::/48", Hop{Ifindex: eth1, Gateway: a("fd00:2::9"), Source: a("fd00:2::1"), MTU: 1280})
	r.require("2001:db8:a::/48", Hop{Ifindex: eth0, Gateway: a("fe80::3"), Source: a("fd00:1::1"), MTU: 1500})
	got, ok := r.find("2001:db8:b::/48")
	require.True(t, ok)
	require.ElementsMatch(t, []Hop{{Ifindex: eth1, Gateway: a("fd00:2::9"), Source: a("fd00:2::1"), MTU: 1500},
		{Ifindex: eth0, Gateway: a("fe80::9"), Source: a("2001:db8:1::1"), MTU: 1500}}, got.Hops)
	r.require("2001:db8:66::/48")
	for _, p := range []string{"fe80::/64", "ff00::/8"} {
		_, ok := r.find(p)
		require.False(t, ok, p)
	}
}

// Many routes over few gateways: the kernel is asked once per gateway.
func TestRoutesMany(t *testing.T) {
	ns, h := newNS(t)
	r := &routeHost{t: t, h: h}
	eth0 := uplink(t, h, "eth0", "192.0.2.1/24").Attrs().Index
	for i := range 2000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i), 0}), 24)
		r.add(p.String(), func(r *netlink.Route) {
			r.LinkIndex, r.Gw = eth0, netip.AddrFrom4([4]byte{192, 0, 2, 2}).AsSlice()
		})
	}
	list := usual(t, ns, netlink.FAMILY_V4)
	require.Len(t, list, 2002)
	for i, one := range list {
		require.True(t, one.Dst.String() == "192.0.2.255/32" || one.Hops[0].Source.String() == "192.0.2.1")
		require.True(t, i == 0 || ComparePrefix(list[i-1].Dst, one.Dst) < 0, "sorted")
	}
}
