// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/maps"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// twoWays is a host with two uplinks, by either of which the world is reached: W is an
// address that X has, and Y has it too.
//
//	                                  ┌─ eth0 203.0.113.1 ──── X 203.0.113.2,  W 192.0.2.99
//	srv, peer (n1), other (n2) ── H ──┤
//	                                  └─ eth1 198.51.100.1 ─── Y 198.51.100.2, W 192.0.2.99
type twoWays struct {
	*cast
	s, p, o *actor
	y       *lab.Client
}

// world is W, the two next hops and H's two addresses, of one family.
type worldOf struct {
	flag, all    string // of ip(8)
	w            string
	x, y, hx, hy string
}

var worlds = []worldOf{
	{"-4", "0.0.0.0/0", "192.0.2.99", lab.ClientIPv4, "198.51.100.2", lab.HostIPv4, "198.51.100.1"},
	{"-6", "::/0", "2001:db8:99::99", lab.ClientIPv6, "fd99::2", lab.HostIPv6, "fd99::1"},
}

func newTwoWays(t *testing.T) *twoWays {
	t.Helper()
	c, s, p, o := ownCast(t)
	w := &twoWays{c, s, p, o, c.AddClient(t, "Y", "198.51.100.1/24", "fd99::1/64")}
	for name, ns := range map[string]*netns.NS{"X": c.Client, "Y": w.y.NS} {
		lab.AddAddr(t, ns, "eth0", "192.0.2.99/32")
		lab.AddAddr(t, ns, "eth0", "2001:db8:99::99/128")
		lab.ServeTCP(t, ns, name, ":9000")
		lab.ServeUDP(t, ns, name, ":9000")
	}
	lab.Sysctl(t, c.Host, "ipv4/conf/eth1/promote_secondaries", "1")
	lab.Sysctl(t, c.Host, "ipv6/conf/eth1/keep_addr_on_down", "1")
	for _, f := range worlds {
		w.route(f, "add "+f.all+" via "+f.x)
	}
	w.daemon()
	for _, f := range worlds {
		w.leads(f, s, "X", f.hx)
	}
	return w
}

// route is ip route on the host; rule is ip rule.
func (w *twoWays) route(f worldOf, line string) {
	w.t.Helper()
	w.run(w.Host, "ip "+f.flag+" route "+line)
}

func (w *twoWays) rule(f worldOf, line string) {
	w.t.Helper()
	w.run(w.Host, "ip "+f.flag+" rule "+line)
}

// leads requires that promptly W is reached from a container by way of somebody, who sees src.
func (w *twoWays) leads(f worldOf, from *actor, server, src string) {
	w.t.Helper()
	w.within(promptly, from.name+" to the world", answered(from.ns, "udp", "", at(f.w, 9000), server, src))
	w.answers(from.ns, at(f.w, 9000), server, src)
	w.pings(from.ns, f.w)
}

func eachWorld(t *testing.T, w *twoWays, fn func(w *twoWays, f worldOf)) {
	for i, f := range worlds {
		t.Run([]string{"IPv4", "IPv6"}[i], func(t *testing.T) {
			inner := *w
			inner.cast = w.in(t)
			fn(&inner, f)
		})
	}
}

