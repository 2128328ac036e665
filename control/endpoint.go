// SPDX-License-Identifier: Apache-2.0

package control

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/ipam"
	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

// slotRecord says whose a slot of the endpoints map is.
type slotRecord struct {
	Container string `json:"container"`
	Network   string `json:"network"`
}

// newEndpoint describes an attachment that has not been made yet.
func newEndpoint(c *Container, n *Network, opts EndpointOptions) *Endpoint {
	return &Endpoint{
		Network:   n.ID,
		Container: c.ID,
		WantIPv4:  opts.IPv4,
		WantIPv6:  opts.IPv6,
		WantMAC:   opts.MAC,
		WantIf:    opts.IfName,
		Aliases:   opts.Aliases,
		Internal:  n.Internal,
		Runtime:   opts.Runtime,
		Routes:    opts.Routes,
		Created:   time.Now(),
	}
}

func slotKey(slot uint32) string { return strconv.FormatUint(uint64(slot), 10) }

func hostIfName(container, network string) string {
	sum := sha256.Sum256([]byte(container + "/" + network))
	return vethPrefix + hex.EncodeToString(sum[:5])
}

// raiseEndpoint gives an endpoint its slot, addresses and cable.
func (o *op) raiseEndpoint(c *Container, n *Network, ep *Endpoint, cont *netns.NS) error {
	slots, err := takeNumbers(o.tx, numSlots, 1)
	if err != nil {
		return err
	}
	ep.Slot = slots[0]
	if err := o.takeAddresses(c, n, ep); err != nil {
		return err
	}
	ep.HostIf = hostIfName(c.ID, n.ID)
	if ep.IfName, err = freeIfName(c, ep, cont); err != nil {
		return err
	}
	ep.Gateway = false // of its last time up
	ep.Gateway = !n.Internal && ep.IPv4.IsValid() && gatewayEndpoint(c, false) == nil
	if err := store.Put(o.tx, bucketSlots, slotKey(ep.Slot), slotRecord{c.ID, n.ID}); err != nil {
		return err
	}
	if err := store.Put(o.tx, bucketMembers, n.ID+"/"+c.ID, ep.Slot); err != nil {
		return err
	}
	if c.Endpoints == nil {
		c.Endpoints = make(map[string]*Endpoint)
	}
	c.Endpoints[n.ID] = ep
	return o.cable(c, n, ep, cont)
}

// takeAddresses reserves what was asked for, or what the endpoint had, or the
// next that is free.
func (o *op) takeAddresses(c *Container, n *Network, ep *Endpoint) error {
	for i := range n.Subnets {
		s := &n.Subnets[i]
		v6 := s.Prefix.Addr().Is6()
		want, last := ep.WantIPv4, ep.LastIPv4
		if v6 {
			want, last = ep.WantIPv6, ep.LastIPv6
		}
		addr, err := o.takeAddress(n, s, want, last, c.ID)
		if err != nil {
			return err
		}
		if p := netip.PrefixFrom(addr, s.Prefix.Bits()); v6 {
			ep.IPv6 = p
		} else {
			ep.IPv4 = p
		}
	}
	if ep.WantIPv4.IsValid() && !ep.IPv4.IsValid() || ep.WantIPv6.IsValid() && !ep.IPv6.IsValid() {
		return invalid("network %s: has no subnet of the family of the address that was asked for", n.Name)
	}
	if ep.WantMAC != "" {
		ep.MAC = ep.WantMAC
		return nil
	}
	addr := ep.IPv4.Addr()
	if !addr.IsValid() {
		addr = ep.IPv6.Addr()
	}
	ep.MAC = ipam.MACFor(addr).String()
	return nil
}

// cursorKey is where the search for a free address goes on.
func cursorKey(n *Network, p netip.Prefix) string { return "next/" + n.ID + "/" + p.String() }

func addressKey(n *Network, a netip.Addr) string { return n.ID + "/" + a.String() }

