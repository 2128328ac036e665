// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// ways are networks of every kind, and how each reaches the world by an uplink beside the usual one.
//
//	X eth0   203.0.113.2  ── eth0   203.0.113.1  ┐   ┌─ n1 ────────────────────── srv (8080:80), peer
//	                                             H ──┼─ plain: masquerade off ─── plain (8090:80)
//	X tested 198.51.100.2 ── tested 198.51.100.1 ┘   └─ routed ────────────────── open (-p 80)
type ways struct {
	*cast
	device               string // of H
	hosts, far           []netip.Addr
	srv, peer, own, open *actor
}

// second are the addresses of an uplink that H and X have beside the usual one: H's and X's.
func second() (hosts, far []netip.Addr) {
	hosts = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:51::1")}
	return hosts, []netip.Addr{hosts[0].Next(), hosts[1].Next()}
}

// raise gives a device of such an uplink its addresses, and sets it up.
func (c *cast) raise(ns *netns.NS, device string, addrs []netip.Addr) {
	c.t.Helper()
	h, err := ns.Netlink()
	require.NoError(c.t, err)
	defer h.Close()
	lab.Sysctl(c.t, ns, "ipv6/conf/"+device+"/accept_dad", "0")
	require.NoError(c.t, h.LinkSetUp(lab.Link(c.t, ns, device)))
	for i, bits := range []int{24, 64} {
		lab.AddAddr(c.t, ns, device, netip.PrefixFrom(addrs[i], bits).String())
	}
}

// waysBy builds the networks for an uplink of H's that there is, with these addresses, and X's.
func waysBy(c *cast, s, p *actor, device string, hosts, far []netip.Addr) *ways {
	c.t.Helper()
	w := &ways{cast: c, device: device, hosts: hosts, far: far, srv: s, peer: p}
	off := false
	c.network("plain", 3, true, func(o *control.NetworkOptions) { o.Masquerade = &off })
	c.network("routed", 4, true, func(o *control.NetworkOptions) { o.Routed = true })
	w.own = c.container("plain", "plain", publish("8090:80", "8090:80/udp"))
	w.open = c.container("open", "routed", publish("80", "80/udp"))
	c.serve(w.own, 80)
	c.serve(w.open, 80)
	c.serve(w.open, 81)
	for i, nets := range [][]string{{"10.1.0.0/24", "10.3.0.0/24", "10.4.0.0/24"}, {"fd00:1::/64", "fd00:3::/64", "fd00:4::/64"}} {
		for _, n := range nets {
			lab.AddRoute(c.t, c.Client, n, hosts[i].String())
		}
	}
	lab.ServeTCP(c.t, c.Client, "world", ":9000")
	lab.ServeUDP(c.t, c.Client, "world", ":9000")
	_, err := c.m.Reconcile()
	require.NoError(c.t, err)
	return w
}

// work requires that all of them reach the world and are reached as their networks say.
func (w *ways) work() {
	w.t.Helper()
	for i := range ipVersions {
		host, far := w.hosts[i].String(), w.far[i].String()
		of := func(a *actor) string { return []netip.Addr{a.ip4, a.ip6}[i].String() }
		for _, x := range []struct {
			from             *netns.NS
			to, server, seen string
		}{
			{w.Client, at(host, 8080), "srv", far},
			{w.Client, at(host, 8090), "plain", far},
			{w.Client, at(of(w.open), 80), "open", far},
			{w.srv.ns, at(far, 9000), "world", host},
			{w.own.ns, at(far, 9000), "world", of(w.own)},
			{w.open.ns, at(far, 9000), "world", of(w.open)},
		} {
			w.answers(x.from, x.to, x.server, x.seen)
			conn, err := lab.Dial(x.from, "udp", "", x.to, wait)
			require.NoError(w.t, err)
			for range 3 { // each goes by what the ones before have left
				w.carries(conn, 1000)
			}
			conn.Close()
			conn, err = lab.Dial(x.from, "tcp", "", x.to, wait)
			require.NoError(w.t, err)
			w.carries(conn, 50_000)
			conn.Close()
		}
		for _, a := range []*actor{w.srv, w.own, w.open} {
			for range 3 {
				w.pings(a.ns, far)
			}
		}
		w.pings(w.Client, of(w.open))

		// What the programs answer themselves goes out by it, too.
		for _, to := range []string{at(host, 8080), at(of(w.open), 80)} {
			k, err := dialHops(w.Client, "udp", to, 1)
			require.NoError(w.t, err)
			_, err = k.ask(wait)
			require.ErrorIs(w.t, err, syscall.EHOSTUNREACH, "time exceeded, for %s", to)
			k.Close()
		}
		w.dropped(w.Client, at(of(w.srv), 80), at(host, 8080), "DIRECT_ACCESS")
		w.dropped(w.Client, at(of(w.open), 81), at(of(w.open), 80), "DIRECT_ACCESS")
	}
}