// D2: two uplinks, policy by route; the route moves, the address of an uplink changes: new flows
// follow at once, those of what is lost end, and nobody else's are touched.
func TestD2(t *testing.T) {
	parallel(t)
	w := newTwoWays(t)
	eachWorld(t, w, func(w *twoWays, f worldOf) {
		// Somebody else's: to X itself, which is no matter of the default route.
		bystanders := []*dialogue{w.talking("tcp", w.s.ns, at(f.x, 9000), "X"), w.talking("udp", w.p.ns, at(f.x, 9000), "X"),
			w.talking("tcp", w.Client, at(f.hx, 8080), "srv"), w.calling("tcp", w.s.ns, at(f.x, 9000), "X")}
		conn, err := lab.Dial(w.s.ns, "tcp", "", at(f.w, 9000), wait)
		require.NoError(t, err)
		defer conn.Close()
		sock, err := lab.Dial(w.s.ns, "udp", "", at(f.w, 9000), wait)
		require.NoError(t, err)
		defer sock.Close()
		says := func(c *lab.Conn) string {
			line, err := c.Ask("who", silence)
			require.NoError(w.t, err)
			r, err := lab.ParseReply(line)
			require.NoError(w.t, err)
			return r.Server + " to " + r.Remote.Addr().String()
		}
		// A socket that was open follows as soon as the flows are looked at, a moment after
		// the first new flow.
		follows := func(want string) {
			w.t.Helper()
			w.within(promptly, "the socket that was open", func() error {
				if said := says(sock); said != want {
					return errors.New(said)
				}
				return nil
			})
		}
		for range 2 {
			require.Equal(w.t, "X to "+f.hx, says(conn))
			require.Equal(w.t, "X to "+f.hx, says(sock))
		}
		before := w.drops("NO_FLOW")

		// The route moves to the other uplink.
		w.route(f, "change "+f.all+" via "+f.y)
		w.leads(f, w.s, "Y", f.hy)
		follows("Y to " + f.hy)
		_, err = conn.Ask("who", silence)
		require.Error(w.t, err, "a connection of X's that goes to Y")
		require.Greater(w.t, w.drops("NO_FLOW"), before)

		// The address changes: the old one is lost.
		long, err := lab.Dial(w.s.ns, "tcp", "", at(f.w, 9000), wait)
		require.NoError(w.t, err)
		defer long.Close()
		require.Equal(w.t, "Y to "+f.hy, says(long))
		next := strings.TrimSuffix(f.hy, "1") + "7"
		bits := map[string]string{"-4": "/24", "-6": "/64"}[f.flag]
		lab.AddAddr(w.t, w.Host, w.y.Device, next+bits)
		require.Equal(w.t, "Y to "+f.hy, says(long), "there is another address, and the old one")
		lab.DelAddr(w.t, w.Host, w.y.Device, f.hy+bits)
		w.route(f, "replace "+f.all+" via "+f.y)
		w.leads(f, w.s, "Y", next)
		follows("Y to " + next)
		_, err = long.Ask("who", silence)
		require.Error(w.t, err, "a connection by an address that is lost")
		w.within(promptly, "a published port by the new address", answered(w.y.NS, "tcp", "", at(next, 8080), "srv", ""))

		// No route at all, and one that refuses: closed, and then open again as it was.
		open, err := lab.Dial(w.p.ns, "tcp", "", at(f.w, 9000), wait)
		require.NoError(w.t, err)
		defer open.Close()
		for _, c := range []struct{ away, back string }{
			{"del " + f.all, "add " + f.all + " via " + f.y},
			{"add unreachable " + f.w, "del unreachable " + f.w},
		} {
			require.Equal(w.t, "Y to "+next, says(open))
			dropped := w.drops("NO_ROUTE")
			w.route(f, c.away)
			w.within(promptly, c.away, func() error {
				if _, err := ask(w.s.ns, "udp", "", at(f.w, 9000), silence/3); err == nil || w.drops("NO_ROUTE") == dropped {
					return errors.New("not refused")
				}
				return nil
			})
			w.route(f, c.back)
			w.leads(f, w.s, "Y", next)
			require.Equal(w.t, "Y to "+next, says(open), "the connection waited")
		}
		unharmed(bystanders...)
		over(bystanders...)
		lab.AddAddr(w.t, w.Host, w.y.Device, f.hy+bits)
		lab.DelAddr(w.t, w.Host, w.y.Device, next+bits)
		w.route(f, "replace "+f.all+" via "+f.x)
		w.leads(f, w.s, "X", f.hx)
	})
}

// D2: an IPv4 route by an IPv6 router (RFC 8950), out and for the answers of a published port.
func TestD2IPv6Router(t *testing.T) {
	parallel(t)
	w := newTwoWays(t)
	f := worlds[0]
	for _, router := range []struct{ x, y string }{
		{lab.ClientIPv6, "fd99::2"},
		{maps.LinkLocal(w.X.MAC).String(), maps.LinkLocal(w.y.MAC).String()},
	} {
		w.route(f, "replace "+f.all+" via inet6 "+router.y+" dev eth1")
		w.leads(f, w.s, "Y", f.hy)
		w.answersBy("tcp", w.y.NS, f.w, at(f.hy, 8080), "srv", f.w)
		w.answersBy("udp", w.y.NS, f.w, at(f.hy, 8080), "srv", f.w)
		w.route(f, "replace "+f.all+" via inet6 "+router.x+" dev eth0")
		w.leads(f, w.s, "X", f.hx)
	}
}

