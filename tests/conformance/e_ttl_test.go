// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// What a test's client sends with, and what kernels do (net/ipv4/ip_default_ttl).
const (
	hopsSent    = 40
	hopsDefault = 64
)

// way is one that a packet takes through H.
type way struct {
	name     string
	from, to *netns.NS
	at       [2]string // device of from and of to, by which it is seen to come
	addr     string
	port     int // as the server has it
	less     uint8
	router   netip.Addr // who says time exceeded; of ways that are one hop less
}

// E8: through H (X to a published port, a container to X, a container to another network's
// published port) the TTL or hop limit is one less at the receiver, there and back, for the first
// packet of a flow and for later ones; inside a network, and between a container and the host, it is
// unchanged. Where it would reach 0 the sender hears time exceeded, from its gateway if it is a
// container, and nothing arrives; one more gets through.
//
//	X ──── 1 less ────► H:8080 ► srv        other ──── 1 less ────► H:8080 ► srv
//	X ◄─── 1 less ───── srv                 peer ─── as sent ───► srv ◄─── as sent ───► H
func TestE8(t *testing.T) {
	parallel(t)
	c, s, p, o := ownCast(t)
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	lab.ServeTCP(t, c.Host, "host", ":9000")
	lab.ServeUDP(t, c.Host, "host", ":9000")
	for i, family := range ipVersions {
		gw1, gw2 := c.gateway("n1"), c.gateway("n2")
		host, world, loop := []string{lab.HostIPv4, lab.HostIPv6}[i], []string{lab.ClientIPv4, lab.ClientIPv6}[i], []string{"127.0.0.1", "::1"}[i]
		srv := c.station(s, "n1").addr(family)
		hostAddr := netip.MustParseAddr(host)
		eth0, bridge := "eth0", gw1.dev
		ways := []way{
			{"X to published", c.Client, s.ns, [2]string{eth0, eth0}, at(host, 8080), 80, 1, hostAddr},
			{"container to X", s.ns, c.Client, [2]string{eth0, eth0}, at(world, 7000), 7000, 1, gw1.addr(family)},
			{"network to network", o.ns, s.ns, [2]string{eth0, eth0}, at(host, 8080), 80, 1, gw2.addr(family)},
			{"peer", p.ns, s.ns, [2]string{eth0, eth0}, at(srv, 80), 80, 0, netip.Addr{}},
			{"host to container", c.Host, s.ns, [2]string{bridge, eth0}, at(srv, 80), 80, 0, netip.Addr{}},
			{"host by loopback", c.Host, s.ns, [2]string{"", eth0}, at(loop, 8080), 80, 0, netip.Addr{}},
			{"container to host", s.ns, c.Host, [2]string{eth0, bridge}, at(gw1.addr(family), 9000), 9000, 0, netip.Addr{}},
		}
		for _, w := range ways {
			t.Run(fmt.Sprintf("%s, IPv%d", w.name, family), func(t *testing.T) {
				c := c.in(t)
				for _, proto := range []string{"tcp", "udp"} {
					c.hops(w, proto)
					if w.less > 0 {
						c.expires(w, proto)
					}
				}
			})
		}
		for _, w := range []way{
			{"container to X", s.ns, c.Client, [2]string{eth0, eth0}, world, 0, 1, gw1.addr(family)},
			{"peer", p.ns, s.ns, [2]string{eth0, eth0}, srv.String(), 0, 0, netip.Addr{}},
			{"host to container", c.Host, s.ns, [2]string{bridge, eth0}, srv.String(), 0, 0, netip.Addr{}},
			{"container to host", s.ns, c.Host, [2]string{eth0, bridge}, gw1.addr(family).String(), 0, 0, netip.Addr{}},
		} {
			t.Run(fmt.Sprintf("ping %s, IPv%d", w.name, family), func(t *testing.T) { c.in(t).echoHops(w, family) })
		}
	}
}

