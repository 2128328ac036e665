// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"net"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/ipam"
	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/store"
)

// check finds what is wrong with the options without looking at the host.
func (o *NetworkOptions) check() error {
	seen := make(map[bool]netip.Prefix)
	for _, s := range o.Subnets {
		if !s.IsValid() {
			return invalid("subnet: not valid")
		}
		v6 := s.Addr().Is6()
		if other, twice := seen[v6]; twice {
			return invalid("subnets %s and %s: one per family at most", other, s)
		}
		if err := ipam.CheckSubnet(s); err != nil {
			return &ofKind{ErrInvalid, err}
		}
		seen[v6] = s
	}
	gateways := make(map[bool]netip.Addr)
	for _, g := range o.Gateways {
		s, ok := seen[g.Is6()]
		if !ok {
			return invalid("gateway %s: no subnet of its family was given", g)
		}
		if err := ipam.CheckGateway(g, s); err != nil {
			return &ofKind{ErrInvalid, err}
		}
		if other, twice := gateways[g.Is6()]; twice {
			return invalid("cannot configure multiple gateways (%s, %s) on the same subnet (%s)", other, g, s)
		}
		gateways[g.Is6()] = g
	}
	ranges := make(map[bool]netip.Prefix)
	for _, r := range o.Ranges {
		v6 := r.Addr().Is6()
		s, ok := seen[v6]
		if !ok {
			return invalid("ip-range %s: no subnet of its family was given", r)
		}
		if err := ipam.CheckRange(r, s); err != nil {
			return &ofKind{ErrInvalid, err}
		}
		if other, twice := ranges[v6]; twice {
			return invalid("cannot configure multiple ranges (%s, %s) on the same subnet (%s)", other, r, s)
		}
		ranges[v6] = r
	}
	if err := checkMTU(o.MTU, false); err != nil {
		return err
	}
	if o.Bridge != "" {
		if err := link.CheckName(o.Bridge); err != nil {
			return &ofKind{ErrInvalid, err}
		}
		if strings.HasPrefix(o.Bridge, vethPrefix) || strings.HasPrefix(o.Bridge, bridgePrefix) {
			return invalid("bridge %s: names that begin with %s or %s are kept for bpfnet's own", o.Bridge, vethPrefix, bridgePrefix)
		}
	}
	if o.BindAddress != "" {
		if _, err := netip.ParseAddr(o.BindAddress); err != nil {
			return invalid("binding address %q: not an address", o.BindAddress)
		}
	}
	switch {
	case o.Internal && o.Routed:
		return invalid("conflicting options: an internal network and gateway mode routed")
	case o.FullCone && o.Internal:
		return invalid("conflicting options: full cone and an internal network, whose containers are not masqueraded")
	case o.FullCone && o.Routed:
		return invalid("conflicting options: full cone and a routed network, whose containers are not masqueraded")
	case o.FullCone && o.Masquerade != nil && !*o.Masquerade:
		return invalid("conflicting options: full cone and no masquerade")
	}
	return nil
}

// defaultNetwork is the network named bridge; it is made when it is first needed.
func (o *op) defaultNetwork() (*Network, error) {
	id, ok, err := store.Get[string](o.tx, bucketNetworkNames, DefaultNetwork)
	if err != nil {
		return nil, err
	}
	if ok {
		return networkByID(o.tx, id)
	}
	opts, err := o.host.Config.defaultNetwork()
	if err != nil {
		return nil, err
	}
	return o.createNetwork(opts)
}

// defaultNetwork says what the configuration wants of it.
func (c *Config) defaultNetwork() (o NetworkOptions, err error) {
	if c.Bridge == noDefaultNetwork {
		return o, conflict("network bridge: there is none by configuration (bridge: none); name another with --net")
	}
	o = NetworkOptions{
		Name:       DefaultNetwork,
		Bridge:     c.Bridge,
		ICC:        c.ICC,
		Masquerade: c.IPMasq,
		IPv6:       *c.IPv6,
	}
	for _, f := range []struct{ bip, fixed string }{{c.BIP, c.FixedCIDR}, {c.BIP6, c.FixedCIDRv6}} {
		var subnet, fixed netip.Prefix
		if f.bip != "" {
			if subnet, err = netip.ParsePrefix(f.bip); err != nil {
				return o, err
			}
		}
		if f.fixed != "" {
			if fixed, err = netip.ParsePrefix(f.fixed); err != nil {
				return o, err
			}
			fixed = fixed.Masked()
		}
		switch {
		case subnet.IsValid():
			o.Subnets = append(o.Subnets, subnet.Masked())
			if subnet.Addr() != subnet.Masked().Addr() {
				o.Gateways = append(o.Gateways, subnet.Addr())
			}
		case fixed.IsValid():
			o.Subnets = append(o.Subnets, fixed)
		}
		if fixed.IsValid() {
			o.Ranges = append(o.Ranges, fixed)
		}
	}
	return o, o.check()
}

