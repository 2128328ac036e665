// SPDX-License-Identifier: Apache-2.0

//go:build kernellab

package conformance

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// A19: SCTP. A published port answers X, the host and other containers, who show as they do by TCP; a
// container reaches the world with its source port kept, or not at all. No port is ever another: they are in
// a checksum of the whole packet, so a publication that would need that is refused when it is asked for.
//
//	X :9000 ── H ─┬─ n1 ─┬─ srv  (9899:9899, 9900:9900)
//	              │      └─ peer
//	              └─ n2 ─── other
func TestA19(t *testing.T) {
	parallel(t)
	c, s, p, o := mainCast(t)
	_, err := c.m.Publish("srv", "9899:9900/sctp")
	require.ErrorContains(t, err, `port "9899:9900/sctp": sctp needs the same port on both sides`)
	held, err := lab.NewSCTPServer(c.Host, "H", "0.0.0.0:9899")
	require.NoError(t, err)
	_, err = c.m.Publish("srv", "9899:9899/sctp")
	require.ErrorContains(t, err, "Bind for 0.0.0.0:9899 failed: address already in use", "B6")
	held.Close()
	eventually(t, "the port is free", func() bool { _, err := c.m.Publish("srv", "9899:9899/sctp"); return err == nil })
	c.publish(s, "9900/sctp") // no choice of a host port, unlike TCP's
	pubs, err := c.m.Publications("srv")
	require.NoError(t, err)
	for _, d := range pubs {
		require.True(t, d.Proto != "sctp" || d.HostPort == d.Port, "%+v", d)
	}
	for name, ns := range map[string]*netns.NS{"srv": s.ns, "peer": p.ns} {
		lab.ServeSCTP(t, ns, name, ":9899")
		lab.ServeSCTP(t, ns, name, ":9900")
	}
	lab.ServeSCTP(t, c.Client, "world", ":9000")
	lab.ServeSCTP(t, c.Client, "world", ":9001")

	world, up := c.world(), c.uplink()
	for _, family := range ipVersions {
		host, far := up.addr(family), world.addr(family)
		of := func(a *actor) netip.Addr { return map[int]netip.Addr{4: a.ip4, 6: a.ip6}[family] }
		gw, loop := c.gateway("n1").addr(family), map[int]string{4: "127.0.0.1", 6: "::1"}[family]

		// Published: as A1, A2, A4, A5, A9, A10, A11; and C1, C7.
		for _, x := range []struct {
			from *netns.NS
			to   any
			seen netip.Addr
		}{
			{c.Client, host, far}, {c.Host, loop, gw}, {c.Host, host, gw}, {c.Host, gw, gw},
			{p.ns, host, of(p)}, {s.ns, host, gw}, {o.ns, host, of(o)}, {p.ns, of(s), of(p)}, {c.Host, of(s), gw},
		} {
			require.Equal(t, x.seen, c.associates(x.from, "", at(x.to, 9899), "srv").Addr(), x.to)
		}
		c.answersBy("sctp", c.Client, "", at(host, 9900), "srv", far.String())
		require.Equal(t, at(far, 41000), c.associates(c.Client, at(far, 41000), at(host, 9899), "srv").String())

		// Masquerade: to two destinations at once from one port, which is kept.
		for _, port := range []int{9000, 9001} {
			require.Equal(t, at(host, 42000), c.associates(s.ns, at(of(s), 42000), at(far, port), "world").String())
		}
		// Another container's is not, so it gets no other: nothing leaves.
		before := c.drops("NO_PORT")
		err = lab.Unreachable(t, "a port that is taken", func() error { _, err := ask(p.ns, "sctp", at(of(p), 42000), at(far, 9000), silence); return err },
			func() error { _, err := ask(p.ns, "sctp", at(of(p), 42001), at(far, 9000), wait); return err })
		require.True(t, lab.Timeout(err), "%v", err)
		require.Greater(t, c.drops("NO_PORT"), before)

		// Closed, as anything else: another network, the world, and where nobody listens.
		c.sctpSilent(o.ns, at(of(s), 9899), at(host, 9899), "ISOLATED")
		lab.AddRoute(t, c.Client, map[int]string{4: "10.1.0.0/24", 6: "fd00:1::/64"}[family], host.String())
		c.sctpSilent(c.Client, at(of(s), 9899), at(host, 9899), "DIRECT_ACCESS")
		_, err = ask(c.Client, "sctp", "", at(host, 9901), wait)
		require.True(t, lab.Refused(err), "%v", err)
	}
	c.unpublish(s, "9900/sctp")
	_, err = ask(c.Client, "sctp", "", at(up.ip4, 9900), wait)
	require.True(t, lab.Refused(err), "%v", err)
}

// associates carries a message that is one chunk and messages that are several, and says whom server saw. The
// association stays until the test ends.
func (c *cast) associates(from *netns.NS, bind, to, server string) netip.AddrPort {
	c.t.Helper()
	conn, err := lab.DialSCTP(from, bind, to, wait)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { conn.Close() })
	for _, size := range []int{16, 1600, 48_000} {
		c.carries(conn, size)
	}
	line, err := conn.Ask("who", wait)
	require.NoError(c.t, err)
	reply, err := lab.ParseReply(line)
	require.NoError(c.t, err)
	require.Equal(c.t, server, reply.Server)
	return reply.Remote
}

// sctpSilent is dropped, by SCTP.
func (c *cast) sctpSilent(from *netns.NS, to, beside, reason string) {
	c.t.Helper()
	before := c.drops(reason)
	err := c.blocked("sctp", from, to, beside)
	require.True(c.t, lab.Timeout(err), "sctp to %s: %v", to, err)
	require.Greater(c.t, c.drops(reason), before, "sctp to %s: %s", to, reason)
}

// A19 where no device computes checksums: the kernel does, before and after the programs see the packets, and a
// receiver drops a wrong one.
func TestA19Sums(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t)
	c.publish(s, "9899:9899/sctp")
	lab.ServeSCTP(t, s.ns, "srv", ":9899")
	lab.ServeSCTP(t, c.Client, "world", ":9000")
	for _, d := range []port{{c.Client, "eth0"}, {c.Host, c.X.Device}, {c.Host, c.hostDevice(s)}, {s.ns, "eth0"}} {
		leavesSums(t, d.ns, d.dev)
	}
	for _, family := range ipVersions {
		host, far := c.uplink().addr(family), c.world().addr(family)
		for _, x := range []struct {
			from *netns.NS
			to   string
		}{{c.Client, at(host, 9899)}, {s.ns, at(far, 9000)}} {
			conn, err := lab.DialSCTP(x.from, "", x.to, wait)
			require.NoError(t, err, x.to)
			c.carries(conn, 48_000)
			conn.Close()
		}
	}
}
