// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// refused requires that to is closed, as where nobody listens, while beside answers.
func (c *cast) refused(from *netns.NS, to, beside string) {
	c.t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		err := c.blocked(proto, from, to, beside)
		require.True(c.t, lab.Refused(err), "%s to %s: not refused: %v", proto, to, err)
	}
}

// dropped requires that nothing comes back from to, while beside answers, and that
// the reason was counted.
func (c *cast) dropped(from *netns.NS, to, beside, reason string) {
	c.t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		before := c.drops(reason)
		err := c.blocked(proto, from, to, beside)
		if loopback6(to) && lab.Refused(err) {
			continue
		}
		// A program that sends hears of it where netfilter drops what leaves.
		silent := lab.Timeout(err) || netfilter() && from == c.Host && errors.Is(err, syscall.EPERM)
		require.True(c.t, silent, "%s to %s: %v", proto, to, err)
		require.Eventually(c.t, func() bool { return c.drops(reason) > before }, wait, 5*time.Millisecond, "%s to %s: %s", proto, to, reason)
	}
}

func (c *cast) blocked(proto string, from *netns.NS, to, beside string) error {
	c.t.Helper()
	return lab.Unreachable(c.t, proto+" to "+to, func() error {
		_, err := ask(from, proto, "", to, silence)
		return err
	}, func() error {
		_, err := ask(from, proto, "", detour(beside), wait)
		return err
	})
}

// carries sends size bytes and gets them back.
func (c *cast) carries(conn *lab.Conn, size int) {
	c.t.Helper()
	payload := strings.Repeat("0123456789abcdef", size/16)
	line, err := conn.Ask(payload, wait)
	require.NoError(c.t, err)
	reply, err := lab.ParseReply(line)
	require.NoError(c.t, err)
	require.Equal(c.t, payload, reply.Payload)
}

// udpSocket is unconnected, of the family of from ("203.0.113.2:4000", "[::]:0").
func (c *cast) udpSocket(ns *netns.NS, from string) *net.UDPConn {
	c.t.Helper()
	src := netip.MustParseAddrPort(from)
	network := "udp6"
	if src.Addr().Is4() {
		network = "udp4"
	}
	var conn *net.UDPConn
	require.NoError(c.t, ns.Do(func() error {
		p, err := new(net.ListenConfig).ListenPacket(context.Background(), network, from)
		if err == nil {
			conn = p.(*net.UDPConn)
		}
		return err
	}))
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// oneSocket asks all of to by one unconnected UDP socket at once, several times:
// every answer comes from the address that was asked.
func (c *cast) oneSocket(ns *netns.NS, server, src string, to ...string) {
	c.t.Helper()
	if loopback6(to[0]) {
		return
	}
	from := "0.0.0.0:0"
	if netip.MustParseAddrPort(to[0]).Addr().Is6() {
		from = "[::]:0"
	}
	conn := c.udpSocket(ns, from)
	for round := range 3 {
		for _, a := range to {
			_, err := conn.WriteToUDPAddrPort(fmt.Appendf(nil, "%d %s", round, a), netip.MustParseAddrPort(a))
			require.NoError(c.t, err)
		}
		require.NoError(c.t, conn.SetReadDeadline(time.Now().Add(wait)))
		buf := make([]byte, 2048)
		for range to {
			n, answerer, err := conn.ReadFromUDPAddrPort(buf)
			require.NoError(c.t, err, "one socket to %v", to)
			reply, err := lab.ParseReply(string(buf[:n]))
			require.NoError(c.t, err)
			answerer = netip.AddrPortFrom(answerer.Addr().Unmap(), answerer.Port())
			require.Equal(c.t, fmt.Sprintf("%d %s", round, answerer), reply.Payload)
			require.Equal(c.t, server, reply.Server)
			if src != "" {
				require.Equal(c.t, src, reply.Remote.Addr().String())
			}
		}
	}
}

// onePort connects to all of to from one port by TCP, and uses the connections side
// by side.
func (c *cast) onePort(ns *netns.NS, from, server, src string, to ...string) {
	c.t.Helper()
	if loopback6(to[0]) {
		return
	}
	var conns []*lab.Conn
	for _, a := range to {
		conn, err := lab.Dial(ns, "tcp", from, a, wait)
		require.NoError(c.t, err, "%s to %s", from, a)
		c.t.Cleanup(func() { conn.Close() })
		conns = append(conns, conn)
	}
	for round := range 3 {
		for i, conn := range conns {
			payload := fmt.Sprintf("%d %s", round, to[i])
			line, err := conn.Ask(payload, wait)
			require.NoError(c.t, err, "%s to %s", from, to[i])
			reply, err := lab.ParseReply(line)
			require.NoError(c.t, err)
			require.Equal(c.t, payload, reply.Payload)
			require.Equal(c.t, server, reply.Server)
			if src != "" {
				require.Equal(c.t, src, reply.Remote.Addr().String())
			}
		}
	}
}

// pings requires an answer to an echo request.
func (c *cast) pings(from *netns.NS, to string) {
	c.t.Helper()
	require.NoError(c.t, lab.Ping(from, to, wait), "ping %s", to)
}
