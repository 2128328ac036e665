// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/bpfnet/bpfnet/control"
)

// delegateAdd lets the IPAM plugin choose addresses, if the configuration names one, and
// makes them what the Manager is asked for. They are given back when it fails.
func (c *call) delegateAdd(opts *control.JoinOptions) (*current.Result, error) {
	if c.conf.ipam == "" {
		return nil, nil
	}
	raw, err := invoke.DelegateAdd(context.Background(), c.conf.ipam, c.StdinData, nil)
	if err != nil {
		return nil, c.ofIPAM(err)
	}
	given, err := current.NewResultFromResult(raw)
	if err == nil {
		err = c.adopt(given, opts)
	}
	if err != nil {
		_ = c.delegateDel() // the error before is the news
		return nil, err
	}
	return given, nil
}

func (c *call) delegateDel() error {
	if c.conf.ipam == "" {
		return nil
	}
	return c.ofIPAM(invoke.DelegateDel(context.Background(), c.conf.ipam, c.StdinData, nil))
}

func (c *call) delegateCheck() error {
	if c.conf.ipam == "" {
		return nil
	}
	return c.ofIPAM(invoke.DelegateCheck(context.Background(), c.conf.ipam, c.StdinData, nil))
}

func (c *call) delegateGC() error {
	if c.conf.ipam == "" {
		return nil
	}
	return c.ofIPAM(invoke.DelegateGC(context.Background(), c.conf.ipam, c.StdinData, nil))
}

func (c *call) delegateStatus() error {
	if c.conf.ipam == "" {
		return nil
	}
	return c.ofIPAM(invoke.DelegateStatus(context.Background(), c.conf.ipam, c.StdinData, nil))
}

// ofIPAM says whose error it is, and keeps its code.
func (c *call) ofIPAM(err error) error {
	if err == nil {
		return nil
	}
	e := asError(err)
	return types.NewError(e.Code, "ipam "+c.conf.ipam+": "+e.Msg, e.Details)
}

func (c *call) badIPAM(format string, a ...any) error {
	return c.ofIPAM(failure(types.ErrInvalidNetworkConfig, format, a...))
}

// adopt makes an IPAM plugin's addresses the endpoint's, and their subnets the network's.
func (c *call) adopt(given *current.Result, opts *control.JoinOptions) error {
	opts.Endpoint.IPv4, opts.Endpoint.IPv6 = netip.Addr{}, netip.Addr{}
	var subnets []netip.Prefix
	var gateways []netip.Addr
	for _, ip := range given.IPs {
		p, ok := prefixOf(ip.Address)
		if !ok {
			return c.badIPAM("address %s: not valid", ip.Address.String())
		}
		to := &opts.Endpoint.IPv4
		if p.Addr().Is6() {
			to = &opts.Endpoint.IPv6
		}
		if to.IsValid() {
			return c.badIPAM("addresses %s and %s: one of a family at most", *to, p.Addr())
		}
		*to = p.Addr()
		subnets = append(subnets, p.Masked())
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			gateways = append(gateways, gw.Unmap())
		}
	}
	if !opts.Endpoint.IPv4.IsValid() {
		return c.badIPAM("gives no IPv4 address; a bpfnet network has IPv4, and IPv6 beside it")
	}
	// What it gives is what the network must be, now and when it was made.
	opts.Network.Subnets = subnets
	opts.Network.IPv6 = opts.Endpoint.IPv6.IsValid()
	if len(opts.Network.Gateways) == 0 {
		opts.Network.Gateways = gateways
	}
	for _, r := range given.Routes {
		if err := c.adoptRoute(r, given, opts); err != nil {
			return err
		}
	}
	return nil
}

// adoptRoute takes a route that the IPAM plugin wants. The default route is the Manager's
// business: it goes by the first network that is not internal.
func (c *call) adoptRoute(r *types.Route, given *current.Result, opts *control.JoinOptions) error {
	to, ok := prefixOf(r.Dst)
	if !ok || r.MTU != 0 || r.AdvMSS != 0 || r.Priority != 0 || r.Table != nil || r.Scope != nil {
		return c.badIPAM("route %s: only dst and gw mean something here", r.Dst.String())
	}
	via, gateway := netip.Addr{}, netip.Addr{}
	if gw, ok := netip.AddrFromSlice(r.GW); ok {
		via = gw.Unmap()
	}
	for _, ip := range given.IPs {
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && gw.Unmap().BitLen() == to.Addr().BitLen() {
			gateway = gw.Unmap()
		}
	}
	switch {
	case to.Bits() == 0 && via.IsValid() && via != gateway:
		return c.badIPAM("default route via %s: the gateway is %s", via, gateway)
	case to.Bits() == 0:
		return nil
	case !via.IsValid():
		via = gateway
	}
	if !via.IsValid() {
		return c.badIPAM("route %s: by no gateway", to)
	}
	opts.Endpoint.Routes = append(opts.Endpoint.Routes, control.Route{To: to.Masked(), Via: via})
	return nil
}

func prefixOf(n net.IPNet) (netip.Prefix, bool) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if !ok || bits == 0 {
		return netip.Prefix{}, false
	}
	if a = a.Unmap(); a.Is4() && bits == 128 {
		ones -= 96
	}
	p := netip.PrefixFrom(a, ones)
	return p, p.IsValid()
}
