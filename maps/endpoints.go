// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// Endpoint is a container's attachment to a network.
type Endpoint struct {
	Ifindex    int              // of the host end of the veth, or of the parent
	Network    uint32           // number of the network
	MAC        net.HardwareAddr // of the container's end
	MTU        int              // bytes, 68 to 65535
	IPv4       netip.Addr       // zero: none, as below
	IPv6       netip.Addr
	LinkLocal  netip.Addr // LinkLocal(MAC), on a network with IPv6
	DHCPServer bool       // may answer DHCP
	Child      bool       // a macvlan, whose parent is Ifindex
}

// EndpointState is what is in a slot.
type EndpointState struct {
	Endpoint
	Gen   uint32 // grows with every change
	Flows int    // established flows that count in its quota
	Live  bool   // false: an empty slot
}

// Endpoints writes the slots, and what leads to them: addresses and devices.
type Endpoints struct {
	endpoints versioned[uint32, loader.BPFEndpoint]
	addrs     table[loader.BPFEndpointKey, uint32]
	devices   *Devices
}

// MaxEndpoints is one more than the highest slot; slot 0 is none.
const MaxEndpoints = uint32(loader.BPFLimitsMAX_ENDPOINTS)

// Set fills a slot, 1 to MaxEndpoints-1. A change ends all flows of the endpoint
// (a new generation); the same again changes nothing but repairs the lookups.
func (e *Endpoints) Set(slot uint32, ep Endpoint) error {
	old, err := e.slot(slot)
	if err != nil {
		return err
	}
	next, err := ep.wire()
	if err != nil {
		return fmt.Errorf("endpoint %d: %w", slot, err)
	}
	for _, k := range keysOf(next) {
		if err := e.free(k, slot); err != nil {
			return fmt.Errorf("endpoint %d: %w", slot, err)
		}
	}
	same := next
	same.Gen, same.Flows = old.Gen, old.Flows
	if same != old {
		if err := e.unlink(slot, old); err != nil {
			return err
		}
		next.Gen = old.Gen + 1
		if err := e.endpoints.put(slot, next); err != nil {
			return err
		}
	}
	for _, k := range keysOf(next) {
		if err := e.addrs.put(k, slot); err != nil {
			return err
		}
	}
	if ep.Child {
		return nil
	}
	return e.devices.SetEndpoint(ep.Ifindex, slot)
}

// Clear empties a slot, which ends all flows of the endpoint. Empty is fine.
func (e *Endpoints) Clear(slot uint32) error {
	old, err := e.slot(slot)
	if err != nil || old.Ifindex == 0 {
		return err
	}
	if err := e.unlink(slot, old); err != nil {
		return err
	}
	return e.endpoints.put(slot, loader.BPFEndpoint{Gen: old.Gen + 1})
}

// Get says what is in a slot.
func (e *Endpoints) Get(slot uint32) (EndpointState, error) {
	w, err := e.slot(slot)
	if err != nil {
		return EndpointState{}, err
	}
	return fromEndpoint(w), nil
}

// List is all endpoints, by slot.
func (e *Endpoints) List() (map[uint32]EndpointState, error) {
	list := make(map[uint32]EndpointState)
	err := e.endpoints.each(func(slot uint32, w loader.BPFEndpoint) error {
		if w.Ifindex != 0 {
			list[slot] = fromEndpoint(w)
		}
		return nil
	})
	return list, err
}

// At is the slot that has an address on a network; 0 when none has.
func (e *Endpoints) At(network uint32, a netip.Addr) (uint32, error) {
	slot, _, err := e.addrs.get(loader.BPFEndpointKey{Addr: toAddr(a), Network: network})
	return slot, err
}

func (e *Endpoints) slot(slot uint32) (loader.BPFEndpoint, error) {
	if slot == 0 || slot >= MaxEndpoints {
		return loader.BPFEndpoint{}, fmt.Errorf("endpoint %d: not 1 to %d", slot, MaxEndpoints-1)
	}
	w, _, err := e.endpoints.get(slot)
	return w, err
}