// E8: the same where nothing is translated: from and to a routed network, by its containers' own
// addresses, out of a network without masquerade, and between networks that are open to each other.
// Who asks a container by its own address hears the router, and not the container.
//
//	X ──── 1 less ────► routed        plain ──── 1 less ────► X        one ──── 1 less ────► two
func TestE8Routed(t *testing.T) {
	parallel(t)
	c := newCast(t, lab.RouteToHost())
	off := false
	open := func(o *control.NetworkOptions) { o.Isolate = &off }
	c.network("routed", 5, true, func(o *control.NetworkOptions) { o.Routed = true })
	c.network("plain", 6, true, func(o *control.NetworkOptions) { o.Masquerade = &off })
	c.network("n7", 7, true, open)
	c.network("n8", 8, true, open)
	r, plain := c.container("routed", "routed", publish("8085:80", "8085:80/udp")), c.container("plain", "plain")
	one, two := c.container("one", "n7"), c.container("two", "n8")
	c.serve(r, 80)
	c.serve(two, 80)
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	for i, family := range ipVersions {
		host, world := netip.MustParseAddr([]string{lab.HostIPv4, lab.HostIPv6}[i]), []string{lab.ClientIPv4, lab.ClientIPv6}[i]
		devices := [2]string{"eth0", "eth0"}
		for _, w := range []way{
			{"X to routed", c.Client, r.ns, devices, at(c.station(r, "routed").addr(family), 80), 80, 1, host},
			{"routed to X", r.ns, c.Client, devices, at(world, 7000), 7000, 1, c.gateway("routed").addr(family)},
			{"plain to X", plain.ns, c.Client, devices, at(world, 7000), 7000, 1, c.gateway("plain").addr(family)},
			{"network to network", one.ns, two.ns, devices, at(c.station(two, "n8").addr(family), 80), 80, 1, c.gateway("n7").addr(family)},
		} {
			t.Run(fmt.Sprintf("%s, IPv%d", w.name, family), func(t *testing.T) {
				c := c.in(t)
				for _, proto := range []string{"tcp", "udp"} {
					c.hops(w, proto)
					c.expires(w, proto)
				}
			})
		}
	}
}

// hops requires the way's TTL of every packet of a conversation, there and back.
func (c *cast) hops(w way, proto string) {
	c.t.Helper()
	there := lab.CaptureIn(c.t, w.to, w.at[1], nil)
	defer there.Stop()
	var back *lab.Capture
	if w.at[0] != "" {
		back = lab.CaptureIn(c.t, w.from, w.at[0], nil)
		defer back.Stop()
	}
	k, err := dialHops(w.from, proto, w.addr, hopsSent)
	require.NoError(c.t, err, "%s to %s", proto, w.addr)
	defer k.Close()
	var reply lab.Reply
	const asks = 3
	for range asks {
		reply, err = k.ask(wait)
		require.NoError(c.t, err, "%s to %s", proto, w.addr)
	}
	local := netip.MustParseAddrPort(k.LocalAddr().String())
	require.True(c.t, soon(func() bool { return len(hopsOf(there, reply.Remote, w.port)) >= asks }))
	for _, n := range hopsOf(there, reply.Remote, w.port) {
		require.EqualValues(c.t, hopsSent-w.less, n, "%s to %s", proto, w.addr)
	}
	if back == nil {
		return
	}
	require.True(c.t, soon(func() bool { return len(hopsOf(back, netip.MustParseAddrPort(w.addr), int(local.Port()))) >= asks }))
	for _, n := range hopsOf(back, netip.MustParseAddrPort(w.addr), int(local.Port())) {
		require.EqualValues(c.t, hopsDefault-w.less, n, "%s from %s", proto, w.addr)
	}
}

