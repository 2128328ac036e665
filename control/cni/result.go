// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/bpfnet/bpfnet/control"
)

// result says what is there now: bridge, the cable's two ends, addresses, routes.
// given is the IPAM plugin's; nil: the Manager's own.
func (c *call) result(j *control.Joined, given *current.Result) *current.Result {
	n, ep := j.Network, j.Endpoint
	inside := 2
	r := &current.Result{
		CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{
			{Name: n.Bridge, Mac: n.MAC, Mtu: n.MTU},
			{Name: ep.HostIf, Mac: j.HostMAC, Mtu: n.MTU},
			{Name: ep.IfName, Mac: ep.MAC, Mtu: n.MTU, Sandbox: c.Netns},
		},
		DNS: c.want.dns,
	}
	for _, s := range n.Subnets {
		addr := ep.IPv4
		if s.Prefix.Addr().Is6() {
			addr = ep.IPv6
		}
		ip := &current.IPConfig{Interface: &inside, Address: ipNet(addr)}
		if !n.Internal {
			router := s.Gateway
			if s.Router.IsValid() {
				router = s.Router
			}
			ip.Gateway = router.AsSlice()
			if j.Default(s.Prefix.Addr().Is6()) {
				r.Routes = append(r.Routes, &types.Route{Dst: ipNet(everything(addr.Addr())), GW: router.AsSlice()})
			}
		}
		r.IPs = append(r.IPs, ip)
	}
	for _, beside := range ep.Routes {
		r.Routes = append(r.Routes, &types.Route{Dst: ipNet(beside.To), GW: beside.Via.AsSlice()})
	}
	if given != nil && r.DNS.IsEmpty() {
		r.DNS = given.DNS
	}
	return r
}

func everything(a netip.Addr) netip.Prefix {
	if a.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

func ipNet(p netip.Prefix) net.IPNet {
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