// D2: an address that the host loses and gets back (a lease that is renewed, an uplink that is
// configured anew) ends no connection, those that ask meanwhile included.
func TestD2AddressBack(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	lab.ServeTCP(t, c.Client, "X", ":9000")
	c.daemon()
	for i, f := range worlds {
		t.Run([]string{"IPv4", "IPv6"}[i], func(t *testing.T) {
			c := c.in(t)
			c.within(promptly, "the world", answered(p.ns, "tcp", "", at(f.x, 9000), "X", f.hx))
			own := f.hx + map[string]string{"-4": "/24", "-6": "/64"}[f.flag]
			talks := []*dialogue{c.talking("tcp", c.Client, at(f.hx, 8080), "srv"), c.talking("tcp", p.ns, at(f.x, 9000), "X"),
				c.talking("tcp", s.ns, at(f.x, 9000), "X")}
			for _, gone := range []bool{true, true, false, false, false, false} {
				dropped := c.drops("NO_ROUTE")
				lab.DelAddr(t, c.Host, c.X.Device, own)
				if gone { // until each has been refused
					c.within(promptly, "no way", func() error {
						if n := c.drops("NO_ROUTE") - dropped; n < 6 {
							return fmt.Errorf("%d refused", n)
						}
						return nil
					})
				}
				lab.AddAddr(t, c.Host, c.X.Device, own)
				unharmed(talks...)
			}
			over(talks...)
			require.Zero(t, c.counter("flow_stale"))
		})
	}
}

// D2: the answers of a published port follow their route, too: the client has two cables.
//
//	H ─┬─ eth0 ───────────────── eth0 ─┬─ X, W 192.0.2.99
//	   └─ side0 100.64.0.1/24 ── side1 ┘  100.64.0.2/24
func TestD2Published(t *testing.T) {
	parallel(t)
	w := newTwoWays(t)
	h, err := w.Host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	require.NoError(t, h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "side0"}, PeerName: "side1", PeerNamespace: netlink.NsFd(w.Client.FD())}))
	for dev, at := range map[string]*netns.NS{"side0": w.Host, "side1": w.Client} {
		lab.Sysctl(t, at, "ipv6/conf/"+dev+"/accept_dad", "0")
		w.run(at, "ip link set "+dev+" up")
		lab.Sysctl(t, at, "ipv4/conf/"+dev+"/rp_filter", "0")
		lab.Sysctl(t, at, "ipv4/conf/all/rp_filter", "0")
	}
	for addr, at := range map[string]struct {
		ns  *netns.NS
		dev string
	}{
		"100.64.0.1/24": {w.Host, "side0"}, "100.64.0.2/24": {w.Client, "side1"}, "fd64::1/64": {w.Host, "side0"}, "fd64::2/64": {w.Client, "side1"},
	} {
		lab.AddAddr(t, at.ns, at.dev, addr)
	}
	aside := func() uint64 { return lab.Link(t, w.Host, "side0").Attrs().Statistics.TxPackets }
	eachWorld(t, w, func(w *twoWays, f worldOf) {
		var open []*dialogue
		for _, proto := range []string{"tcp", "udp"} {
			conn, err := lab.Dial(w.Client, proto, f.w, at(f.hx, 8080), wait)
			require.NoError(w.t, err)
			open = append(open, w.talk(proto+" from W", talkPace, func(i int64) error {
				payload := fmt.Sprint("question ", i)
				line, err := conn.Ask(payload, wait)
				return heard(line, err, "srv", payload)
			}, conn.Close))
		}
		side := map[string]string{"-4": "100.64.0.2", "-6": "fd64::2"}[f.flag]
		for _, c := range []struct {
			via   string
			aside bool
		}{{side, true}, {f.x, false}, {side, true}, {f.x, false}} {
			w.route(f, "change "+f.all+" via "+c.via)
			w.within(promptly, "answers by "+c.via, func() error {
				before := aside()
				unharmed(open...)
				if sent := aside() - before; (sent >= 6) != c.aside || !c.aside && sent > 1 {
					return fmt.Errorf("%d packets by the second cable", sent)
				}
				return nil
			})
		}
		over(open...)
	})
}

