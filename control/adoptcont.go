// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

func (c *AdoptedContainer) check() error {
	if err := checkEngineID("container", c.ID); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for i := range c.Endpoints {
		ep := &c.Endpoints[i]
		if seen[ep.Network] {
			return invalid("network %.12s: twice", ep.Network)
		}
		seen[ep.Network] = true
		mac, err := net.ParseMAC(ep.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return invalid("mac address %.40q: not of a single device", ep.MAC)
		}
		ep.MAC = mac.String()
		if ep.IPv4.IsValid() && !ep.IPv4.Addr().Is4() || ep.IPv6.IsValid() && (!ep.IPv6.Addr().Is6() || ep.IPv6.Addr().Is4In6()) {
			return invalid("address %s, %s: not of its family", ep.IPv4, ep.IPv6)
		}
	}
	_, err := parseExposed(c.Exposed)
	return err
}

// adoptContainer makes a container of an engine's known, or follows what has changed of it.
func (o *op) adoptContainer(a *Adopted, want *AdoptedContainer) error {
	if err := want.check(); err != nil {
		return err
	}
	old, had, err := store.Get[Container](o.tx, bucketContainers, want.ID)
	if err != nil {
		return err
	}
	if had && old.Engine != a.Engine {
		return conflict("another container has its ID")
	}
	if want.Netns == "" {
		if had {
			return nil
		}
		return o.expectContainer(a, want)
	}
	ns, err := netns.Open(want.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := o.notTheHost(ns, "netns "+want.Netns); err != nil {
		return err
	}
	cookie, err := ns.Cookie()
	if err != nil {
		return err
	}
	if had && old.Netns != "" && (old.Cookie != cookie || old.NetnsID != ns.ID()) {
		if err := o.finish(&old); err != nil { // it was started anew
			return err
		}
		had = false
	}
	c := &old
	if !had {
		c = &Container{ID: want.ID, Engine: a.Engine, Mode: ModeNetwork, Attached: true, AutoRemove: true}
	}
	was := c.Name
	if c.Name, err = o.engineName(bucketNames, a.Engine, want.Name, want.ID); err != nil {
		return err
	}
	if had && was != c.Name {
		if err := store.Delete(o.tx, bucketNames, was); err != nil {
			return err
		}
	}
	if err := store.Put(o.tx, bucketNames, c.Name, c.ID); err != nil {
		return err
	}
	c.Held, c.Hostname, c.Args, c.Created = a.Held, want.Hostname, want.Args, want.Created
	c.State, c.Started, c.Exposed = StateRunning, want.Started, want.Exposed
	c.Netns, c.NetnsID, c.Cookie = want.Netns, ns.ID(), cookie
	if c.PID, c.PIDStart = want.PID, startTime(want.PID); want.PID != 0 && c.PIDStart == 0 {
		err = notFound("process %d: is gone", want.PID)
	}
	if err == nil {
		err = o.claimNetns(c)
	}
	if err == nil {
		err = o.adoptEndpoints(c, want, ns)
	}
	if err == nil {
		err = o.adoptPorts(c, want)
	}
	if err == nil && !sameNetns(ns, c.Netns) {
		err = fmt.Errorf("netns %s: changed while it was adopted", c.Netns)
	}
	if err != nil {
		return errors.Join(err, o.finish(c))
	}
	for _, p := range c.Problems {
		line := "container " + c.Name + ": " + p
		if o.recorded == nil {
			o.recorded = make(map[string]bool)
		}
		o.problems, o.recorded[line] = append(o.problems, line), true
	}
	return o.putContainer(c)
}

// expectContainer publishes the ports of a container that is being started: until it is
// there they lead nowhere, instead of into the sockets by which its engine holds them.
func (o *op) expectContainer(a *Adopted, want *AdoptedContainer) error {
	name, err := o.engineName(bucketNames, a.Engine, want.Name, want.ID)
	if err != nil {
		return err
	}
	c := &Container{ID: want.ID, Engine: a.Engine, Name: name, Mode: ModeNetwork, Attached: true, AutoRemove: true, Held: a.Held, State: StateCreated, Created: want.Created}
	if err := store.Put(o.tx, bucketNames, c.Name, c.ID); err != nil {
		return err
	}
	if err := o.adoptPorts(c, want); err != nil {
		return errors.Join(err, o.finish(c))
	}
	c.Problems = nil // it is the container's start that counts
	return o.putContainer(c)
}

// claimNetns makes sure that no other container is in the namespace.
func (o *op) claimNetns(c *Container) error {
	key := fmt.Sprint(c.Cookie)
	other, taken, err := store.Get[string](o.tx, bucketNetns, key)
	if err != nil {
		return err
	}
	if taken && other != c.ID {
		if oc, _, _ := store.Get[Container](o.tx, bucketContainers, other); oc.ID != "" {
			c.Cookie = 0 // the entry is not ours to delete
			return conflict("netns %s: container %s is attached to it already", c.Netns, oc.Name)
		}
	}
	return store.Put(o.tx, bucketNetns, key, c.ID)
}

// adoptEndpoints makes a container's endpoints those that its engine says, where it has
// them: by the devices that the host has.
func (o *op) adoptEndpoints(c *Container, want *AdoptedContainer, ns *netns.NS) error {
	ends, err := o.endsInto(ns)
	if err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for i := range want.Endpoints {
		wanted[want.Endpoints[i].Network] = true
	}
	for _, ep := range endpointsOf(c) {
		if wanted[ep.Network] {
			continue
		}
		n, err := networkByID(o.tx, ep.Network)
		if err != nil {
			return err
		}
		if err := o.letGoEndpoint(c, n, ep); err != nil {
			return err
		}
	}
	c.Problems = nil
	for i := range want.Endpoints {
		we := &want.Endpoints[i]
		n, err := networkByID(o.tx, we.Network)
		if err == nil && n.Engine != c.Engine {
			err = notFound("network %.12s: is not %s's", we.Network, c.Engine)
		}
		if err == nil {
			err = o.adoptEndpoint(c, n, we, ns, ends)
		}
		if err != nil {
			c.Problems = append(c.Problems, err.Error())
		}
	}
	if len(c.Endpoints) == 0 && len(c.Problems) > 0 {
		return errors.New(c.Problems[0])
	}
	return o.markGateway(c, want, ns, ends)
}

// endsInto are the host's ends of a container's cables; the host's devices are listed once
// for all containers of a command.
func (o *op) endsInto(ns *netns.NS) ([]link.HostEnd, error) {
	host, err := o.hostNetns()
	if err != nil {
		return nil, err
	}
	if o.devices == nil {
		seen, err := o.observe()
		if err != nil {
			return nil, err
		}
		for _, l := range seen.byIndex {
			o.devices = append(o.devices, l)
		}
	}
	return link.EndsInto(host, ns, o.devices)
}

// hostEnd is the host's end of an endpoint's cable, or the parent of its macvlan.
func (o *op) hostEnd(c *Container, n *Network, want *AdoptedEndpoint, ns *netns.NS, ends []link.HostEnd) (end link.HostEnd, err error) {
	if n.Parent != "" {
		return o.parentOf(n, want.MAC, ns)
	}
	bridge, err := o.bridgeIndex(n)
	if err != nil {
		return end, err
	}
	i := slices.IndexFunc(ends, func(e link.HostEnd) bool { return e.Master == bridge && (bridge != 0 || e.Name == want.Device) })
	switch {
	case i < 0 && bridge == 0:
		return end, notFound("network %s: device %.15q: no veth between the host and the container", n.Name, want.Device)
	case i < 0:
		return end, notFound("network %s: no port of bridge %s leads to the container", n.Name, n.Bridge)
	}
	for _, other := range c.Endpoints {
		if other.Network != n.ID && other.HostIndex == ends[i].Index {
			return end, conflict("device %s: is the container's cable to another network", ends[i].Name)
		}
	}
	return ends[i], nil
}

func (o *op) parentOf(n *Network, mac string, ns *netns.NS) (end link.HostEnd, err error) {
	host, err := o.hostNetns()
	if err != nil {
		return end, err
	}
	dev, err := o.device(n.Parent)
	if err != nil {
		return end, err
	}
	if dev == nil {
		return end, notFound("device %s: is gone", n.Parent)
	}
	end = link.HostEnd{Name: n.Parent, Index: dev.Attrs().Index}
	if end.Peer, err = link.ChildOf(host, ns, end.Index, mac); err == nil && end.Peer == 0 {
		err = notFound("network %s: the container has no macvlan of %s in mode bridge with MAC %s", n.Name, n.Parent, mac)
	}
	return end, err
}

// showHost tells a macvlan's container its host's MAC: it asks on the wire, where its host
// does not hear it.
func (o *op) showHost(n *Network, mac string, ns *netns.NS) error {
	if n.Parent == "" {
		return nil
	}
	end, err := o.parentOf(n, mac, ns)
	if err != nil {
		return err
	}
	own, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
	}
	var addrs []netip.Addr
	for _, s := range n.Subnets {
		if s.Gateway.IsValid() {
			addrs = append(addrs, s.Gateway)
		}
	}
	return link.SetNeighbors(ns, end.Peer, own, addrs)
}