// closed requires that no packet of a container's gets to a device of X's that from_endpoint has not
// passed: each of the programs on its way out stops it, though the kernel forwards.
func (w *ways) closed(device string, exits ...hook) {
	w.t.Helper()
	if netfilter() {
		return // there is none to detach
	}
	w.endDaemon(w.cast) // which puts back what is detached
	w.forwarding("1")
	w.detach(hook{loader.BPFProgFromEndpoint, w.endpoint("peer", "n1").HostIf, w.kind()})
	arrived := lab.CaptureIn(w.t, w.Client, device, w.station(w.peer, "n1").mentions)
	try := func(i int) error {
		_, err := ask(w.peer.ns, "udp", "", at(w.far[i], 9000), silence)
		return err
	}
	for _, exit := range exits {
		for i := range ipVersions {
			before := w.drops("BYPASS")
			lab.Unreachable(w.t, fmt.Sprintf("unseen by from_endpoint, %v", w.far[i]), func() error { return try(i) }, works(w.srv.ns, at(w.far[i], 9000)))
			require.Greater(w.t, w.drops("BYPASS"), before)
		}
		require.Empty(w.t, arrived.Frames(), lab.Describe(arrived.Frames()))
		exit.kind = w.kind()
		w.detach(exit)
	}
	for i := range ipVersions { // the positive control: with all doors open they leave, and only the answer is dropped
		require.Error(w.t, try(i))
		own := []netip.Addr{w.peer.ip4, w.peer.ip6}[i].AsSlice()
		require.True(w.t, soon(func() bool {
			return slices.ContainsFunc(arrived.Frames(), func(f []byte) bool { return bytes.Contains(f, own) })
		}))
	}
}

// kind is how programs are attached to devices here.
func (w *ways) kind() string {
	w.t.Helper()
	status, err := w.m.Status()
	require.NoError(w.t, err)
	for _, h := range status.Hooks {
		if h.Device == w.device && h.Kind != "" {
			return h.Kind
		}
	}
	require.Fail(w.t, "no program on "+w.device)
	return ""
}

// D4 by an uplink that sends by another uplink: a packet passes to_uplink on both, and the second
// knows as well as the first that from_endpoint has passed it, whoever's address it bears.
//
//	H mv0 (macvlan) on eth0 ── eth0 X
func TestD4Stacked(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	h, err := c.Host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	hosts, far := second()
	require.NoError(t, h.LinkAdd(&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "mv0", ParentIndex: lab.Link(t, c.Host, c.X.Device).Attrs().Index}, Mode: netlink.MACVLAN_MODE_BRIDGE}))
	c.raise(c.Host, "mv0", hosts)
	c.raise(c.Client, "eth0", far)
	w := waysBy(c, s, p, "mv0", hosts, far)
	w.work()
	w.closed("eth0", hook{program: loader.BPFProgToUplink, device: "mv0"}, hook{program: loader.BPFProgToUplink, device: c.X.Device})
}
