// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	order "encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// errorKinds are the errors that a socket is told of: type, code, and the second half of the header
// as it is told (net/ipv4/udp.c, net/ipv6/udp.c).
var errorKinds = map[int][]complaint{
	4: {{kind: 3, code: 0}, {kind: 3, code: 1}, {kind: 3, code: 3}, {kind: 3, code: 4, info: 1300}, {kind: 3, code: 10}, {kind: 3, code: 13},
		{kind: 11, code: 0}, {kind: 12, code: 0, info: 9}},
	6: {{kind: 1, code: 0}, {kind: 1, code: 1}, {kind: 1, code: 3}, {kind: 1, code: 4}, {kind: 2, code: 0, info: 1300},
		{kind: 3, code: 0}, {kind: 3, code: 1}, {kind: 4, code: 0, info: 40}},
}

// errorWay is somebody who complains about a packet of a socket's: all of it as he got it.
type errorWay struct {
	name   string
	hears  syscall.RawConn
	at     station    // who sends the error,
	packet lab.Packet // with whose headers,
	about  []byte     // about what he got, from the IP header on
	from   netip.Addr // whom the socket is told of
	beside netip.Addr // an address of H's, or a neighbour's, that sent nothing
}

// E1, kind by kind: every ICMP and ICMPv6 error about a translated packet reaches the socket that sent it,
// with type, code and what else it says, by the right address, quoting the payload that was sent: from
// a router and from the other end, about what a container asks and about what it answers; and from a
// container about what it was asked. Errors about no flow of ours reach nobody.
//
//	X 203.0.113.2, .77 ── eth0 H ─┬─ n1 ── srv (P:P/udp)
//	R 198.51.100.2 ────── eth1    │
//	    192.0.2.9 behind it       └─ n2
func TestE1Kinds(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	r := c.AddClient(t, "R", "198.51.100.1/24", "2001:db8:51::1/64")
	lab.AddRoute(t, c.Host, "192.0.2.0/24", r.Addrs[0].String())
	lab.AddRoute(t, c.Host, "2001:db8:f::/64", r.Addrs[1].String())
	_, err := c.m.Reconcile()
	require.NoError(t, err)
	router := station{ns: r.NS, dev: "eth0", mac: r.MAC, ip4: r.Addrs[0], ip6: r.Addrs[1]}
	x, h, srv, gw := c.world(), c.uplink(), c.station(s, "n1"), c.gateway("n1")
	for i, family := range ipVersions {
		ways := c.errorWays(family, s, router, station{mac: r.HostMAC, ip4: r.HostAddrs[0], ip6: r.HostAddrs[1]},
			netip.MustParseAddr([]string{"192.0.2.9", "2001:db8:f::9"}[i]), x, h, srv, gw)
		for _, w := range ways {
			t.Run(fmt.Sprintf("%s, IPv%d", w.name, family), func(t *testing.T) {
				var frames [][]byte
				var wanted []complaint
				for _, k := range errorKinds[family] {
					for _, short := range []bool{false, true} {
						about, text := w.about, "what is sent"
						if short { // the least that there has to be
							about, text = about[:map[int]int{4: 20, 6: 40}[family]+8], ""
						}
						rest := k.info
						if k.kind == 12 { // the pointer is in the first byte
							rest <<= 24
						}
						frames = append(frames, w.packet.ICMP(k.kind, k.code, rest, about))
						want := k
						want.from, want.about = w.from, text
						wanted = append(wanted, want)
					}
				}
				require.NoError(t, lab.InjectEach(w.at.ns, w.at.dev, len(frames), func(i int) []byte { return frames[i] }))
				for _, want := range wanted {
					heardError(t, w.hears, want)
				}
			})
			t.Run(fmt.Sprintf("%s, forged, IPv%d", w.name, family), func(t *testing.T) {
				c.in(t).forgedErrors(family, w, complaint{kind: map[int]uint8{4: 3, 6: 1}[family], code: 3, from: w.from, about: "what is sent"})
			})
		}
	}
}