func (o *op) adoptEndpoint(c *Container, n *Network, want *AdoptedEndpoint, ns *netns.NS, ends []link.HostEnd) error {
	end, err := o.hostEnd(c, n, want, ns, ends)
	if err != nil {
		return err
	}
	for _, p := range []netip.Prefix{want.IPv4, want.IPv6} {
		if p.IsValid() && !slices.ContainsFunc(n.Subnets, func(s Subnet) bool { return s.Prefix.Contains(p.Addr()) }) {
			return invalid("network %s: address %s is in none of its subnets", n.Name, p.Addr())
		}
	}
	ep := c.Endpoints[n.ID]
	if ep != nil && (ep.HostIndex != end.Index || ep.MAC != want.MAC || ep.IPv4 != want.IPv4 || ep.IPv6 != want.IPv6) {
		if err := o.letGoEndpoint(c, n, ep); err != nil {
			return err
		}
		ep = nil
	}
	if err := o.showHost(n, want.MAC, ns); err != nil {
		return err
	}
	if ep != nil {
		ep.Aliases, ep.HostIf = want.Aliases, end.Name
		if err := o.tellEndpoint(n, ep); err != nil {
			return err
		}
		return o.setNeighbors(n, ep)
	}
	slots, err := takeNumbers(o.tx, numSlots, 1)
	if err != nil {
		return err
	}
	ep = &Endpoint{
		Slot: slots[0], Network: n.ID, Container: c.ID, Internal: n.Internal, Created: time.Now(),
		HostIf: end.Name, HostIndex: end.Index, MAC: want.MAC, IPv4: want.IPv4, IPv6: want.IPv6, Aliases: want.Aliases,
	}
	if ep.IfName, err = link.NameIn(ns, end.Peer); err != nil {
		return err
	}
	if c.Endpoints == nil {
		c.Endpoints = make(map[string]*Endpoint)
	}
	c.Endpoints[n.ID] = ep
	if err := store.Put(o.tx, bucketSlots, slotKey(ep.Slot), slotRecord{c.ID, n.ID}); err != nil {
		return err
	}
	if err := store.Put(o.tx, bucketMembers, n.ID+"/"+c.ID, ep.Slot); err != nil {
		return err
	}
	o.undo.add("device "+ep.HostIf, func() error { return o.uncable(n, ep) })
	err = o.tellEndpoint(n, ep)
	if err == nil {
		err = o.setNeighbors(n, ep)
	}
	if err != nil {
		return errors.Join(err, o.letGoEndpoint(c, n, ep))
	}
	o.did("container %s: %s on network %s, %s", c.Name, ep.IfName, n.Name, addrList(ep))
	return nil
}

