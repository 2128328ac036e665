// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// C6: an internal network works within itself and with its gateway, and has no
// way out and none in.
//
//	X ── H ─┬─ n1 internal ─┬─ srv (8080:80)
//	        │               └─ peer
//	        └─ n2 ── other
func TestC6(t *testing.T) {
	parallel(t)
	c := newCast(t, lab.RouteToHost())
	c.network("n1", 1, true, func(o *control.NetworkOptions) { o.Internal = true })
	c.network("n2", 2, true)
	s := c.container("srv", "n1", publish("8080:80", "8080:80/udp"))
	p := c.container("peer", "n1")
	o := c.container("other", "n2", publish("9090:80", "9090:80/udp"))
	for _, a := range []*actor{s, p, o} {
		c.serve(a, 80)
	}
	for _, port := range []string{":7000", ":7001"} {
		lab.ServeTCP(t, c.Client, "world", port)
		lab.ServeUDP(t, c.Client, "world", port)
	}
	lab.ServeTCP(t, c.Host, "host", ":9000")
	lab.ServeUDP(t, c.Host, "host", ":9000")
	gw := c.gateway("n1")

	t.Run("within", func(t *testing.T) {
		c := c.in(t)
		c.answers(p.ns, at(s.ip4, 80), "srv", p.ip4.String())
		c.answers(p.ns, at(s.ip6, 80), "srv", p.ip6.String())
		c.answers(s.ns, at(p.ip4, 80), "peer", s.ip4.String())
		c.answers(s.ns, at(p.ip6, 80), "peer", s.ip6.String())
		for _, family := range ipVersions {
			c.answers(s.ns, at(gw.addr(family), 9000), "host", "")
			c.answers(c.Host, at([]netip.Addr{s.ip4, s.ip6}[family/6], 80), "srv", gw.addr(family).String())
			require.NoError(t, lab.Ping(s.ns, gw.addr(family).String(), wait))
		}
	})
	t.Run("no default route", func(t *testing.T) {
		require.Empty(t, c.in(t).defaults(s), "srv")
		require.Len(t, c.in(t).defaults(o), 2, "other, on a network that is not internal")
	})
	// Also if the container gives itself one.
	if len(c.defaults(s)) == 0 {
		lab.AddRoute(t, s.ns, "0.0.0.0/0", gw.ip4.String())
		lab.AddRoute(t, s.ns, "::/0", gw.ip6.String())
	}
	for _, forward := range []string{"0", "1"} {
		t.Run("ip_forward "+forward, func(t *testing.T) {
			c := c.in(t)
			c.forwarding(forward)
			world := []netip.Addr{netip.MustParseAddr(lab.ClientIPv4), netip.MustParseAddr(lab.ClientIPv6)}
			// From s, or in the host's name: o's go by other ports of X's.
			arrived := lab.CaptureIn(t, c.Client, "eth0", func(f []byte) bool {
				_, _, port := transportOf(f)
				return c.station(s, "n1").mentions(f) || port == 7001
			})
			before := c.drops("INTERNAL")
			c.allSilent(doors(s.ns, world, 7001), reaches(o.ns, at(lab.ClientIPv4, 7000), at(lab.ClientIPv6, 7000)))
			require.GreaterOrEqual(t, c.drops("INTERNAL"), before+6)
			require.Empty(t, arrived.Frames(), lab.Describe(arrived.Frames()))

			beside := reaches(c.Client, at(lab.HostIPv4, 9090), at(lab.HostIPv6, 9090))
			inside := lab.CaptureIn(t, s.ns, "eth0", c.world().mentions)
			before = c.drops("DIRECT_ACCESS")
			c.allSilent(doors(c.Client, []netip.Addr{s.ip4, s.ip6}, 80), beside)
			require.Greater(t, c.drops("DIRECT_ACCESS"), before)
			closed := []string{at(lab.HostIPv4, 8080), at(lab.HostIPv6, 8080)}
			c.allSilent(tries{}.ask(c.Client, closed...).ask(o.ns, closed...).ask(c.Host, append(closed, "127.0.0.1:8080", "[::1]:8080")...),
				func() error {
					return errors.Join(beside(), works(o.ns, at(lab.HostIPv4, 9090), at(lab.HostIPv6, 9090))(), works(c.Host, "127.0.0.1:9090", "[::1]:9090")())
				})
			require.Empty(t, inside.Frames(), lab.Describe(inside.Frames()))

			// Other networks neither.
			peers := reaches(p.ns, at(s.ip4, 80), at(s.ip6, 80))
			c.allSilent(doors(o.ns, []netip.Addr{s.ip4, s.ip6}, 80), peers)
			c.allSilent(doors(s.ns, []netip.Addr{o.ip4, o.ip6}, 80), reaches(c.Host, at(o.ip4, 80), at(o.ip6, 80)))
			c.allSilent(tries{}.ask(s.ns, at(lab.HostIPv4, 9090), at(lab.HostIPv6, 9090)), works(o.ns, at(lab.HostIPv4, 9090), at(lab.HostIPv6, 9090)))
		})
	}
}

