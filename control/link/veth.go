// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Veth is a cable between the host and a container.
type Veth struct {
	HostName string           // device in the host's namespace
	HostMAC  net.HardwareAddr // nil: the kernel's choice
	Bridge   string           // what the host's end is a port of; "": nothing

	ContName string // device in the container's namespace
	MAC      net.HardwareAddr
	Addrs    []netip.Prefix // of the container, with host bits; without an IPv6 address the device has no IPv6 at all
	Gateways []netip.Addr   // one per family at most; one that lies in no prefix of Addrs is taken to be on the link
	Routes   bool           // make the gateways default routes; one that exists already is an error
	Beside   []StaticRoute  // other routes by this device

	MTU int  // bytes, both ends; 0: 1500
	GRO bool // generic receive offload, both ends

	// Ready is called with the host end's index when both ends are there, and
	// neither is up nor a port: no packet has passed yet, none will unless it says so.
	Ready func(hostIndex int) error
}

// StaticRoute is a route of a container's.
type StaticRoute struct {
	To  netip.Prefix `json:"to"`
	Via netip.Addr   `json:"via"`
}

func (v Veth) check() error {
	for _, name := range []string{v.HostName, v.ContName} {
		if err := CheckName(name); err != nil {
			return err
		}
	}
	for _, a := range v.Addrs {
		if !a.IsValid() || a.Addr().Is4In6() {
			return fmt.Errorf("device %s: invalid address", v.ContName)
		}
	}
	for _, g := range v.Gateways {
		if !g.IsValid() || g.Is4In6() {
			return fmt.Errorf("device %s: invalid gateway", v.ContName)
		}
	}
	return nil
}

// CreateVeth lays the cable and says the index of its host end. Both ends are up,
// and so is the container's lo; the addresses are usable when it returns. The host end
// has no address and no IPv6. On an error nothing is left of it.
//
// A bridge takes 1,023 ports (the kernel's BR_MAX_PORTS); a veth beyond that is made
// all the same, as a port of nothing. The error wraps fs.ErrExist if a device
// of one of the names is there already.
func CreateVeth(host, cont *netns.NS, v Veth) (hostIndex int, err error) {
	if err := v.check(); err != nil {
		return 0, err
	}
	if v.MTU == 0 {
		v.MTU = 1500
	}
	hh, err := host.Netlink()
	if err != nil {
		return 0, err
	}
	defer hh.Close()
	ch, err := cont.Netlink()
	if err != nil {
		return 0, err
	}
	defer ch.Close()

	var bridge netlink.Link
	if v.Bridge != "" {
		if bridge, err = hh.LinkByName(v.Bridge); err != nil {
			return 0, fmt.Errorf("bridge %s: %w", v.Bridge, err)
		}
	}

	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = v.HostName, v.HostMAC, v.MTU
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: v.ContName, PeerHardwareAddr: v.MAC,
		PeerNamespace: netlink.NsFd(cont.FD()), PeerMTU: uint32(v.MTU)}
	if err := hh.LinkAdd(veth); err != nil {
		if errors.Is(err, unix.EEXIST) {
			if _, there := ch.LinkByName(v.ContName); there == nil {
				return 0, fmt.Errorf("device %s: %w in the container", v.ContName, fs.ErrExist)
			}
			return 0, fmt.Errorf("device %s: %w", v.HostName, fs.ErrExist)
		}
		return 0, fmt.Errorf("device %s: %w", v.HostName, err)
	}
	defer func() {
		if err != nil {
			hh.LinkDel(veth) // the other end goes with it
		}
	}()

	if v.Ready != nil {
		if err := v.Ready(veth.Index); err != nil {
			return 0, err
		}
	}
	if err := v.setHostEnd(host, hh, veth, bridge); err != nil {
		return 0, err
	}
	if err := v.setContEnd(cont, ch); err != nil {
		return 0, err
	}
	if err := awaitCarrier(hh, veth, settleTime); err != nil {
		return 0, err
	}
	if bridge != nil && bridge.Attrs().RawFlags&unix.IFF_UP != 0 {
		// With its first port the bridge has a carrier; with STP, later, and that is not ours to wait for.
		awaitCarrier(hh, bridge, 50*time.Millisecond)
	}
	return veth.Index, nil
}

