// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"net/netip"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
)

// Connect joins a container to another network, live if it is running. ErrConflict
// when it is on it already.
func (m *Manager) Connect(network, container string, opts EndpointOptions) error {
	if err := opts.check(); err != nil {
		return err
	}
	return m.change(notFound("network %s not found", network), func(o *op) error {
		n, c, err := o.pair(network, container)
		if err != nil {
			return err
		}
		return o.connect(n, c, &opts)
	})
}

func (o *op) connect(n *Network, c *Container, opts *EndpointOptions) error {
	if c.Endpoints[n.ID] != nil {
		return conflict("endpoint with name %s already exists in network %s", c.Name, n.Name)
	}
	if c.Mode != ModeNetwork {
		return conflict("container %s: its network mode is %s: it cannot be connected to any other network", c.Name, c.Mode)
	}
	ep := newEndpoint(c, n, *opts)
	for _, l := range opts.Links {
		link, err := o.resolveLink(c, l)
		if err != nil {
			return err
		}
		ep.Links = append(ep.Links, link)
	}
	if !o.up(c) {
		if c.Endpoints == nil {
			c.Endpoints = make(map[string]*Endpoint)
		}
		c.Endpoints[n.ID] = ep
		return o.putContainer(c)
	}
	ns, err := o.openContainer(c)
	if err != nil {
		return err
	}
	defer ns.Close()
	old4, old6 := gatewayEndpoint(c, false), gatewayEndpoint(c, true)
	if err := o.raiseEndpoint(c, n, ep, ns); err != nil {
		return err
	}
	if err := o.linkable(c, ep.Links); err != nil {
		return err
	}
	new4, new6 := gatewayEndpoint(c, false), gatewayEndpoint(c, true)
	moved := new4 != old4 || new6 != old6
	if moved && (old4 != nil || old6 != nil) && (old4 == nil || new4 == old4) && (old6 == nil || new6 == old6) {
		// The network brings a first address of a family: opening the doors anew would
		// end every connection through them.
		if err := o.widen(c); err != nil {
			return err
		}
		moved = false
	}
	if moved {
		if err := o.lowerPorts(c); err != nil {
			return err
		}
	}
	return o.rewire(c, moved)
}

// Disconnect takes a container off a network, live if it is running.
func (m *Manager) Disconnect(network, container string) error {
	return m.change(notFound("network %s not found", network), func(o *op) error {
		n, c, err := o.pair(network, container)
		if err != nil {
			return err
		}
		ep := c.Endpoints[n.ID]
		if ep == nil {
			return notFound("container %s is not connected to network %s", c.Name, n.Name)
		}
		return o.disconnect(n, c, ep)
	})
}

func (o *op) disconnect(n *Network, c *Container, ep *Endpoint) error {
	if ep.Slot == 0 {
		delete(c.Endpoints, n.ID)
		return o.putContainer(c)
	}
	moved := gatewayEndpoint(c, false) == ep || gatewayEndpoint(c, true) == ep
	if moved && onlyIPv6(c, ep) {
		if err := o.narrow(c); err != nil {
			return err
		}
		moved = false
	}
	if moved {
		if err := o.lowerPorts(c); err != nil {
			return err
		}
	}
	if err := o.lowerSlotLinks(c, ep.Slot); err != nil {
		return err
	}
	if err := o.lowerEndpoint(c, n, ep); err != nil {
		return err
	}
	delete(c.Endpoints, n.ID)
	for _, l := range ep.Links {
		if err := o.forgetLink(c, l.Target); err != nil {
			return err
		}
	}
	if !o.up(c) {
		return o.putContainer(c)
	}
	if err := o.heir(c, n); err != nil {
		return err
	}
	return o.rewire(c, moved)
}

// heir makes another endpoint carry the default routes that went with one.
func (o *op) heir(c *Container, gone *Network) error {
	if gatewayEndpoint(c, false) == nil {
		for _, ep := range endpointsOf(c) {
			if ep.IPv4.IsValid() && !ep.Internal {
				ep.Gateway = true
				break
			}
		}
	}
	ns, err := o.openContainer(c)
	if err != nil {
		return err
	}
	defer ns.Close()
	return o.setRoutes(c, ns)
}

// setRoutes makes the default routes of a container those of its gateway endpoints.
func (o *op) setRoutes(c *Container, ns *netns.NS) error {
	for _, v6 := range []bool{false, true} {
		ep := gatewayEndpoint(c, v6)
		if ep == nil {
			continue
		}
		n, err := networkByID(o.tx, ep.Network)
		if err != nil {
			return err
		}
		for _, s := range n.Subnets {
			if s.Prefix.Addr().Is6() != v6 {
				continue
			}
			if err := link.SetDefaultGateway(ns, ep.IfName, []netip.Addr{routerOf(s)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// rewire makes ports (if they have been lowered to move), links and files follow a
// change of endpoints.
func (o *op) rewire(c *Container, moved bool) error {
	ports := o.raisePorts
	if !moved { // what is open stays so, and opens on a routed network that has come
		ports = func(c *Container) error { return o.syncRouted(c, true) }
	}
	if err := ports(c); err != nil {
		return err
	}
	if err := o.raiseLinks(c); err != nil {
		return err
	}
	if err := o.writeHosts(c); err != nil {
		return err
	}
	if err := o.putContainer(c); err != nil {
		return err
	}
	return o.refreshClients(c)
}

func (o *op) pair(network, container string) (*Network, *Container, error) {
	var n *Network
	var err error
	if network == DefaultNetwork {
		n, err = o.defaultNetwork()
	} else {
		n, err = ownNetwork(o, network)
	}
	if err != nil {
		return nil, nil, err
	}
	c, err := ownContainer(o, container)
	return n, c, err
}

// openContainer opens a container's namespace and makes sure that it is still the one.
func (o *op) openContainer(c *Container) (*netns.NS, error) {
	ns, err := netns.Open(c.Netns)
	if err != nil {
		return nil, err
	}
	if !c.isIn(ns) {
		ns.Close()
		return nil, errors.New("netns " + c.Netns + ": is another namespace than the container's")
	}
	return ns, nil
}
