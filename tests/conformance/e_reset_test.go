// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// A long idle connection is kept so long at least; one that is closing or was reset for four minutes.
const (
	idleTime    = 7000 * time.Second
	closingTime = 260 * time.Second // 240 ticks of the programs' clock, 1.07 s each
)

// connection is one by real sockets, by way of H: from asked, to answers.
type connection struct {
	from, to     station
	asked        netip.AddrPort // as the client has it
	listener     *net.TCPListener
	client       *net.TCPConn
	server       *net.TCPConn
	clientLines  *bufio.Reader
	serverLines  *bufio.Reader
	clientPacket func(family int) lab.Packet // headers of the client's packets, of the server's
	serverPacket func(family int) lab.Packet
}

// connections listens and connects: X to a published port, and a container to X.
func (c *cast) connections(family int, s *actor) map[string]*connection {
	c.t.Helper()
	x, h, srv, gw := c.world(), c.uplink(), c.station(s, "n1"), c.gateway("n1")
	in := c.listens(s.ns, family)
	port := in.Addr().(*net.TCPAddr).AddrPort().Port()
	c.publish(s, fmt.Sprintf("%d:%d", port, port))
	out := c.listens(c.Client, family)
	return map[string]*connection{
		"X to a published port": {from: x, to: srv, listener: in, asked: netip.AddrPortFrom(h.addr(family), port),
			clientPacket: func(f int) lab.Packet { return x.to(h, f) }, serverPacket: func(f int) lab.Packet { return srv.by(gw, x, f) }},
		"a container to X": {from: srv, to: x, listener: out, asked: netip.AddrPortFrom(x.addr(family), out.Addr().(*net.TCPAddr).AddrPort().Port()),
			clientPacket: func(f int) lab.Packet { return srv.by(gw, x, f) }, serverPacket: func(f int) lab.Packet { return x.to(h, f) }},
	}
}

func (c *cast) listens(ns *netns.NS, family int) (l *net.TCPListener) {
	c.t.Helper()
	require.NoError(c.t, ns.Do(func() (err error) {
		l, err = net.ListenTCP(fmt.Sprint("tcp", family), nil)
		return err
	}))
	c.t.Cleanup(func() { l.Close() })
	return l
}

// open connects from a port (0: any).
func (k *connection) open(t testing.TB, port uint16) {
	t.Helper()
	local := netip.AddrPortFrom(netip.IPv4Unspecified(), port)
	if k.asked.Addr().Is6() {
		local = netip.AddrPortFrom(netip.IPv6Unspecified(), port)
	}
	conn, err := lab.Dial(k.from.ns, "tcp", local.String(), k.asked.String(), wait)
	require.NoError(t, err)
	k.client = conn.Conn.(*net.TCPConn)
	require.NoError(t, k.listener.SetDeadline(time.Now().Add(wait)))
	k.server, err = k.listener.AcceptTCP()
	require.NoError(t, err)
	k.clientLines, k.serverLines = bufio.NewReader(k.client), bufio.NewReader(k.server)
	t.Cleanup(func() { k.client.Close(); k.server.Close() })
}

func passes(t testing.TB, from *net.TCPConn, to *net.TCPConn, lines *bufio.Reader, text string) {
	t.Helper()
	_, err := fmt.Fprintln(from, text)
	require.NoError(t, err)
	require.NoError(t, to.SetReadDeadline(time.Now().Add(wait)))
	line, err := lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, text+"\n", line)
}

// there and back carry a line.
func (k *connection) there(t testing.TB, text string) {
	t.Helper()
	passes(t, k.client, k.server, k.serverLines, text)
}

func (k *connection) back(t testing.TB, text string) {
	t.Helper()
	passes(t, k.server, k.client, k.clientLines, text)
}

// flow is what the programs remember of the connection.
func (c *cast) flow(k *connection) control.FlowInfo {
	c.t.Helper()
	port := k.client.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	list, err := c.m.Flows(control.FlowFilter{Proto: "tcp"})
	require.NoError(c.t, err)
	for _, f := range list {
		if f.Source.Port() == port && f.Destination == k.asked {
			return f
		}
	}
	require.Fail(c.t, "no such flow")
	return control.FlowInfo{}
}

// unacked is how many of the segments sent the other side has not acknowledged.
func unacked(t testing.TB, conn *net.TCPConn) (n uint32) {
	t.Helper()
	raw, err := conn.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, onSocket(raw, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			n = info.Unacked
		}
		return err
	}))
	return n
}