func (v Veth) setHostEnd(host *netns.NS, h *netlink.Handle, l, bridge netlink.Link) error {
	err := host.Do(func() error {
		if hasIPv6(v.HostName) {
			// No address of its own, no multicast joined: what leaves by this device is
			// the container's business only.
			if err := setSysctls([]sysctl{{"ipv6/conf/" + v.HostName + "/disable_ipv6", "1"}}); err != nil {
				return err
			}
		}
		return setGRO(v.HostName, v.GRO)
	})
	if err != nil {
		return fmt.Errorf("device %s: %w", v.HostName, err)
	}
	if bridge != nil {
		// EXFULL: all ports are taken.
		if err := h.LinkSetMaster(l, bridge); err != nil && !errors.Is(err, unix.EXFULL) {
			return fmt.Errorf("device %s: port of %s: %w", v.HostName, v.Bridge, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("device %s: up: %w", v.HostName, err)
	}
	return nil
}

func (v Veth) setContEnd(cont *netns.NS, h *netlink.Handle) error {
	l, err := h.LinkByName(v.ContName)
	if err != nil {
		return fmt.Errorf("device %s: %w", v.ContName, err)
	}
	err = cont.Do(func() error {
		conf := "ipv6/conf/" + v.ContName + "/"
		var list []sysctl
		switch {
		case anyIPv6(v.Addrs):
			list = []sysctl{{conf + "addr_gen_mode", "0"}, {conf + "accept_dad", "0"}, {conf + "disable_ipv6", "0"}}
		case hasIPv6(v.ContName):
			list = []sysctl{{conf + "disable_ipv6", "1"}}
		}
		if err := setSysctls(list); err != nil {
			return err
		}
		return setGRO(v.ContName, v.GRO)
	})
	if err != nil {
		return fmt.Errorf("device %s: %w", v.ContName, err)
	}
	addrs := v.Addrs
	if anyIPv6(addrs) {
		// By hand it is usable at once; the kernel's is tentative for a moment even with accept_dad=0.
		if local := linkLocal(l.Attrs().HardwareAddr); !slices.Contains(addrs, local) {
			addrs = append(slices.Clone(addrs), local)
		}
	}
	for _, p := range addrs {
		if err := addAddr(h, l, p); err != nil {
			return err
		}
	}
	// lo is index 1 in every namespace.
	lo := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}
	for _, up := range []netlink.Link{lo, l} {
		if err := h.LinkSetUp(up); err != nil {
			return fmt.Errorf("device %s: up: %w", up.Attrs().Name, err)
		}
	}
	if err := awaitCarrier(h, l, settleTime); err != nil {
		return err
	}
	if err := awaitAddrs(h, l, addrs); err != nil {
		return err
	}
	for _, r := range v.Beside {
		to := netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(r.To), Gw: r.Via.AsSlice()}
		if err := h.RouteAdd(&to); err != nil {
			return fmt.Errorf("device %s: route %s via %s: %w", v.ContName, r.To, r.Via, err)
		}
	}
	if !v.Routes {
		return nil
	}
	for _, gw := range v.Gateways {
		r := defaultRoute(l.Attrs().Index, gw)
		if !onLink(v.Addrs, gw) {
			r.Flags = int(netlink.FLAG_ONLINK)
		}
		if err := h.RouteAdd(r); err != nil {
			return fmt.Errorf("device %s: default route via %s: %w", v.ContName, gw, err)
		}
	}
	return nil
}

func onLink(addrs []netip.Prefix, gw netip.Addr) bool {
	for _, p := range addrs {
		if p.Contains(gw) {
			return true
		}
	}
	return false
}

// DeleteVeth removes a cable by its host end; none is no error, a device of
// another kind is.
func DeleteVeth(host *netns.NS, hostName string) error {
	if err := CheckName(hostName); err != nil {
		return err
	}
	return withHandle(host, func(h *netlink.Handle) error {
		l, err := h.LinkByName(hostName)
		if notFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", hostName, err)
		}
		if l.Attrs().Name != hostName {
			return nil // an alternative name of another device
		}
		if l.Type() != "veth" {
			return fmt.Errorf("device %s: is of kind %s, not a veth", hostName, l.Type())
		}
		if err := h.LinkDel(l); err != nil && !notFound(err) {
			return fmt.Errorf("device %s: %w", hostName, err)
		}
		return nil
	})
}
