// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// orders in which the fragments of a datagram may come.
var orders = map[string]func([][]byte) [][]byte{
	"in order":   func(list [][]byte) [][]byte { return list },
	"last first": func(list [][]byte) [][]byte { slices.Reverse(list); return list },
	"head in the middle": func(list [][]byte) [][]byte {
		return append(append(append([][]byte{}, list[1:len(list)/2+1]...), list[0]), list[len(list)/2+1:]...)
	},
	"at random": func(list [][]byte) [][]byte {
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		return list
	},
}

// E3: datagrams in fragments arrive whole, byte for byte, in whatever order the fragments come: from X to
// a published port, from a container to X, back to it, and from a container to its peer.
//
//	X eth0 ── eth0 H ─┬─ srv (8080:80/udp)
//	                  └─ peer
func TestE3(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	x, h, srv, peer := c.world(), c.uplink(), c.station(s, "n1"), c.station(p, "n1")
	gw := c.gateway("n1")
	n := times(2000, 15)
	for _, family := range ipVersions {
		for name, order := range orders {
			t.Run(fmt.Sprintf("IPv%d, %s", family, name), func(t *testing.T) {
				c := c.in(t)
				// Servers of its own for every order: nothing may be left from the one before.
				inS, inX, inP := c.packets(s.ns, family), c.packets(c.Client, family), c.packets(p.ns, family)
				host := uint16(20000 + rand.IntN(40000))
				c.publish(s, fmt.Sprintf("%d:%d/udp", host, inS.port))
				c.fragmented(x, x.to(h, family), order, 9000, host, inS, n)
				c.fragmented(srv, srv.by(gw, x, family), order, 9000, inX.port, inX, n)
				c.fragmented(srv, srv.to(peer, family), order, 9000, inP.port, inP, n)

				// Back through masquerade: the port is known by the datagram that went out.
				inBack := c.packets(s.ns, family)
				_, err := inBack.conn.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(x.addr(family), inX.port))
				require.NoError(t, err)
				mapped := inX.from(t, []byte("hello"))
				require.Equal(t, h.addr(family), mapped.Addr())
				c.fragmented(x, x.to(h, family), order, inX.port, mapped.Port(), inBack, n)
			})
		}
	}
}

// fragmented sends n datagrams of random sizes in fragments, and requires all of them at in.
func (c *cast) fragmented(from station, p lab.Packet, order func([][]byte) [][]byte, sport, dport uint16, in *packets, n int) {
	c.t.Helper()
	wrong := sumErrors(c.t, in.ns)
	out := c.injector(from)
	for i := range n {
		payload := make([]byte, 2000+rand.IntN(7000))
		for j := range payload {
			payload[j] = byte(rand.Uint32())
		}
		id := rand.Uint32()
		frames := order(lab.Fragments(p.UDP(sport, dport, payload), []int{1448, 1024, 1232}[i%3], id))
		require.NoError(c.t, out.Send(frames...))
		got, _ := in.next(c.t, "datagram %d of %d bytes in %d fragments", i, len(payload), len(frames))
		require.True(c.t, bytes.Equal(payload, got), "datagram %d: %d bytes, not the %d sent", i, len(got), len(payload))
	}
	require.Equal(c.t, wrong, sumErrors(c.t, in.ns), "wrong checksums")
}

// injector sends frames of a station's, until the test ends.
func (c *cast) injector(of station) *lab.Injector {
	c.t.Helper()
	i, err := lab.NewInjector(of.ns, of.dev)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { i.Close() })
	return i
}

// packets is an unconnected UDP socket that is read datagram by datagram.
type packets struct {
	ns   *netns.NS
	conn *net.UDPConn
	port uint16
}

func (c *cast) packets(ns *netns.NS, family int) *packets {
	c.t.Helper()
	return c.packetsOn(ns, family, 0)
}

func (c *cast) packetsOn(ns *netns.NS, family, port int) *packets {
	c.t.Helper()
	var conn *net.UDPConn
	require.NoError(c.t, ns.Do(func() (err error) {
		conn, err = net.ListenUDP(fmt.Sprint("udp", family), &net.UDPAddr{Port: port})
		return err
	}))
	c.t.Cleanup(func() { conn.Close() })
	return &packets{ns: ns, conn: conn, port: conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()}
}

func (p *packets) next(t testing.TB, what string, args ...any) ([]byte, netip.AddrPort) {
	t.Helper()
	buf := make([]byte, 1<<16)
	require.NoError(t, p.conn.SetReadDeadline(time.Now().Add(wait)))
	n, from, err := p.conn.ReadFromUDPAddrPort(buf)
	require.NoError(t, err, what, args)
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// from is who sent the next datagram, which has to be want.
func (p *packets) from(t testing.TB, want []byte) netip.AddrPort {
	t.Helper()
	got, from := p.next(t, "%.40q", want)
	require.Equal(t, want, got)
	return from
}
