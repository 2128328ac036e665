// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
)

// Network is a bridge network as the programs see it.
type Network struct {
	ICC        bool // containers may talk to each other
	Internal   bool // no way out, none in
	Masquerade bool
	Isolate    bool // not reached from other networks
	Routed     bool // gateway-mode routed
	FullCone   bool
	Bridge     int              // ifindex; 0: none, each endpoint's cable ends at the host
	MTU        int              // bytes, 68 to 65535
	MAC        net.HardwareAddr // of the bridge
	Gateway4   netip.Addr       // zero: none, as below
	Gateway6   netip.Addr
	LinkLocal  netip.Addr // of the bridge
	Broadcast4 netip.Addr // of the IPv4 subnet
	Subnets    []netip.Prefix
}

// Networks writes networks, their rules (the generation of their policy), their
// subnets and members.
type Networks struct {
	networks table[uint32, loader.BPFNetwork]
	members  table[loader.BPFMemberKey, uint32]
	subnets  table[loader.BPFPrefix, uint32]
	devices  *Devices
	rules    *Rules
}

// MaxNetworks is one more than the highest network number; 0 is none.
const MaxNetworks = uint32(loader.BPFLimitsMAX_NETWORKS)

// Set writes a network, 1 to MaxNetworks-1; its members stay. A change, other
// than of subnets, makes the programs judge its flows again; the same again
// changes nothing but repairs the lookups.
func (n *Networks) Set(num uint32, nw Network) error {
	old, rule, err := n.number(num)
	if err != nil {
		return err
	}
	next, err := nw.wire()
	if err != nil {
		return fmt.Errorf("network %d: %w", num, err)
	}
	want := make(map[loader.BPFPrefix]bool)
	for _, p := range nw.Subnets {
		k, err := toPrefix(p)
		if err != nil {
			return fmt.Errorf("network %d: %w", num, err)
		}
		if k.Prefixlen < v4Bits && fromPrefix(k).Contains(v4Mapped.Addr()) {
			return fmt.Errorf("network %d: subnet %s: contains all of IPv4 (::ffff:0:0/96)", num, p)
		}
		want[k] = true
	}
	live := rule.Kind == uint8(loader.BPFRuleKindRULE_NETWORK)
	next.Members = old.Members
	if next != old || !live {
		if live && old.Bridge != next.Bridge {
			if err := n.devices.deleteIf(old.Bridge, bridge(num)); err != nil {
				return err
			}
		}
		// The generation last: a flow that is decided in between is judged again.
		if err := n.networks.put(num, next); err != nil {
			return err
		}
		if err := n.rules.rules.put(num, loader.BPFRule{Gen: rule.Gen + 1, Kind: uint8(loader.BPFRuleKindRULE_NETWORK)}); err != nil {
			return err
		}
	}
	for k := range want {
		if err := n.subnets.put(k, num); err != nil {
			return err
		}
	}
	if live {
		if err := n.dropSubnets(num, want); err != nil {
			return err
		}
	}
	if nw.Bridge == 0 {
		return nil
	}
	return n.devices.SetBridge(nw.Bridge, num)
}

// Clear removes a network, its subnets and members. Missing is fine.
func (n *Networks) Clear(num uint32) error {
	old, rule, err := n.number(num)
	if err != nil || old == (loader.BPFNetwork{}) && rule.Kind == uint8(loader.BPFRuleKindRULE_FREE) {
		return err
	}
	if err := n.devices.deleteIf(old.Bridge, bridge(num)); err != nil {
		return err
	}
	if err := n.dropSubnets(num, nil); err != nil {
		return err
	}
	if err := n.SetMembers(num, nil); err != nil {
		return err
	}
	if err := n.networks.put(num, loader.BPFNetwork{}); err != nil {
		return err
	}
	return n.rules.rules.put(num, loader.BPFRule{Gen: rule.Gen + 1})
}

