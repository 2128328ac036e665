// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Uplink is a device by which the world may come.
type Uplink struct {
	Name     string
	Index    int
	Ethernet bool // its packets have an Ethernet header; those of a tun, say, have none
	Parent   bool // published ports lead to macvlans of it; whoever lists them says so
}

// Uplinks lists the devices by which the world may come, in the order of their
// indices: all but lo and those that ours claims (nil: none). With only not empty, just
// the devices of these names that exist.
//
// A port of a bridge or bond is none: what is for the host comes by the bridge, and what
// is not is the bridge's to carry. It is one if ours claims the bridge, whose ports are
// then the way to the world; and a port of a VRF is, which is no more than a routing table.
func Uplinks(host *netns.NS, only []string, ours func(netlink.Link) bool) (found []Uplink, err error) {
	err = withHandle(host, func(h *netlink.Handle) error {
		links, err := dump(h.LinkList)
		if err != nil {
			return fmt.Errorf("devices: %w", err)
		}
		found = UplinksAmong(links, only, ours)
		return nil
	})
	return found, err
}

// UplinksAmong is Uplinks for a list of all the host's devices.
func UplinksAmong(links []netlink.Link, only []string, ours func(netlink.Link) bool) (found []Uplink) {
	if ours == nil {
		ours = func(netlink.Link) bool { return false }
	}
	masters := make(map[int]bool) // that work for their ports
	for _, l := range links {
		masters[l.Attrs().Index] = l.Type() != "vrf" && !ours(l)
	}
	for _, l := range links {
		a := l.Attrs()
		if a.RawFlags&unix.IFF_LOOPBACK != 0 || ours(l) {
			continue
		}
		if len(only) > 0 && !slices.Contains(only, a.Name) || len(only) == 0 && masters[a.MasterIndex] {
			continue
		}
		found = append(found, Uplink{Name: a.Name, Index: a.Index, Ethernet: a.EncapType == "ether"})
	}
	slices.SortFunc(found, func(a, b Uplink) int { return a.Index - b.Index })
	return found
}

// Addr is an address of the host's.
type Addr struct {
	netip.Addr      // without zone
	Bits       int  // length of its prefix
	Ifindex    int  //
	Dynamic    bool // may go or change without the administrator: leased or advertised
}

// HostAddrs lists every address of the host's, those of lo and link-local ones included.
func HostAddrs(host *netns.NS) ([]Addr, error) {
	var found []Addr
	err := withHandle(host, func(h *netlink.Handle) error {
		list, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
		if err != nil {
			return fmt.Errorf("addresses: %w", err)
		}
		for _, a := range list {
			if p, ok := prefixOf(a.IPNet); ok {
				found = append(found, Addr{Addr: p.Addr(), Bits: p.Bits(), Ifindex: a.LinkIndex,
					Dynamic: a.Flags&unix.IFA_F_PERMANENT == 0})
			}
		}
		return nil
	})
	return found, err
}

// Devices lists all of a namespace's devices.
func Devices(ns *netns.NS) (list []netlink.Link, err error) {
	err = withHandle(ns, func(h *netlink.Handle) error {
		if list, err = dump(h.LinkList); err != nil {
			return fmt.Errorf("devices: %w", err)
		}
		return nil
	})
	return list, err
}

// Names are the names of the host's devices, by index.
func Names(host *netns.NS) (names map[int]string, err error) {
	names = make(map[int]string)
	err = withHandle(host, func(h *netlink.Handle) error {
		links, err := dump(h.LinkList)
		if err != nil {
			return fmt.Errorf("devices: %w", err)
		}
		for _, l := range links {
			names[l.Attrs().Index] = l.Attrs().Name
		}
		return nil
	})
	return names, err
}
