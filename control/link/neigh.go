// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// SetNeighbors tells the host for good that the addresses are behind the bridge at
// mac, so that it never asks: nobody can answer in a container's place. The entries
// go when the bridge is set down.
func SetNeighbors(host *netns.NS, bridgeIndex int, mac net.HardwareAddr, addrs []netip.Addr) error {
	return withHandle(host, func(h *netlink.Handle) error {
		for _, a := range addrs {
			n := neighbor(bridgeIndex, a)
			n.State, n.HardwareAddr = netlink.NUD_PERMANENT, mac
			if err := h.NeighSet(n); err != nil {
				return fmt.Errorf("device %d: neighbor %s: %w", bridgeIndex, a, err)
			}
		}
		return nil
	})
}

// DelNeighbors takes back what SetNeighbors said; entries that are not there are no error.
func DelNeighbors(host *netns.NS, bridgeIndex int, addrs []netip.Addr) error {
	return withHandle(host, func(h *netlink.Handle) error {
		for _, a := range addrs {
			err := h.NeighDel(neighbor(bridgeIndex, a))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("device %d: neighbor %s: %w", bridgeIndex, a, err)
			}
		}
		return nil
	})
}

func neighbor(ifindex int, a netip.Addr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: ifindex, Family: family(a), IP: a.AsSlice()}
}
