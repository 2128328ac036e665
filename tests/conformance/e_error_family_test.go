// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	order "encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// E1, between the families: the host asks [::1], the server has IPv4 only. Each hears the other's errors
// in its own family (RFC 7915 sections 4.2 and 5.2), by the address that it talks to.
//
//	H [::1]:PORT ── n4 10.4.0.0/24 ── only4 (8090:80, 8091:90, where nobody listens)
func TestE1OtherFamily(t *testing.T) {
	parallel(t)
	c, _, _, _ := ownCast(t)
	a := c.only4(8090)
	c.publish(a, "8091:90", "8091:90/udp")
	t.Run("where nobody listens", func(t *testing.T) {
		for _, from := range []string{"", "::1", lab.HostIPv6, "fd00:1::1"} {
			for _, proto := range []string{"udp", "tcp"} {
				_, err := ask(c.Host, proto, from, "[::1]:8091", wait)
				require.ErrorIs(t, err, syscall.ECONNREFUSED, "%s from %q", proto, from)
			}
			c.in(t).answersBy("udp", c.Host, from, "[::1]:8090", "only4", "10.4.0.1") // the control
		}
	})
	t.Run("kernel to kernel", func(t *testing.T) { c.in(t).familyRefusals(a) })
	t.Run("TCP", func(t *testing.T) { c.in(t).familyTCP(a) })
	// Before others make the host believe in a smaller one.
	t.Run("path MTU", func(t *testing.T) { c.in(t).familyMTU(a) })
	t.Run("kinds", func(t *testing.T) { c.in(t).familyKinds(a) })
}

// E1's errors by what is said and what is heard: type, code, and the second half of the header as a socket is
// told it.
var (
	saidInFour = [][2]complaint{
		{{kind: 3, code: 0}, {kind: 1, code: 0}}, {{kind: 3, code: 1}, {kind: 1, code: 0}}, {{kind: 3, code: 2}, {kind: 4, code: 1, info: 6}},
		{{kind: 3, code: 3}, {kind: 1, code: 4}}, {{kind: 3, code: 4, info: 1300}, {kind: 2, code: 0, info: 1320}}, {{kind: 3, code: 10}, {kind: 1, code: 1}},
		{{kind: 3, code: 13}, {kind: 1, code: 1}}, {{kind: 11, code: 0}, {kind: 3, code: 0}}, {{kind: 11, code: 1}, {kind: 3, code: 1}},
		{{kind: 12, code: 0, info: 9}, {kind: 4, code: 0, info: 6}},
	}
	saidInSix = [][2]complaint{
		{{kind: 1, code: 0}, {kind: 3, code: 1}}, {{kind: 1, code: 1}, {kind: 3, code: 10}}, {{kind: 1, code: 3}, {kind: 3, code: 1}}, {{kind: 1, code: 4}, {kind: 3, code: 3}},
		{{kind: 2, code: 0, info: 1300}, {kind: 3, code: 4, info: 1280}}, {{kind: 3, code: 0}, {kind: 11, code: 0}},
		{{kind: 4, code: 0, info: 6}, {kind: 12, code: 0, info: 9}}, {{kind: 4, code: 1, info: 6}, {kind: 3, code: 2}},
	}
)

// between is a conversation of two UDP sockets: the host's by [::1], the container's by IPv4.
type between struct {
	client, server           *packets
	heardClient, heardServer syscall.RawConn
	to, back                 netip.AddrPort // as the client, the server reach the other
}

// between has the client ask.
func (c *cast) between(a *actor) *between {
	c.t.Helper()
	b := &between{client: c.packets(c.Host, 6), server: c.packets(a.ns, 4)}
	c.publish(a, fmt.Sprintf("%d:%d/udp", b.server.port, b.server.port))
	b.heardClient, b.heardServer = hearErrors(c.t, b.client.conn, 6), hearErrors(c.t, b.server.conn, 4)
	b.to = netip.AddrPortFrom(netip.IPv6Loopback(), b.server.port)
	b.says(c.t, b.client, "hello")
	b.back = b.server.from(c.t, []byte("hello"))
	require.Equal(c.t, "10.4.0.1", b.back.Addr().String())
	return b
}

func (b *between) says(t testing.TB, who *packets, text string) {
	t.Helper()
	to := b.to
	if who == b.server {
		to = b.back
	}
	_, err := who.conn.WriteToUDPAddrPort([]byte(text), to)
	require.NoError(t, err)
}

// familyRefusals closes one end's socket, and has the other end hear what that one's kernel says.
func (c *cast) familyRefusals(a *actor) {
	one, two := c.between(a), c.between(a)
	require.NoError(c.t, one.client.conn.Close())
	one.says(c.t, one.server, "answer")
	heardError(c.t, one.heardServer, complaint{kind: 3, code: 3, from: one.back.Addr(), about: "answer"})
	require.NoError(c.t, two.server.conn.Close())
	two.says(c.t, two.client, "question")
	heardError(c.t, two.heardClient, complaint{kind: 1, code: 4, from: two.to.Addr(), about: "question"})
}

