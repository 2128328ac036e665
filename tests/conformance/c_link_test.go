// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// C4: under icc off a link opens exactly the target's exposed ports, in both
// ipVersions, to its client and in its direction, by the alias, until Unlink.
//
//	n1, icc off ─┬─ srv     exposes 80/tcp and 80/udp (published), 81/tcp, 82/udp; serves 80 to 84
//	             ├─ client  links to srv as db
//	             └─ third   does not
func TestC4(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.linkable("n1", 1, true)
	s := c.container("srv", "n1", publish("8080:80", "8080:80/udp"),
		func(o *control.ContainerOptions) { o.Expose = []string{"81", "82/udp"} })
	p, third := c.container("client", "n1"), c.container("third", "n1")
	for _, a := range []*actor{s, p, third} {
		for port := 80; port <= 84; port++ {
			c.serve(a, port)
		}
	}
	lab.ServeTCP(t, c.Host, "host", ":9000")
	lab.ServeUDP(t, c.Host, "host", ":9000")
	host := func(a *actor) func() error { return reaches(a.ns, "10.1.0.1:9000", "[fd00:1::1]:9000") }
	both := []netip.Addr{s.ip4, s.ip6}
	c.allSilent(doors(p.ns, both, 80, 81, 82), host(p))

	linked := func(c *cast) {
		c.t.Helper()
		for i, a := range both {
			src := []netip.Addr{p.ip4, p.ip6}[i].String()
			c.answers(p.ns, at(a, 80), "srv", src)
			c.answersBy("tcp", p.ns, "", at(a, 81), "srv", src)
			c.answersBy("udp", p.ns, "", at(a, 82), "srv", src)
			c.answersBy("udp-unconnected", p.ns, "", at(a, 82), "srv", src)
		}
	}
	c.link(p, s, "db")
	linked(c)

	t.Run("nothing else", func(t *testing.T) {
		c := c.in(t)
		open := works(p.ns, at(s.ip4, 80), at(s.ip6, 80))
		c.allSilent(doors(p.ns, both, 83, 84), open)
		for _, a := range both {
			c.allSilent(tries{
				"udp to 81": func() error { _, err := ask(p.ns, "udp", "", at(a, 81), silence); return err },
				"tcp to 82": func() error { _, err := ask(p.ns, "tcp", "", at(a, 82), silence); return err },
			}, open)
		}
		// Nobody else, and nobody in the other direction, the linked port as source included.
		c.allSilent(doors(third.ns, both, 80, 81, 82), open)
		c.allSilent(doors(s.ns, []netip.Addr{p.ip4, p.ip6}, 80, 81, 82), open)
		for _, family := range ipVersions {
			ps, ss := c.station(p, "n1"), c.station(s, "n1")
			before := c.drops("ICC_DENIED")
			arrived := lab.CaptureIn(t, p.ns, "eth0", marked(peerText))
			for i, frame := range [][]byte{
				ss.to(ps, family).UDP(82, 9, []byte(peerText)), // no question of p's preceded it
				ss.to(ps, family).TCP(81, 9, "SA", 1, 1, []byte(peerText)),
				ss.to(ps, family).TCP(81, 9, "A", 1, 1, []byte(peerText)),
				ss.to(ps, family).Echo(false, 1, 1, []byte(peerText)),
			} {
				require.NoError(t, lab.Inject(s.ns, "eth0", frame, 10))
				eventually(t, "ICC_DENIED", func() bool { return c.drops("ICC_DENIED") >= before+uint64(10*(i+1)) })
			}
			require.Empty(t, arrived.Frames(), lab.Describe(arrived.Frames()))
		}
	})
	t.Run("alias", func(t *testing.T) {
		c := c.in(t)
		for _, a := range both {
			require.Contains(t, c.hosts("client")["db"], a.String())
			require.Contains(t, c.hosts("client")["srv"], a.String())
		}
		for _, a := range c.hosts("client")["db"] {
			c.answersBy("tcp", p.ns, "", at(a, 80), "srv", "")
		}
		require.NotContains(t, c.hosts("third"), "db")
	})
	t.Run("ends", func(t *testing.T) {
		c := c.in(t)
		for _, a := range both {
			tcp, err := lab.Dial(p.ns, "tcp", "", at(a, 80), wait)
			require.NoError(t, err)
			t.Cleanup(func() { tcp.Close() })
			udp, err := lab.Dial(p.ns, "udp", "", at(a, 80), wait)
			require.NoError(t, err)
			t.Cleanup(func() { udp.Close() })
			for range 3 {
				for _, conn := range []*lab.Conn{tcp, udp} {
					_, err := conn.Ask("before", wait)
					require.NoError(t, err)
				}
			}
			c.unlink(p, s)
			for _, conn := range []*lab.Conn{tcp, udp} {
				_, err := conn.Ask("after", silence)
				require.Error(t, err, "a connection over a link that ended")
				require.True(t, lab.Timeout(err) || onDocker(), err) // it ends with Docker's container
			}
			c.allSilent(doors(p.ns, both, 80, 81, 82), host(p))
			require.NotContains(t, c.hosts("client"), "db")
			c.link(p, s, "db")
			linked(c)
		}
	})
	// With the container, too: of a new one of the same name and address nothing is open.
	t.Run("ends with the target", func(t *testing.T) {
		c := c.in(t)
		c.remove("srv")
		again := c.container("srv", "n1", func(o *control.ContainerOptions) {
			o.Endpoint.IPv4, o.Endpoint.IPv6 = s.ip4, s.ip6
			o.Expose = []string{"80", "80/udp"}
		})
		c.serve(again, 80)
		require.Equal(t, s.ip4, again.ip4)
		c.allSilent(doors(p.ns, both, 80), func() error {
			_, err := ask(c.Host, "tcp", "", at(again.ip4, 80), wait)
			return errors.Join(err, host(p)())
		})
	})
}

// hosts is a container's /etc/hosts: the addresses of every name.
func (c *cast) hosts(container string) map[string][]string {
	c.t.Helper()
	data, err := os.ReadFile(c.hostsFile(c, container))
	require.NoError(c.t, err)
	names := make(map[string][]string)
	for line := range strings.Lines(string(data)) {
		line, _, _ = strings.Cut(line, "#")
		if f := strings.Fields(line); len(f) > 1 {
			for _, name := range f[1:] {
				names[name] = append(names[name], f[0])
			}
		}
	}
	return names
}