// defaults lists an actor's default routes.
func (c *cast) defaults(a *actor) (list []string) {
	c.t.Helper()
	h, err := a.ns.Netlink()
	require.NoError(c.t, err)
	defer h.Close()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteList(nil, family)
		require.NoError(c.t, err)
		for _, r := range routes {
			if r.Dst == nil || r.Dst.IP.IsUnspecified() {
				list = append(list, r.String())
			}
		}
	}
	return list
}

// forwarding switches H's forwarding of both ipVersions.
func (c *cast) forwarding(value string) {
	c.t.Helper()
	lab.Sysctl(c.t, c.Host, "ipv4/ip_forward", value)
	lab.Sysctl(c.t, c.Host, "ipv6/conf/all/forwarding", value)
}

// C8: who has a route to the containers through H reaches none of them, whether H
// forwards or not; on a routed network the published ports and ping answer.
func TestC8(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t, lab.RouteToHost())
	c.serve(s, 99)
	world, ss, up := c.world(), c.station(s, "n1"), c.uplink()
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	published := func() error { // whose last packet is the answer
		_, err := ask(c.Client, "udp", "", at(lab.HostIPv4, 8080), wait)
		return err
	}
	for _, forward := range []string{"0", "1"} {
		t.Run("ip_forward "+forward, func(t *testing.T) {
			c := c.in(t)
			c.forwarding(forward)
			arrived := lab.CaptureIn(t, s.ns, "eth0", world.mentions)
			control := func() error {
				_, err := ask(c.Host, "tcp", "", at(lab.HostIPv4, 8080), wait)
				return err
			}
			before := c.drops("DIRECT_ACCESS")
			c.allSilent(doors(c.Client, []netip.Addr{s.ip4, s.ip6}, 80, 99), control)
			require.GreaterOrEqual(t, c.drops("DIRECT_ACCESS"), before+10)

			n := times(10_000, 500)
			for _, family := range ipVersions {
				for name, frame := range map[string]func(i int) []byte{
					"udp":      func(i int) []byte { return world.by(up, ss, family).UDP(uint16(i), 80, []byte(directText)) },
					"syn":      func(i int) []byte { return world.by(up, ss, family).TCP(uint16(i), 80, "S", 1, 0, []byte(directText)) },
					"ack":      func(i int) []byte { return world.by(up, ss, family).TCP(uint16(i), 99, "A", 1, 1, []byte(directText)) },
					"ping":     func(i int) []byte { return world.by(up, ss, family).Echo(false, uint16(i), 1, []byte(directText)) },
					"reply":    func(i int) []byte { return world.by(up, ss, family).Echo(true, uint16(i), 1, []byte(directText)) },
					"error":    func(int) []byte { return world.by(up, ss, family).ICMP(3, 1, 0, []byte(directText)) },
					"protocol": func(int) []byte { return world.by(up, ss, family).IP(253, gopacket.Payload(directText)) },
				} {
					before := c.drops("DIRECT_ACCESS")
					require.NoError(t, lab.InjectEach(c.Client, "eth0", n/10, frame))
					eventually(t, fmt.Sprint(name, family), func() bool { return c.drops("DIRECT_ACCESS") >= before+uint64(n/10) })
				}
			}
			require.Empty(t, arrived.Frames(), lab.Describe(arrived.Frames()))
			require.NoError(t, published())
			require.True(t, arrived.Wait(1, wait), "the capture sees what comes by the published port")
		})
	}
	c.forwarding("0")
	t.Run("routed", func(t *testing.T) {
		c := c.in(t)
		c.network("routed", 5, true, func(o *control.NetworkOptions) { o.Routed = true })
		r := c.container("routed", "routed", publish("8085:80", "8085:80/udp"))
		c.serve(r, 80)
		c.serve(r, 99)
		for _, forward := range []string{"0", "1"} {
			c.forwarding(forward)
			for i, a := range []netip.Addr{r.ip4, r.ip6} {
				require.NoError(t, lab.Ping(c.Client, a.String(), wait), a)
				c.answers(c.Client, at(a, 80), "routed", []string{lab.ClientIPv4, lab.ClientIPv6}[i])
				c.silent(c.Client, at(a, 99), works(c.Client, at(a, 80)))
				c.answers(r.ns, at([]string{lab.ClientIPv4, lab.ClientIPv6}[i], 7000), "world", a.String())
			}
			c.allSilent(doors(c.Client, []netip.Addr{s.ip4, s.ip6}, 80), published)
		}
		// A container that joins it beside a network of its own is reached there too, if it
		// answers by it: routes inside are its own business.
		second := c.container("second", "n1", publish("8086:80", "8086:80/udp"))
		c.serve(second, 80)
		c.serve(second, 99)
		c.connect("routed", second)
		there, gw := c.station(second, "routed"), c.gateway("routed")
		for i, a := range []netip.Addr{there.ip4, there.ip6} {
			lab.AddRoute(t, second.ns, []string{"203.0.113.0/24", "2001:db8:113::/64"}[i], gw.addr(ipVersions[i]).String())
			c.answers(c.Client, at(a, 80), "second", []string{lab.ClientIPv4, lab.ClientIPv6}[i])
			c.silent(c.Client, at(a, 99), works(c.Client, at(a, 80)))
		}
		c.unpublish(r, "8085:80", "8085:80/udp")
		c.silent(c.Client, at(r.ip4, 80), func() error { return lab.Ping(c.Client, r.ip4.String(), wait) })
	})
}

const directText = "straight to a container"
