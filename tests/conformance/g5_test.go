// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// G5: the host's firewall may be flushed, reloaded and set to forward nothing, and
// ip_forward switched, in a loop: no stream loses anything, no new connection fails, and what is
// denied (C2, C5, C8) never arrives.
//
//	X (route to all by H) ── H ─┬─ n1 ───────── srv, peer (8080:80)
//	                            ├─ n2 ───────── other
//	                            ├─ n3 icc off ─ shy (8083:80), pry
//	                            └─ n4 IPv4 ──── old (8084:80)
func TestG5(t *testing.T) {
	parallel(t)
	c, s, p, o := ownCast(t, lab.RouteToHost())
	c.network("n3", 3, true, iccOff)
	c.network("n4", 4, false)
	shy, pry := c.container("shy", "n3", publish("8083:80", "8083:80/udp")), c.container("pry", "n3")
	old := c.container("old", "n4", publish("8084:80", "8084:80/udp"))
	c.serve(shy, 80)
	c.serve(old, 80)
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	gw := c.gateway("n1")
	lab.ServeTCP(t, c.Host, "host", ":9000")
	lab.ServeUDP(t, c.Host, "host", ":9000")
	var talks []*dialogue
	for _, proto := range []string{"tcp", "udp"} {
		for i, family := range ipVersions {
			host, world, loop := []string{lab.HostIPv4, lab.HostIPv6}[i], []string{lab.ClientIPv4, lab.ClientIPv6}[i], []string{"127.0.0.1", "::1"}[i]
			talks = append(talks,
				c.talking(proto, c.Client, at(host, 8080), "srv"), c.calling(proto, c.Client, at(host, 8080), "srv"),
				c.talking(proto, s.ns, at(world, 7000), "world"), c.calling(proto, s.ns, at(world, 7000), "world"),
				c.talking(proto, p.ns, at(c.station(s, "n1").addr(family), 80), "srv"),
				c.talking(proto, o.ns, at(host, 8080), "srv"), c.calling(proto, o.ns, at(host, 8080), "srv"),
				c.talking(proto, c.Host, at(loop, 8080), "srv"),
				c.talking(proto, c.Host, at(c.station(s, "n1").addr(family), 80), "srv"),
				c.talking(proto, s.ns, at(gw.addr(family), 9000), "host"),
				c.talking(proto, s.ns, at(host, 8080), "srv"), c.calling(proto, s.ns, at(host, 8080), "srv"),
				c.talking(proto, pry.ns, at(host, 8083), "shy"), c.calling(proto, pry.ns, at(host, 8083), "shy"),
			)
		}
		if to := "[::1]:8084"; !loopback6(to) {
			talks = append(talks, c.talking(proto, c.Host, to, "old"), c.calling(proto, c.Host, to, "old"))
		}
	}
	talks = append(talks, c.pinging(s.ns, lab.ClientIPv4), c.pinging(p.ns, s.ip6.String()))
	// What is denied; the talks above, from the same places, are the controls.
	for _, a := range []*actor{s, shy} {
		c.serve(a, knockPort)
	}
	arrived := make(map[string]*lab.Capture)
	for _, d := range []struct {
		reason   string
		from, to station
	}{
		{"ICC_DENIED", c.station(pry, "n3"), c.station(shy, "n3")},
		{"ISOLATED", c.station(o, "n2"), c.station(s, "n1")},
		{"DIRECT_ACCESS", c.world(), c.station(s, "n1")},
	} {
		arrived[d.reason] = lab.CaptureIn(t, d.to.ns, d.to.dev, d.from.knocks)
		for _, family := range ipVersions {
			to := d.to.addr(family)
			if d.reason == "ICC_DENIED" {
				c.knows(d.from.ns, d.from.dev, to, d.to.mac)
			}
			for _, proto := range []string{"tcp", "udp", "icmp"} {
				talks = append(talks, c.knocking(proto, d.from.ns, to))
			}
		}
	}
	dropped := make(map[string]uint64)
	unchanged := func() {
		t.Helper()
		unharmed(talks...)
		status, err := c.m.Status()
		require.NoError(t, err)
		now := make(map[string]uint64)
		for _, d := range status.Drops {
			now[d.Reason] += d.Packets
		}
		for reason, capture := range arrived {
			require.Empty(t, capture.Frames(), "%s: %s", reason, lab.Describe(capture.Frames()))
			require.Greater(t, now[reason], dropped[reason], reason)
		}
		dropped = now
	}
	// A new UDP socket for each question, for minutes: their flows are there for five.
	require.NoError(t, c.m.Init(&control.Config{Quota: 131072}))
	run := func(name string, args ...string) {
		_, err := c.Run(c.Host, name, args...)
		require.NoError(t, err)
	}
	var reload string
	for _, family := range []string{"ip", "ip6", "inet", "bridge"} {
		reload += fmt.Sprintf("add table %s fw; delete table %s fw; table %s fw { chain forward { type filter hook forward priority 0; policy drop; }; }; ", family, family, family)
	}
	for range times(100, 2) {
		run("nft", reload)
		c.forwarding("0")
		unchanged()
		run("iptables", "-P", "FORWARD", "DROP")
		run("ip6tables", "-P", "FORWARD", "DROP")
		run("iptables-legacy", "-P", "FORWARD", "DROP")
		run("ip6tables-legacy", "-P", "FORWARD", "DROP")
		c.forwarding("1")
		unchanged()
		run("nft", reload)
		unchanged()
		run("nft", "flush", "ruleset")
		unchanged()
	}
	over(talks...)
}

// Who knocks asks at this port, and at once again.
const (
	knockPort = 99
	knockWait = 20 * time.Millisecond
)

// knocking asks, by a new socket each time, by "tcp", "udp" or "icmp", where nothing may arrive and
// nobody may answer.
func (c *cast) knocking(proto string, from *netns.NS, to netip.Addr) *dialogue {
	c.t.Helper()
	return c.talk(fmt.Sprintf("denied: %s to %s", proto, to), callPace, func(int64) (err error) {
		if proto == "icmp" {
			err = lab.Ping(from, to.String(), knockWait)
		} else {
			_, err = ask(from, proto, "", at(to, knockPort), knockWait)
		}
		switch {
		case err == nil:
			return errors.New("answered")
		case lab.Timeout(err):
			return nil
		}
		return err
	}, func() error { return nil })
}

// knocks finds frames of who knocks from a station.
func (s station) knocks(f []byte) bool {
	l4, proto, src := 34, 23, 26
	if len(f) > 13 && f[12] == 0x86 {
		l4, proto, src = 54, 20, 22
	}
	if len(f) < l4+8 {
		return false
	}
	from, _ := netip.AddrFromSlice(f[src : src+map[int]int{34: 4, 54: 16}[l4]])
	switch f[proto] {
	case unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6:
		return (f[l4] == 8 || f[l4] == 128) && (from == s.ip4 || from == s.ip6)
	case unix.IPPROTO_TCP, unix.IPPROTO_UDP:
		return int(f[l4+2])<<8|int(f[l4+3]) == knockPort && (from == s.ip4 || from == s.ip6)
	}
	return false
}
