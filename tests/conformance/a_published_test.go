// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// A1: X reaches a published port; the server sees X, address and port.
func TestA1(t *testing.T) {
	parallel(t)
	c, _, _, _ := mainCast(t)
	for _, a := range []struct{ x, h string }{{lab.ClientIPv4, lab.HostIPv4}, {lab.ClientIPv6, lab.HostIPv6}} {
		c.answers(c.Client, at(a.h, 8080), "srv", a.x)
		for i, proto := range protos {
			from := at(a.x, 41000+i)
			reply, err := ask(c.Client, proto, from, at(a.h, 8080), wait)
			require.NoError(t, err, "%s to %s", proto, a.h)
			require.Equal(t, from, reply.Remote.String(), proto)
		}
	}
}

// A2: the host reaches it on 127.0.0.1; the server sees the gateway.
func TestA2(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t)
	c.answers(c.Host, "127.0.0.1:8080", "srv", "10.1.0.1")
	c.answers(c.Host, "[::1]:8080", "srv", "fd00:1::1")
	// A connection of the host's from the very port that the gateway has for another one.
	for _, a := range []struct{ to, server string }{{"127.0.0.1:8080", at(s.ip4, 80)}, {"[::1]:8080", at(s.ip6, 80)}} {
		t.Run("beside a connection from the gateway's port to "+a.server, func(t *testing.T) {
			c := c.in(t)
			conn, err := lab.Dial(c.Host, "tcp", "", a.to, wait)
			require.NoError(t, err)
			defer conn.Close()
			line, err := conn.Ask("first", wait)
			require.NoError(t, err)
			reply, err := lab.ParseReply(line)
			require.NoError(t, err)
			c.answersBy("tcp", c.Host, reply.Remote.String(), a.server, "srv", "")
			_, err = conn.Ask("second", wait)
			require.NoError(t, err)
		})
	}
}

// A3: the host reaches it on [::1], the server's family notwithstanding.
func TestA3(t *testing.T) {
	parallel(t)
	c, _, _, _ := mainCast(t)
	c.only4(8090)
	t.Run("dual-stack", func(t *testing.T) { c.in(t).answers(c.Host, "[::1]:8080", "srv", "fd00:1::1") })
	t.Run("IPv4 only", func(t *testing.T) { c.in(t).answers(c.Host, "[::1]:8090", "only4", "10.4.0.1") })
	t.Run("much data", func(t *testing.T) {
		for _, to := range []string{"[::1]:8080", "[::1]:8090"} {
			conn, err := lab.Dial(c.Host, "tcp", "", to, wait)
			require.NoError(t, err)
			defer conn.Close()
			c.in(t).carries(conn, 200_000)
		}
	})
}

// A3a: as A2, by a socket that is bound before it connects or sends.
func TestA3a(t *testing.T) {
	parallel(t)
	c, _, _, _ := mainCast(t)
	c.only4(8090)
	for _, p := range []struct {
		to, server, src string
		from            []string
	}{
		{"127.0.0.1:8080", "srv", "10.1.0.1", []string{"127.0.0.1", "127.0.0.9", lab.HostIPv4, "10.1.0.1", "10.2.0.1"}},
		{"[::1]:8080", "srv", "fd00:1::1", []string{"::1", lab.HostIPv6, "fd00:1::1", "fd00:2::1"}},
		{"[::1]:8090", "only4", "10.4.0.1", []string{"::1", lab.HostIPv6, "fd00:1::1"}},
	} {
		for _, from := range p.from {
			t.Run(from+" to "+p.to, func(t *testing.T) {
				for _, proto := range protos {
					c.in(t).answersBy(proto, c.Host, from, p.to, p.server, p.src)
				}
			})
		}
	}
}

