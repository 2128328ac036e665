// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net"
	"net/netip"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/maps"
)

// forPath is a network as the packets' path is told.
func (n *Network) forPath(bridge int) (maps.Network, error) {
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return maps.Network{}, err
	}
	nw := maps.Network{
		ICC:        n.ICC,
		Internal:   n.Internal,
		Masquerade: n.Masquerade,
		Isolate:    n.Isolate,
		Routed:     n.Routed,
		FullCone:   n.FullCone,
		Bridge:     bridge,
		MTU:        n.MTU,
		MAC:        mac,
		LinkLocal:  maps.LinkLocal(mac),
	}
	for _, s := range n.Subnets {
		if n.Parent == "" { // else it is the world's
			nw.Subnets = append(nw.Subnets, s.Prefix)
		}
		if s.Prefix.Addr().Is4() {
			nw.Gateway4 = s.Gateway
			nw.Broadcast4 = broadcast(s.Prefix)
		} else {
			nw.Gateway6 = s.Gateway
		}
	}
	return nw, nil
}

// tellNetwork makes the packets' path know a network, or take it back.
func (o *op) tellNetwork(n *Network, bridge int) error {
	nw, err := n.forPath(bridge)
	if err != nil {
		return err
	}
	o.undo.add("network "+n.Name, func() error { return o.path().ClearNetwork(n.Number, 0) })
	return o.path().SetNetwork(n.Number, nw, n.Bridge)
}

// broadcast is the last address of an IPv4 prefix; zero where there is none (RFC 3021).
func broadcast(p netip.Prefix) netip.Addr {
	if p.Bits() > 30 {
		return netip.Addr{}
	}
	a := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		a[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(a)
}

// bridgeIndex is the ifindex of a network's bridge, as the packets' path knows it.
func (o *op) bridgeIndex(n *Network) (int, error) {
	index, ok, err := o.path().Bridge(n.Number)
	if err == nil && !ok {
		err = notFound("network %s: not in the kernel's maps", n.Name)
	}
	return index, err
}

// tellEndpoint makes the packets' path know the host end of a cable.
func (o *op) tellEndpoint(n *Network, ep *Endpoint) error {
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return err
	}
	e := maps.Endpoint{
		Ifindex:    ep.HostIndex,
		Network:    n.Number,
		MAC:        mac,
		MTU:        n.MTU,
		IPv4:       ep.IPv4.Addr(),
		IPv6:       ep.IPv6.Addr(),
		DHCPServer: n.AllowDHCPServer,
		Child:      n.Parent != "",
	}
	if e.IPv6.IsValid() {
		e.LinkLocal = maps.LinkLocal(mac)
	}
	return o.path().SetEndpoint(ep.Slot, e, datapath.EndpointDevice{Name: ep.HostIf, Bridge: n.Bridge})
}

// setLink opens a client's way to the ports of a server, and lets the two know each other.
func (o *op) setLink(r linkRule) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	if err := t.Rules.SetLink(r.Rule); err != nil {
		return err
	}
	for _, l := range r.entries() {
		if err := t.Links.Set(l, r.Rule); err != nil {
			return err
		}
	}
	return nil
}

func (o *op) clearLink(r linkRule) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	for _, l := range r.entries() {
		if err := t.Links.Delete(l); err != nil {
			return err
		}
	}
	return t.Rules.Clear(r.Rule)
}

func (r linkRule) entries() []maps.Link {
	list := []maps.Link{{Client: r.Client, Server: r.Server}}
	for _, p := range r.Ports {
		list = append(list, maps.Link{Client: r.Client, Server: r.Server, Proto: p.Proto, Port: p.Port})
	}
	return list
}
