// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// holder is a socket of a process of the host.
type holder struct {
	network, addr string
	option        string // reuse, noreuse, bound (not listening), v6only, dual
}

func (h holder) open(t testing.TB, port uint16) (closeIt func()) {
	t.Helper()
	a := addr(h.addr)
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	if a.Is6() {
		family = unix.AF_INET6
	}
	if h.network == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	if strings.Contains(h.option, "+reuse") {
		require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
	}
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(port)}
	if a.Is4() {
		sa.(*unix.SockaddrInet4).Addr = a.As4()
	} else {
		v6only := 0
		if strings.Contains(h.option, "+v6only") {
			v6only = 1
		}
		require.NoError(t, unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only))
		sa = &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}
	}
	require.NoError(t, unix.Bind(fd, sa))
	if h.network == "tcp" && !strings.Contains(h.option, "+bound") {
		require.NoError(t, unix.Listen(fd, 1))
	}
	return func() { _ = unix.Close(fd) }
}

// Rows B6, B7, B10: what a socket of the host's keeps from whom. The snapshot
// must say the same as trying.
func TestHeldByHost(t *testing.T) {
	const v4, v6 = "0.0.0.0", "::"
	tests := []struct {
		holder holder
		held   []string // addresses of the same protocol that it keeps
		free   []string
	}{
		{holder{"tcp", v4, ""}, []string{v4, "127.0.0.1", "10.0.0.1"}, []string{v6, "::1"}},
		{holder{"tcp", v4, "+reuse"}, []string{v4, "127.0.0.1", "10.0.0.1"}, []string{v6, "::1"}},
		{holder{"tcp", "127.0.0.1", "+reuse"}, []string{v4, "127.0.0.1"}, []string{"10.0.0.1", "127.0.0.2", v6}},
		{holder{"tcp", "10.0.0.1", ""}, []string{v4, "10.0.0.1"}, []string{"10.0.0.2", "127.0.0.1", v6, "2001:db8::1"}},
		{holder{"tcp", v6, "+reuse"}, []string{v4, "127.0.0.1", "10.0.0.1", v6, "::1", "2001:db8::1"}, nil},
		{holder{"tcp", v6, "+reuse+v6only"}, []string{v6, "::1", "2001:db8::1"}, []string{v4, "10.0.0.1"}},
		{holder{"tcp", "::1", "+reuse"}, []string{v6, "::1"}, []string{v4, "2001:db8::1"}},
		{holder{"tcp", "::ffff:10.0.0.1", "+reuse"}, []string{v4, "10.0.0.1"}, []string{"10.0.0.2", v6}},
		{holder{"tcp", v4, "+bound"}, []string{v4, "10.0.0.1"}, []string{v6}},
		{holder{"udp", v4, ""}, []string{v4, "127.0.0.1", "10.0.0.1"}, []string{v6, "::1"}},
		{holder{"udp", v4, "+reuse"}, []string{v4, "10.0.0.1"}, []string{v6}},
		{holder{"udp", "10.0.0.1", ""}, []string{v4, "10.0.0.1"}, []string{"10.0.0.2", v6}},
		{holder{"udp", v6, ""}, []string{v4, "10.0.0.1", v6, "::1"}, nil},
		{holder{"udp", v6, "+v6only"}, []string{v6, "2001:db8::1"}, []string{v4, "10.0.0.1"}},
	}
	const port = 8080
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.holder), func(t *testing.T) {
			inNetns(t, func() {
				other := map[string]string{"tcp": "udp", "udp": "tcp"}[tt.holder.network]
				for _, a := range append(tt.held, tt.free...) {
					require.NoError(t, HeldByHost(tt.holder.network, addr(a), port), "before: %s", a)
				}
				closeIt := tt.holder.open(t, port)
				snapshot, err := HostPorts()
				require.NoError(t, err)
				used := snapshot.Used(tt.holder.network)
				require.Equal(t, fmt.Sprint(port), used.String())
				used = snapshot.Used(other)
				require.Zero(t, used.Len())
				for _, a := range tt.held {
					require.ErrorIs(t, HeldByHost(tt.holder.network, addr(a), port), ErrInUse, a)
					require.ErrorIs(t, snapshot.Free(tt.holder.network, addr(a), port), ErrInUse, a)
					require.True(t, snapshot.Bound(tt.holder.network, addr(a), port), a)
				}
				for _, a := range tt.free {
					require.NoError(t, HeldByHost(tt.holder.network, addr(a), port), a)
					require.NoError(t, snapshot.Free(tt.holder.network, addr(a), port), a)
					require.False(t, snapshot.Bound(tt.holder.network, addr(a), port), a)
				}
				for _, a := range append(tt.held, tt.free...) {
					require.NoError(t, HeldByHost(other, addr(a), port), "the other protocol: %s", a)
					require.NoError(t, snapshot.Free(tt.holder.network, addr(a), port+1), "the next port: %s", a)
				}
				closeIt()
				for _, a := range append(tt.held, tt.free...) {
					require.NoError(t, HeldByHost(tt.holder.network, addr(a), port), "after: %s", a)
				}
			})
		})
	}
}