// Get says what a network is; ok is false when there is none of that number.
func (n *Networks) Get(num uint32) (nw Network, ok bool, err error) {
	w, rule, err := n.number(num)
	if err != nil || rule.Kind != uint8(loader.BPFRuleKindRULE_NETWORK) {
		return nw, false, err
	}
	nw = fromNetwork(w)
	err = n.subnets.each(func(k loader.BPFPrefix, v uint32) error {
		if v == num {
			nw.Subnets = append(nw.Subnets, fromPrefix(k))
		}
		return nil
	})
	slices.SortFunc(nw.Subnets, comparePrefixes)
	return nw, true, err
}

// List is the numbers of all networks, ascending.
func (n *Networks) List() (nums []uint32, err error) {
	err = n.networks.each(func(num uint32, w loader.BPFNetwork) error {
		if w.Mtu != 0 {
			nums = append(nums, num)
		}
		return nil
	})
	return nums, err
}

func (n *Networks) number(num uint32) (w loader.BPFNetwork, rule loader.BPFRule, err error) {
	if num == 0 || num >= MaxNetworks {
		return w, rule, fmt.Errorf("network %d: not 1 to %d", num, MaxNetworks-1)
	}
	if w, _, err = n.networks.get(num); err != nil {
		return w, rule, err
	}
	rule, _, err = n.rules.rules.get(num)
	return w, rule, err
}

// dropSubnets removes the subnets of a network but those to keep.
func (n *Networks) dropSubnets(num uint32, keep map[loader.BPFPrefix]bool) error {
	var stale []loader.BPFPrefix
	err := n.subnets.each(func(k loader.BPFPrefix, v uint32) error {
		if v == num && !keep[k] {
			stale = append(stale, k)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, k := range stale {
		if err := n.subnets.del(k); err != nil {
			return err
		}
	}
	return nil
}

func bridge(num uint32) loader.BPFDevice {
	return loader.BPFDevice{Kind: uint32(loader.BPFDeviceKindDEVICE_BRIDGE), Id: num}
}

func (nw *Network) flags() []struct {
	on  *bool
	bit loader.BPFNetworkFlags
} {
	return []struct {
		on  *bool
		bit loader.BPFNetworkFlags
	}{
		{&nw.ICC, loader.BPFNetworkFlagsNETWORK_ICC},
		{&nw.Internal, loader.BPFNetworkFlagsNETWORK_INTERNAL},
		{&nw.Masquerade, loader.BPFNetworkFlagsNETWORK_MASQUERADE},
		{&nw.Isolate, loader.BPFNetworkFlagsNETWORK_ISOLATE},
		{&nw.Routed, loader.BPFNetworkFlagsNETWORK_ROUTED},
		{&nw.FullCone, loader.BPFNetworkFlagsNETWORK_FULL_CONE},
	}
}

func (nw Network) wire() (w loader.BPFNetwork, err error) {
	if nw.Bridge < 0 {
		return w, fmt.Errorf("bridge %d: negative", nw.Bridge)
	}
	w = loader.BPFNetwork{
		Bridge:   uint32(nw.Bridge),
		Gateway4: toAddr(nw.Gateway4), Gateway6: toAddr(nw.Gateway6),
		LinkLocal: toAddr(nw.LinkLocal), Broadcast4: toAddr(nw.Broadcast4),
	}
	for _, f := range nw.flags() {
		if *f.on {
			w.Flags |= uint32(f.bit)
		}
	}
	if w.Mac, err = toMAC(nw.MAC); err != nil {
		return w, err
	}
	w.Mtu, err = toMTU(nw.MTU)
	return w, err
}

func fromNetwork(w loader.BPFNetwork) Network {
	nw := Network{
		Bridge: int(w.Bridge), MTU: int(w.Mtu), MAC: fromMAC(w.Mac),
		Gateway4: fromAddr(w.Gateway4), Gateway6: fromAddr(w.Gateway6),
		LinkLocal: fromAddr(w.LinkLocal), Broadcast4: fromAddr(w.Broadcast4),
	}
	for _, f := range nw.flags() {
		*f.on = w.Flags&uint32(f.bit) != 0
	}
	return nw
}
