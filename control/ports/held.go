// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// HeldByHost says whether a socket in the calling thread's network namespace has
// the port, by trying to bind one: nil (free), ErrInUse, ErrNotAvailable (the host
// has no such address), or another error. It sees what the bind guard refuses as
// ErrInUse too, so a port that is already published is the caller's to know.
//
// TCP binds with SO_REUSEADDR, which collides with every listener, and does not
// listen: a client that comes in that moment is refused, not connected and then
// reset. What only connections in TIME_WAIT hold is free. Where the kernel has no
// SCTP, nobody holds an SCTP port.
func HeldByHost(proto string, addr netip.Addr, port uint16) error {
	err := tryBind(proto, addr, port)
	if errors.Is(err, unix.EADDRINUSE) && proto == "tcp" {
		// Sockets without SO_REUSEADDR collide through their TIME_WAIT.
		if waits, diagErr := onlyTimeWait(port); diagErr == nil && waits {
			return nil
		}
	}
	return bindError(err)
}

func bindError(err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return ErrInUse
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return ErrNotAvailable
	}
	return err
}

// addressOnly is a protocol for tryBind: the address is bound, and no port.
const addressOnly = "address"

func tryBind(proto string, addr netip.Addr, port uint16) error {
	addr = addr.Unmap()
	if !addr.IsValid() {
		return errors.New("no address")
	}
	kind, protocol := unix.SOCK_STREAM, unix.IPPROTO_TCP
	switch proto {
	case "tcp":
	case "udp", addressOnly:
		kind, protocol = unix.SOCK_DGRAM, unix.IPPROTO_UDP
	case "sctp":
		protocol = unix.IPPROTO_SCTP
	default:
		return fmt.Errorf("invalid proto: %s", piece(proto))
	}
	family := unix.AF_INET
	if addr.Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		if proto == "sctp" && errors.Is(err, unix.EPROTONOSUPPORT) {
			return tryBind(addressOnly, addr, 0)
		}
		if errors.Is(err, unix.EAFNOSUPPORT) {
			return unix.EADDRNOTAVAIL
		}
		return fmt.Errorf("socket: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if kind == unix.SOCK_STREAM {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return fmt.Errorf("SO_REUSEADDR: %w", err)
		}
	}
	if proto == addressOnly {
		if err := unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	var sa unix.Sockaddr
	if family == unix.AF_INET {
		sa = &unix.SockaddrInet4{Port: int(port), Addr: addr.As4()}
	} else {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return fmt.Errorf("IPV6_V6ONLY: %w", err)
		}
		sa = &unix.SockaddrInet6{Port: int(port), Addr: addr.As16()}
	}
	return unix.Bind(fd, sa)
}
