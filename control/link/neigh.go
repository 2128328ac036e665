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
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// neighProtocol marks neighbor entries as ours (NDA_PROTOCOL, rtnetlink(7)'s protocols).
// Nobody has this number in linux/rtnetlink.h; iproute2 shows it as "proto 191".
const neighProtocol = 191

// Neighbor is an entry of the host's neighbor table.
type Neighbor struct {
	Ifindex int
	Addr    netip.Addr
}

// SetNeighbors tells the host for good that the addresses are behind the bridge at
// mac, so that it never asks: nobody can answer in a container's place. The entries
// go when the bridge is set down, and are known by OwnNeighbors.
func SetNeighbors(host *netns.NS, bridgeIndex int, mac net.HardwareAddr, addrs []netip.Addr) error {
	return withSocket(host, func(sockets map[int]*nl.SocketHandle) error {
		for _, a := range addrs {
			req := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE|unix.NLM_F_ACK)
			req.Sockets = sockets
			req.AddData(&netlink.Ndmsg{Family: uint8(family(a)), Index: uint32(bridgeIndex), State: unix.NUD_PERMANENT})
			req.AddData(nl.NewRtAttr(unix.NDA_DST, a.AsSlice()))
			req.AddData(nl.NewRtAttr(unix.NDA_LLADDR, mac))
			req.AddData(nl.NewRtAttr(netlink.NDA_PROTOCOL, []byte{neighProtocol}))
			if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
				return fmt.Errorf("device %d: neighbor %s: %w", bridgeIndex, a, err)
			}
		}
		return nil
	})
}

// OwnNeighbors lists what SetNeighbors said, on all devices, by whichever process.
func OwnNeighbors(host *netns.NS) (list []Neighbor, err error) {
	err = withSocket(host, func(sockets map[int]*nl.SocketHandle) error {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.Sockets = sockets
		req.AddData(&netlink.Ndmsg{})
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
		if err != nil {
			return fmt.Errorf("neighbors: %w", err)
		}
		for _, m := range msgs {
			if len(m) < sizeofNdmsg {
				continue
			}
			attrs, err := nl.ParseRouteAttr(m[sizeofNdmsg:])
			if err != nil {
				return fmt.Errorf("neighbors: %w", err)
			}
			n, ours := Neighbor{Ifindex: int(nl.NativeEndian().Uint32(m[4:]))}, false
			for _, a := range attrs {
				switch a.Attr.Type {
				case unix.NDA_DST:
					n.Addr, _ = netip.AddrFromSlice(a.Value)
				case netlink.NDA_PROTOCOL:
					ours = len(a.Value) == 1 && a.Value[0] == neighProtocol
				}
			}
			if ours && n.Addr.IsValid() {
				list = append(list, n)
			}
		}
		return nil
	})
	return list, err
}

const sizeofNdmsg = 12 // struct ndmsg, linux/neighbour.h

// withSocket runs fn with a netlink socket of the namespace's.
func withSocket(ns *netns.NS, fn func(map[int]*nl.SocketHandle) error) error {
	var s *nl.NetlinkSocket
	err := ns.Do(func() (err error) {
		s, err = nl.Subscribe(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return fmt.Errorf("netlink: %w", err)
	}
	defer s.Close()
	return fn(map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}})
}

// DelNeighbors takes back what SetNeighbors said; entries that are not there are no error.
func DelNeighbors(host *netns.NS, bridgeIndex int, addrs []netip.Addr) error {
	return withHandle(host, func(h *netlink.Handle) error {
		for _, a := range addrs {
			n := &netlink.Neigh{LinkIndex: bridgeIndex, Family: family(a), IP: a.AsSlice()}
			err := h.NeighDel(n)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("device %d: neighbor %s: %w", bridgeIndex, a, err)
			}
		}
		return nil
	})
}