// seen is a TCP packet that comes to a place.
func seen(t testing.TB, at station, port uint16, do func()) *layers.TCP {
	t.Helper()
	capture := lab.CaptureIn(t, at.ns, at.dev, func(f []byte) bool {
		p := tcpOf(f)
		return p != nil && (uint16(p.DstPort) == port || uint16(p.SrcPort) == port) && len(p.Payload) > 0
	})
	defer capture.Stop()
	do()
	require.True(t, capture.Wait(1, wait))
	return tcpOf(capture.Frames()[0])
}

// E9: a SYN on the tuple of a connection that is over opens a new one, at once and again and again.
func TestE9Reopened(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	for _, family := range ipVersions {
		for name, k := range c.connections(family, s) {
			t.Run(fmt.Sprintf("%s, IPv%d", name, family), func(t *testing.T) {
				c := c.in(t)
				var port uint16
				for i := range times(500, 20) {
					k.open(t, port)
					port = k.client.LocalAddr().(*net.TCPAddr).AddrPort().Port()
					k.there(t, fmt.Sprint("there ", i))
					k.back(t, fmt.Sprint("back ", i))
					require.Equal(t, "established", c.flow(k).State)
					// The server closes first, so that it is the one in TIME_WAIT (RFC 6191).
					require.NoError(t, k.server.Close())
					_, err := k.clientLines.ReadString('\n')
					require.Error(t, err)
					require.NoError(t, k.client.Close())
					require.True(t, soon(func() bool { return c.flow(k).State == "closing" }))
				}
			})
		}
	}
}

// E9: a reset that neither side obeys, being out of the window, ends nothing: it shortens the flow's timer, and
// the next data from either side restores it. A reset that is obeyed closes the flow, after a FIN, too. A
// connection that is closed on one side lives as long as any other.
func TestE9Reset(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	for _, family := range ipVersions {
		for name, k := range c.connections(family, s) {
			t.Run(fmt.Sprintf("%s, IPv%d", name, family), func(t *testing.T) {
				c := c.in(t)
				k.open(t, 0)
				client := k.client.LocalAddr().(*net.TCPAddr).AddrPort().Port()
				lives := func() {
					t.Helper()
					require.True(t, soon(func() bool { f := c.flow(k); return f.State == "established" && f.Expires > idleTime }), "%v", c.flow(k))
				}
				resets := func(by string) {
					t.Helper()
					// As the packets look where they are made.
					p, from, sport, dport := k.clientPacket(family), k.from, client, k.asked.Port()
					mark := seen(t, k.to, uint16(k.listener.Addr().(*net.TCPAddr).Port), func() { k.there(t, "mark") })
					// What is acknowledged later would restore it at once.
					require.True(t, soon(func() bool { return unacked(t, k.client)+unacked(t, k.server) == 0 }))
					seq := uint32(mark.Seq)
					if by == "server" {
						remote := k.server.RemoteAddr().(*net.TCPAddr).AddrPort()
						p, from, sport, dport = k.serverPacket(family), k.to, uint16(k.listener.Addr().(*net.TCPAddr).Port), remote.Port()
						seq = mark.Ack
					}
					require.NoError(t, lab.Inject(from.ns, from.dev, p.TCP(sport, dport, "R", seq+1<<30, 0, nil), 1))
					require.True(t, soon(func() bool { f := c.flow(k); return f.State == "closing" && f.Expires <= closingTime }), "%v", c.flow(k))
				}
				k.there(t, "hello")
				k.back(t, "hello")
				lives()
				for _, by := range []string{"client", "server"} {
					resets(by)
					k.there(t, "still here")
					lives()
					resets(by)
					k.back(t, "here too")
					lives()
				}
				// Half closed.
				require.NoError(t, k.client.CloseWrite())
				_, err := k.serverLines.ReadString('\n')
				require.Error(t, err)
				for i := range times(1000, 50) {
					k.back(t, fmt.Sprint("after your end ", i))
				}
				lives()
				// The end: data that nobody wants any more is answered with a reset.
				require.NoError(t, k.client.SetLinger(0))
				require.NoError(t, k.client.Close())
				require.True(t, soon(func() bool { f := c.flow(k); return f.State == "closing" && f.Expires <= closingTime }))
				_, err = k.serverLines.ReadString('\n')
				require.Error(t, err)
			})
		}
	}
}
