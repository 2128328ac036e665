// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	order "encoding/binary"
	"fmt"
	"net/netip"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// complaint is an ICMP error as a socket with IP_RECVERR is told of it (ip(7), struct sock_extended_err).
type complaint struct {
	kind, code uint8
	info       uint32 // the next hop's MTU, or where the problem is
	from       netip.Addr
	about      string // the payload that it quotes, as far as it does
}

// hearErrors asks the kernel to queue errors for the socket.
func hearErrors(t testing.TB, s syscall.Conn, family int) syscall.RawConn {
	t.Helper()
	raw, err := s.SyscallConn()
	require.NoError(t, err)
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR
	if family == 6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	require.NoError(t, setOption(raw, level, option, 1))
	return raw
}

// nextError takes the oldest error off the socket's queue; ok is false when there is none.
func nextError(raw syscall.RawConn) (e complaint, ok bool) {
	_ = onSocket(raw, func(fd int) error {
		data, oob := make([]byte, 2048), make([]byte, 512)
		n, oobn, _, _, err := unix.Recvmsg(fd, data, oob, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
		if err != nil {
			return err
		}
		list, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return err
		}
		for _, m := range list {
			four := m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_RECVERR
			six := m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_RECVERR
			if !four && !six || len(m.Data) < 16 || m.Data[4] != unix.SO_EE_ORIGIN_ICMP && m.Data[4] != unix.SO_EE_ORIGIN_ICMP6 {
				continue
			}
			e = complaint{kind: m.Data[5], code: m.Data[6], info: order.NativeEndian.Uint32(m.Data[8:]), about: string(data[:n])}
			if four && len(m.Data) >= 24 {
				e.from, _ = netip.AddrFromSlice(m.Data[20:24])
			} else if six && len(m.Data) >= 40 {
				e.from, _ = netip.AddrFromSlice(m.Data[24:40])
			}
			ok = true
		}
		return nil
	})
	return e, ok
}

// heardError requires that the next error is this one.
func heardError(t testing.TB, raw syscall.RawConn, want complaint) {
	t.Helper()
	var got complaint
	require.True(t, soon(func() (ok bool) { got, ok = nextError(raw); return ok }), "no error; wanted %v", want)
	require.Equal(t, want, got)
}

func (e complaint) String() string {
	return fmt.Sprintf("type %d code %d info %d from %s about %q", e.kind, e.code, e.info, e.from, e.about)
}