// letGoEndpoint forgets an endpoint of an engine's; the cable stays as it is.
func (o *op) letGoEndpoint(c *Container, n *Network, ep *Endpoint) error {
	if err := o.lowerSlotLinks(c, ep.Slot); err != nil {
		return err
	}
	if err := o.lowerEndpoint(c, n, ep); err != nil {
		return err
	}
	delete(c.Endpoints, n.ID)
	return nil
}

// repairAdopted makes sure of what is known of a container that lives; an endpoint whose
// device is gone is let go.
func (o *op) repairAdopted(c *Container) error {
	for _, ep := range endpointsOf(c) {
		n, err := networkByID(o.tx, ep.Network)
		if err != nil {
			return err
		}
		dev, err := o.device(ep.HostIf)
		if err != nil {
			return err
		}
		if dev == nil || dev.Attrs().Index != ep.HostIndex {
			o.did("container %s: device %s is gone", c.Name, ep.HostIf)
			err = o.letGoEndpoint(c, n, ep)
		} else if n.Parent != "" && o.orphan(c, n, ep) {
			o.did("container %s: its macvlan of %s is gone", c.Name, n.Parent)
			err = o.letGoEndpoint(c, n, ep)
		} else if err = o.tellEndpoint(n, ep); err == nil {
			err = o.setNeighbors(n, ep)
			if bridge, missing := o.bridgeIndex(n); err == nil && missing == nil && n.Driver != "" && dev.Attrs().MasterIndex != bridge {
				err = o.enslave(dev, bridge)
			}
		}
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	if len(c.Endpoints) == 0 {
		return o.finish(c)
	}
	return o.putContainer(c)
}

// orphan says whether a container has lost its macvlan; it is shown its host again.
func (o *op) orphan(c *Container, n *Network, ep *Endpoint) bool {
	ns, err := netns.Open(c.Netns)
	if err != nil {
		return true
	}
	defer ns.Close()
	return o.showHost(n, ep.MAC, ns) != nil
}

// markGateway marks the endpoint that ports are published on: the engine's choice, else
// that of the container's default route, else the only one that may have it.
func (o *op) markGateway(c *Container, want *AdoptedContainer, ns *netns.NS, ends []link.HostEnd) error {
	var may []*Endpoint
	chosen := ""
	for i := range want.Endpoints {
		ep := c.Endpoints[want.Endpoints[i].Network]
		if ep == nil {
			continue
		}
		ep.Gateway = false
		if ep.Internal || !ep.IPv4.IsValid() {
			continue
		}
		may = append(may, ep)
		if want.Endpoints[i].Gateway && chosen == "" {
			chosen = ep.Network
		}
	}
	if chosen == "" && len(may) > 1 {
		device, err := link.DefaultDevice(ns)
		if err != nil {
			return err
		}
		for _, e := range ends {
			for _, ep := range may {
				if e.Peer == device && e.Index == ep.HostIndex {
					chosen = ep.Network
				}
			}
		}
	}
	for _, ep := range may {
		if ep.Network == chosen || chosen == "" {
			ep.Gateway = true
			break
		}
	}
	return nil
}

// adoptLinks puts a container's links in force, and others' to it.
func (o *op) adoptLinks(want *AdoptedContainer) error {
	c, ok, err := store.Get[Container](o.tx, bucketContainers, want.ID)
	if err != nil || !ok {
		return err // why it is not adopted has been said
	}
	old := c.Links
	c.Links = nil
	for _, l := range want.Links {
		t, ok, err := store.Get[Container](o.tx, bucketContainers, l.Target)
		if err != nil {
			return err
		}
		if !ok || t.Engine != c.Engine || t.ID == c.ID {
			continue
		}
		c.Links = append(c.Links, l)
		if err := store.Put(o.tx, bucketLinkedBy, l.Target+"/"+c.ID, true); err != nil {
			return err
		}
	}
	for _, l := range old {
		if err := o.forgetLink(&c, l.Target); err != nil {
			return err
		}
	}
	if len(c.Links) > 0 {
		if err := o.raiseLinks(&c); err != nil {
			return err
		}
	}
	if len(c.Links)+len(old) > 0 {
		if err := o.putContainer(&c); err != nil {
			return err
		}
	}
	return o.refreshClients(&c)
}