// Row B7, for a port and for a range.
func TestNoSuchAddress(t *testing.T) {
	inNetns(t, func() {
		snapshot, err := HostPorts()
		require.NoError(t, err)
		for _, proto := range []string{"tcp", "udp", "sctp"} {
			for _, a := range []string{"192.0.2.7", "2001:db8::7"} {
				require.ErrorIs(t, HeldByHost(proto, addr(a), 8080), ErrNotAvailable, "%s %s", proto, a)
				for range 2 {
					require.ErrorIs(t, snapshot.Free(proto, addr(a), 8080), ErrNotAvailable, "%s %s", proto, a)
				}
			}
			for _, a := range []string{"0.0.0.0", "::", "10.0.0.1", "127.0.0.5", "2001:db8::1"} {
				require.NoError(t, HeldByHost(proto, addr(a), 8080), "%s %s", proto, a)
				require.NoError(t, snapshot.Free(proto, addr(a), 8080), "%s %s", proto, a)
			}
		}
		require.EqualError(t, HeldByHost("icmp", addr("0.0.0.0"), 1), "invalid proto: icmp")
		require.EqualError(t, HeldByHost("tcp", netip.Addr{}, 1), "no address")
	})
}

// Row B13: connections in TIME_WAIT are no conflict, whoever left them; living
// ones are.
func TestTimeWait(t *testing.T) {
	for _, side := range []string{"client", "server"} {
		t.Run(side, func(t *testing.T) {
			inNetns(t, func() {
				// Without SO_REUSEADDR, which TIME_WAIT would otherwise carry on.
				listener := holder{"tcp", "127.0.0.1", ""}
				fdOf := func(h holder, port uint16) int {
					fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
					require.NoError(t, err)
					require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: addr(h.addr).As4()}))
					return fd
				}
				ln := fdOf(listener, 9000)
				require.NoError(t, unix.Listen(ln, 5))
				client := fdOf(listener, 9001)
				require.NoError(t, unix.Connect(client, &unix.SockaddrInet4{Port: 9000, Addr: addr("127.0.0.1").As4()}))
				server, _, err := unix.Accept(ln)
				require.NoError(t, err)
				require.NoError(t, unix.Close(ln))

				for _, port := range []uint16{9000, 9001} {
					require.ErrorIs(t, HeldByHost("tcp", addr("0.0.0.0"), port), ErrInUse, "established %d", port)
				}
				first, second, port := client, server, uint16(9001)
				if side == "server" {
					first, second, port = server, client, 9000
				}
				require.NoError(t, unix.Close(first)) // who closes first waits
				require.NoError(t, unix.Close(second))
				for end := time.Now().Add(5 * time.Second); timeWaits(port) == 0; runtime.Gosched() {
					require.True(t, time.Now().Before(end), "no TIME_WAIT")
				}
				require.Equal(t, unix.EADDRINUSE, tryBind("tcp", addr("0.0.0.0"), port), "the bind alone does collide")
				require.NoError(t, HeldByHost("tcp", addr("0.0.0.0"), port))
				require.NoError(t, HeldByHost("tcp", addr("127.0.0.1"), port))

				snapshot, err := HostPorts()
				require.NoError(t, err)
				require.NoError(t, snapshot.Free("tcp", addr("0.0.0.0"), port))
				used := snapshot.Used("tcp")
				require.False(t, used.Has(port))

				// A listener beside it is a conflict as ever.
				fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
				require.NoError(t, err)
				require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Port: int(port), Addr: addr("10.0.0.1").As4()}))
				require.NoError(t, unix.Listen(fd, 1))
				require.ErrorIs(t, HeldByHost("tcp", addr("0.0.0.0"), port), ErrInUse)
				require.NoError(t, unix.Close(fd))
			})
		})
	}
}