// A3b: there is no IPv6 door to an IPv4-only server from outside.
func TestA3b(t *testing.T) {
	parallel(t)
	c, _, _, _ := mainCast(t)
	c.only4(8090)
	c.answers(c.Client, at(lab.HostIPv4, 8090), "only4", lab.ClientIPv4)
	c.refused(c.Client, at(lab.HostIPv6, 8090), at(lab.HostIPv6, 8080))

	hosts := func(name string) (list []string) {
		pubs, err := c.m.Publications(name)
		require.NoError(t, err)
		for _, p := range pubs {
			if p.Proto == "tcp" && !p.HostIP.IsLoopback() {
				list = append(list, at(p.HostIP, int(p.HostPort)))
			}
		}
		return list
	}
	require.Equal(t, []string{"0.0.0.0:8090"}, hosts("only4"))
	require.Equal(t, []string{"0.0.0.0:8080", "[::]:8080"}, hosts("srv"))
	// So prints the command.
	require.Equal(t, "80/tcp -> 0.0.0.0:8090\n80/udp -> 0.0.0.0:8090", c.must("port", "only4"))
	require.Equal(t, "0.0.0.0:8090", c.must("port", "only4", "80"))
	for _, proto := range []string{"tcp", "udp"} {
		require.Contains(t, strings.Split(c.must("port", "srv"), "\n"), "80/"+proto+" -> [::]:8080")
		require.Equal(t, "0.0.0.0:8080\n127.0.0.1:8081\n[::]:8080", c.must("port", "srv", "80/"+proto))
	}
}

// A4: the host reaches it on its uplink's address; the server sees the gateway or
// that address.
func TestA4(t *testing.T) {
	parallel(t)
	c, _, _, _ := mainCast(t)
	for _, a := range []struct{ h, gw string }{{lab.HostIPv4, "10.1.0.1"}, {lab.HostIPv6, "fd00:1::1"}} {
		for _, proto := range protos {
			reply, err := ask(c.Host, proto, "", at(a.h, 8080), wait)
			require.NoError(t, err, "%s to %s", proto, a.h)
			require.Equal(t, "srv", reply.Server)
			require.Contains(t, []string{a.gw, a.h}, reply.Remote.Addr().String())
		}
	}
}

// A5: the host reaches it on the gateway's address; the server sees the gateway.
func TestA5(t *testing.T) {
	parallel(t)
	c, _, _, _ := mainCast(t)
	c.answers(c.Host, "10.1.0.1:8080", "srv", "10.1.0.1")
	c.answers(c.Host, "[fd00:1::1]:8080", "srv", "fd00:1::1")
}

// A6: what is published on loopback answers the host there.
func TestA6(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t)
	c.publish(s, "[::1]:8081:80", "[::1]:8081:80/udp")
	c.answers(c.Host, "127.0.0.1:8081", "srv", "10.1.0.1")
	c.answers(c.Host, "[::1]:8081", "srv", "fd00:1::1")
}

// A7: anywhere else it is refused, as if nothing listened there.
func TestA7(t *testing.T) {
	parallel(t)
	c, s, p, _ := mainCast(t)
	c.publish(s, "[::1]:8081:80", "[::1]:8081:80/udp")
	for _, h := range []string{lab.HostIPv4, lab.HostIPv6} {
		c.refused(c.Client, at(h, 8081), at(h, 8080))
		c.refused(c.Host, at(h, 8081), at(h, 8080))
		c.refused(p.ns, at(h, 8081), at(h, 8080))
	}
	c.refused(c.Host, "127.0.0.2:8081", "127.0.0.1:8081")
	// Where a service of the host's listens, it answers: bpfnet has no part in it.
	lab.ServeTCP(t, c.Host, "H", lab.HostIPv4+":8081")
	lab.ServeUDP(t, c.Host, "H", lab.HostIPv4+":8081")
	c.answers(c.Client, at(lab.HostIPv4, 8081), "H", lab.ClientIPv4)
	c.answers(c.Host, at(lab.HostIPv4, 8081), "H", lab.HostIPv4)
	c.answers(c.Host, "127.0.0.1:8081", "srv", "10.1.0.1")
}

// only4 adds a server on a network without IPv6, published on the host's port.
func (c *cast) only4(port int) *actor {
	c.t.Helper()
	c.network("n4", 4, false)
	spec := strconv.Itoa(port) + ":80"
	a := c.container("only4", "n4", publish(spec, spec+"/udp"))
	require.Equal(c.t, netip.Addr{}, a.ip6)
	c.serve(a, 80)
	return a
}
