// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// others is somebody else's engine on the same host: a bridge, containers made by hand,
// forwarding by the kernel, DNAT and masquerade by nftables.
//
//	                     ┌─ br9 172.30.0.1, fd30::1 ─┬─ guest1 .2, ::2  :80   9090 of H is led there
//	X 203.0.113.2 ──── H ┤                           └─ guest2 .3, ::3  :80
//	                     └─ ours: n1 ─ srv, 8080:80
type others struct {
	*lab.Lab
	t      *testing.T
	guests []*netns.NS
}

const ruleset = `
table inet theirs {
	chain prerouting { type nat hook prerouting priority dstnat;
		ip daddr 203.0.113.1 tcp dport 9090 dnat ip to 172.30.0.2:80
		ip daddr 203.0.113.1 udp dport 9090 dnat ip to 172.30.0.2:80
		ip6 daddr 2001:db8:113::1 tcp dport 9090 dnat ip6 to [fd30::2]:80
		ip6 daddr 2001:db8:113::1 udp dport 9090 dnat ip6 to [fd30::2]:80
	}
	chain output { type nat hook output priority -100;
		ip daddr 203.0.113.1 tcp dport 9090 dnat ip to 172.30.0.2:80
		ip daddr 203.0.113.1 udp dport 9090 dnat ip to 172.30.0.2:80
		ip6 daddr 2001:db8:113::1 tcp dport 9090 dnat ip6 to [fd30::2]:80
		ip6 daddr 2001:db8:113::1 udp dport 9090 dnat ip6 to [fd30::2]:80
	}
	chain postrouting { type nat hook postrouting priority srcnat;
		ip saddr 172.30.0.0/24 ip daddr != 172.30.0.0/24 masquerade
		ip6 saddr fd30::/64 ip6 daddr != fd30::/64 masquerade
	}
	chain forward { type filter hook forward priority filter; policy drop;
		iifname "br9" accept
		oifname "br9" ct state established,related accept
		oifname "br9" ct status dnat accept
		oifname "br9" tcp dport 80 accept
		oifname "br9" udp dport 80 accept
		oifname "br9" meta l4proto { icmp, ipv6-icmp } accept
	}
}`

func newOthers(t *testing.T) *others {
	t.Helper()
	o := &others{Lab: lab.New(t, lab.RouteToHost()), t: t}
	h, err := o.Host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	must := func(ns *netns.NS, name string, args ...string) {
		t.Helper()
		_, err := o.Run(ns, name, args...)
		require.NoError(t, err)
	}
	// Without a MAC of its own it has that of one of its ports, and another when one comes: what
	// neighbours have learned in between is wrong for seconds.
	require.NoError(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br9", HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}}}))
	lab.Sysctl(t, o.Host, "ipv6/conf/br9/accept_dad", "0")
	for i := range 2 {
		name := fmt.Sprint("guest", i+1)
		ns, _ := o.AddNetns(t, name)
		o.guests = append(o.guests, ns)
		require.NoError(t, h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: lab.Link(t, o.Host, "br9").Attrs().Index},
			PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.FD())}))
		lab.Sysctl(t, ns, "ipv6/conf/eth0/accept_dad", "0")
		must(ns, "ip", "link", "set", "eth0", "up")
		must(o.Host, "ip", "link", "set", name, "up")
	}
	must(o.Host, "ip", "link", "set", "br9", "up")
	lab.AddAddr(t, o.Host, "br9", "172.30.0.1/24")
	lab.AddAddr(t, o.Host, "br9", "fd30::1/64")
	for i, ns := range o.guests {
		lab.AddAddr(t, ns, "eth0", fmt.Sprintf("172.30.0.%d/24", i+2))
		lab.AddAddr(t, ns, "eth0", fmt.Sprintf("fd30::%d/64", i+2))
		lab.AddRoute(t, ns, "0.0.0.0/0", "172.30.0.1")
		lab.AddRoute(t, ns, "::/0", "fd30::1")
		lab.ServeTCP(t, ns, fmt.Sprint("guest", i+1), ":80")
		lab.ServeUDP(t, ns, fmt.Sprint("guest", i+1), ":80")
	}
	for name, x := range map[string]struct {
		ns   *netns.NS
		port string
	}{"world": {o.Client, ":7000"}, "host": {o.Host, ":9092"}} {
		lab.ServeTCP(t, x.ns, name, x.port)
		lab.ServeUDP(t, x.ns, name, x.port)
	}
	lab.Sysctl(t, o.Host, "ipv4/ip_forward", "1")
	lab.Sysctl(t, o.Host, "ipv6/conf/all/forwarding", "1")
	must(o.Host, "nft", ruleset)
	return o
}

