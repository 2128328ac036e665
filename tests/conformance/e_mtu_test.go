// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

const (
	narrow  = 1400 // bytes of the hop that is too small
	tooLong = 1450 // of payload: more than that, less than a device's MTU
)

// E2, a hop of 1,400 bytes beyond H: the router's errors find the container that sent too much, masqueraded
// or as a server. TCP transfers finish, UDP senders get EMSGSIZE and are told the MTU.
//
//	srv (8080:80) ── H eth1 ── eth0 R eth1 ─ 1,400 ─► eth0 far
func TestE2Beyond(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	b := c.beyond()
	b.narrow(c, narrow)
	lab.ServeTCP(t, b.far, "far", ":9000")
	for _, family := range ipVersions {
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			c := c.in(t)
			errs := lab.CaptureOut(t, b.router.NS, "eth0", func(f []byte) bool { return mtuOf(f) == narrow })
			// The container's payload goes by the hop.
			c.longTCP(s.ns, at(b.addr[family], 9000))
			require.NotZero(t, errs.Count(), "the router complained")
			// So does the server's answer.
			c.longTCP(b.far, at(b.host[family], 8080))
			c.longUDP(s.ns, netip.AddrPortFrom(b.addr[family], 9001), family)

			serves := c.packets(s.ns, family)
			c.publish(s, fmt.Sprintf("%d:%d/udp", serves.port, serves.port))
			client := c.packets(b.far, family)
			_, err := client.conn.WriteToUDPAddrPort([]byte("hello"), netip.AddrPortFrom(b.host[family], serves.port))
			require.NoError(t, err)
			from := serves.from(t, []byte("hello"))
			c.refusedLong(serves.conn, family, func() error {
				_, err := serves.conn.WriteToUDPAddrPort(make([]byte, tooLong), from)
				return err
			})
		})
	}
}

// E2, a network of 1,400 bytes: H itself complains, to X by its own address and to containers by their
// gateway's; the kernel does to H's own.
//
//	X 1,500 ── H ─┬─ n3, 1,400 ── srv3 (8083:80)
//	              ├─ n1, 1,500 ── srv
//	              └─ n2, 1,500 ── other
func TestE2Network(t *testing.T) {
	parallel(t)
	c, s, _, o := ownCast(t)
	c.network("n3", 3, true, func(o *control.NetworkOptions) { o.MTU = narrow })
	s3 := c.container("srv3", "n3", publish("8083:80", "8083:80/udp"))
	c.serve(s3, 80)
	lab.ServeTCP(t, c.Client, "world", ":9000")
	for i, family := range ipVersions {
		host, world := []string{lab.HostIPv4, lab.HostIPv6}[i], []string{lab.ClientIPv4, lab.ClientIPv6}[i]
		t.Run(fmt.Sprintf("IPv%d", family), func(t *testing.T) {
			c := c.in(t)
			for what, from := range map[string]*netns.NS{"X": c.Client, "another network": o.ns, "a third": s.ns, "H": c.Host} {
				t.Run(what, func(t *testing.T) {
					c := c.in(t)
					c.longTCP(from, at(host, 8083))
					if from != c.Host {
						c.longUDP(from, netip.MustParseAddrPort(at(host, 8083)), family)
					}
				})
			}
			c.longTCP(s3.ns, at(world, 9000))
			// H asks the container itself: its bridge is as wide as the network.
			c.longUDP(c.Host, netip.AddrPortFrom(c.station(s3, "n3").addr(family), 80), family)
		})
	}
}

// longTCP carries a megabyte there and back.
func (c *cast) longTCP(from *netns.NS, to string) {
	c.t.Helper()
	conn, err := lab.Dial(from, "tcp", "", to, wait)
	require.NoError(c.t, err)
	defer conn.Close()
	c.carries(conn, 1<<20)
}

// longUDP requires that a connected sender which does not fragment is refused what is too long, and told the MTU.
func (c *cast) longUDP(from *netns.NS, to netip.AddrPort, family int) {
	c.t.Helper()
	var conn *net.UDPConn
	require.NoError(c.t, from.Do(func() (err error) {
		conn, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		return err
	}))
	defer conn.Close()
	c.refusedLong(conn, family, func() error {
		_, err := conn.Write(make([]byte, tooLong))
		return err
	})
	raw, err := conn.SyscallConn()
	require.NoError(c.t, err)
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if family == 6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	require.NoError(c.t, onSocket(raw, func(fd int) error {
		mtu, err := unix.GetsockoptInt(fd, level, option)
		require.Equal(c.t, narrow, mtu)
		unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // the error that is still pending
		return err
	}))
	_, err = conn.Write(make([]byte, narrow-48))
	require.NoError(c.t, err, "what fits")
}

// refusedLong sends until it is refused: the first that is too long makes the error, a later one gets it.
func (c *cast) refusedLong(conn *net.UDPConn, family int, send func() error) {
	c.t.Helper()
	raw, err := conn.SyscallConn()
	require.NoError(c.t, err)
	level, option, never := unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO
	if family == 6 {
		level, option, never = unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO
	}
	require.NoError(c.t, setOption(raw, level, option, never))
	require.True(c.t, soon(func() bool { err = send(); return err != nil }), "not refused")
	require.ErrorIs(c.t, err, unix.EMSGSIZE)
}

// mtuOf is what a "fragmentation needed" or "packet too big" says (RFC 1191, RFC 4443), or 0.
func mtuOf(frame []byte) int {
	b, kind := frame[14:], byte(3)
	at := 20
	if len(b) > 40 && b[0]>>4 == 6 {
		at, kind = 40, 2
		if b[6] != unix.IPPROTO_ICMPV6 {
			return 0
		}
	} else if len(b) < 28 || b[9] != unix.IPPROTO_ICMP || b[21] != 4 {
		return 0
	}
	if b[at] != kind || len(b) < at+8 {
		return 0
	}
	return int(b[at+6])<<8 | int(b[at+7])
}
