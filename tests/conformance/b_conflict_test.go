// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/ports"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// cannot requires that specs cannot be published of a running container, and that the error has the words. The
// Engine's words are its own, and it is another container that it does not start.
func (c *cast) cannot(a *actor, kind error, words string, specs ...string) {
	c.t.Helper()
	if onDocker() {
		err := c.makeContainer(c, &actor{name: "denied", o: control.ContainerOptions{Name: "denied", Network: a.o.Network, Publish: specs}})
		require.Error(c.t, err, "%v", specs)
		require.Regexp(c.t, "port is already allocated|address already in use|cannot assign requested address|all ports are allocated", err.Error())
		return
	}
	_, err := c.m.Publish(a.name, specs...)
	require.ErrorIs(c.t, err, kind)
	require.Contains(c.t, err.Error(), words)
	oneLine(c.t, err)
}

// publishes publishes and takes back; the Engine by a container that is there no longer.
func (c *cast) publishes(a *actor, specs ...string) {
	c.t.Helper()
	if onDocker() {
		c.container("fine", a.o.Network, publish(specs...))
		c.remove("fine")
		return
	}
	c.publish(a, specs...)
	c.unpublish(a, specs...)
}

// denied is cannot, by CreateContainer and by the commands, too, and requires that nothing changes.
func (c *cast) denied(a *actor, kind error, words string, specs ...string) {
	c.t.Helper()
	before := c.inventory()
	c.cannot(a, kind, words, specs...)
	c.same(before, "publish %v", specs)
	if onDocker() {
		return
	}
	_, path := c.namespace("denied")
	_, err := c.m.CreateContainer(control.ContainerOptions{Name: "denied", Network: "n1", Attach: "netns:" + path, Publish: specs})
	require.ErrorIs(c.t, err, kind)
	require.Contains(c.t, err.Error(), words)
	c.same(before, "attach with %v", specs)
	c.refuses(append([]string{"publish", a.name}, specs...), words)
	line := []string{"attach", "--net", "n1"}
	for _, s := range specs {
		line = append(line, "-p", s)
	}
	c.refuses(append(line, "denied", "netns:"+path), words)
	c.same(before, "the commands with %v", specs)
}

// B5: a port that another container has.
func TestB5(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	first := c.container("first", "n1", publish("8080:80", "8081:80/udp", "127.0.0.1:8082:80", "9000-9009:80-89"))
	c.serve(first, 80)
	s := c.container("srv", "n1")
	for _, v := range []struct{ spec, bind string }{
		{"8080:80", "0.0.0.0:8080"},
		{"8081:80/udp", "0.0.0.0:8081"},
		{"8082:80", "0.0.0.0:8082"},
		{"127.0.0.1:8082:81", "127.0.0.1:8082"},
		{"127.0.0.1:8080:80", "127.0.0.1:8080"},
		{"[::]:8080:80", "[::]:8080"},
		{"[::1]:8080:80", "[::1]:8080"},
		{"9005:80", "0.0.0.0:9005"},
		{"8995-9004:80-89", "0.0.0.0:9000"},
	} {
		t.Run(v.spec, func(t *testing.T) {
			c := c.in(t)
			words := fmt.Sprintf("Bind for %s failed: port is already allocated", v.bind)
			for _, a := range few([]*actor{s, first}, 1) {
				c.denied(a, ports.ErrAllocated, words, v.spec)
			}
		})
	}
	c.answersBy("tcp", c.Client, "", at(lab.HostIPv4, 8080), "first", lab.ClientIPv4)
	c.answersBy("udp", c.Client, "", at(lab.HostIPv6, 8081), "first", lab.ClientIPv6)
	// What it gives back, another has.
	c.remove("first")
	c.publish(s, "8080:80", "8081:80/udp", "127.0.0.1:8082:80", "9000-9009:80-89")
}

