// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Bridge is the wanted state of a bridge device.
type Bridge struct {
	Name  string
	MAC   net.HardwareAddr // its own, unicast; it stays, whatever ports come
	Addrs []netip.Prefix   // the gateways, with host bits; others are removed, but for the link-local one of the MAC
	MTU   int              // bytes; 0: 1500

	// Adopt takes an existing bridge as it is: only addresses that are missing are
	// added, and it is set up. It is an error (fs.ErrNotExist) if there is none.
	Adopt bool

	// Pinned says of an adopted bridge that its MAC was fixed before: doing it again
	// would forget the neighbors on it, other people's too (neigh_changeaddr).
	Pinned bool
}

// Added is what EnsureBridge did to a bridge that it took as it was.
type Added struct {
	Addrs []netip.Prefix
	Up    bool
}

// EnsureBridge makes the bridge, or repairs it until it is as described, and says
// its index. The bridge is up, without STP and multicast snooping, takes no
// router advertisements, and has the link-local address that its MAC gives, at once.
// A device of another kind with that name is an error. When it fails it leaves an
// adopted bridge without what it added.
func EnsureBridge(ns *netns.NS, b Bridge) (ifindex int, added Added, err error) {
	if err := CheckName(b.Name); err != nil {
		return 0, added, err
	}
	if b.MTU == 0 {
		b.MTU = 1500
	}
	err = withHandle(ns, func(h *netlink.Handle) error {
		l, made, err := findOrMakeBridge(h, b)
		if err != nil {
			return err
		}
		if err := b.repair(ns, h, l, made, &added); err != nil {
			if made {
				h.LinkDel(l)
			} else {
				err = errors.Join(err, added.takeBack(h, l))
			}
			return fmt.Errorf("bridge %s: %w", b.Name, err)
		}
		ifindex = l.Attrs().Index
		return nil
	})
	return ifindex, added, err
}

// TakeBack undoes what EnsureBridge did to somebody's bridge. One that is gone is no error.
func (a Added) TakeBack(ns *netns.NS, name string) error {
	if !a.Up && len(a.Addrs) == 0 {
		return nil
	}
	return withHandle(ns, func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if notFound(err) {
			return nil
		}
		if err == nil {
			err = a.takeBack(h, l)
		}
		if err != nil {
			return fmt.Errorf("bridge %s: %w", name, err)
		}
		return nil
	})
}

func (a Added) takeBack(h *netlink.Handle, l netlink.Link) error {
	have, err := addrsOf(h, l)
	if err != nil {
		return err
	}
	for _, p := range a.Addrs {
		if addr, ok := have[p]; ok {
			if err := h.AddrDel(l, &addr); err != nil {
				return fmt.Errorf("remove address %s: %w", p, err)
			}
		}
	}
	if a.Up {
		return h.LinkSetDown(l)
	}
	return nil
}

func findOrMakeBridge(h *netlink.Handle, b Bridge) (l netlink.Link, made bool, err error) {
	l, err = h.LinkByName(b.Name)
	if err != nil && !notFound(err) {
		return nil, false, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	if err != nil {
		if b.Adopt {
			return nil, false, fmt.Errorf("bridge %s: %w", b.Name, fs.ErrNotExist)
		}
		off := false
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.HardwareAddr = b.Name, b.MAC
		if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &off}); err != nil {
			return nil, false, fmt.Errorf("bridge %s: %w", b.Name, err)
		}
		if l, err = h.LinkByName(b.Name); err != nil {
			return nil, false, fmt.Errorf("bridge %s: %w", b.Name, err)
		}
		made = true
	}
	if l.Type() != "bridge" || l.Attrs().Name != b.Name {
		return nil, false, fmt.Errorf("bridge %s: a device of kind %s has that name: %w", b.Name, l.Type(), fs.ErrExist)
	}
	return l, made, nil
}

