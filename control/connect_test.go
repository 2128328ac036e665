// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
)

// gateways are the default gateways of a namespace, IPv4 first.
func gateways(t *testing.T, ns *netns.NS) []string {
	t.Helper()
	h, err := ns.Netlink()
	require.NoError(t, err)
	defer h.Close()
	var out []string
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := h.RouteList(nil, family)
		require.NoError(t, err)
		for _, r := range routes {
			if ones, _ := r.Dst.Mask.Size(); ones == 0 && r.Gw != nil {
				l, err := h.LinkByIndex(r.LinkIndex)
				require.NoError(t, err)
				gw, _ := netip.AddrFromSlice(r.Gw)
				out = append(out, l.Attrs().Name+" "+gw.Unmap().String())
			}
		}
	}
	return out
}

// C11: a container joins and leaves networks while it runs.
func TestConnect(t *testing.T) {
	l := newLab(t)
	mk := func(o NetworkOptions) *Network {
		n, err := l.m.CreateNetwork(o)
		require.NoError(t, err)
		return n
	}
	mk(NetworkOptions{Name: "n1", Subnets: prefixes("10.1.0.0/24")})
	n2 := mk(NetworkOptions{Name: "n2", Subnets: prefixes("10.2.0.0/24", "fd00:2::/64")})
	mk(NetworkOptions{Name: "in", Subnets: prefixes("10.3.0.0/24", "fd00:3::/64"), Internal: true})

	_, ns := l.container("web", ContainerOptions{Network: "in", Publish: []string{"8080:80", "81"}})
	require.Empty(t, gateways(t, ns), "C6: no way out")
	pubs, err := l.m.Publications("web")
	require.NoError(t, err)
	require.Empty(t, pubs)
	require.Contains(t, l.warns[0], "internal networks only")

	require.NoError(t, l.m.Connect("n1", "web", EndpointOptions{}))
	require.Equal(t, []string{"lo", "eth0", "eth1"}, links(t, ns))
	require.Equal(t, []string{"eth1 10.1.0.1"}, gateways(t, ns))
	pubs, err = l.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, pubs, 2)
	random := pubs[1].HostPort

	require.NoError(t, l.m.Connect("n2", "web", EndpointOptions{IfName: "lan7", IPv4: netip.MustParseAddr("10.2.0.77"), MAC: "02:00:00:00:00:07"}))
	require.Equal(t, []string{"lo", "eth0", "eth1", "lan7"}, links(t, ns))
	require.Equal(t, []string{"eth1 10.1.0.1", "lan7 fd00:2::1"}, gateways(t, ns))
	c, err := l.m.Container("web")
	require.NoError(t, err)
	require.Equal(t, "10.2.0.77", c.Endpoints[n2.ID].IPv4.Addr().String())
	require.Equal(t, "02:00:00:00:00:07", c.Endpoints[n2.ID].MAC)
	pubs, err = l.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, pubs, 4, "[::] as well")
	require.Equal(t, random, pubs[2].HostPort, "keeps the port that it has")
	require.ErrorContains(t, l.m.Connect("n2", "web", EndpointOptions{}), "endpoint with name web already exists in network n2")

	before := l.state()
	other := newNetns(t)
	_, err = l.m.CreateContainer(ContainerOptions{Name: "thief", Network: "n2", Attach: "netns:" + l.keep(other, "thief"),
		Endpoint: EndpointOptions{IPv4: netip.MustParseAddr("10.2.0.77")}})
	require.ErrorContains(t, err, "address 10.2.0.77: address already in use")
	_, err = l.m.CreateContainer(ContainerOptions{Name: "thief", Network: "n1", Attach: "netns:" + l.o.Netns + "/../thief",
		Endpoint: EndpointOptions{IPv6: netip.MustParseAddr("fd00:2::9")}})
	require.ErrorContains(t, err, "no subnet of the family")
	require.Equal(t, before, l.state())

	require.NoError(t, l.m.Disconnect("n1", "web"))
	require.Equal(t, []string{"lo", "eth0", "lan7"}, links(t, ns))
	require.Equal(t, []string{"lan7 10.2.0.1", "lan7 fd00:2::1"}, gateways(t, ns))
	pubs, err = l.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, pubs, 4)
	require.Equal(t, random, pubs[2].HostPort)
	require.ErrorContains(t, l.m.Disconnect("n1", "web"), "container web is not connected to network n1")

	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)
	require.NoError(t, l.m.Disconnect("n2", "web"))
	require.Empty(t, gateways(t, ns))
	pubs, err = l.m.Publications("web")
	require.NoError(t, err)
	require.Empty(t, pubs)
	require.NoError(t, l.m.Disconnect("in", "web"))
	require.Equal(t, []string{"lo"}, links(t, ns))
	require.NoError(t, l.m.Connect("n1", "web", EndpointOptions{}))
	require.Equal(t, []string{"eth0 10.1.0.1"}, gateways(t, ns))
}

// A routed network that a container joins beside another opens what is published on the
// container's address there, and closes it when it goes.
func TestConnectRouted(t *testing.T) {
	l := newLab(t)
	for _, o := range []NetworkOptions{{Name: "n1"}, {Name: "routed", Routed: true}} {
		_, err := l.m.CreateNetwork(o)
		require.NoError(t, err)
	}
	l.container("web", ContainerOptions{Network: "n1", Publish: []string{"8080:80", "8081:81/udp"}})
	require.Empty(t, l.linkEntries())
	for range 2 {
		require.NoError(t, l.m.Connect("routed", "web", EndpointOptions{}))
		open := l.linkEntries()
		require.Len(t, open, 2)
		for k := range open {
			require.Zero(t, k.Client, "from anybody")
		}
		require.NoError(t, l.m.Disconnect("routed", "web"))
		require.Empty(t, l.linkEntries())
	}
}
