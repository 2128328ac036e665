// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

const shoutPort = 5400

var (
	everybody4   = netip.MustParseAddr("255.255.255.255")
	mdns4, mdns6 = netip.MustParseAddr("224.0.0.251"), netip.MustParseAddr("ff02::fb")
)

// C12: what is sent to everybody (the limited and the subnet's broadcast address, a group of IPv4 and
// of IPv6) reaches each member of the network and the host, once, and nobody on another network and
// not X; with icc off the host alone. What netfilter says about forwarding, in whatever family, is of
// no consequence. A DHCP client that has no address yet is heard like that; an offer of a container's
// gets to clients on a network that allows DHCP servers, and on no other.
//
//	X ── H ─┬─ n1 ──── srv, peer, third       ├─ n3, icc off ──── shy, coy
//	        └─ n2 ──── other                  └─ n4, DHCP servers allowed ──── giver, taker
func TestC12(t *testing.T) {
	parallel(t)
	c, s, p, o := ownCast(t)
	c.network("n3", 3, true, iccOff)
	third, shy, coy := c.container("third", "n1"), c.container("shy", "n3"), c.container("coy", "n3")

	open, closed := c.audience("n1", s, p, third), c.audience("n3", shy, coy)
	var strangers []*lab.Capture
	for _, a := range []*actor{o, shy, coy} {
		strangers = append(strangers, lab.CaptureIn(t, a.ns, "eth0", marked("to all of n1")))
	}
	strangers = append(strangers, lab.CaptureIn(t, c.Client, "eth0", marked("to all of n")))
	peer := lab.CaptureIn(t, coy.ns, "eth0", marked("to all of n3 from shy"))
	other := lab.CaptureIn(t, o.ns, "eth0", marked("to all of n3"))
	round := func(t *testing.T) {
		c := c.in(t)
		for _, from := range []*listener{open["srv"], open["third"], open["host"]} {
			c.shouted("n1", open, from)
		}
		c.shouted("n3", closed, closed["host"]) // the host may always
		denied := c.drops("ICC_DENIED")
		c.shouted("n3", map[string]*listener{"host": closed["host"]}, closed["shy"])
		require.GreaterOrEqual(t, c.drops("ICC_DENIED"), denied+4)
		require.NoError(t, works(c.Host, at(o.ip4, 80))())
		for _, quiet := range append(strangers, peer, other) {
			require.Empty(t, quiet.Frames(), lab.Describe(quiet.Frames()))
		}
	}
	t.Run("plain", round)
	t.Run("FORWARD drop", func(t *testing.T) {
		for _, family := range []string{"ip", "ip6", "inet", "bridge"} {
			_, err := c.Run(c.Host, "nft", fmt.Sprintf("table %s fw { chain forward { type filter hook forward priority 0; policy drop; }; }", family))
			require.NoError(t, err)
		}
		for _, tool := range []string{"iptables", "ip6tables"} {
			_, err := c.Run(c.Host, tool, "-P", "FORWARD", "DROP")
			require.NoError(t, err)
		}
		round(t)
	})
	t.Run("DHCP", func(t *testing.T) {
		c := c.in(t)
		c.discovers("n1", p, []*actor{s, third}, []*actor{o, coy})
		c.discovers("n3", shy, nil, []*actor{o, coy, s})
	})
	t.Run("DHCP servers", func(t *testing.T) {
		c := c.in(t)
		c.network("n4", 4, true, func(o *control.NetworkOptions) { o.AllowDHCPServer = true })
		giver, taker := c.container("giver", "n4"), c.container("taker", "n4")
		c.discovers("n1", p, []*actor{s, third}, []*actor{taker})
		c.discovers("n3", shy, nil, []*actor{taker})
		c.discovers("n4", taker, []*actor{giver}, []*actor{o, coy, s})

		// Which of them gets through is the network's flag.
		received := c.offers("n4", giver, taker)
		require.Equal(t, 2, received(), "where it is allowed")
		before := c.drops("DHCP_SERVER")
		received = c.offers("n1", s, p)
		require.Equal(t, before+2, c.drops("DHCP_SERVER"))
		require.Zero(t, received(), "where it is not allowed")
		require.Equal(t, 2, c.offers("n4", giver, taker)(), "the control, afterwards")
	})
}

