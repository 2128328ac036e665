// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func defaultRoute(ifindex int, gw netip.Addr) *netlink.Route {
	bits := gw.BitLen()
	return &netlink.Route{LinkIndex: ifindex, Gw: gw.AsSlice(), Family: family(gw),
		Dst: ipNet(netip.PrefixFrom(zero(bits), 0))}
}

func zero(bits int) netip.Addr {
	if bits == 32 {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// SetDefaultGateway makes gws, one per family at most, the default gateways of the
// container, by the device ifName, in place of those that it has.
func SetDefaultGateway(cont *netns.NS, ifName string, gws []netip.Addr) error {
	return withHandle(cont, func(h *netlink.Handle) error {
		l, err := h.LinkByName(ifName)
		if err != nil {
			return fmt.Errorf("device %s: %w", ifName, err)
		}
		for _, gw := range gws {
			r := defaultRoute(l.Attrs().Index, gw)
			if err := h.RouteReplace(r); err != nil {
				return fmt.Errorf("device %s: default route via %s: %w", ifName, gw, err)
			}
		}
		return nil
	})
}

// DelDefaultGateway removes the default routes by the device ifName, of both
// families. None, or no such device, is no error.
func DelDefaultGateway(cont *netns.NS, ifName string) error {
	return withHandle(cont, func(h *netlink.Handle) error {
		l, err := h.LinkByName(ifName)
		if notFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("device %s: %w", ifName, err)
		}
		for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			routes, err := dump(func() ([]netlink.Route, error) { return h.RouteList(l, f) })
			if err != nil {
				return fmt.Errorf("device %s: routes: %w", ifName, err)
			}
			for _, r := range routes {
				if dst, ok := prefixOf(r.Dst); ok && dst.Bits() > 0 {
					continue
				}
				if err := h.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
					return fmt.Errorf("device %s: default route: %w", ifName, err)
				}
			}
		}
		return nil
	})
}
