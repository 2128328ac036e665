// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"strings"
	"testing"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// A router with two bridges and three uplinks; the kernel itself says where a packet
// from a bridge would go, and the Policy has to say the same.
//
//	br1 10.1.0.0/24, fd00:1::/64 ─┐     ┌─ up0 192.0.2.1/24,    2001:db8:0::1/64
//	                             host ──┼─ up1 198.51.100.1/24, 2001:db8:1::1/64
//	br2 10.2.0.0/24, fd00:2::/64 ─┘     └─ up2 203.0.113.1/24,  2001:db8:2::1/64
type router struct {
	t     *testing.T
	ns    *netns.NS
	h     *netlink.Handle
	six   bool
	names map[int]string
}

func newRouter(t *testing.T, six bool) *router {
	ns, h := newNS(t)
	r := &router{t: t, ns: ns, h: h, six: six, names: make(map[int]string)}
	require.NoError(t, h.LinkSetUp(getLink(t, h, "lo")))
	for i, addrs := range [][]string{{"192.0.2.1/24", "2001:db8:0::1/64"}, {"198.51.100.1/24", "2001:db8:1::1/64"}, {"203.0.113.1/24", "2001:db8:2::1/64"}} {
		r.names[uplink(t, h, fmt.Sprint("up", i), addrs...).Attrs().Index] = fmt.Sprint("up", i)
	}
	for i, addrs := range [][]string{{"10.1.0.1/24", "fd00:1::1/64"}, {"10.2.0.1/24", "fd00:2::1/64"}} {
		name := fmt.Sprint("br", i+1)
		r.names[uplink(t, h, name, addrs...).Attrs().Index] = name
	}
	// The kernel answers for a router only.
	setSysctl(t, ns, "ipv4/ip_forward", "1")
	setSysctl(t, ns, "ipv6/conf/all/forwarding", "1")
	for _, dev := range r.names {
		setSysctl(t, ns, "ipv4/conf/"+dev+"/rp_filter", "0")
	}
	setSysctl(t, ns, "ipv4/conf/all/rp_filter", "0")
	return r
}

// ip runs ip(8) for the router's family; what cannot be there twice may fail.
func (r *router) ip(line string) error {
	flag := map[bool]string{false: "-4", true: "-6"}[r.six]
	return r.ns.Do(func() error {
		out, err := exec.Command("ip", append([]string{flag}, strings.Fields(line)...)...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %s: %w: %s", line, err, out)
		}
		return nil
	})
}

func (r *router) must(line string) {
	r.t.Helper()
	require.NoError(r.t, r.ip(line))
}