func (o *op) takeAddress(n *Network, s *Subnet, want, last netip.Addr, owner string) (netip.Addr, error) {
	var failed error
	used := func(a netip.Addr) bool {
		if a == s.Gateway || a == s.Router {
			return true
		}
		_, taken, err := store.Get[string](o.tx, bucketAddresses, addressKey(n, a))
		if err != nil {
			failed = err
		}
		return taken
	}
	if want.IsValid() {
		if err := ipam.CheckAddress(want, s.Prefix); err != nil {
			return netip.Addr{}, invalid("network %s: %v", n.Name, err)
		}
		if holder, taken, err := store.Get[string](o.tx, bucketAddresses, addressKey(n, want)); err != nil {
			return netip.Addr{}, err
		} else if taken {
			if _, err := o.reap(holder); err != nil {
				return netip.Addr{}, err
			}
		}
	}
	if !want.IsValid() && last.IsValid() && s.Prefix.Contains(last) && !used(last) {
		want = last
	}
	cursor := cursorKey(n, s.Prefix)
	next, _, err := store.Get[netip.Addr](o.tx, bucketNumbers, cursor)
	if err != nil {
		return netip.Addr{}, err
	}
	addr, err := ipam.Allocate(s.Prefix, s.Range, want, next, used)
	if err = cmpErr(failed, err); err != nil {
		return netip.Addr{}, fmt.Errorf("network %s: %w", n.Name, addressKind(err))
	}
	if !want.IsValid() {
		if err := store.Put(o.tx, bucketNumbers, cursor, addr.Next()); err != nil {
			return netip.Addr{}, err
		}
	}
	return addr, store.Put(o.tx, bucketAddresses, addressKey(n, addr), owner)
}

func cmpErr(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// freeIfName is what was asked for, or the first ethN that the namespace does not have.
func freeIfName(c *Container, ep *Endpoint, cont *netns.NS) (string, error) {
	if ep.WantIf != "" {
		return ep.WantIf, nil
	}
	h, err := cont.Netlink()
	if err != nil {
		return "", err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return "", err
	}
	taken := make(map[string]bool)
	for _, l := range links {
		taken[l.Attrs().Name] = true
	}
	for _, other := range c.Endpoints {
		if other != ep {
			taken[cmpString(other.WantIf, other.IfName)] = true
		}
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("eth%d", i); !taken[name] {
			return name, nil
		}
	}
}

func cmpString(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// cable lays the veth of an endpoint that has everything else. The packets' path knows
// it before it is up.
func (o *op) cable(c *Container, n *Network, ep *Endpoint, cont *netns.NS) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return invalid("mac address %q: not valid", ep.MAC)
	}
	v := link.Veth{
		HostName: ep.HostIf,
		ContName: ep.IfName,
		Bridge:   n.Bridge,
		MAC:      mac,
		MTU:      n.MTU,
		GRO:      true,
		Routes:   !o.reconciling, // there one may exist: see setRoutes
		Beside:   ep.Routes,
	}
	for _, s := range n.Subnets {
		v6 := s.Prefix.Addr().Is6()
		addr := ep.IPv4
		if v6 {
			addr = ep.IPv6
		}
		v.Addrs = append(v.Addrs, addr)
		if gatewayEndpoint(c, v6) == ep && !n.Internal {
			v.Gateways = append(v.Gateways, routerOf(s))
		}
	}
	o.undo.add("device "+ep.HostIf, func() error { return o.uncable(n, ep) })
	v.Ready = func(hostIndex int) error {
		ep.HostIndex = hostIndex
		return o.tellEndpoint(n, ep)
	}
	if err := o.note(noteCable + ep.HostIf); err != nil {
		return err
	}
	if _, err := link.CreateVeth(ns, cont, v); err != nil {
		return err
	}
	if v.Routes {
		if err := o.note(noteLaid + ep.HostIf); err != nil {
			return err
		}
	}
	o.did("container %s: %s on network %s, %s", c.Name, ep.IfName, n.Name, addrList(ep))
	return o.setNeighbors(n, ep)
}

// setNeighbors tells the host the container's MAC: nobody answers in its place. On a cable
// that ends at the host nobody else could.
func (o *op) setNeighbors(n *Network, ep *Endpoint) error {
	if n.Bridge == "" {
		return nil
	}
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	bridge, err := o.bridgeIndex(n)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return err
	}
	return link.SetNeighbors(ns, bridge, mac, endpointAddrs(ep))
}

