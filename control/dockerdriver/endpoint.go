// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"fmt"
	"net/netip"

	"github.com/bpfnet/bpfnet/control"
)

// Keys of an endpoint's options.
const (
	keyExposed = "com.docker.network.endpoint.exposedports"
	keyPorts   = "com.docker.network.portmap"
	keyNoIPv6  = "com.docker.network.driver.private.no_proxy_6to4" // Engine 28: true if IPv6 has another gateway
	keyName    = "bpfnet.name"                                     // --network name=NET,driver-opt=bpfnet.name=NAME
)

// devicePrefix is how devices are called in containers.
const devicePrefix = "eth"

func (s *server) createEndpoint(r *endpointRequest) (any, error) {
	e := control.DriverEndpoint{Driver: driver, Network: r.NetworkID, ID: r.EndpointID}
	if r.Interface == nil {
		return nil, fmt.Errorf("endpoint %.12s: without an address", r.EndpointID)
	}
	var err error
	if e.IPv4, err = address(r.Interface.Address); err != nil {
		return nil, err
	}
	if e.IPv6, err = address(r.Interface.AddressIPv6); err != nil {
		return nil, err
	}
	e.MAC = r.Interface.MacAddress
	if err := r.Options.read(keyName, &e.Name); err != nil {
		return nil, err
	}
	mac, err := s.m.AddDriverEndpoint(e)
	if err != nil {
		return nil, err
	}
	if e.MAC != "" {
		return endpointResponse{}, nil // the Engine takes no answer to what it has said itself
	}
	return endpointResponse{&interfaceData{MacAddress: mac}}, nil
}

func address(text string) (p netip.Prefix, err error) {
	if text == "" {
		return p, nil
	}
	if p, err = netip.ParsePrefix(text); err != nil {
		return p, fmt.Errorf("address %.60q: not valid", text)
	}
	return p, nil
}

func (s *server) deleteEndpoint(r *endpointRequest) (any, error) {
	return empty{}, s.m.RemoveDriverEndpoint(driver, r.NetworkID, r.EndpointID)
}

func (s *server) join(r *endpointRequest) (any, error) {
	exposed, err := r.Options.exposed()
	if err != nil {
		return nil, err
	}
	p, err := s.m.Plug(driver, r.NetworkID, r.EndpointID, r.SandboxKey, exposed)
	if err != nil {
		return nil, err
	}
	res := joinResponse{InterfaceName: interfaceName{p.Device, devicePrefix}, DisableGatewayService: len(p.Gateways) == 0}
	for _, g := range p.Gateways {
		if g.Is4() {
			res.Gateway = g.String()
		} else {
			res.GatewayIPv6 = g.String()
		}
	}
	return res, nil
}

func (s *server) leave(r *endpointRequest) (any, error) {
	return empty{}, s.m.Unplug(driver, r.NetworkID, r.EndpointID)
}

// endpointInfo has no key of the Engine's own: it would take their values for its types.
func (s *server) endpointInfo(r *endpointRequest) (any, error) {
	state, err := s.m.DriverEndpoint(driver, r.NetworkID, r.EndpointID)
	if err != nil {
		return nil, err
	}
	value := map[string]any{"bpfnet.network": state.Network.Name, "bpfnet.bridge": state.Network.Bridge, "bpfnet.mac": state.MAC}
	if ep := state.Endpoint; ep != nil {
		value["bpfnet.interface"] = ep.HostIf
		value["bpfnet.container"] = ep.Container
	}
	return infoResponse{value}, nil
}