// D2: the host's rules send each container its own way; the answers of what they publish
// go by it as well.
func TestD2Rules(t *testing.T) {
	parallel(t)
	w := newTwoWays(t)
	eachWorld(t, w, func(w *twoWays, f worldOf) {
		v6 := f.flag == "-6"
		own := func(a *actor) string {
			if v6 {
				return a.ip6.String()
			}
			return a.ip4.String()
		}
		n1, n2 := "10.1.0.0/24", "10.2.0.0/24"
		if v6 {
			n1, n2 = "fd00:1::/64", "fd00:2::/64"
		}
		w.publish(w.o, "8070:80", "8070:80/udp")
		defer func() {
			w.unpublish(w.o, "8070:80", "8070:80/udp")
		}()
		w.route(f, "add "+f.all+" via "+f.y+" table 100")
		defer w.route(f, "flush table 100")
		for _, c := range []struct {
			rule    string
			byY     []*actor
			byX     []*actor
			refused []*actor
		}{
			{rule: "from " + n2 + " lookup 100", byY: []*actor{w.o}, byX: []*actor{w.s, w.p}},
			{rule: "iif " + w.networkOf("n2").Bridge + " lookup 100", byY: []*actor{w.o}, byX: []*actor{w.s, w.p}},
			{rule: "from " + own(w.p) + " lookup 100", byY: []*actor{w.p}, byX: []*actor{w.s, w.o}},
			{rule: "to " + f.w + " lookup 100", byY: []*actor{w.s, w.p, w.o}},
			{rule: "fwmark 7 lookup 100", byX: []*actor{w.s, w.p, w.o}},
			{rule: "from " + n1 + " to " + f.w + " prohibit", byX: []*actor{w.o}, refused: []*actor{w.s, w.p}},
			{rule: "not from " + n1 + " lookup 100", byY: []*actor{w.o}, byX: []*actor{w.s, w.p}},
		} {
			w.rule(f, "add "+c.rule)
			for _, a := range c.byY {
				w.leads(f, a, "Y", f.hy)
			}
			for _, a := range c.byX {
				w.leads(f, a, "X", f.hx)
			}
			for _, a := range c.refused {
				w.within(promptly, c.rule, func() error {
					if _, err := ask(a.ns, "udp", "", at(f.w, 9000), silence/3); err == nil {
						return fmt.Errorf("%s gets through", a.name)
					}
					return nil
				})
				// And the rest of the world is there for it.
				w.answers(a.ns, at(f.x, 9000), "X", f.hx)
			}
			if len(c.byY) == 1 && c.byY[0] == w.o {
				// Y asks from W for what other publishes: the answer goes by Y. srv's goes by X,
				// which knows nothing of it.
				w.answersBy("udp", w.y.NS, f.w, at(f.hy, 8070), "other", f.w)
				w.answersBy("tcp", w.y.NS, f.w, at(f.hy, 8070), "other", f.w)
				_, err := ask(w.y.NS, "udp", f.w, at(f.hy, 8080), silence)
				require.True(w.t, lab.Timeout(err), "%v", err)
				w.answersBy("udp", w.Client, f.w, at(f.hx, 8080), "srv", f.w)
			}
			// A container that comes while the rule is there goes by it.
			if strings.HasPrefix(c.rule, "from "+n2) {
				late := w.container("late", "n2")
				w.answers(late.ns, at(f.w, 9000), "Y", f.hy)
				w.remove("late")
			}
			w.rule(f, "del "+c.rule)
			for _, a := range []*actor{w.s, w.p, w.o} {
				w.leads(f, a, "X", f.hx)
			}
		}
	})
}

// A route with two next hops: flows go by both, and when one goes, by the other.
func TestD2Multipath(t *testing.T) {
	parallel(t)
	w := newTwoWays(t)
	// More than one destination, since sender and receiver decide.
	eachWorld(t, w, func(w *twoWays, f worldOf) {
		var targets []string
		base := netip.MustParseAddr(f.w)
		for range 12 {
			base = base.Next()
			targets = append(targets, base.String())
			for _, ns := range []*netns.NS{w.Client, w.y.NS} {
				lab.AddAddr(w.t, ns, "eth0", netip.PrefixFrom(base, base.BitLen()).String())
			}
		}
		// spread says who answers for how many destinations; each has one who does.
		spread := func() (count map[string]int, err error) {
			count = make(map[string]int)
			for _, to := range targets {
				var before string
				for range 2 {
					reply, err := ask(w.s.ns, "tcp", "", at(to, 9000), silence)
					if err != nil {
						return nil, err
					}
					if before != "" && reply.Server != before {
						return nil, fmt.Errorf("%s: %s and %s", to, before, reply.Server)
					}
					before = reply.Server
				}
				count[before]++
			}
			return count, nil
		}
		w.route(f, "replace "+f.all+" nexthop via "+f.x+" nexthop via "+f.y)
		w.within(promptly, "both", func() error {
			n, err := spread()
			if err == nil && (n["X"] == 0 || n["Y"] == 0) {
				err = fmt.Errorf("%v", n)
			}
			return err
		})
		w.run(w.Host, "ip link set eth1 down")
		w.within(promptly, "the one that is left", func() error {
			n, err := spread()
			if err == nil && n["Y"] > 0 {
				err = fmt.Errorf("%v", n)
			}
			return err
		})
		w.run(w.Host, "ip link set eth1 up")
	})
}