// table says what comes of everything that they do: who answers and whom he saw.
func (o *others) table() (lines []string) {
	o.t.Helper()
	g1, g2 := o.guests[0], o.guests[1]
	type path struct {
		name     string
		from     *netns.NS
		bind, to string
	}
	var paths []path
	for _, f := range []struct{ host, world, gw, one, two, loop string }{
		{lab.HostIPv4, lab.ClientIPv4, "172.30.0.1", "172.30.0.2", "172.30.0.3", "127.0.0.1"},
		{lab.HostIPv6, lab.ClientIPv6, "fd30::1", "fd30::2", "fd30::3", "::1"},
	} {
		paths = append(paths,
			path{"world to their published port", o.Client, "", at(f.host, 9090)},
			path{"host to their published port", o.Host, "", at(f.host, 9090)},
			path{"guest to their published port", g2, "", at(f.host, 9090)},
			path{"world straight to a guest", o.Client, "", at(f.one, 80)},
			path{"host to a guest", o.Host, "", at(f.two, 80)},
			path{"guest to guest", g1, "", at(f.two, 80)},
			path{"guest to the gateway", g1, "", at(f.gw, 9092)},
			path{"guest to the host", g1, "", at(f.host, 9092)},
			path{"guest to the world", g1, "", at(f.world, 7000)},
			path{"guest to the world from a port that we publish", g1, at(f.one, 8080), at(f.world, 7000)},
			path{"world to the host", o.Client, "", at(f.host, 9092)},
			path{"host to itself", o.Host, "", at(f.loop, 9092)},
			path{"host to the world", o.Host, "", at(f.world, 7000)},
			path{"where nobody listens", o.Client, "", at(f.host, 9999)},
			path{"where nobody listens behind", o.Client, "", at(f.one, 9999)},
		)
	}
	var mu sync.Mutex
	var asking sync.WaitGroup
	note := func(name, said string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, name+": "+said)
	}
	for _, p := range paths {
		for _, proto := range protos {
			if p.bind != "" && proto == "udp-unconnected" {
				continue // the same port at the same time
			}
			asking.Go(func() {
				limit := wait
				if strings.HasSuffix(p.to, ":9999") {
					limit = silence
				}
				reply, err := ask(p.from, proto, p.bind, p.to, limit)
				said := fmt.Sprintf("%s saw %s", reply.Server, reply.Remote.Addr().Unmap())
				switch {
				case lab.Refused(err):
					said = "refused"
				case lab.Timeout(err):
					said = "nothing"
				case err != nil:
					said = err.Error()
				}
				note(fmt.Sprintf("%s, %s %s", p.name, proto, p.to), said)
			})
		}
	}
	for _, to := range []struct {
		from *netns.NS
		to   string
	}{{g1, lab.ClientIPv4}, {g1, lab.ClientIPv6}, {o.Client, "172.30.0.2"}, {o.Client, "fd30::3"}, {o.Host, "172.30.0.3"}, {g2, "fd30::2"}, {g1, "172.30.0.1"}, {o.Client, lab.HostIPv4}} {
		asking.Go(func() { note("ping "+to.to, fmt.Sprint(lab.Ping(to.from, to.to, wait) == nil)) })
	}
	asking.Wait()
	slices.Sort(lines)
	return lines
}