// B6: a port that a process of the host's has: on every address, on one, by either protocol.
func TestB6(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	s := c.container("srv", "n1")
	c.serve(s, 80)
	p := c.probe(c.Host)
	type try struct {
		network, address string // of the process
		denied, fine     []string
	}
	for _, v := range few([]try{
		{"tcp4", "0.0.0.0:8080", []string{"8080:80", "0.0.0.0:8080:80", lab.HostIPv4 + ":8080:80", "8070-8089:70-89"}, []string{"8080:80/udp", "[::]:8080:80", "8081:80"}},
		{"tcp", "[::]:8080", []string{"8080:80", "0.0.0.0:8080:80", "[::]:8080:80", "127.0.0.1:8080:80", "[::1]:8080:80"}, []string{"8080:80/udp"}},
		{"tcp6", "[::]:8080", []string{"8080:80", "[::]:8080:80", "[::1]:8080:80"}, []string{"0.0.0.0:8080:80", "8080:80/udp"}},
		{"tcp", lab.HostIPv4 + ":8080", []string{"8080:80", lab.HostIPv4 + ":8080:80"}, []string{"127.0.0.1:8080:80", "[::]:8080:80"}},
		{"tcp+reuse", "127.0.0.1:8080", []string{"8080:80", "127.0.0.1:8080:80"}, []string{lab.HostIPv4 + ":8080:80", "127.0.0.2:8080:80"}},
		{"tcp6", "[" + lab.HostIPv6 + "]:8080", []string{"8080:80", "[" + lab.HostIPv6 + "]:8080:80"}, []string{"0.0.0.0:8080:80", "[::1]:8080:80"}},
		{"udp4", "0.0.0.0:8080", []string{"8080:80/udp", "127.0.0.1:8080:80/udp"}, []string{"8080:80", "[::]:8080:80/udp"}},
		{"udp", "[::]:8080", []string{"8080:80/udp", "0.0.0.0:8080:80/udp", "[::1]:8080:80/udp"}, []string{"8080:80"}},
		{"udp+reuse", lab.HostIPv4 + ":8080", []string{"8080:80/udp", lab.HostIPv4 + ":8080:80/udp"}, []string{"127.0.0.1:8080:80/udp"}},
		{"udp6", "[::1]:8080", []string{"8080:80/udp", "[::1]:8080:80/udp"}, []string{"0.0.0.0:8080:80/udp", "[" + lab.HostIPv6 + "]:8080:80/udp"}},
	}, 4) {
		t.Run(v.network+" "+v.address, func(t *testing.T) {
			c := c.in(t)
			p.holds(v.network, v.address)
			for _, spec := range few(v.denied, 1) {
				c.denied(s, ports.ErrInUse, "address already in use", spec)
			}
			for _, spec := range few(v.fine, 1) {
				c.publishes(s, spec)
			}
			p.closes(v.network, v.address)
			for _, spec := range few(v.denied, 1) {
				c.publishes(s, spec)
			}
		})
	}
	// The process is undisturbed by the attempts.
	service := c.MustBind(t, c.Host, "tcp", "0.0.0.0:8085")
	c.denied(s, ports.ErrInUse, "Bind for 0.0.0.0:8085 failed: address already in use", "8085:80")
	c.answersBy("tcp", c.Client, "", at(lab.HostIPv4, 8085), "bound", lab.ClientIPv4)
	service.Close()
	c.publish(s, "8085:80")
	c.answersBy("tcp", c.Client, "", at(lab.HostIPv4, 8085), "srv", lab.ClientIPv4)
}

// B7: an address that the host does not have.
func TestB7(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	s := c.container("srv", "n1")
	c.serve(s, 80)
	for _, addr := range []string{"198.51.100.9", "2001:db8:51::9", lab.ClientIPv4, s.ip4.String()} {
		for _, host := range []string{"8080", "", "8080-8089"} {
			for _, proto := range few([]string{"", "/udp"}, 1) {
				spec := bracket(addr) + ":" + host + ":80" + proto
				t.Run(spec, func(t *testing.T) {
					c.in(t).denied(s, ports.ErrNotAvailable, "cannot assign requested address", spec)
				})
			}
		}
	}
	lab.AddAddr(t, c.Host, "eth0", "198.51.100.9/24")
	lab.AddAddr(t, c.Host, "eth0", "2001:db8:51::9/64")
	c.publish(s, "198.51.100.9:8080:80", "198.51.100.9:8080:80/udp", "[2001:db8:51::9]:8080:80", "[2001:db8:51::9]:8080:80/udp")
	c.answers(c.Host, "198.51.100.9:8080", "srv", "")
	c.answers(c.Host, "[2001:db8:51::9]:8080", "srv", "")
}

