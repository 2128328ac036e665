// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
)

// ServeSCTP is ServeTCP by one-to-one sockets (RFC 6458 section 4).
func ServeSCTP(t testing.TB, ns *netns.NS, name, addr string) *Server {
	t.Helper()
	s, err := NewSCTPServer(ns, name, addr)
	return started(t, s, err)
}

// NewSCTPServer is ServeSCTP without a test; the caller closes it.
func NewSCTPServer(ns *netns.NS, name, addr string) (*Server, error) {
	only6 := familyOf(addr) == "6"
	if addr[0] == ':' {
		addr = "[::]" + addr
	}
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	f, err := sctpSocket(ns, at, only6, func(fd int) error { return unix.Listen(fd, 16) })
	if err != nil {
		return nil, fmt.Errorf("listen sctp %s: %w", addr, err)
	}
	defer f.Close()
	listener, err := net.FileListener(f) // what it does not ask of TCP holds for SCTP
	if err != nil {
		return nil, fmt.Errorf("listen sctp %s: %w", addr, err)
	}
	return newStreamServer(name, listener), nil
}

// DialSCTP is Dial by a one-to-one socket.
func DialSCTP(ns *netns.NS, from, to string, timeout time.Duration) (*Conn, error) {
	dst, err := netip.ParseAddrPort(to)
	if err != nil {
		return nil, err
	}
	src, err := parseFrom(from)
	if err != nil {
		return nil, err
	}
	if !src.IsValid() {
		src = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		if dst.Addr().Is4() {
			src = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		}
	}
	f, err := sctpSocket(ns, src, true, func(fd int) error {
		limit := unix.NsecToTimeval(int64(timeout))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &limit); err != nil {
			return err
		}
		err := unix.Connect(fd, sockaddr(dst))
		if errors.Is(err, unix.EINPROGRESS) {
			err = os.ErrDeadlineExceeded
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial sctp %s: %w", to, err)
	}
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("dial sctp %s: %w", to, err)
	}
	return &Conn{c, bufio.NewReader(c)}, nil
}

// AskSCTP is AskTCP by SCTP.
func AskSCTP(ns *netns.NS, from, to, payload string, timeout time.Duration) (reply string, err error) {
	deadline := time.Now().Add(timeout)
	c, err := DialSCTP(ns, from, to, timeout)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.Ask(payload, time.Until(deadline))
}

// sctpSocket binds a socket and does with it what use says, which may block.
func sctpSocket(ns *netns.NS, at netip.AddrPort, only6 bool, use func(fd int) error) (f *os.File, err error) {
	err = ns.Do(func() error {
		family := unix.AF_INET6
		if at.Addr().Is4() {
			family = unix.AF_INET
		}
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		if err != nil {
			return err
		}
		if family == unix.AF_INET6 {
			flag := map[bool]int{true: 1}[only6]
			err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, flag)
		}
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
		if err == nil {
			err = unix.Bind(fd, sockaddr(at))
		}
		if err == nil {
			err = use(fd)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		f = os.NewFile(uintptr(fd), "sctp")
		return nil
	})
	return f, err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}
