// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Pair is a cable both ends of which are the host's at first: somebody else takes the
// second one into a container, and gives it addresses and routes.
type Pair struct {
	HostName string
	Bridge   string // what the host's end is a port of

	ContName string // of the other end, while the host has it
	MAC      net.HardwareAddr

	MTU int  // bytes, both ends; 0: 1500
	GRO bool // generic receive offload, both ends

	// Ready is called with the host end's index when both ends are there and neither is
	// up nor a port, as Veth's is.
	Ready func(hostIndex int) error
}

// CreatePair lays the cable. The host's end is up and has neither an address nor IPv6, the
// other one is down. On an error nothing is left of it. The error wraps fs.ErrExist if a
// device of one of the names is there already.
func CreatePair(host *netns.NS, p Pair) (hostIndex int, err error) {
	for _, name := range []string{p.HostName, p.ContName} {
		if err := CheckName(name); err != nil {
			return 0, err
		}
	}
	if p.MTU == 0 {
		p.MTU = 1500
	}
	err = withHandle(host, func(h *netlink.Handle) (err error) {
		bridge, err := h.LinkByName(p.Bridge)
		if err != nil {
			return fmt.Errorf("bridge %s: %w", p.Bridge, err)
		}
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = p.HostName, p.MTU
		veth := &netlink.Veth{LinkAttrs: attrs, PeerName: p.ContName, PeerHardwareAddr: p.MAC, PeerMTU: uint32(p.MTU)}
		if err := h.LinkAdd(veth); err != nil {
			if errors.Is(err, unix.EEXIST) {
				err = fs.ErrExist
			}
			return fmt.Errorf("device %s, %s: %w", p.HostName, p.ContName, err)
		}
		defer func() {
			if err != nil {
				h.LinkDel(veth) // the other end goes with it
			}
		}()
		hostIndex = veth.Index
		if p.Ready != nil {
			if err := p.Ready(veth.Index); err != nil {
				return err
			}
		}
		if err := host.Do(func() error { return setGRO(p.ContName, p.GRO) }); err != nil {
			return fmt.Errorf("device %s: %w", p.ContName, err)
		}
		v := Veth{HostName: p.HostName, Bridge: p.Bridge, GRO: p.GRO}
		return v.setHostEnd(host, h, veth, bridge)
	})
	return hostIndex, err
}

// Unplug takes the host's end of a cable off its bridge and down: nothing passes any more.
// None is no error.
func Unplug(host *netns.NS, hostName string) error {
	return withHandle(host, func(h *netlink.Handle) error {
		l, err := h.LinkByName(hostName)
		if notFound(err) {
			return nil
		}
		if err == nil {
			err = h.LinkSetDown(l)
		}
		if err == nil {
			err = h.LinkSetNoMaster(l)
		}
		if err != nil && !notFound(err) {
			return fmt.Errorf("device %s: down: %w", hostName, err)
		}
		return nil
	})
}