// A broadcast address of a network beyond the host is nobody's: the kernel forwards nothing to it either.
//
//	s ── H ── X
func TestDirectedBroadcast(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t)
	seen := lab.CaptureIn(t, c.Client, "eth0", marked("to all of X's"))
	from := c.audience("n1", s)["srv"]
	before := c.drops("NO_ROUTE")
	require.NoError(t, from.send(netip.MustParseAddr("203.0.113.255"), "to all of X's"))
	require.True(t, soon(func() bool { return c.drops("NO_ROUTE") == before+1 }))
	require.Empty(t, seen.Frames())
	require.NoError(t, from.send(netip.MustParseAddr(lab.ClientIPv4), "to all of X's, to one of them"))
	require.True(t, soon(func() bool { return len(seen.Frames()) == 1 }))
}

// shouted lets from send to everybody of a network by each address, and requires that each of the
// audience but itself hears it exactly once.
func (c *cast) shouted(network string, audience map[string]*listener, from *listener) {
	c.t.Helper()
	gw := c.gateway(network)
	subnet := gw.ip4.As4()
	subnet[3] = 255
	for _, to := range []netip.Addr{everybody4, netip.AddrFrom4(subnet), mdns4, mdns6} {
		texts := make(map[string]bool)
		for i := range 3 {
			text := fmt.Sprintf("to all of %s from %s by %s, number %d of %p", network, from.name, to, i, c.t)
			texts[text] = true
			require.NoError(c.t, from.send(to, text), "%s to %s", from.name, to)
		}
		for _, l := range audience {
			if l == from {
				continue
			}
			for text := range texts {
				require.True(c.t, soon(func() bool { return l.count(text) > 0 }), "%s did not hear %q", l.name, text)
			}
		}
		for _, l := range audience {
			for text := range texts {
				if l != from {
					require.Equal(c.t, 1, l.count(text), "%s heard %q", l.name, text)
				}
			}
		}
	}
}

// discovers sends what a client without an address does, by a's device, and requires that the network's
// host and the peers take it, and the strangers do not see it.
func (c *cast) discovers(network string, a *actor, peers, strangers []*actor) {
	c.t.Helper()
	client, gw := c.station(a, network), c.gateway(network)
	is := func(payload []byte) bool { return bytes.Contains(payload, client.mac) }
	servers := []*net.UDPConn{c.boundTo(c.Host, gw.dev, "0.0.0.0:67")}
	for _, p := range peers {
		servers = append(servers, c.boundTo(p.ns, "eth0", "0.0.0.0:67"))
	}
	var quiet []*lab.Capture
	for _, s := range strangers {
		quiet = append(quiet, lab.CaptureIn(c.t, s.ns, "eth0", is))
	}
	frame := lab.Packet{SrcMAC: client.mac, DstMAC: lab.Broadcast, Src: netip.IPv4Unspecified(), Dst: everybody4}.DHCPDiscover(client.mac)
	require.NoError(c.t, lab.Inject(a.ns, "eth0", frame, 1))
	for _, conn := range servers {
		payload, from := receive(c.t, conn)
		require.True(c.t, is([]byte(payload)))
		require.Equal(c.t, "0.0.0.0:68", from.String())
		require.NoError(c.t, conn.Close())
	}
	for _, q := range quiet {
		require.Empty(c.t, q.Frames(), lab.Describe(q.Frames()))
		q.Stop()
	}
}

