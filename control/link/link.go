// SPDX-License-Identifier: Apache-2.0

// Package link makes and reads what bpfnet has of devices in the host's and the
// containers' network namespaces: bridges, veths, addresses, neighbours and
// default routes to write; uplinks, addresses and routes to read. It knows nothing
// of networks, containers or programs, and keeps no state.
package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// MaxName is the longest device name, in bytes (IFNAMSIZ less its terminator).
const MaxName = unix.IFNAMSIZ - 1

// CheckName says what is wrong with a device name, by the rules of the kernel's
// dev_valid_name, and without '%', which the kernel would replace by a number.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("device name: empty")
	case len(name) > MaxName:
		return fmt.Errorf("device name %q: longer than %d bytes", name, MaxName)
	case name == "." || name == ".." || name == "all" || name == "default":
		// The last two are directories of /proc/sys/net/ipv*/conf with a meaning of their own.
		return fmt.Errorf("device name %q: reserved", name)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '%' {
			return fmt.Errorf("device name %q: character %q is not allowed", name, c)
		}
	}
	return nil
}

// withHandle runs fn with a handle of the namespace's that is closed afterwards.
func withHandle(ns *netns.NS, fn func(*netlink.Handle) error) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// dump repeats a list that changed while the kernel was writing it.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for try := 0; ; try++ {
		l, err := list()
		if errors.Is(err, netlink.ErrDumpInterrupted) && try < 20 {
			continue
		}
		return l, err
	}
}

func notFound(err error) bool {
	return errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist)
}

// sysctl is a file below /proc/sys/net, for the namespace of the calling thread.
type sysctl struct{ key, value string }

// setSysctls is called on a thread inside the namespace (netns.NS.Do). Values that
// are there already are not written again: writing takes the kernel's big lock.
func setSysctls(list []sysctl) error {
	for _, s := range list {
		path := "/proc/sys/net/" + s.key
		old, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.TrimSpace(string(old)) == s.value {
			continue
		}
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil {
			return err
		}
	}
	return nil
}

// hasIPv6 is called on a thread inside the namespace; false when the host was
// booted with ipv6.disable=1, or the device's MTU is too small for IPv6.
func hasIPv6(device string) bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/" + device)
	return err == nil
}

func anyIPv6(addrs []netip.Prefix) bool {
	for _, a := range addrs {
		if a.Addr().Is6() {
			return true
		}
	}
	return false
}

func family(a netip.Addr) int {
	if a.Is4() {
		return netlink.FAMILY_V4
	}
	return netlink.FAMILY_V6
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf keeps the host bits.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	a, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	bits, size := n.Mask.Size()
	if size == 128 && a.Is4() || size == 0 {
		return netip.Prefix{}, false
	}
	if size == 32 {
		a = a.Unmap()
	}
	return netip.PrefixFrom(a, bits), true
}

func addAddr(h *netlink.Handle, l netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		// Usable at once: no second of duplicate address detection.
		a.Flags = unix.IFA_F_NODAD
	}
	if err := h.AddrAdd(l, a); err != nil {
		return fmt.Errorf("device %s: address %s: %w", l.Attrs().Name, p, err)
	}
	return nil
}
