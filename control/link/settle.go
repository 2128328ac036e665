// SPDX-License-Identifier: Apache-2.0

package link

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What netlink has acknowledged the kernel has not always done: it notices a carrier
// and makes an IPv6 address reachable in works of its own, milliseconds later on a
// busy machine. A packet that comes earlier is lost, and who sent it waits for a
// second. The functions here wait for those works.

// settleTime is when that is given up. Both works wait for the kernel's rtnl lock, which
// others hold for seconds, who end many namespaces at once.
const settleTime = 10 * time.Second

var errNotSettled = errors.New("does not come up")

func wait(limit time.Duration, done func() (bool, error)) error {
	for end := time.Now().Add(limit); ; time.Sleep(500 * time.Microsecond) {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return errNotSettled
		}
	}
}

// awaitCarrier waits until a device sends: it drops everything until the kernel has
// noticed its carrier. Since 6.8 looking at a device makes the kernel do so at once.
func awaitCarrier(h *netlink.Handle, l netlink.Link, limit time.Duration) error {
	err := wait(limit, func() (bool, error) {
		now, err := h.LinkByIndex(l.Attrs().Index)
		return err == nil && now.Attrs().OperState == netlink.OperUp, err
	})
	if err != nil {
		return fmt.Errorf("device %s: %w", l.Attrs().Name, err)
	}
	return nil
}

// awaitAddrs waits until the IPv6 addresses have their routes, and so have joined
// their solicited-node groups (addrconf_dad_completed).
func awaitAddrs(h *netlink.Handle, l netlink.Link, addrs []netip.Prefix) error {
	for _, p := range addrs {
		if p.Addr().Is4() {
			continue
		}
		err := wait(settleTime, func() (bool, error) {
			opt := &netlink.RouteGetOptions{}
			if p.Addr().IsLinkLocalUnicast() {
				opt.OifIndex = l.Attrs().Index
			}
			routes, err := h.RouteGetWithOptions(p.Addr().AsSlice(), opt)
			if err != nil || len(routes) == 0 {
				return false, nil // no route yet
			}
			return routes[0].Type == unix.RTN_LOCAL, nil
		})
		if err != nil {
			return fmt.Errorf("device %s: address %s: %w", l.Attrs().Name, p, err)
		}
	}
	return nil
}