// uncable takes down what cable made; what is gone already is fine.
func (o *op) uncable(n *Network, ep *Endpoint) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	var errs []error
	errs = append(errs, o.path().ClearEndpoint(ep.Slot, n.Number))
	if bridge, err := o.bridgeIndex(n); err == nil && bridge != 0 {
		errs = append(errs, link.DelNeighbors(ns, bridge, endpointAddrs(ep)))
	}
	if n.Engine+n.Driver == "" { // else an engine has one end
		errs = append(errs, link.DeleteVeth(ns, ep.HostIf))
	}
	if ep.HostIndex != 0 {
		errs = append(errs, o.path().DropDevice(ep.HostIndex))
	}
	return errors.Join(errs...)
}

// lowerEndpoint takes an endpoint down and gives back what it had. What the user
// asked for stays in ep, so that it can be raised again.
func (o *op) lowerEndpoint(c *Container, n *Network, ep *Endpoint) error {
	if ep.Slot == 0 {
		return nil
	}
	o.rebuild = true
	if n.Routed {
		// The slot will be another container's.
		if err := o.setRouted(ep.Slot, nil); err != nil {
			return err
		}
	}
	if err := o.uncable(n, ep); err != nil {
		return err
	}
	for _, a := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if a.IsValid() && n.Driver == "" { // else until the engine takes the endpoint back
			if err := store.Delete(o.tx, bucketAddresses, addressKey(n, a.Addr())); err != nil {
				return err
			}
		}
	}
	if err := store.Delete(o.tx, bucketSlots, slotKey(ep.Slot)); err != nil {
		return err
	}
	if err := store.Delete(o.tx, bucketMembers, n.ID+"/"+c.ID); err != nil {
		return err
	}
	if err := giveNumbers(o.tx, numSlots, ep.Slot); err != nil {
		return err
	}
	ep.LastIPv4, ep.LastIPv6 = ep.IPv4.Addr(), ep.IPv6.Addr()
	ep.Slot, ep.HostIndex, ep.HostIf, ep.IfName, ep.MAC = 0, 0, "", "", ""
	ep.IPv4, ep.IPv6 = netip.Prefix{}, netip.Prefix{}
	o.did("container %s: off network %s", c.Name, n.Name)
	return nil
}

// gatewayEndpoint is the endpoint that carries the default route of a family, and
// on which ports are published: for IPv4 the one that is marked, for IPv6 the
// same if it has IPv6, else the first that has.
func gatewayEndpoint(c *Container, v6 bool) *Endpoint {
	eps := endpointsOf(c)
	for _, ep := range eps {
		if ep.Gateway && (!v6 || ep.IPv6.IsValid()) {
			return ep
		}
	}
	if v6 {
		for _, ep := range eps {
			if ep.IPv6.IsValid() && !ep.Internal {
				return ep
			}
		}
	}
	return nil
}

// endpointsOf lists a container's endpoints in the order in which they were made.
func endpointsOf(c *Container) []*Endpoint {
	list := make([]*Endpoint, 0, len(c.Endpoints))
	for _, ep := range c.Endpoints {
		list = append(list, ep)
	}
	slices.SortFunc(list, func(a, b *Endpoint) int { return a.Created.Compare(b.Created) })
	return list
}

func routerOf(s Subnet) netip.Addr {
	if s.Router.IsValid() {
		return s.Router
	}
	return s.Gateway
}

// endpointAddrs is every address that the host may look for behind the bridge.
func endpointAddrs(ep *Endpoint) []netip.Addr {
	var list []netip.Addr
	if ep.IPv4.IsValid() {
		list = append(list, ep.IPv4.Addr())
	}
	if ep.IPv6.IsValid() {
		list = append(list, ep.IPv6.Addr())
		if mac, err := net.ParseMAC(ep.MAC); err == nil {
			list = append(list, ipam.LinkLocal(mac))
		}
	}
	return list
}

func addrList(ep *Endpoint) string {
	s := ""
	for _, a := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if a.IsValid() {
			if s != "" {
				s += ", "
			}
			s += a.Addr().String()
		}
	}
	return s
}

// device finds a device of the host by name; nil when there is none.
func (o *op) device(name string) (netlink.Link, error) {
	if name == "" {
		return nil, nil
	}
	ns, err := o.hostNetns()
	if err != nil {
		return nil, err
	}
	h, err := ns.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	return l, err
}
