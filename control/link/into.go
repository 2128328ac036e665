// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
)

// A HostEnd is the host's end of a veth whose other end is in a container.
type HostEnd struct {
	Name   string
	Index  int
	Master int // bridge; 0: none
	Peer   int // ifindex of the other end, there
}

// EndsInto lists the host's ends of the veths into a container, out of all the host's
// devices. It takes the host's word for it: what the container says of its devices, it
// may have made up.
func EndsInto(host, cont *netns.NS, devices []netlink.Link) (ends []HostEnd, err error) {
	err = withHandle(host, func(h *netlink.Handle) error {
		id, err := h.GetNetNsIdByFd(cont.FD())
		if err != nil {
			return fmt.Errorf("%s: its number in the host's namespace: %w", cont, err)
		}
		if id < 0 {
			return nil // no device leads there
		}
		for _, l := range devices {
			if a := l.Attrs(); l.Type() == "veth" && a.NetNsID == id && a.ParentIndex != 0 {
				ends = append(ends, HostEnd{Name: a.Name, Index: a.Index, Master: a.MasterIndex, Peer: a.ParentIndex})
			}
		}
		return nil
	})
	return ends, err
}

// ChildOf is the index of a container's macvlan in bridge mode, by its MAC, whose parent is a
// device of the host's; 0: there is none.
func ChildOf(host, cont *netns.NS, parent int, mac string) (index int, err error) {
	err = withHandle(cont, func(h *netlink.Handle) error {
		links, err := dump(h.LinkList)
		if err != nil {
			return fmt.Errorf("devices: %w", err)
		}
		id, err := h.GetNetNsIdByFd(host.FD()) // it has one if a device's parent is there
		if err != nil {
			return fmt.Errorf("%s: its number in the container's namespace: %w", host, err)
		}
		for _, l := range links {
			a := l.Attrs()
			m, ok := l.(*netlink.Macvlan)
			if ok && m.Mode == netlink.MACVLAN_MODE_BRIDGE && id >= 0 && a.NetNsID == id && a.ParentIndex == parent && a.HardwareAddr.String() == mac {
				index = a.Index
			}
		}
		return nil
	})
	return index, err
}

// NameIn is the name of a device, by its index, in a namespace.
func NameIn(ns *netns.NS, index int) (name string, err error) {
	err = withHandle(ns, func(h *netlink.Handle) error {
		l, err := h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("device %d: %w", index, err)
		}
		name = l.Attrs().Name
		return nil
	})
	return name, err
}

// DefaultDevice is the index of the device that the IPv4 default route of the main table
// leads out of, in a namespace; 0: there is none.
func DefaultDevice(ns *netns.NS) (index int, err error) {
	err = withHandle(ns, func(h *netlink.Handle) error {
		routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_V4) })
		if err != nil {
			return fmt.Errorf("routes: %w", err)
		}
		for _, r := range routes {
			if dst, ok := prefixOf(r.Dst); ok && dst.Bits() > 0 {
				continue
			}
			index = r.LinkIndex
			break
		}
		return nil
	})
	return index, err
}

// MACIn is the MAC of a device, by its index, in a namespace.
func MACIn(ns *netns.NS, index int) (mac net.HardwareAddr, err error) {
	err = withHandle(ns, func(h *netlink.Handle) error {
		l, err := h.LinkByIndex(index)
		if err != nil {
			return fmt.Errorf("device %d: %w", index, err)
		}
		mac = l.Attrs().HardwareAddr
		return nil
	})
	return mac, err
}