// Traffic that is not ours is untouched: all that another engine does on this host comes
// to the same before there is bpfnet, with containers running, and after it is gone.
func TestOthers(t *testing.T) {
	parallel(t)
	o := newOthers(t)
	before := o.table()
	for _, must := range []string{
		"world to their published port, tcp 203.0.113.1:9090: guest1 saw 203.0.113.2",
		"guest to the world, udp [2001:db8:113::2]:7000: world saw 2001:db8:113::1",
		"guest to the world from a port that we publish, udp 203.0.113.2:7000: world saw 203.0.113.1",
		"guest to guest, tcp [fd30::3]:80: guest2 saw fd30::2", "ping 172.30.0.2: true",
	} {
		require.Contains(t, before, must)
	}
	m, err := control.Open(control.Options{Root: o.Root, BPFFS: o.BPFFS, Netns: o.NetnsPath, Cgroup: o.Cgroup})
	require.NoError(t, err)
	c := &cast{Lab: o.Lab, t: t, root: t, m: m, maker: ours{}}
	require.NoError(t, m.Init(nil))
	uninstalled := false
	defer func() {
		if !uninstalled {
			c.explain()
			require.NoError(t, m.Uninstall())
		}
	}()
	require.Equal(t, before, o.table(), "set up")
	c.network("n1", 1, true)
	s := c.container("srv", "n1", publish("8080:80", "8080:80/udp"))
	c.serve(s, 80)
	d := c.daemon()
	require.Equal(t, before, o.table(), "with containers")

	// The bridge is an uplink, its ports are not.
	status, err := m.Status()
	require.NoError(t, err)
	require.Empty(t, status.Problems)
	for _, h := range status.Hooks {
		require.NotContains(t, h.Device, "guest", h.Program)
	}
	require.True(t, slices.ContainsFunc(status.Hooks, func(h control.HookStatus) bool { return h.Device == "br9" && h.Program == loader.BPFProgFromUplink }))

	// Theirs and ours are the world to each other.
	for _, f := range []struct {
		host, gw, one, own string
		src                netip.Addr
	}{{lab.HostIPv4, "172.30.0.1", "172.30.0.2", "172.30.0.1", s.ip4}, {lab.HostIPv6, "fd30::1", "fd30::2", "fd30::1", s.ip6}} {
		c.answers(o.guests[0], at(f.host, 8080), "srv", f.one)
		c.answers(o.guests[0], at(f.gw, 8080), "srv", f.one)
		c.answers(s.ns, at(f.one, 80), "guest1", f.own)
		c.pings(s.ns, f.one)
		for _, proto := range []string{"tcp", "udp"} {
			lab.Unreachable(t, proto+" from a guest straight to a container", func() error {
				_, err := ask(o.guests[0], proto, "", at(f.src, 80), silence)
				return err
			}, works(o.guests[0], at(f.host, 8080)))
			// What the kernel would forward for a container of ours is closed.
			lab.Unreachable(t, proto+" from a container to what they publish", func() error {
				_, err := ask(s.ns, proto, "", at(f.host, 9090), silence)
				return err
			}, works(s.ns, at(f.one, 80)))
		}
	}
	// A guest that comes and goes is nobody's uplink for a moment.
	log := d.Stderr()
	h, err := o.Host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	for i := range 5 {
		name := fmt.Sprint("guest", 10+i)
		require.NoError(t, h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, MasterIndex: lab.Link(t, o.Host, "br9").Attrs().Index}, PeerName: name + "x"}))
		c.within(promptly, name, c.whole)
		require.NoError(t, h.LinkDel(lab.Link(t, o.Host, name)))
	}
	c.within(promptly, "all as before", c.whole)
	require.NotContains(t, d.Stderr()[len(log):], "error")
	require.Equal(t, before, o.table(), "after guests came and went")

	uninstalled = true
	require.NoError(t, m.Uninstall())
	d.ends()
	require.Equal(t, before, o.table(), "uninstalled")
}
