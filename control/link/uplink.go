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

// Uplinks lists the devices by which the world may come, in the order of their
// indices: all but lo and those that skip claims as ours (nil: none). With only not empty,
// just the devices of these names that exist.
func Uplinks(host *netns.NS, only []string, skip func(netlink.Link) bool) ([]netlink.Link, error) {
	var found []netlink.Link
	err := withHandle(host, func(h *netlink.Handle) error {
		links, err := dump(h.LinkList)
		if err != nil {
			return fmt.Errorf("devices: %w", err)
		}
		for _, l := range links {
			a := l.Attrs()
			if a.RawFlags&unix.IFF_LOOPBACK != 0 || len(only) > 0 && !slices.Contains(only, a.Name) {
				continue
			}
			if skip != nil && skip(l) {
				continue
			}
			found = append(found, l)
		}
		return nil
	})
	slices.SortFunc(found, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	return found, err
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
