// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// A15: a range leads one to one, and is one door.
func TestA15(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t)
	c.publish(s, "7000-7002:80-82", "7000-7002:80-82/udp")
	pubs, err := c.m.Publications("srv")
	require.NoError(t, err)
	pubs = slices.DeleteFunc(pubs, func(p control.Publication) bool { return p.HostPort < 7000 || p.HostPort > 7002 })
	require.Len(t, pubs, 4, "two protocols on 0.0.0.0 and [::]")
	rules := make(map[uint32]bool)
	for _, p := range pubs {
		require.EqualValues(t, 3, p.Count)
		require.EqualValues(t, 7000, p.HostPort)
		require.EqualValues(t, 80, p.Port)
		rules[p.Rule] = true
	}
	require.Len(t, rules, 2)

	for _, port := range []int{81, 82} {
		c.serveAs(at("srv", port), s, port)
	}
	for port, server := range map[int]string{7000: "srv", 7001: "srv:81", 7002: "srv:82"} {
		c.answers(c.Client, at(lab.HostIPv4, port), server, lab.ClientIPv4)
		c.answers(c.Client, at(lab.HostIPv6, port), server, lab.ClientIPv6)
		c.answers(c.Host, at("127.0.0.1", port), server, "10.1.0.1")
		c.answers(c.Host, at("::1", port), server, "fd00:1::1")
	}
	for _, port := range []int{6999, 7003} {
		c.refused(c.Client, at(lab.HostIPv4, port), at(lab.HostIPv4, 7000))
	}
	c.unpublish(s, "7000-7002:80-82")
	for _, port := range []int{7000, 7001, 7002} {
		_, err := ask(c.Client, "tcp", "", at(lab.HostIPv4, port), silence)
		require.True(t, lab.Refused(err), "%d after unpublish: %v", port, err)
		c.answersBy("udp", c.Client, "", at(lab.HostIPv4, port), map[int]string{7000: "srv", 7001: "srv:81", 7002: "srv:82"}[port], lab.ClientIPv4)
	}
}

// A16: one container port published twice answers on both: also to one socket, or
// one port of a client, that uses both at once.
func TestA16(t *testing.T) {
	parallel(t)
	c, s, p, o := mainCast(t)
	c.publish(s, "8082:80", "8082:80/udp")
	for _, from := range []struct {
		name       string
		who        *actor
		to4, to6   string
		src4, src6 string
	}{
		{"X", &actor{ns: c.Client}, lab.HostIPv4, lab.HostIPv6, lab.ClientIPv4, lab.ClientIPv6},
		{"H", &actor{ns: c.Host}, "127.0.0.1", "::1", "10.1.0.1", "fd00:1::1"},
		{"peer", p, "10.1.0.1", "fd00:1::1", p.ip4.String(), p.ip6.String()},
		{"other", o, lab.HostIPv4, lab.HostIPv6, o.ip4.String(), o.ip6.String()},
		{"the server", s, lab.HostIPv4, lab.HostIPv6, "10.1.0.1", "fd00:1::1"},
	} {
		for _, family := range []struct{ name, from, src, to string }{
			{"IPv4", "0.0.0.0:47000", from.src4, from.to4}, {"IPv6", "[::]:47000", from.src6, from.to6},
		} {
			t.Run(from.name+" "+family.name, func(t *testing.T) {
				c := c.in(t)
				both := []string{at(family.to, 8080), at(family.to, 8082)}
				for _, to := range both {
					c.answers(from.who.ns, to, "srv", family.src)
				}
				c.oneSocket(from.who.ns, "srv", family.src, both...)
				c.onePort(from.who.ns, family.from, "srv", family.src, both...)
			})
		}
	}
}