func (r *router) family() int {
	if r.six {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// kernel is where the kernel would send a packet: "up1 via 198.51.100.9", or "".
func (r *router) kernel(iif string, src, dst netip.Addr) string {
	got, err := r.h.RouteGetWithOptions(dst.AsSlice(), &netlink.RouteGetOptions{Iif: iif, SrcAddr: src.AsSlice()})
	if err != nil || len(got) == 0 || r.names[got[0].LinkIndex] == "" {
		return ""
	}
	gw := gatewayOf(got[0].Gw, got[0].Via)
	return fmt.Sprint(r.names[got[0].LinkIndex], " via ", gw)
}

// ours is the same by the Policy.
func (r *router) ours(p *Policy, iif string, src, dst netip.Addr) string {
	table := make(map[netip.Prefix]Route)
	for _, route := range p.Routes(p.Way(iif, src)) {
		table[route.Dst] = route
	}
	route, ok := covering(table, netip.PrefixFrom(dst, dst.BitLen()))
	if !ok || len(route.Hops) == 0 {
		return ""
	}
	return fmt.Sprint(r.names[route.Hops[0].Ifindex], " via ", route.Hops[0].Gateway)
}

// agree compares for all sources and destinations that matter.
func (r *router) agree(what string) (reached int) {
	r.t.Helper()
	p := policyOf(r.t, r.ns, r.family())
	for i, sources := range [][]string{{"10.1.0.2", "10.1.0.77", "fd00:1::2", "fd00:1::77"}, {"10.2.0.2", "10.2.0.77", "fd00:2::2", "fd00:2::77"}} {
		iif := fmt.Sprint("br", i+1)
		for _, src := range addrs(sources...) {
			if src.Is6() != r.six {
				continue
			}
			for _, dst := range r.destinations() {
				want := r.kernel(iif, src, dst)
				if got := r.ours(p, iif, src, dst); got != want {
					require.Equal(r.t, want, got, "%s: %s from %s by %s\n%s", what, dst, src, iif, r.dump())
				}
				if want != "" {
					reached++
				}
			}
		}
	}
	return reached
}

func (r *router) destinations() []netip.Addr {
	if r.six {
		return addrs("2001:db8::9", "2001:db8:1::9", "2001:db8:2::9", "2001:db8:100::1", "2001:db8:100:1::1", "2001:db8:100:1:1::1", "2001:db8:200::1", "2600::1")
	}
	return addrs("192.0.2.9", "198.51.100.9", "203.0.113.9", "100.64.0.1", "100.64.1.1", "100.64.1.129", "100.65.0.1", "8.8.8.8")
}

func (r *router) dump() string {
	var text string
	_ = r.ns.Do(func() error {
		flag := map[bool]string{false: "-4", true: "-6"}[r.six]
		for _, args := range [][]string{{flag, "rule"}, {flag, "route", "show", "table", "all"}} {
			out, _ := exec.Command("ip", args...).CombinedOutput()
			text += string(out)
		}
		return nil
	})
	return text
}

func bothFamilies(t *testing.T, f func(t *testing.T, six bool)) {
	t.Run("IPv4", func(t *testing.T) { f(t, false) })
	t.Run("IPv6", func(t *testing.T) { f(t, true) })
}

func TestPolicyRules(t *testing.T) {
	bothFamilies(t, func(t *testing.T, six bool) {
		r := newRouter(t, six)
		pick := func(four, other string) string { return map[bool]string{false: four, true: other}[six] }
		def, gw0, gw1, gw2 := pick("0.0.0.0/0", "::/0"), pick("192.0.2.254", "2001:db8::fe"), pick("198.51.100.254", "2001:db8:1::fe"), pick("203.0.113.254", "2001:db8:2::fe")
		wide, inner, leaf := pick("100.64.0.0/16", "2001:db8:100::/48"), pick("100.64.1.0/24", "2001:db8:100:1::/64"), pick("100.64.1.128/25", "2001:db8:100:1:1::/80")
		r.must("route add " + def + " via " + gw0)
		usual := policyOf(t, r.ns, r.family())
		require.True(t, usual.Usual())
		require.NotZero(t, r.agree("no rules"))
		for _, c := range []struct {
			name  string
			usual bool
			lines []string
		}{
			{name: "by source network", lines: []string{"rule add from " + pick("10.1.0.0/24", "fd00:1::/64") + " lookup 100", "route add " + def + " via " + gw1 + " table 100"}},
			{name: "by one container", lines: []string{"rule add from " + pick("10.1.0.77", "fd00:1::77") + " lookup 100", "route add " + def + " via " + gw1 + " table 100"}},
			{name: "by device", lines: []string{"rule add iif br2 lookup 100", "route add " + def + " via " + gw1 + " table 100"}},
			{name: "by destination", lines: []string{"rule add to " + wide + " lookup 100", "route add " + def + " via " + gw1 + " table 100"}},
			{name: "by destination, routes within and around", lines: []string{"rule add to " + wide + " lookup 100", "route add " + def + " via " + gw1 + " table 100",
				"route add " + inner + " via " + gw2 + " table 100", "route add " + leaf + " via " + gw0}},
			{name: "shorter prefix of a rule before", lines: []string{"rule add from all lookup 100", "route add " + wide + " via " + gw1 + " table 100", "route add " + inner + " via " + gw2}},
			{name: "not for a mark", lines: []string{"rule add not fwmark 0xca6c lookup 100", "route add " + def + " via " + gw1 + " table 100"}},
			{name: "all but a prefix", lines: []string{"rule add not to " + wide + " lookup 100", "route add " + def + " via " + gw1 + " table 100"}},
			{name: "all but a source", lines: []string{"rule add not from " + pick("10.1.0.0/24", "fd00:1::/64") + " lookup 100", "route add " + def + " via " + gw1 + " table 100"}},
			{name: "main without its default", lines: []string{"rule add from all lookup main suppress_prefixlength 0 pref 50", "rule add from all lookup 100 pref 60", "route add " + def + " via " + gw1 + " table 100", "route add " + wide + " via " + gw2}},
			{name: "unreachable", lines: []string{"route add unreachable " + wide, "route add " + inner + " via " + gw1}},
			{name: "blackhole and prohibit", lines: []string{"route add blackhole " + wide, "route add prohibit " + inner, "route add " + leaf + " via " + gw2}},
			{name: "throw", lines: []string{"rule add from all lookup 100", "route add " + def + " via " + gw1 + " table 100", "route add throw " + wide + " table 100", "route add " + inner + " via " + gw2}},
			{name: "throw to nothing", lines: []string{"route del " + def, "rule add from all lookup 100", "route add " + def + " via " + gw1 + " table 100", "route add throw " + wide + " table 100"}},
			{name: "a rule that refuses", lines: []string{"rule add from " + pick("10.2.0.0/24", "fd00:2::/64") + " unreachable", "rule add to " + leaf + " prohibit"}},
			{name: "goto", lines: []string{"rule add from " + pick("10.2.0.0/24", "fd00:2::/64") + " goto 32766 pref 10", "rule add lookup 100 pref 20", "route add " + def + " via " + gw1 + " table 100"}},
			{name: "a far table", lines: []string{"rule add iif br1 lookup 123456", "route add " + def + " via " + gw2 + " table 123456"}},
			{name: "metrics", usual: true, lines: []string{"route add " + wide + " via " + gw1 + " metric 20", "route add " + wide + " via " + gw2 + " metric 10"}},
			{name: "of others", usual: true, lines: []string{"rule add fwmark 1 lookup 100", "rule add uidrange 1000-2000 lookup 100", "rule add oif up2 lookup 100", "rule add tos 0x10 lookup 100",
				"rule add iif lo lookup 100", "rule add ipproto tcp dport 80 lookup 100", "route add " + def + " via " + gw1 + " table 100"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				r := newRouter(t, six)
				r.must("route add " + def + " via " + gw0)
				for _, line := range c.lines {
					r.must(line)
				}
				require.NotZero(t, r.agree(c.name))
				p := policyOf(t, r.ns, r.family())
				if c.name == "of others" { // "iif lo" is a device's
					require.Equal(t, p.UsualWay().Key(), p.Way("br1", addrs("10.1.0.2")[0]).Key())
					return
				}
				plain := c.usual || !strings.Contains(strings.Join(c.lines, " "), "rule add")
				require.Equal(t, plain, p.Usual())
			})
		}
	})
}

// Rules and routes at random: the kernel and the Policy agree.
func TestPolicyRandom(t *testing.T) {
	bothFamilies(t, func(t *testing.T, six bool) {
		reached := 0
		for round := range 8 {
			rnd := rand.New(rand.NewPCG(uint64(round), 1))
			r := newRouter(t, six)
			one := func(list ...string) string { return list[rnd.IntN(len(list))] }
			prefixes := []string{"0.0.0.0/0", "100.64.0.0/15", "100.64.0.0/16", "100.64.1.0/24", "100.64.1.128/25", "203.0.113.0/24", "8.0.0.0/8"}
			froms, gateways := []string{"all", "10.1.0.0/24", "10.2.0.0/24", "10.1.0.77", "10.2.0.64/26"}, []string{"192.0.2.9", "198.51.100.9", "203.0.113.9", "192.0.2.8"}
			if six {
				prefixes = []string{"::/0", "2001:db8:100::/40", "2001:db8:100::/48", "2001:db8:100:1::/64", "2001:db8:100:1:1::/80", "2001:db8:2::/64", "2600::/12"}
				froms, gateways = []string{"all", "fd00:1::/64", "fd00:2::/64", "fd00:1::77", "fd00:2::40/122"}, []string{"2001:db8::9", "2001:db8:1::9", "2001:db8:2::9", "2001:db8::8"}
			}
			for range 25 {
				line := "route add " + one("", "", "", "", "unreachable ", "throw ", "blackhole ") + one(prefixes...)
				if !strings.Contains(line, "le ") && !strings.Contains(line, "throw") {
					line += " via " + one(gateways...)
				}
				_ = r.ip(line + one("", " table 100", " table 101", " table 102") + one("", " metric 5", " metric 7"))
			}
			for i := range 8 {
				line := "rule add pref " + fmt.Sprint(100+10*i) + " " + one("", "", "not ") + "from " + one(froms...)
				line += one("", "", " iif br1", " iif br2")
				if action := one(" lookup 100", " lookup 101", " lookup 102", " lookup 100 suppress_prefixlength "+one("0", "16", "48"), " unreachable", " lookup main", " goto 150"); strings.Contains(action, "goto") {
					line += action
				} else {
					line += one("", "", " to "+one(prefixes[1:]...)) + action
				}
				_ = r.ip(line)
			}
			reached += r.agree(fmt.Sprint("round ", round))
		}
		require.NotZero(t, reached)
	})
}

// Hops of a route count by their weight.
func TestPolicyWeights(t *testing.T) {
	r := newRouter(t, false)
	r.must("route add 100.64.0.0/16 nexthop via 192.0.2.9 weight 10 nexthop via 198.51.100.9 weight 20")
	r.must("route add 100.65.0.0/16 nexthop via 192.0.2.9 weight 1 nexthop via 198.51.100.9 weight 200")
	r.must("link set up2 down")
	p := policyOf(t, r.ns, r.family())
	seen := make(map[string][]string)
	for _, route := range p.Routes(p.UsualWay()) {
		for _, h := range route.Hops {
			seen[route.Dst.String()] = append(seen[route.Dst.String()], r.names[h.Ifindex])
		}
	}
	require.Equal(t, []string{"up0", "up1", "up1"}, seen["100.64.0.0/16"])
	require.Len(t, seen["100.65.0.0/16"], 16)
	require.Equal(t, "up0", seen["100.65.0.0/16"][0])
	require.NotContains(t, seen, "203.0.113.0/24")
}
