// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// beyond is a host behind a router on an uplink of H's:
//
//	H eth1 198.51.100.1 ── 198.51.100.2 eth0 R eth1 192.0.2.1 ── 192.0.2.2 eth0 far
//	    2001:db8:51::1     2001:db8:51::2           2001:db8:f::1     2001:db8:f::2
type beyond struct {
	router *lab.Client
	far    *netns.NS
	inner  map[int]netip.Addr // R's address towards H, by family
	outer  map[int]netip.Addr // R's address towards far
	addr   map[int]netip.Addr // far's
	host   map[int]netip.Addr // H's, on this uplink
}

// beyond builds it, and tells the host's programs the new routes.
func (c *cast) beyond() *beyond {
	c.t.Helper()
	r := c.AddClient(c.t, "R", "198.51.100.1/24", "2001:db8:51::1/64")
	far, _ := c.AddNetns(c.t, "far")
	b := &beyond{router: r, far: far, inner: map[int]netip.Addr{4: r.Addrs[0], 6: r.Addrs[1]},
		outer: map[int]netip.Addr{4: netip.MustParseAddr("192.0.2.1"), 6: netip.MustParseAddr("2001:db8:f::1")},
		addr:  map[int]netip.Addr{4: netip.MustParseAddr("192.0.2.2"), 6: netip.MustParseAddr("2001:db8:f::2")},
		host:  map[int]netip.Addr{4: r.HostAddrs[0], 6: r.HostAddrs[1]}}
	h, err := r.NS.Netlink()
	require.NoError(c.t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth1"
	require.NoError(c.t, h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(far.FD())}))
	lab.Sysctl(c.t, far, "ipv6/conf/eth0/accept_dad", "0")
	lab.Sysctl(c.t, r.NS, "ipv6/conf/eth1/accept_dad", "0")
	lab.Sysctl(c.t, r.NS, "ipv4/ip_forward", "1")
	lab.Sysctl(c.t, r.NS, "ipv6/conf/all/forwarding", "1")
	// A router may send as many errors as it likes.
	lab.Sysctl(c.t, r.NS, "ipv4/icmp_ratelimit", "0")
	lab.Sysctl(c.t, r.NS, "ipv6/icmp/ratelimit", "0")
	for ns, dev := range map[*netns.NS]string{r.NS: "eth1", far: "eth0"} {
		k, err := ns.Netlink()
		require.NoError(c.t, err)
		require.NoError(c.t, k.LinkSetUp(lab.Link(c.t, ns, dev)))
		k.Close()
	}
	for _, family := range ipVersions {
		bits := map[int]int{4: 24, 6: 64}[family]
		lab.AddAddr(c.t, r.NS, "eth1", fmt.Sprintf("%s/%d", b.outer[family], bits))
		lab.AddAddr(c.t, far, "eth0", fmt.Sprintf("%s/%d", b.addr[family], bits))
		all := map[int]string{4: "0.0.0.0/0", 6: "::/0"}[family]
		lab.AddRoute(c.t, far, all, b.outer[family].String())
		lab.AddRoute(c.t, c.Host, netip.PrefixFrom(b.addr[family], bits).Masked().String(), b.inner[family].String())
	}
	_, err = c.m.Reconcile()
	require.NoError(c.t, err)
	for _, family := range ipVersions { // the wires are up
		require.True(c.t, soon(func() bool { return lab.Ping(c.Host, b.addr[family].String(), silence) == nil }), "far is not reached")
	}
	return b
}

// narrow makes R's hop to far one of mtu bytes, in that direction.
func (b *beyond) narrow(c *cast, mtu int) {
	c.t.Helper()
	h, err := b.router.NS.Netlink()
	require.NoError(c.t, err)
	defer h.Close()
	for _, family := range ipVersions {
		bits := b.addr[family].BitLen()
		to := netip.PrefixFrom(b.addr[family], bits)
		route := &netlink.Route{LinkIndex: lab.Link(c.t, b.router.NS, "eth1").Attrs().Index, Dst: &net.IPNet{IP: to.Addr().AsSlice(), Mask: net.CIDRMask(bits, bits)}, Scope: netlink.SCOPE_LINK,
			MTU: mtu, MTULock: true}
		if family == 6 {
			route.Scope = netlink.SCOPE_UNIVERSE
		}
		require.NoError(c.t, h.RouteAdd(route))
	}
}