// B8: when the second of two bindings fails, the first is free again.
func TestB8(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	c.container("first", "n1", publish("8081:80", "8081:80/udp"))
	s, p := c.container("srv", "n1"), c.probe(c.Host)
	c.serve(s, 80)
	p.holds("tcp", "[::]:8082")
	p.holds("udp6", "[::1]:8082")
	type try struct {
		kind  error
		specs []string
	}
	for _, v := range few([]try{
		{ports.ErrAllocated, []string{"8080:80", "8081:80"}},
		{ports.ErrInUse, []string{"8080:80", "8082:80"}},
		{ports.ErrAllocated, []string{"8080:80/udp", "8081:80/udp"}},
		{ports.ErrInUse, []string{"8080:80/udp", "8082:80/udp"}},
		{ports.ErrNotAvailable, []string{"8080:80", "198.51.100.9:8083:80"}},
		{ports.ErrInUse, []string{"8080:80", "127.0.0.1::80", "[::]:8082:80"}},
		{ports.ErrAllocated, []string{"8080:80", "8080:81"}},
		{ports.ErrAllocated, []string{"8080:80", "127.0.0.1:8080:80"}},
		{ports.ErrAllocated, []string{"8071-8080:71-80", "8080:80"}},
		{ports.ErrExhausted, []string{"8080:80", "8081-8082:80"}},
	}, 4) {
		t.Run(strings.Join(v.specs, " "), func(t *testing.T) {
			c := c.in(t)
			c.denied(s, v.kind, "", v.specs...)
			network := "tcp"
			if strings.HasSuffix(v.specs[0], "/udp") {
				network = "udp"
			}
			p.free(network, "[::]:8080")
			c.publish(s, v.specs[0])
			c.answersBy(network, c.Client, "", at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
			p.taken(network, "[::]:8080")
			c.unpublish(s, v.specs[0])
		})
	}
}

// B8: an unpublish of which one spec means nothing ends no connection of the others.
func TestB8Unpublish(t *testing.T) {
	parallel(t)
	c, _, _, _ := mainCast(t)
	talk := c.talking("tcp", c.Client, at(lab.HostIPv4, 8080), "srv")
	c.refuses([]string{"unpublish", "srv", "8080:80", "9999:99"}, "srv", "9999:99", "is not published")
	unharmed(talk)
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
	over(talk)
}

// B10: bindings conflict exactly when protocol and number are the same and one address covers
// the other; every pair is tried, in both orders.
func TestB10(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	a, b := c.container("first", "n1"), c.container("second", "n1")
	wild4, wild6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	hosts := []string{"", "127.0.0.1", "::1", "0.0.0.0", "127.0.0.2", lab.HostIPv4, "::", lab.HostIPv6}
	hosts = few(hosts, 3)
	addrs := func(host string) []netip.Addr {
		if host == "" {
			return []netip.Addr{wild4, wild6}
		}
		return []netip.Addr{netip.MustParseAddr(host)}
	}
	overlap := func(x, y string) bool {
		for _, i := range addrs(x) {
			for _, j := range addrs(y) {
				if i.Is4() == j.Is4() && (i == j || i.IsUnspecified() || j.IsUnspecified()) {
					return true
				}
			}
		}
		return false
	}
	spec := func(host, proto string) string {
		if host == "" {
			return "8080:80/" + proto
		}
		return bracket(host) + ":8080:80/" + proto
	}
	for _, x := range hosts {
		for _, proto := range few([]string{"tcp", "udp"}, 1) {
			first := spec(x, proto)
			c.publish(a, first)
			for _, y := range hosts {
				for _, other := range []string{"tcp", "udp"} {
					second := spec(y, other)
					if other == proto && overlap(x, y) {
						c.cannot(b, ports.ErrAllocated, "", second)
						continue
					}
					c.publishes(b, second)
				}
			}
			c.unpublish(a, first)
		}
	}
}

// B13: what was removed can be published again at once, whatever connections are in TIME_WAIT.
func TestB13(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	s := c.container("srv", "n1")
	c.serve(s, 80)
	rounds := times(50, 10)
	if onDocker() {
		rounds = 2
	}
	for round := range rounds {
		// A service of the host's on the port ends its connections first: they wait there, for
		// clients that stay and in TIME_WAIT.
		service := c.MustBind(t, c.Host, "tcp", ":8080")
		var ended []*lab.Conn
		for _, to := range []string{at(lab.HostIPv4, 8080), at(lab.HostIPv6, 8080)} {
			for _, stays := range []bool{true, false} {
				conn, err := lab.Dial(c.Client, "tcp", "", to, wait)
				require.NoError(t, err)
				_, err = conn.Ask("x", wait)
				require.NoError(t, err)
				if stays {
					defer conn.Close()
				} else {
					ended = append(ended, conn)
				}
			}
		}
		service.Close()
		closeAll(ended)
		c.inTimeWait(8080, ended...)
		c.publish(s, "8080:80", "8080:80/udp")
		for _, from := range []struct{ ns, to string }{{"X", at(lab.HostIPv4, 8080)}, {"X", at(lab.HostIPv6, 8080)}, {"H", "127.0.0.1:8080"}, {"H", "[::1]:8080"}} {
			ns := c.Client
			if from.ns == "H" {
				ns = c.Host
			}
			c.answers(ns, from.to, "srv", "")
		}
		if round%2 == 0 {
			c.unpublish(s, "8080:80", "8080:80/udp")
			c.inTimeWait(8080, ended...)
			c.publish(s, "8080:80", "8080:80/udp")
		} else {
			c.remove("srv")
			c.inTimeWait(8080, ended...)
			s = c.container("srv", "n1", publish("8080:80", "8080:80/udp"))
			c.serve(s, 80)
		}
		c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
		c.answers(c.Host, "127.0.0.1:8080", "srv", "")
		c.unpublish(s, "8080:80", "8080:80/udp")
	}
}

// B13: so it is with the TIME_WAIT of a socket without SO_REUSEADDR, with which a mere bind collides.
func TestB13Collides(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	s, p := c.container("srv", "n1"), c.probe(c.Host)
	c.serve(s, 80)
	for i, v := range []struct{ network, any string }{{"tcp4", "0.0.0.0"}, {"tcp6", "::"}, {"tcp", "::"}} {
		port := 8080 + i // those of the last round wait for a minute
		t.Run(v.network, func(t *testing.T) {
			c := c.in(t)
			address, spec := at(v.any, port), fmt.Sprint(port, ":80")
			p.holds(v.network, address)
			var ended []*lab.Conn
			for family, h := range map[string]string{"tcp4": lab.HostIPv4, "tcp6": lab.HostIPv6} {
				if !strings.HasPrefix(family, v.network) {
					continue
				}
				conn, err := lab.Dial(c.Client, "tcp", "", at(h, port), wait)
				require.NoError(t, err)
				ended = append(ended, conn)
				p.hangsUp(v.network, address)
			}
			p.closes(v.network, address)
			closeAll(ended)
			waits := func() {
				t.Helper()
				c.inTimeWait(port, ended...)
				p.taken(v.network+"+reuse", address)
			}
			answered := func() {
				t.Helper()
				c.answersBy("tcp", c.Client, "", at(lab.HostIPv4, port), "srv", lab.ClientIPv4)
				c.answersBy("tcp", c.Client, "", at(lab.HostIPv6, port), "srv", lab.ClientIPv6)
			}
			waits()
			c.publish(s, spec)
			answered()
			c.unpublish(s, spec)
			waits()
			c.publish(s, spec)
			answered()
			c.unpublish(s, spec)
			waits()
			c.container("other", "n1", publish(spec))
			c.remove("other")
		})
	}
}

// inTimeWait waits until a port of the host's is in TIME_WAIT towards each of some clients of X's, which
// have closed.
func (c *cast) inTimeWait(port int, clients ...*lab.Conn) {
	c.t.Helper()
	h, err := c.Host.Netlink(unix.NETLINK_INET_DIAG)
	require.NoError(c.t, err)
	defer h.Close()
	for _, client := range clients {
		want := netip.MustParseAddrPort(client.LocalAddr().String())
		waits := func(s *netlink.Socket) bool {
			peer, _ := netip.AddrFromSlice(s.ID.Destination)
			return s.State == netlink.TCP_TIME_WAIT && int(s.ID.SourcePort) == port && netip.AddrPortFrom(peer.Unmap(), s.ID.DestinationPort) == want
		}
		require.True(c.t, soon(func() bool {
			list4, err4 := h.SocketDiagTCP(unix.AF_INET)
			list6, err6 := h.SocketDiagTCP(unix.AF_INET6)
			if err := errors.Join(err4, err6); !errors.Is(err, netlink.ErrDumpInterrupted) {
				require.NoError(c.t, err)
			}
			return slices.ContainsFunc(slices.Concat(list4, list6), waits)
		}), "no TIME_WAIT on %d towards %s", port, want)
	}
}