// offers makes a container send what a DHCP server does, to everybody and to the client alone; what the
// result counts is the offers that its client has by then, behind a datagram that is allowed to it.
func (c *cast) offers(network string, server, client *actor) func() int {
	c.t.Helper()
	from, to := c.station(server, network), c.station(client, network)
	mine := lab.CaptureIn(c.t, client.ns, "eth0", func(f []byte) bool {
		_, src, dst := transportOf(f)
		return src.Port() == 67 && dst == 68
	})
	wide := lab.Packet{SrcMAC: from.mac, DstMAC: lab.Broadcast, Src: from.ip4, Dst: everybody4}
	for _, frame := range [][]byte{wide.DHCPOffer(to.mac, to.ip4), from.to(to, 4).DHCPOffer(to.mac, to.ip4)} {
		require.NoError(c.t, lab.Inject(server.ns, "eth0", frame, 1))
	}
	return func() int {
		c.t.Helper()
		after := lab.CaptureIn(c.t, client.ns, "eth0", marked("after the offers"))
		require.NoError(c.t, lab.Inject(server.ns, "eth0", wide.UDP(1000, 1001, []byte("after the offers")), 1))
		require.True(c.t, after.Wait(1, wait))
		after.Stop()
		mine.Stop()
		return mine.Count()
	}
}

// listener hears what is sent to everybody of a network, at its device there.
type listener struct {
	name  string
	conns [2]*net.UDPConn // IPv4, IPv6
	zone  string
	mu    sync.Mutex
	heard map[string]int
}

// audience are listeners on all of a network: its members by name, and "host".
func (c *cast) audience(network string, members ...*actor) map[string]*listener {
	c.t.Helper()
	list := map[string]*listener{"host": c.listen("host", c.Host, c.gateway(network).dev)}
	for _, a := range members {
		list[a.name] = c.listen(a.name, a.ns, c.station(a, network).dev)
	}
	return list
}

func (c *cast) listen(name string, ns *netns.NS, device string) *listener {
	c.t.Helper()
	index := lab.Link(c.t, ns, device).Attrs().Index
	l := &listener{name: name, zone: fmt.Sprint(index), heard: make(map[string]int)}
	l.conns[0], l.conns[1] = c.boundTo(ns, device, at("0.0.0.0", shoutPort)), c.boundTo(ns, device, at("::", shoutPort))
	control := func(conn *net.UDPConn, join func(fd int) error) {
		raw, err := conn.SyscallConn()
		require.NoError(c.t, err)
		require.NoError(c.t, onSocket(raw, join))
	}
	control(l.conns[0], func(fd int) error {
		return unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, &unix.IPMreqn{Multiaddr: mdns4.As4(), Ifindex: int32(index)})
	})
	control(l.conns[1], func(fd int) error {
		return unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &unix.IPv6Mreq{Multiaddr: mdns6.As16(), Interface: uint32(index)})
	})
	var running sync.WaitGroup
	for _, conn := range l.conns {
		running.Go(func() {
			for buf := make([]byte, 1<<11); ; {
				n, err := conn.Read(buf)
				if err != nil {
					return
				}
				l.mu.Lock()
				l.heard[string(buf[:n])]++
				l.mu.Unlock()
			}
		})
	}
	c.t.Cleanup(func() { l.conns[0].Close(); l.conns[1].Close(); running.Wait() })
	return l
}

func (l *listener) send(to netip.Addr, text string) error {
	conn := l.conns[0]
	if to.Is6() {
		conn, to = l.conns[1], to.WithZone(l.zone)
	}
	_, err := conn.WriteToUDPAddrPort([]byte(text), netip.AddrPortFrom(to, shoutPort))
	return err
}

func (l *listener) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.heard[text]
}

// boundTo is a UDP socket of one device (SO_BINDTODEVICE).
func (c *cast) boundTo(ns *netns.NS, device, addr string) *net.UDPConn {
	c.t.Helper()
	network := "udp6"
	if netip.MustParseAddrPort(addr).Addr().Is4() {
		network = "udp4"
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return onSocket(raw, func(fd int) error { return unix.BindToDevice(fd, device) })
	}}
	var conn *net.UDPConn
	require.NoError(c.t, ns.Do(func() error {
		p, err := lc.ListenPacket(context.Background(), network, addr)
		if err == nil {
			conn = p.(*net.UDPConn)
		}
		return err
	}))
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// onSocket does something to a socket of the net package.
func onSocket(raw syscall.RawConn, do func(fd int) error) error {
	var err error
	outer := raw.Control(func(fd uintptr) { err = do(int(fd)) })
	return errors.Join(outer, err)
}