// A20: from= says who may connect; others are dropped and counted: of the world, containers and the
// host. The commands that show ports show it.
//
//	X 203.0.113.2, 2001:db8:113::2 ──┐
//	                                 ├── H ─┬─ n1 ─┬─ srv 8083:80,from=203.0.113.0/24,2001:db8::/32
//	Y 198.51.100.2, fd99::2 ─────────┘      │      └─ peer
//	                                        └─ n2 ─── other
func TestA20(t *testing.T) {
	parallel(t)
	c, s, p, o := ownCast(t)
	y := c.AddClient(t, "Y", "198.51.100.1/24", "fd99::1/64")
	_, err := c.m.Reconcile()
	require.NoError(t, err)
	const from = ",from=203.0.113.0/24,2001:db8::/32"
	c.publish(s, "8083:80"+from, "8083:80/udp"+from)

	c.answers(c.Client, at(lab.HostIPv4, 8083), "srv", lab.ClientIPv4)
	c.answers(c.Client, at(lab.HostIPv6, 8083), "srv", lab.ClientIPv6)
	for _, h := range y.HostAddrs {
		c.dropped(y.NS, at(h, 8083), at(h, 8080), "SOURCE_DENIED")
	}
	for _, h := range []string{"10.1.0.1", lab.HostIPv4, "fd00:1::1", lab.HostIPv6} {
		c.dropped(p.ns, at(h, 8083), at(h, 8080), "SOURCE_DENIED")
	}
	// So are the server itself, and who is on another network.
	for _, h := range []string{lab.HostIPv4, lab.HostIPv6} {
		c.dropped(s.ns, at(h, 8083), at(h, 8080), "SOURCE_DENIED")
		c.dropped(o.ns, at(h, 8083), at(h, 8080), "SOURCE_DENIED")
	}
	// The host is a source like any other.
	c.answers(c.Host, at(lab.HostIPv4, 8083), "srv", "10.1.0.1")
	c.answers(c.Host, at(lab.HostIPv6, 8083), "srv", "fd00:1::1")
	c.dropped(c.Host, "127.0.0.1:8083", "127.0.0.1:8080", "SOURCE_DENIED")
	c.dropped(c.Host, "[::1]:8083", "[::1]:8080", "SOURCE_DENIED")

	pubs, err := c.m.Publications("srv")
	require.NoError(t, err)
	want := []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	seen := 0
	for _, p := range pubs {
		if p.HostPort == 8083 {
			require.True(t, slices.Equal(want, p.From), "%v", p.From)
			seen++
		} else {
			require.Empty(t, p.From)
		}
	}
	require.Equal(t, 4, seen)
	c.showsFrom(want)

	// Without from= the door is open to all.
	c.unpublish(s, "8083:80"+from, "8083:80/udp"+from)
	c.publish(s, "8083:80", "8083:80/udp")
	for _, h := range y.HostAddrs {
		c.answers(y.NS, at(h, 8083), "srv", "")
	}
	for _, command := range []string{"port srv", "ps", "inspect srv"} {
		out := c.must(strings.Fields(command)...)
		require.Contains(t, out, "8083", command)
		require.NotRegexp(t, `from=|"From"`, out, command)
	}
}

// showsFrom requires that port, ps and inspect show who may connect to srv's 8083, and to no other of
// its ports.
func (c *cast) showsFrom(from []netip.Prefix) {
	c.t.Helper()
	type door struct {
		HostIP, HostPort string
		From             []netip.Prefix
	}
	doors := []door{{"0.0.0.0", "8080", nil}, {"0.0.0.0", "8083", from}, {"127.0.0.1", "8081", nil}, {"::", "8080", nil}, {"::", "8083", from}}
	var words []string
	for _, p := range from {
		words = append(words, p.String())
	}
	only := func(d door) string {
		if d.From == nil {
			return ""
		}
		return " from=" + strings.Join(words, ",")
	}
	var port, ps []string
	for _, proto := range []string{"tcp", "udp"} {
		for _, d := range doors {
			host := net.JoinHostPort(d.HostIP, d.HostPort)
			port = append(port, "80/"+proto+" -> "+host+only(d))
			ps = append(ps, host+"->80/"+proto+only(d))
		}
	}
	require.Equal(c.t, strings.Join(port, "\n"), c.must("port", "srv"))
	require.Contains(c.t, c.must("ps"), " "+strings.Join(ps, ", ")+" ")
	var found []struct {
		NetworkSettings struct{ Ports map[string][]door }
	}
	require.NoError(c.t, json.Unmarshal([]byte(c.must("inspect", "srv")), &found))
	require.Len(c.t, found, 1)
	require.Equal(c.t, map[string][]door{"80/tcp": doors, "80/udp": doors}, found[0].NetworkSettings.Ports)
}