// free fails when another live endpoint has the address.
func (e *Endpoints) free(k loader.BPFEndpointKey, slot uint32) error {
	holder, ok, err := e.addrs.get(k)
	if err != nil || !ok || holder == slot {
		return err
	}
	w, _, err := e.endpoints.get(holder)
	if err != nil || w.Ifindex == 0 {
		return err
	}
	return fmt.Errorf("%s on network %d belongs to endpoint %d", fromAddr(k.Addr), k.Network, holder)
}

// unlink removes what leads to a slot.
func (e *Endpoints) unlink(slot uint32, w loader.BPFEndpoint) error {
	if w.Ifindex == 0 {
		return nil
	}
	for _, k := range keysOf(w) {
		holder, ok, err := e.addrs.get(k)
		if err != nil {
			return err
		}
		if ok && holder == slot {
			if err := e.addrs.del(k); err != nil {
				return err
			}
		}
	}
	return e.devices.deleteIf(w.Ifindex, loader.BPFDevice{Kind: uint32(loader.BPFDeviceKindDEVICE_ENDPOINT), Id: slot})
}

func keysOf(w loader.BPFEndpoint) []loader.BPFEndpointKey {
	var keys []loader.BPFEndpointKey
	for _, a := range []loader.BPFAddr{w.Ip4, w.Ip6, w.LinkLocal} {
		if a != (loader.BPFAddr{}) {
			keys = append(keys, loader.BPFEndpointKey{Addr: a, Network: w.Network})
		}
	}
	return keys
}

func (ep Endpoint) wire() (w loader.BPFEndpoint, err error) {
	switch {
	case ep.Ifindex <= 0:
		return w, fmt.Errorf("ifindex %d: not positive", ep.Ifindex)
	case ep.Network == 0 || ep.Network >= MaxNetworks:
		return w, fmt.Errorf("network %d: not 1 to %d", ep.Network, MaxNetworks-1)
	case ep.IPv4.IsValid() && !ep.IPv4.Is4():
		return w, fmt.Errorf("%s: not IPv4", ep.IPv4)
	case ep.IPv6.IsValid() && !isIPv6(ep.IPv6):
		return w, fmt.Errorf("%s: not IPv6", ep.IPv6)
	}
	w = loader.BPFEndpoint{
		Ifindex: uint32(ep.Ifindex), Network: ep.Network,
		Ip4: toAddr(ep.IPv4), Ip6: toAddr(ep.IPv6), LinkLocal: toAddr(ep.LinkLocal),
	}
	if ep.DHCPServer {
		w.Flags |= uint32(loader.BPFEndpointFlagsENDPOINT_DHCP_SERVER)
	}
	if ep.Child {
		w.Flags |= uint32(loader.BPFEndpointFlagsENDPOINT_CHILD)
	}
	if w.Mac, err = toMAC(ep.MAC); err != nil {
		return w, err
	}
	w.Mtu, err = toMTU(ep.MTU)
	return w, err
}

func fromEndpoint(w loader.BPFEndpoint) EndpointState {
	return EndpointState{
		Endpoint: Endpoint{
			Ifindex: int(w.Ifindex), Network: w.Network, MAC: fromMAC(w.Mac), MTU: int(w.Mtu),
			IPv4: fromAddr(w.Ip4), IPv6: fromAddr(w.Ip6), LinkLocal: fromAddr(w.LinkLocal),
			DHCPServer: w.Flags&uint32(loader.BPFEndpointFlagsENDPOINT_DHCP_SERVER) != 0,
			Child:      w.Flags&uint32(loader.BPFEndpointFlagsENDPOINT_CHILD) != 0,
		},
		Gen: w.Gen, Flows: int(w.Flows), Live: w.Ifindex != 0,
	}
}

func isIPv6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() }