// errorWays sends a datagram each way, and makes complaints of what arrives.
func (c *cast) errorWays(family int, s *actor, router, host station, remote netip.Addr, x, h, srv, gw station) []errorWay {
	t := c.t
	t.Helper()
	const text = "what is sent"
	catch := func(at station, send func()) []byte {
		t.Helper()
		capture := lab.CaptureIn(t, at.ns, at.dev, marked(text))
		send()
		require.True(t, capture.Wait(1, wait), "nothing came to complain about")
		frame := capture.Frames()[0]
		capture.Stop()
		return frame[14:]
	}
	say := func(p *packets, to netip.AddrPort) {
		_, err := p.conn.WriteToUDPAddrPort([]byte(text), to)
		require.NoError(t, err)
	}
	// The container asks somebody beyond R.
	asks := c.packets(s.ns, family)
	asked := catch(router, func() { say(asks, netip.AddrPortFrom(remote, 7000)) })
	heardAsking := hearErrors(t, asks.conn, family)
	// It answers X, by a published port.
	serves := c.packets(s.ns, family)
	heardServing := hearErrors(t, serves.conn, family)
	c.publish(s, fmt.Sprintf("%d:%d/udp", serves.port, serves.port))
	client := c.packets(c.Client, family)
	heardClient := hearErrors(t, client.conn, family)
	request := catch(srv, func() { say(client, netip.AddrPortFrom(h.addr(family), serves.port)) })
	from := serves.from(t, []byte(text))
	answer := catch(x, func() { say(serves, from) })

	out := func(at station, src netip.Addr, to station) lab.Packet {
		p := at.to(to, family)
		p.Src = src
		return p
	}
	stranger := netip.MustParseAddr(map[int]string{4: "203.0.113.77", 6: "2001:db8:113::77"}[family])
	return []errorWay{
		{"a router about what a container asks", heardAsking, router, router.to(host, family), asked, router.addr(family), h.addr(family)},
		{"its receiver about what a container asks", heardAsking, router, out(router, remote, host), asked, remote, h.addr(family)},
		{"a router about an answer", heardServing, x, out(x, stranger, h), answer, stranger, host.addr(family)},
		{"the client about an answer", heardServing, x, x.to(h, family), answer, x.addr(family), host.addr(family)},
		{"a container about what it is asked", heardClient, srv, srv.by(gw, x, family), request, h.addr(family), x.addr(family).Next()},
	}
}

// forgedErrors sends errors about packets that nobody sent, and requires that none gets through. The
// control, with code 3, is heard as what is given.
func (c *cast) forgedErrors(family int, w errorWay, control complaint) {
	t := c.t
	t.Helper()
	head := map[int]int{4: 20, 6: 40}[family]
	changed := func(at int) []byte {
		about := slices.Clone(w.about)
		order.BigEndian.PutUint16(about[at:], order.BigEndian.Uint16(about[at:])+1)
		return about
	}
	src, dst := map[int]int{4: 12, 6: 8}[family], map[int]int{4: 16, 6: 24}[family]
	size := (dst - src) - 2
	other := slices.Clone(w.about)
	other[map[int]int{4: 9, 6: 6}[family]] = 132
	beside := w.packet
	beside.Dst = w.beside
	kind, redirect := map[int]uint8{4: 3, 6: 1}[family], map[int]uint8{4: 5, 6: 137}[family]
	frames := [][]byte{
		w.packet.ICMP(kind, 1, 0, changed(head)),     // another source port,
		w.packet.ICMP(kind, 1, 0, changed(head+2)),   // destination port,
		w.packet.ICMP(kind, 1, 0, changed(src+size)), // source,
		w.packet.ICMP(kind, 1, 0, changed(dst+size)), // destination
		w.packet.ICMP(kind, 1, 0, w.about[:head+7]),  // too little of it
		beside.ICMP(kind, 1, 0, w.about),             // to somebody else
		w.packet.ICMP(redirect, 1, 0, w.about),       // no error
		w.packet.ICMP(kind, 1, 0, w.about[:head-4]),  // no packet
		w.packet.ICMP(kind, 1, 0, other),             // of another protocol
	}
	n := times(10000, 400)
	require.NoError(t, lab.InjectEach(w.at.ns, w.at.dev, n, func(i int) []byte { return frames[i%len(frames)] }))
	// The control comes behind them, and is the first that is heard.
	require.NoError(t, lab.Inject(w.at.ns, w.at.dev, w.packet.ICMP(kind, 3, 0, w.about), 1))
	heardError(t, w.hears, control)
	_, more := nextError(w.hears)
	require.False(t, more)
}