func (b Bridge) repair(ns *netns.NS, h *netlink.Handle, l netlink.Link, made bool, added *Added) error {
	attrs := l.Attrs()
	switch {
	case b.Adopt && b.Pinned:
	case b.Adopt:
		// The kernel lets a MAC that nobody has set follow the lowest of the ports'
		// (net/bridge/br_stp_if.c): containers and programs would know an old one.
		if err := h.LinkSetHardwareAddr(l, attrs.HardwareAddr); err != nil {
			return fmt.Errorf("mac %s: %w", attrs.HardwareAddr, err)
		}
	default:
		if len(b.MAC) > 0 && !bytes.Equal(attrs.HardwareAddr, b.MAC) {
			if err := h.LinkSetHardwareAddr(l, b.MAC); err != nil {
				return fmt.Errorf("mac %s: %w", b.MAC, err)
			}
		}
		// Set by hand once, the MTU does not follow the smallest port's any more.
		if attrs.MTU != b.MTU {
			if err := h.LinkSetMTU(l, b.MTU); err != nil {
				return fmt.Errorf("mtu %d: %w", b.MTU, err)
			}
		}
	}
	if err := ns.Do(func() error { return b.inside(attrs.Index, made) }); err != nil {
		return err
	}
	if attrs.RawFlags&unix.IFF_UP == 0 {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("up: %w", err)
		}
		added.Up = b.Adopt
	}
	return b.setAddrs(h, l, added)
}

// inside does what has to be done on a thread of the namespace.
func (b Bridge) inside(ifindex int, made bool) error {
	var list []sysctl
	conf := "ipv6/conf/" + b.Name + "/"
	if hasIPv6(b.Name) {
		if !b.Adopt {
			list = append(list,
				sysctl{conf + "addr_gen_mode", "0"}, // EUI-64
				sysctl{conf + "accept_dad", "0"},
				sysctl{conf + "accept_ra", "0"})
		}
		if anyIPv6(b.Addrs) {
			list = append(list, sysctl{conf + "disable_ipv6", "0"})
		}
	}
	if err := setSysctls(list); err != nil {
		return err
	}
	if b.Adopt || made {
		return nil // a new bridge has neither
	}
	err := SetBridgeData(ifindex, nl.NewRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(0)),
		nl.NewRtAttr(nl.IFLA_BR_MCAST_SNOOPING, nl.Uint8Attr(0)))
	if err != nil {
		return fmt.Errorf("stp, multicast snooping: %w", err)
	}
	return nil
}

func (b Bridge) setAddrs(h *netlink.Handle, l netlink.Link, added *Added) error {
	have, err := addrsOf(h, l)
	if err != nil {
		return err
	}
	want := slices.Clone(b.Addrs)
	local := linkLocal(l.Attrs().HardwareAddr)
	if len(b.MAC) > 0 {
		local = linkLocal(b.MAC)
	}
	if !b.Adopt && local.IsValid() && anyIPv6(b.Addrs) {
		// The kernel would make it only once a port is up, and tentative for a moment.
		want = append(want, local)
	}
	removed := false
	for p, a := range have {
		if b.Adopt || slices.Contains(want, p) || p == local {
			continue
		}
		if err := h.AddrDel(l, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", p, err)
		}
		removed = true
	}
	if removed {
		// With the first address of a subnet the kernel may have removed the others.
		if have, err = addrsOf(h, l); err != nil {
			return err
		}
	}
	for _, p := range want {
		if _, ok := have[p]; ok {
			continue
		}
		if err := addAddr(h, l, p); err != nil {
			return err
		}
		if b.Adopt {
			added.Addrs = append(added.Addrs, p)
		}
	}
	return awaitAddrs(h, l, want)
}

// linkLocal is the address that RFC 4291, appendix A, makes of a MAC.
func linkLocal(mac net.HardwareAddr) netip.Prefix {
	if len(mac) != 6 {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80,
		8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff, 12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]}), 64)
}

func addrsOf(h *netlink.Handle, l netlink.Link) (map[netip.Prefix]netlink.Addr, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("addresses: %w", err)
	}
	m := make(map[netip.Prefix]netlink.Addr, len(list))
	for _, a := range list {
		if p, ok := prefixOf(a.IPNet); ok {
			m[p] = a
		}
	}
	return m, nil
}

// DeleteBridge removes the bridge; none is no error, a device of another kind is.
// Its ports are left, without a bridge.
func DeleteBridge(ns *netns.NS, name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return withHandle(ns, func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if notFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("bridge %s: %w", name, err)
		}
		if l.Attrs().Name != name {
			return nil // an alternative name of another device
		}
		if l.Type() != "bridge" {
			return fmt.Errorf("bridge %s: is a device of kind %s", name, l.Type())
		}
		if err := h.LinkDel(l); err != nil && !notFound(err) {
			return fmt.Errorf("bridge %s: %w", name, err)
		}
		return nil
	})
}