// expires requires time exceeded for a TTL of 1, for the first packet of a flow and for later ones.
func (c *cast) expires(w way, proto string) {
	c.t.Helper()
	errs := lab.CaptureIn(c.t, w.from, w.at[0], lab.Matching(func(p gopacket.Packet) bool { return timeExceeded(p) != nil }))
	defer errs.Stop()
	arrived := lab.CaptureIn(c.t, w.to, w.at[1], func(frame []byte) bool {
		n, _, dst := transportOf(frame)
		return int(dst) == w.port && n == 0
	})
	defer arrived.Stop()

	k, err := dialHops(w.from, proto, w.addr, 1)
	if proto == "udp" {
		require.NoError(c.t, err)
		_, err = k.ask(wait)
		k.Close()
	}
	require.ErrorIs(c.t, err, syscall.EHOSTUNREACH, "%s to %s", proto, w.addr)
	c.heardExceeded(errs, w)

	k, err = dialHops(w.from, proto, w.addr, 2)
	require.NoError(c.t, err, "%s to %s: one hop more", proto, w.addr)
	defer k.Close()
	_, err = k.ask(wait)
	require.NoError(c.t, err, "%s to %s: one hop more", proto, w.addr)

	heard := errs.Count()
	k.limit(c.t, 1)
	require.NoError(c.t, k.say("late"))
	require.True(c.t, errs.Wait(heard+1, wait), "%s to %s: of an established flow", proto, w.addr)
	c.heardExceeded(errs, w)
	k.limit(c.t, hopsSent)
	if proto == "tcp" { // which sends what was lost once more
		_, err = k.answer("late", wait)
	} else {
		k.Read(make([]byte, 1)) // the pending error
		_, err = k.ask(wait)
	}
	require.NoError(c.t, err, "%s to %s: afterwards", proto, w.addr)
	require.Zero(c.t, arrived.Count(), "arrived with nothing left")
}

// heardExceeded requires of all errors that they are the router's, about a packet to the way's address.
func (c *cast) heardExceeded(errs *lab.Capture, w way) {
	c.t.Helper()
	require.True(c.t, errs.Wait(1, wait), "no time exceeded from %s", w.router)
	asked := netip.MustParseAddrPort(w.addr)
	for _, f := range errs.Frames() {
		p := lab.Decode(f)
		src, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
		require.Equal(c.t, w.router, src, lab.Describe([][]byte{f}))
		about := timeExceeded(p)
		header := 20
		if asked.Addr().Is6() {
			header = 40
		}
		require.GreaterOrEqual(c.t, len(about), header+8)
		require.Equal(c.t, asked.Addr().AsSlice(), about[header-asked.Addr().BitLen()/8:header], "quotes the address that was asked")
		require.EqualValues(c.t, asked.Port(), int(about[header+2])<<8|int(about[header+3]), "quotes the port that was asked")
	}
}

func (c *cast) echoHops(w way, family int) {
	c.t.Helper()
	const id = 0x7e8
	there := lab.CaptureIn(c.t, w.to, w.at[1], lab.Matching(isEchoRequest)) // its id may be another by then
	back := lab.CaptureIn(c.t, w.from, w.at[0], func(f []byte) bool { return echoID(f) == id && !isEchoRequest(lab.Decode(f)) })
	send := func(ttl int) error {
		_, err := lab.Echo{To: w.addr, ID: id, TTL: ttl, Wait: wait}.Send(w.from)
		return err
	}
	for range 2 {
		require.NoError(c.t, send(hopsSent))
	}
	require.True(c.t, there.Wait(2, wait) && back.Wait(2, wait))
	for _, f := range there.Frames() {
		n, _, _ := transportOf(f)
		require.EqualValues(c.t, hopsSent-w.less, n)
	}
	for _, f := range back.Frames() {
		n, _, _ := transportOf(f)
		require.EqualValues(c.t, hopsDefault-w.less, n)
	}
	if w.less == 0 {
		require.NoError(c.t, send(1))
		return
	}
	before := there.Count()
	err := send(1)
	var exceeded *lab.ICMPError
	require.True(c.t, errors.As(err, &exceeded), "%v", err)
	require.Equal(c.t, lab.ICMPError{From: w.router, Type: []uint8{11, 3}[family/6]}, *exceeded)
	require.NoError(c.t, send(2))
	require.True(c.t, there.Wait(before+1, wait))
	require.Equal(c.t, before+1, there.Count(), "the one with nothing left arrived")
}

