// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// addresses gives H two more on its uplink.
func (c *cast) addresses() {
	c.t.Helper()
	for _, a := range []string{"203.0.113.7/24", "203.0.113.8/24", "2001:db8:113::7/64", "2001:db8:113::8/64"} {
		lab.AddAddr(c.t, c.Host, "eth0", a)
		c.t.Cleanup(func() { lab.DelAddr(c.t, c.Host, "eth0", a) })
	}
	_, err := c.m.Reconcile()
	require.NoError(c.t, err)
}

var (
	uplink4 = []string{lab.HostIPv4, "203.0.113.7", "203.0.113.8"}
	uplink6 = []string{lab.HostIPv6, "2001:db8:113::7", "2001:db8:113::8"}
)

// A12: H has several addresses, and an answer by UDP comes from the one that was asked:
// also when one socket asks all of them at once, and by TCP from one port.
//
//	X ──┐     ┌─ 203.0.113.1 .7 .8, 127.0.0.0/8, gateways ─┐
//	H ──┼──►  H                                            ├──► srv
//	p o s ──┘ └─ 2001:db8:113::1 ::7 ::8, ::1, gateways ───┘
func TestA12(t *testing.T) {
	parallel(t)
	c, s, p, o := mainCast(t)
	c.addresses()
	c.only4(8090)
	inside4, inside6 := append([]string{"10.1.0.1", "10.2.0.1"}, uplink4...), append([]string{"fd00:1::1", "fd00:2::1"}, uplink6...)
	for _, from := range []struct {
		name       string
		who        *actor
		to4, to6   []string
		src4, src6 string
	}{
		{"X", &actor{ns: c.Client}, uplink4, uplink6, lab.ClientIPv4, lab.ClientIPv6},
		{"H", &actor{ns: c.Host}, append([]string{"127.0.0.1", "127.0.0.2"}, inside4...), append([]string{"::1"}, inside6...), "10.1.0.1", "fd00:1::1"},
		{"peer", p, inside4, inside6, p.ip4.String(), p.ip6.String()},
		{"other", o, inside4, inside6, o.ip4.String(), o.ip6.String()},
		{"the server", s, inside4, inside6, "10.1.0.1", "fd00:1::1"},
	} {
		for _, family := range []struct {
			name, from, src string
			to              []string
		}{{"IPv4", "0.0.0.0:47000", from.src4, from.to4}, {"IPv6", "[::]:47000", from.src6, from.to6}} {
			t.Run(from.name+" "+family.name, func(t *testing.T) {
				c := c.in(t)
				var to []string
				for _, h := range family.to {
					to = append(to, at(h, 8080))
					c.answers(from.who.ns, at(h, 8080), "srv", family.src)
				}
				c.oneSocket(from.who.ns, "srv", family.src, to...)
				c.onePort(from.who.ns, family.from, "srv", family.src, to...)
			})
		}
	}
	t.Run("an IPv4-only server", func(t *testing.T) {
		c := c.in(t)
		c.oneSocket(c.Host, "only4", "10.4.0.1", "[::1]:8090", "[::1]:8090")
		c.oneSocket(c.Host, "only4", "10.4.0.1", "127.0.0.1:8090", at(lab.HostIPv4, 8090), "10.4.0.1:8090")
	})
}

// A13: what is published on one address of three answers on that one only.
func TestA13(t *testing.T) {
	parallel(t)
	c, s, p, _ := mainCast(t)
	c.addresses()
	c.publish(s, "203.0.113.7:8082:80", "203.0.113.7:8082:80/udp", "[2001:db8:113::7]:8082:80", "[2001:db8:113::7]:8082:80/udp")
	for _, h := range []string{"203.0.113.7", "2001:db8:113::7"} {
		c.answers(c.Client, at(h, 8082), "srv", "")
		c.answers(c.Host, at(h, 8082), "srv", "")
		c.answers(p.ns, at(h, 8082), "srv", "")
	}
	for _, h := range []string{lab.HostIPv4, "203.0.113.8", lab.HostIPv6, "2001:db8:113::8"} {
		c.refused(c.Client, at(h, 8082), at(h, 8080))
		c.refused(c.Host, at(h, 8082), at(h, 8080))
	}
	for _, h := range []string{lab.HostIPv4, lab.HostIPv6, "10.1.0.1", "fd00:1::1"} {
		c.refused(p.ns, at(h, 8082), at(h, 8080))
	}
	for _, h := range []string{"127.0.0.1", "::1", "10.1.0.1", "fd00:1::1"} {
		c.refused(c.Host, at(h, 8082), at(h, 8080))
	}
}

// A14: two containers publish one port on an address each, and each has its own.
func TestA14(t *testing.T) {
	parallel(t)
	c, s, p, _ := mainCast(t)
	c.addresses()
	for a, addrs := range map[*actor][]string{
		s: {"127.0.1.2", "203.0.113.7", "[2001:db8:113::7]"},
		p: {"127.0.1.3", "203.0.113.8", "[2001:db8:113::8]"},
	} {
		var specs []string
		for _, addr := range addrs {
			specs = append(specs, addr+":8082:80", addr+":8082:80/udp")
		}
		c.publish(a, specs...)
	}
	for to, name := range map[string]string{"127.0.1.2:8082": "srv", "127.0.1.3:8082": "peer"} {
		c.answers(c.Host, to, name, "10.1.0.1")
	}
	c.refused(c.Host, "127.0.1.1:8082", "127.0.1.2:8082")
	for to, name := range map[string]string{
		"203.0.113.7:8082": "srv", "203.0.113.8:8082": "peer",
		"[2001:db8:113::7]:8082": "srv", "[2001:db8:113::8]:8082": "peer",
	} {
		c.answers(c.Host, to, name, "")
		c.answers(c.Client, to, name, "")
	}
}