// planSubnets chooses addresses for a network that has everything else.
func (o *op) planSubnets(n *Network, opts NetworkOptions) error {
	taken, err := o.takenPrefixes()
	if err != nil {
		return err
	}
	v6 := opts.IPv6
	var chosen [2]netip.Prefix // IPv4, IPv6
	for _, s := range opts.Subnets {
		s = s.Masked()
		i := 0
		if s.Addr().Is6() {
			i, v6 = 1, true
		}
		for _, t := range taken.networks {
			if t.Overlaps(s) {
				return conflict("invalid pool request: Pool overlaps with other one on this address space (%s, %s)", s, t)
			}
		}
		if err := o.apart(s, n.Bridge); err != nil {
			return err
		}
		chosen[i] = s
	}
	if !chosen[0].IsValid() {
		pools, err := o.host.Config.pools()
		if err != nil {
			return err
		}
		if chosen[0], err = ipam.NextNetwork(pools, taken.all()); err != nil {
			return err
		}
	}
	if v6 && !chosen[1].IsValid() {
		for i := n.Number; ; i++ {
			chosen[1] = ipam.ULA([]byte(o.host.Seed), i)
			if _, used := ipam.Overlapping(chosen[1], taken.all()); !used {
				break
			}
		}
	}
	if err := checkMTU(n.MTU, chosen[1].IsValid()); err != nil {
		return err
	}
	for _, p := range chosen {
		if p.IsValid() {
			s, err := subnetOf(p, opts, &o.host.Config)
			if err != nil {
				return err
			}
			n.Subnets = append(n.Subnets, s)
		}
	}
	return nil
}

// apart refuses a subnet in which this host has an address by another device than the network's:
// one of the two would not be reached any more.
func (o *op) apart(subnet netip.Prefix, bridge string) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	ours, err := o.claims()
	if err != nil {
		return err
	}
	addrs, err := link.HostAddrs(ns)
	if err != nil {
		return err
	}
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, a := range addrs {
		if !subnet.Contains(a.Addr) {
			continue
		}
		dev, err := h.LinkByIndex(a.Ifindex)
		if err != nil { // gone meanwhile
			continue
		}
		if name := dev.Attrs().Name; name != bridge && !ours(dev) {
			return conflict("subnet %s: this host has %s in it, on %s: choose another", subnet, a.Addr, name)
		}
	}
	return nil
}

func subnetOf(p netip.Prefix, opts NetworkOptions, c *Config) (Subnet, error) {
	s := Subnet{Prefix: p}
	for _, g := range opts.Gateways {
		if p.Contains(g) {
			s.Gateway = g
		}
	}
	for _, r := range opts.Ranges {
		if p.Contains(r.Addr()) {
			s.Range = r.Masked()
		}
	}
	if !s.Gateway.IsValid() {
		var err error
		if s.Gateway, err = ipam.Gateway(p, s.Range); err != nil {
			return s, err
		}
	}
	if opts.Name == DefaultNetwork {
		router := c.DefaultGateway
		if p.Addr().Is6() {
			router = c.DefaultGatewayV6
		}
		if a, err := netip.ParseAddr(router); err == nil && a != s.Gateway {
			if err := ipam.CheckGateway(a, p); err != nil {
				return s, err
			}
			s.Router = a
		}
	}
	return s, nil
}

// takenPrefixes are what a new network must not overlap: other networks, and what
// the host has a way to.
type takenPrefixes struct{ networks, routes []netip.Prefix }

func (t takenPrefixes) all() []netip.Prefix {
	return append(t.networks[:len(t.networks):len(t.networks)], t.routes...)
}

func (o *op) takenPrefixes() (takenPrefixes, error) {
	var t takenPrefixes
	list, err := o.allNetworks()
	if err != nil {
		return t, err
	}
	for _, n := range list {
		for _, s := range n.Subnets {
			t.networks = append(t.networks, s.Prefix)
		}
	}
	ns, err := o.hostNetns()
	if err != nil {
		return t, err
	}
	t.routes, err = link.ExistingRoutes(ns)
	return t, err
}

// foreign is what a bridge that existed before us has.
type foreign struct {
	mac      net.HardwareAddr
	subnets  []netip.Prefix
	gateways []netip.Addr
}

// foreignBridge looks whether a bridge of that name is there; nil when we shall
// make it. The default one by its own name is ours, whoever lost its record.
func (o *op) foreignBridge(name string) (*foreign, error) {
	l, err := o.device(name)
	if err != nil || l == nil || name == defaultBridge {
		return nil, err
	}
	if l.Type() != "bridge" {
		return nil, conflict("bridge %s: a device of kind %s has that name", name, l.Type())
	}
	f := &foreign{mac: bytes.Clone(l.Attrs().HardwareAddr)}
	ns, err := o.hostNetns()
	if err != nil {
		return nil, err
	}
	h, err := ns.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		addrs, err := h.AddrList(l, family)
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			ip, ok := netip.AddrFromSlice(a.IP)
			if ip = ip.Unmap(); !ok || ip.IsLinkLocalUnicast() {
				continue
			}
			bits, _ := a.Mask.Size()
			p, err := ip.Prefix(bits)
			if err != nil {
				return nil, err
			}
			f.subnets, f.gateways = append(f.subnets, p), append(f.gateways, ip)
			break
		}
	}
	return f, nil
}