func timeWaits(port uint16) (n int) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		_ = dump(diagRequest{family, unix.IPPROTO_TCP, 1 << stateTimeWait, port}, func(socket) { n++ })
	}
	return n
}

// A connection of the host's own holds its port for a bind, but is no listener.
func TestSnapshotOfConnections(t *testing.T) {
	inNetns(t, func() {
		ln, err := net.Listen("tcp4", "10.0.0.1:9000")
		require.NoError(t, err)
		c, err := net.Dial("tcp4", "10.0.0.1:9000")
		require.NoError(t, err)
		local := c.LocalAddr().(*net.TCPAddr).AddrPort()
		u, err := net.Dial("udp4", "10.0.0.2:9000")
		require.NoError(t, err)
		udp := u.LocalAddr().(*net.UDPAddr).AddrPort()
		snapshot, err := HostPorts()
		require.NoError(t, err)
		require.ErrorIs(t, snapshot.Free("tcp", addr("0.0.0.0"), local.Port()), ErrInUse)
		require.False(t, snapshot.Bound("tcp", addr("0.0.0.0"), local.Port()))
		require.ErrorIs(t, snapshot.Free("udp", addr("0.0.0.0"), udp.Port()), ErrInUse)
		require.True(t, snapshot.Bound("udp", udp.Addr(), udp.Port()))
		require.False(t, snapshot.Bound("udp", addr("127.0.0.1"), udp.Port()))
		_, _, _ = ln.Close(), c.Close(), u.Close()
	})
}

// The checker says the same before and after it has taken its snapshot.
func TestChecker(t *testing.T) {
	inNetns(t, func() {
		for _, port := range []uint16{1010, 1060} {
			defer holder{"tcp", "127.0.0.1", ""}.open(t, port)()
		}
		var c Checker
		for port := uint16(1000); port < 1100; port++ {
			err := c.Free("tcp", addr("0.0.0.0"), port)
			if port == 1010 || port == 1060 {
				require.ErrorIs(t, err, ErrInUse)
			} else {
				require.NoError(t, err)
			}
		}
		require.NotNil(t, c.snapshot)
		specs, err := Parse("1-65535:1-65535")
		require.NoError(t, err)
		_, err = Pick(specs[0], []netip.Addr{addr("0.0.0.0"), addr("::")}, Range{}, nil, c.Free, 0)
		require.EqualError(t, err, "Bind for 0.0.0.0:1010 failed: address already in use")
	})
}

func TestParseSocketIsCareful(t *testing.T) {
	msg := make([]byte, diagMsgLen)
	msg[0] = unix.AF_INET6
	for n := range diagMsgLen {
		_, err := parseSocket(msg[:n])
		require.Error(t, err)
	}
	for _, attrs := range [][]byte{nil, {1}, {0, 0, 0, 0, 0}, {5, 0, 11, 0}, {255, 255, 11, 0, 1}, {4, 0, 11, 0, 1}} {
		s, err := parseSocket(append(msg[:diagMsgLen:diagMsgLen], attrs...))
		require.NoError(t, err)
		require.True(t, s.dual, "without the attribute: the wider answer")
	}
	s, err := parseSocket(append(msg[:diagMsgLen:diagMsgLen], 6, 0, 1, 0, 0, 0, 0, 0, 5, 0, 11, 0, 1, 0, 0, 0))
	require.NoError(t, err)
	require.False(t, s.dual)
}
