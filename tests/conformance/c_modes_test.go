// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// C13: a container of no network has lo, which works, and no way out; one of the host's is in the
// host's namespace, whose services are its own; one of another container's is in that one's: its
// devices, its addresses, its loopback and its published ports. None of them changes what was there,
// neither when it comes nor when it goes.
//
//	X ── H ─┬─ n1 ─┬─ srv (8080:80, 8082:81) ═ shared, which serves 81
//	        │      └─ peer
//	        └ hosted                              alone, with lo
func TestC13(t *testing.T) {
	parallel(t)
	c, s, p, _ := mainCast(t)
	c.publish(s, "8082:81", "8082:81/udp")
	t.Run("none", func(t *testing.T) { c.in(t).modeNone() })
	t.Run("host", func(t *testing.T) { c.in(t).modeHost() })
	t.Run("container", func(t *testing.T) { c.in(t).modeContainer(s, p) })
}

func (c *cast) modeNone() {
	lab.ServeTCP(c.t, c.Client, "world", ":7000")
	lab.ServeUDP(c.t, c.Client, "world", ":7000")
	before := devicesOf(c.t, c.Host)
	for _, name := range []string{"alone", "guest"} {
		var ns *netns.NS
		switch {
		case name == "alone":
			ns = c.makeMode(c, name, "none")
		case onDocker():
			continue // which attaches nothing
		default:
			_, path := c.AddNetns(c.t, "given")
			ns = c.modeOf(control.ContainerOptions{Name: name, Network: "none", Attach: "netns:" + path})
		}
		require.Equal(c.t, []string{"lo"}, devicesOf(c.t, ns), name)
		require.NotZero(c.t, lab.Link(c.t, ns, "lo").Attrs().Flags&net.FlagUp, "%s: lo is down", name)
		require.Empty(c.t, routesBeyond(c.t, ns), name)
		require.Equal(c.t, before, devicesOf(c.t, c.Host), name)
		lab.ServeTCP(c.t, ns, name, ":80")
		lab.ServeUDP(c.t, ns, name, ":80")
		for i, loop := range few([]string{"127.0.0.1", "::1"}, 1) { // the Engine turns IPv6 off
			c.answers(ns, at(loop, 80), name, loop)
			for _, to := range []string{[]string{lab.ClientIPv4, lab.ClientIPv6}[i], []string{lab.HostIPv4, lab.HostIPv6}[i]} {
				for _, proto := range protos {
					_, err := ask(ns, proto, "", at(to, 7000), silence)
					require.ErrorIs(c.t, err, syscall.ENETUNREACH, "%s: %s to %s", name, proto, to)
				}
			}
		}
		c.remove(name)
	}
	// The control: who is on a network has all that.
	ns := c.makeMode(c, "joined", "n1")
	require.Equal(c.t, []string{"eth0", "lo"}, devicesOf(c.t, ns))
	require.NotEmpty(c.t, routesBeyond(c.t, ns))
	c.answers(ns, at(lab.ClientIPv4, 7000), "world", lab.HostIPv4)
	c.answers(ns, at(lab.ClientIPv6, 7000), "world", lab.HostIPv6)
	c.remove("joined")
}

func (c *cast) modeHost() {
	before := devicesOf(c.t, c.Host)
	ns := c.makeMode(c, "hosted", "host")
	require.Equal(c.t, c.Host.ID(), ns.ID())
	require.Equal(c.t, before, devicesOf(c.t, ns))
	lab.ServeTCP(c.t, ns, "hosted", ":9000")
	lab.ServeUDP(c.t, ns, "hosted", ":9000")
	check := func() {
		for i, host := range []string{lab.HostIPv4, lab.HostIPv6} {
			c.answers(c.Client, at(host, 9000), "hosted", []string{lab.ClientIPv4, lab.ClientIPv6}[i])
			c.answers(c.Host, at([]string{"127.0.0.1", "::1"}[i], 9000), "hosted", "")
			c.answers(ns, at([]string{"127.0.0.1", "::1"}[i], 8080), "srv", "") // as the host reaches containers
			c.answers(c.Client, at(host, 8080), "srv", "")
		}
	}
	check()
	c.remove("hosted")
	require.Equal(c.t, before, devicesOf(c.t, c.Host))
	check()
}

func (c *cast) modeContainer(s, p *actor) {
	// The control: nobody has the port yet.
	_, err := ask(c.Client, "tcp", "", at(lab.HostIPv4, 8082), wait)
	require.True(c.t, lab.Refused(err), "%v", err)

	before, beforeHost := devicesOf(c.t, s.ns), devicesOf(c.t, c.Host)
	for _, ref := range []string{"srv", s.id} {
		ns := c.makeMode(c, "shared", "container:"+ref)
		require.Equal(c.t, s.ns.ID(), ns.ID())
		require.NotEqual(c.t, c.Host.ID(), ns.ID())
		require.Equal(c.t, before, devicesOf(c.t, ns))
		require.Equal(c.t, beforeHost, devicesOf(c.t, c.Host))
		tcp, udp := lab.ServeTCP(c.t, ns, "shared", ":81"), lab.ServeUDP(c.t, ns, "shared", ":81")
		for i, host := range []string{lab.HostIPv4, lab.HostIPv6} {
			family := ipVersions[i]
			srv, peer := c.station(s, "n1").addr(family), c.station(p, "n1").addr(family)
			loop := []string{"127.0.0.1", "::1"}[i]
			c.answers(c.Client, at(host, 8082), "shared", []string{lab.ClientIPv4, lab.ClientIPv6}[i])
			c.answers(c.Client, at(host, 8080), "srv", []string{lab.ClientIPv4, lab.ClientIPv6}[i])
			c.answers(c.Host, at(loop, 8082), "shared", "")
			c.answers(p.ns, at(srv, 81), "shared", peer.String())
			c.answers(ns, at(peer, 80), "peer", srv.String()) // it speaks as srv does
			c.answers(ns, at(loop, 80), "srv", loop)
			c.answers(s.ns, at(loop, 81), "shared", loop)
		}
		tcp.Close()
		udp.Close()
		c.remove("shared")
		require.Equal(c.t, before, devicesOf(c.t, s.ns))
		for _, host := range []string{lab.HostIPv4, lab.HostIPv6} {
			c.answers(c.Client, at(host, 8080), "srv", "")
		}
	}
}

// modeOf makes a container of a mode and opens its namespace.
func (c *cast) modeOf(o control.ContainerOptions) *netns.NS {
	c.t.Helper()
	record, err := c.m.CreateContainer(o)
	require.NoError(c.t, err)
	ns, err := netns.Open(record.Netns)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { ns.Close() })
	return ns
}

// routesBeyond are a namespace's routes by another device than lo.
func routesBeyond(t testing.TB, ns *netns.NS) (list []string) {
	t.Helper()
	h, err := ns.Netlink()
	require.NoError(t, err)
	defer h.Close()
	routes, err := h.RouteList(nil, netlink.FAMILY_ALL)
	require.NoError(t, err)
	lo := lab.Link(t, ns, "lo").Attrs().Index
	for _, r := range routes {
		if r.LinkIndex != lo {
			list = append(list, r.String())
		}
	}
	return list
}

// devicesOf are the names of a namespace's devices, sorted.
func devicesOf(t testing.TB, ns *netns.NS) (names []string) {
	t.Helper()
	h, err := ns.Netlink()
	require.NoError(t, err)
	defer h.Close()
	links, err := h.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}