// timeExceeded is the packet that the error speaks of (RFC 792, RFC 4443 section 3.3), or nil.
func timeExceeded(p gopacket.Packet) []byte {
	if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok && icmp.TypeCode == layers.CreateICMPv4TypeCode(layers.ICMPv4TypeTimeExceeded, 0) {
		return icmp.Payload
	}
	icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	if ok && icmp.TypeCode == layers.CreateICMPv6TypeCode(layers.ICMPv6TypeTimeExceeded, 0) && len(icmp.Payload) > 4 {
		return icmp.Payload[4:]
	}
	return nil
}

// hopsOf are the TTLs of the TCP and UDP packets from an address and port to a port.
func hopsOf(capture *lab.Capture, from netip.AddrPort, to int) (list []uint8) {
	for _, f := range capture.Frames() {
		if n, src, dst := transportOf(f); src == netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) && int(dst) == to {
			list = append(list, n)
		}
	}
	return list
}

// transportOf is a frame's TTL or hop limit, source and destination port, as far as it has them.
func transportOf(frame []byte) (hops uint8, src netip.AddrPort, dst uint16) {
	p := lab.Decode(frame)
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		hops = ip.TTL
	case *layers.IPv6:
		hops = ip.HopLimit
	default:
		return 255, src, 0
	}
	addr, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
	if l := p.TransportLayer(); l != nil {
		raw := l.TransportFlow()
		src = netip.AddrPortFrom(addr, uint16(raw.Src().Raw()[0])<<8|uint16(raw.Src().Raw()[1]))
		dst = uint16(raw.Dst().Raw()[0])<<8 | uint16(raw.Dst().Raw()[1])
	}
	return hops, src, dst
}

// hopConn asks with a TTL of the test's, and hears of errors on the way (IP_RECVERR).
type hopConn struct {
	net.Conn
	r    *bufio.Reader
	raw  syscall.RawConn
	six  bool
	asks int
}

func dialHops(ns *netns.NS, proto, to string, ttl int) (*hopConn, error) {
	k := &hopConn{six: netip.MustParseAddrPort(to).Addr().Is6()}
	d := net.Dialer{Timeout: wait, Control: func(_, _ string, raw syscall.RawConn) error {
		level, option := unix.IPPROTO_IP, unix.IP_RECVERR
		if k.six {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
		}
		if err := setOption(raw, level, option, 1); err != nil {
			return err
		}
		return k.setHops(raw, ttl)
	}}
	err := ns.Do(func() (err error) {
		k.Conn, err = d.DialContext(context.Background(), proto, to)
		return err
	})
	if err != nil {
		return nil, err
	}
	k.r = bufio.NewReader(k.Conn)
	k.raw, err = k.Conn.(syscall.Conn).SyscallConn()
	return k, err
}

func setOption(raw syscall.RawConn, level, option, value int) error {
	return onSocket(raw, func(fd int) error { return unix.SetsockoptInt(fd, level, option, value) })
}

func (k *hopConn) setHops(raw syscall.RawConn, ttl int) error {
	if k.six {
		return setOption(raw, unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, ttl)
	}
	return setOption(raw, unix.IPPROTO_IP, unix.IP_TTL, ttl)
}

func (k *hopConn) limit(t testing.TB, ttl int) {
	t.Helper()
	require.NoError(t, k.setHops(k.raw, ttl))
}

func (k *hopConn) say(text string) error {
	_, err := fmt.Fprintln(k.Conn, text)
	return err
}

// answer waits for the answer to text.
func (k *hopConn) answer(text string, limit time.Duration) (lab.Reply, error) {
	if err := k.SetReadDeadline(time.Now().Add(limit)); err != nil {
		return lab.Reply{}, err
	}
	line, err := k.r.ReadString('\n')
	if err != nil {
		return lab.Reply{}, err
	}
	reply, err := lab.ParseReply(strings.TrimSpace(line))
	if err == nil && reply.Payload != text {
		err = fmt.Errorf("answered %q to %q", reply.Payload, text)
	}
	return reply, err
}

func (k *hopConn) ask(limit time.Duration) (lab.Reply, error) {
	k.asks++
	text := fmt.Sprintf("hop %d", k.asks)
	if err := k.say(text); err != nil {
		return lab.Reply{}, err
	}
	return k.answer(text, limit)
}
