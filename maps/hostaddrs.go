// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// HostAddresses are the host's own addresses.
type HostAddresses struct {
	table table[loader.BPFAddr, uint32]
}

// Replace makes the table hold exactly these addresses, with the ifindex of the
// device that each is on, and says how many entries it changed. First it adds what is
// new, then it calls between (nil: nothing), then it removes what is stale.
// Routes.Changed makes flows obey.
func (h *HostAddresses) Replace(addrs map[netip.Addr]int, between func() error) (changed int, err error) {
	want := make(map[loader.BPFAddr]uint32, len(addrs))
	for a, ifindex := range addrs {
		if !a.IsValid() || a.IsUnspecified() || ifindex <= 0 {
			return 0, fmt.Errorf("host address %s on device %d: not valid", a, ifindex)
		}
		want[toAddr(a)] = uint32(ifindex)
	}
	return replace(h.table, want, between)
}

// List is all addresses with their devices.
func (h *HostAddresses) List() (map[netip.Addr]int, error) {
	list := make(map[netip.Addr]int)
	err := h.table.each(func(a loader.BPFAddr, ifindex uint32) error {
		list[fromAddr(a)] = int(ifindex)
		return nil
	})
	return list, err
}
