// SPDX-License-Identifier: Apache-2.0

package link

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// A host with two uplinks, a bridge of ours with a veth, and a tun without Ethernet header.
//
//	        ┌───────────── host ─────────────┐
//	x ──────┤ eth0 192.0.2.1/24, 2001:db8::1 │
//	y ──────┤ eth1 198.51.100.1/24           │
//	        │ tun0 10.9.9.1 peer 10.9.9.2    │
//	        │ bpfnet0 172.17.0.1/16 ─ veth1  │
//	        └────────────────────────────────┘
func TestUplinksAndAddrs(t *testing.T) {
	host, h, bridge := bridgeHost(t)
	cont, _ := newNS(t)
	_, err := CreateVeth(host, cont, testVeth(t))
	require.NoError(t, err)
	uplink(t, h, "eth0", "192.0.2.1/24", "2001:db8::1/64")
	uplink(t, h, "eth1", "198.51.100.1/24")
	tun := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "tun0"}, Mode: netlink.TUNTAP_MODE_TUN}
	require.NoError(t, host.Do(func() error { return h.LinkAdd(tun) }))
	addr, err := netlink.ParseAddr("10.9.9.1/32")
	require.NoError(t, err)
	addr.Peer = ipNet(netip.MustParsePrefix("10.9.9.2/32"))
	tunLink := getLink(t, h, "tun0")
	require.NoError(t, h.AddrAdd(tunLink, addr))
	require.NoError(t, h.LinkSetUp(getLink(t, h, "lo")))

	ours := func(l netlink.Link) bool { return l.Attrs().Index == bridge || l.Attrs().MasterIndex == bridge }
	list := func(only ...string) (found []string) {
		links, err := Uplinks(host, only, ours)
		require.NoError(t, err)
		for _, l := range links {
			found = append(found, l.Name)
			require.Equal(t, l.Name != "tun0", l.Ethernet, l.Name)
			require.Equal(t, getLink(t, h, l.Name).Attrs().Index, l.Index)
		}
		return found
	}
	require.Equal(t, []string{"peer-eth0", "eth0", "peer-eth1", "eth1", "tun0"}, list())
	require.Equal(t, []string{"eth1", "tun0"}, list("tun0", "eth1", "later0", "lo", "bpfnet0"))
	all, err := Uplinks(host, nil, nil)
	require.NoError(t, err)
	require.Len(t, all, 6, "without its claim the bridge is an uplink, and its veth a port")

	have, err := HostAddrs(host)
	require.NoError(t, err)
	found := make(map[netip.Addr]Addr)
	for _, a := range have {
		found[a.Addr] = a
	}
	require.Equal(t, bridge, found[netip.MustParseAddr("172.17.0.1")].Ifindex)
	require.Equal(t, 16, found[netip.MustParseAddr("172.17.0.1")].Bits)
	require.Equal(t, tunLink.Attrs().Index, found[netip.MustParseAddr("10.9.9.1")].Ifindex)
	for _, a := range []string{"127.0.0.1", "::1", "192.0.2.1", "2001:db8::1", "198.51.100.1", "fd00:1::1", "fe80::42:acff:fe11:1"} {
		require.Contains(t, found, netip.MustParseAddr(a))
		require.False(t, found[netip.MustParseAddr(a)].Dynamic, a)
	}

	existing, err := ExistingRoutes(host)
	require.NoError(t, err)
	for _, p := range prefixes("127.0.0.0/8", "10.9.9.1/32", "10.9.9.2/32", "172.17.0.0/16", "192.0.2.0/24",
		"198.51.100.0/24", "fd00:1::/64", "2001:db8::/64", "::1/128") {
		require.Contains(t, existing, p)
	}
	seen := make(map[netip.Prefix]bool)
	for _, p := range existing {
		require.False(t, seen[p], "%s twice", p)
		seen[p] = true
		require.NotZero(t, p.Bits())
		require.Equal(t, p.Masked(), p)
		require.False(t, p.Addr().IsMulticast(), p.String())
	}
}

// A bridge of somebody else's is an uplink, its ports are not; the ports of one of ours are.
//
//	eth0 ─┐          eth1 ─┐
//	      br0 (other)      br1 (ours)
func TestUplinksPorts(t *testing.T) {
	host, h := newNS(t)
	for i, name := range []string{"br0", "br1"} {
		require.NoError(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name}}))
		require.NoError(t, h.LinkSetMaster(uplink(t, h, []string{"eth0", "eth1"}[i]), getLink(t, h, name)))
	}
	list := func(only ...string) (found []string) {
		links, err := Uplinks(host, only, func(l netlink.Link) bool { return l.Attrs().Name == "br1" })
		require.NoError(t, err)
		for _, l := range links {
			found = append(found, l.Name)
		}
		return found
	}
	require.ElementsMatch(t, []string{"br0", "peer-eth0", "eth1", "peer-eth1"}, list())
	require.Equal(t, []string{"eth0"}, list("eth0"), "who names it, wants it")
}

// uplink is a veth with its other end beside it, up and with carrier.
func uplink(t *testing.T, h *netlink.Handle, name string, addrs ...string) netlink.Link {
	t.Helper()
	require.NoError(t, h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500}, PeerName: "peer-" + name, PeerMTU: 1500}))
	l := getLink(t, h, name)
	for _, p := range prefixes(addrs...) {
		require.NoError(t, addAddr(h, l, p))
	}
	require.NoError(t, h.LinkSetUp(getLink(t, h, "peer-"+name)))
	require.NoError(t, h.LinkSetUp(l))
	return getLink(t, h, name)
}

func TestPrepareLo(t *testing.T) {
	ns, _ := newNS(t)
	all := sysctlOf(t, ns, "ipv4/conf/all/route_localnet") + sysctlOf(t, ns, "ipv4/conf/all/accept_local")
	setSysctl(t, ns, acceptLocal, "1")
	old, err := PrepareLo(ns)
	require.NoError(t, err)
	require.Equal(t, Lo{RouteLocalnet: 0, AcceptLocal: 1}, old)
	again, err := PrepareLo(ns)
	require.NoError(t, err)
	require.Equal(t, Lo{1, 1}, again)
	require.Equal(t, "1", sysctlOf(t, ns, routeLocalnet))
	require.NoError(t, RestoreLo(ns, old))
	require.Equal(t, "0", sysctlOf(t, ns, routeLocalnet))
	require.Equal(t, "1", sysctlOf(t, ns, acceptLocal))
	require.Equal(t, all, sysctlOf(t, ns, "ipv4/conf/all/route_localnet")+sysctlOf(t, ns, "ipv4/conf/all/accept_local"))
}
