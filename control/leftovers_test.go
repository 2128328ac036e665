// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/link"
)

// neighbors are the permanent entries of a device of the host's.
func (l *lab) neighbors(device string) (list []string) {
	l.t.Helper()
	h, err := l.host.Netlink()
	require.NoError(l.t, err)
	defer h.Close()
	dev, err := h.LinkByName(device)
	require.NoError(l.t, err)
	all, err := h.NeighList(dev.Attrs().Index, netlink.FAMILY_ALL)
	require.NoError(l.t, err)
	for _, n := range all {
		if n.State == netlink.NUD_PERMANENT {
			list = append(list, n.IP.String())
		}
	}
	return list
}

// G3: an attach was killed when the host knew its neighbors already and the store did not.
// On a bridge of the user's, somebody else's entry in the network's own subnet is not touched.
func TestNeighborsOfNobody(t *testing.T) {
	l := newLab(t)
	h, err := l.host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	require.NoError(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}))
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "theirs", Bridge: "br0", Subnets: prefixes("10.7.0.0/24", "fd00:7::/64")})
	require.NoError(t, err)
	ours, err := l.m.CreateNetwork(NetworkOptions{Name: "ours", Subnets: prefixes("10.8.0.0/24")})
	require.NoError(t, err)
	c, _ := l.container("web", ContainerOptions{Network: "theirs"})
	l.container("db", ContainerOptions{Network: "ours"})

	mac, err := net.ParseMAC("02:42:0a:07:00:63")
	require.NoError(t, err)
	keep := map[string][]string{ours.Bridge: l.neighbors(ours.Bridge)}
	for _, name := range []string{"br0", ours.Bridge} {
		dev, err := h.LinkByName(name)
		require.NoError(t, err)
		require.NoError(t, h.NeighSet(&netlink.Neigh{LinkIndex: dev.Attrs().Index, State: netlink.NUD_PERMANENT,
			IP: net.IPv4(10, 7, 0, 98), HardwareAddr: mac}))
		keep[name] = l.neighbors(name)
		require.NoError(t, link.SetNeighbors(l.host, dev.Attrs().Index, mac, []netip.Addr{
			netip.MustParseAddr("10.7.0.99"), netip.MustParseAddr("fd00:7::99"), netip.MustParseAddr("fe80::42:aff:fe07:63")}))
		require.Len(t, l.neighbors(name), len(keep[name])+3)
	}
	require.Contains(t, keep["br0"], "10.7.0.98")
	for _, ep := range c.Endpoints {
		for _, a := range endpointAddrs(ep) {
			require.Contains(t, keep["br0"], a.String())
		}
	}

	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Len(t, lines, 6, "%q", lines)
	require.Contains(t, lines, "device br0: neighbor 10.7.0.99: removed, nobody's")
	for name, want := range keep {
		require.ElementsMatch(t, want, l.neighbors(name), name)
	}
	lines, err = l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)
}