// caught is the packet with a text that arrives at a device, from the IP header on.
func (c *cast) caught(ns *netns.NS, device, text string, send func()) []byte {
	c.t.Helper()
	capture := lab.CaptureIn(c.t, ns, device, marked(text))
	defer capture.Stop()
	send()
	require.True(c.t, capture.Wait(1, wait), "%q does not arrive", text)
	return capture.Frames()[0][14:]
}

// familyKinds complains in each way about what each got.
func (c *cast) familyKinds(a *actor) {
	t := c.t
	t.Helper()
	b := c.between(a)
	const question, answer = "the question", "the answer"
	srv, gw := c.station(a, "n4"), c.gateway("n4")
	asked := c.caught(a.ns, srv.dev, question, func() { b.says(t, b.client, question) })
	b.server.from(t, []byte(question))
	answered := c.caught(c.Host, "lo", answer, func() { b.says(t, b.server, answer) })
	b.client.from(t, []byte(answer))
	six := netip.IPv6Loopback()
	zero := make(net.HardwareAddr, 6)
	container := errorWay{hears: b.heardClient, at: srv, packet: srv.to(gw, 4), about: asked, from: six, beside: netip.MustParseAddr(lab.HostIPv4)}
	for _, w := range []struct {
		errorWay
		kinds [][2]complaint
		text  string
	}{
		{container, saidInFour, question},
		{errorWay{hears: b.heardServer, at: station{ns: c.Host, dev: "lo"}, packet: lab.Packet{SrcMAC: zero, DstMAC: zero, Src: six, Dst: six}, about: answered,
			from: gw.ip4}, saidInSix, answer},
	} {
		var frames [][]byte
		var wanted []complaint
		for _, k := range w.kinds {
			for _, text := range []string{w.text, ""} {
				about := w.about
				if text == "" { // the least that there has to be
					about = about[:len(about)-len(w.text)]
				}
				rest := k[0].info
				if k[0].kind == 12 { // the pointer is in the first byte
					rest <<= 24
				}
				frames = append(frames, w.packet.ICMP(k[0].kind, k[0].code, rest, about))
				k[1].from, k[1].about = w.from, text
				wanted = append(wanted, k[1])
			}
		}
		require.NoError(t, lab.InjectEach(w.at.ns, w.at.dev, len(frames), func(i int) []byte { return frames[i] }))
		for _, want := range wanted {
			heardError(t, w.hears, want)
		}
	}
	c.forgedErrors(4, container, complaint{kind: 1, code: 4, from: six, about: question})
}

// familyTCP complains about a segment of a connection, whose socket hears of it at once.
func (c *cast) familyTCP(a *actor) {
	t := c.t
	t.Helper()
	srv, gw := c.station(a, "n4"), c.gateway("n4")
	segments := lab.CaptureIn(t, a.ns, srv.dev, marked("complain of this"))
	conn, err := lab.Dial(c.Host, "tcp", "", "[::1]:8090", wait)
	require.NoError(t, err)
	defer conn.Close()
	_, err = conn.Ask("complain of this", wait)
	require.NoError(t, err)
	require.True(t, segments.Wait(1, wait))
	raw, err := conn.Conn.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, setOption(raw, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1))
	about := segments.Frames()[0][14:]
	// By what it quotes the socket knows what it has sent and not heard of: the next byte.
	order.BigEndian.PutUint32(about[24:], order.BigEndian.Uint32(about[24:])+uint32(len("complain of this\n")))
	require.NoError(t, lab.Inject(srv.ns, srv.dev, srv.to(gw, 4).ICMP(3, 13, 0, about[:28]), 1))
	_, err = conn.Ask("more", wait)
	require.ErrorIs(t, err, syscall.EACCES)
}

// familyMTU has the container's side say that 1,450 bytes are too many.
func (c *cast) familyMTU(a *actor) {
	t := c.t
	t.Helper()
	srv, gw := c.station(a, "n4"), c.gateway("n4")
	server := c.packets(a.ns, 4)
	c.publish(a, fmt.Sprintf("%d:%d/udp", server.port, server.port))
	var conn *net.UDPConn
	require.NoError(t, c.Host.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.IPv6Loopback(), server.port)))
		return err
	}))
	defer conn.Close()
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, setOption(raw, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO))
	long := make([]byte, tooLong)
	copy(long, "too long")
	about := c.caught(a.ns, srv.dev, "too long", func() {
		_, err := conn.Write(long)
		require.NoError(t, err)
	})
	require.NoError(t, lab.Inject(srv.ns, srv.dev, srv.to(gw, 4).ICMP(3, 4, narrow, about[:28]), 1))
	require.True(t, soon(func() bool { _, err = conn.Write(long); return errors.Is(err, unix.EMSGSIZE) }), "not refused: %v", err)
	require.NoError(t, onSocket(raw, func(fd int) error {
		mtu, err := unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
		require.Equal(t, narrow+20, mtu)
		return err
	}))
}
