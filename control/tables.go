// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net"
	"net/netip"
	"time"

	"github.com/bpfnet/bpfnet/maps"
)

// setNetwork writes a network's entry of the kernel's maps.
func (o *op) setNetwork(n *Network, bridge int) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
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
		nw.Subnets = append(nw.Subnets, s.Prefix)
		if s.Prefix.Addr().Is4() {
			nw.Gateway4 = s.Gateway
			nw.Broadcast4 = broadcast(s.Prefix)
		} else {
			nw.Gateway6 = s.Gateway
		}
	}
	o.undo.add("network "+n.Name, func() error { return t.Networks.Clear(n.Number) })
	return t.Networks.Set(n.Number, nw)
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

func (o *op) clearNetwork(n *Network) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	return t.Networks.Clear(n.Number)
}

// bridgeIndex is the ifindex of a network's bridge, as the programs know it.
func (o *op) bridgeIndex(n *Network) (int, error) {
	t, err := o.tables()
	if err != nil {
		return 0, err
	}
	nw, ok, err := t.Networks.Get(n.Number)
	if err == nil && !ok {
		err = notFound("network %s: not in the kernel's maps", n.Name)
	}
	return nw.Bridge, err
}

// setEndpoint writes an endpoint's entry, and puts it on its network's list.
func (o *op) setEndpoint(n *Network, ep *Endpoint) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
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
	}
	if e.IPv6.IsValid() {
		e.LinkLocal = maps.LinkLocal(mac)
	}
	if err := t.Endpoints.Set(ep.Slot, e); err != nil {
		return err
	}
	if err := o.routeEndpoint(t, ep.Slot, e, n.Bridge); err != nil {
		return err
	}
	return t.Networks.AddMember(n.Number, ep.Slot)
}

func (o *op) clearEndpoint(n *Network, ep *Endpoint) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	if err := t.Networks.RemoveMember(n.Number, ep.Slot); err != nil {
		return err
	}
	if err := t.Endpoints.Clear(ep.Slot); err != nil {
		return err
	}
	return t.Routes.SetTable(ep.Slot, 0)
}

// Settings that nobody has asked to change yet.
const (
	icmpRate    = 1000 // errors a second
	sweepPeriod = 100 * time.Millisecond
)

// writeSettings tells the programs what the configuration says.
func (o *op) writeSettings() error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	first, last, err := o.ephemeralRange()
	if err != nil {
		return err
	}
	c := &o.host.Config
	pool, err := masqueradeRanges(c.MasqueradePorts, first, last)
	if err != nil {
		return err
	}
	timeouts, err := c.timeouts()
	if err != nil {
		return err
	}
	was, err := t.Settings.Get()
	if err != nil {
		return err
	}
	if len(was.Pool) > 0 {
		o.undo.add("settings", func() error { return t.Settings.Set(was) })
	}
	return t.Settings.Set(maps.Config{
		NetnsCookie: o.host.Cookie,
		Quota:       c.Quota,
		Pool:        pool,
		Timeouts:    timeouts,
		ICMPRate:    icmpRate,
		Sweep:       sweepPeriod,
	})
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

// dropTables empties the entries of the maps that belong to nobody.
func (o *op) dropTables(slots, numbers map[uint32]bool, members map[uint32][]uint32) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	live, err := t.Endpoints.List()
	if err != nil {
		return err
	}
	for slot := range live {
		if !slots[slot] {
			if err := t.Endpoints.Clear(slot); err != nil {
				return err
			}
			o.did("endpoint %d: cleared, nobody's", slot)
		}
	}
	nums, err := t.Networks.List()
	if err != nil {
		return err
	}
	for _, num := range nums {
		if !numbers[num] {
			if err := t.Networks.Clear(num); err != nil {
				return err
			}
			o.did("network %d: cleared, nobody's", num)
		}
	}
	for num, list := range members {
		if err := t.Networks.SetMembers(num, list); err != nil {
			return err
		}
	}
	devices, err := t.Devices.List()
	if err != nil {
		return err
	}
	for index, d := range devices {
		stale := d.Endpoint != 0 && (!slots[d.Endpoint] || live[d.Endpoint].Ifindex != index) ||
			d.Network != 0 && !numbers[d.Network]
		if stale {
			if err := t.Devices.Delete(index); err != nil {
				return err
			}
		}
	}
	if _, err := keepNumbers(o.tx, numSlots, slots); err != nil {
		return err
	}
	_, err = keepNumbers(o.tx, numNetworks, numbers)
	return err
}
