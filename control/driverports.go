// SPDX-License-Identifier: Apache-2.0

package control

import (
	"github.com/bpfnet/bpfnet/control/store"
)

// DriverPorts are what an endpoint publishes.
type DriverPorts struct {
	Specs []string // as -p has them
	IPv4  bool     // the container's default route by IPv6 goes by another endpoint
}

// SetDriverPorts makes an endpoint one by which its container's default route goes, and on
// which its ports are published: all of them or none. Of several the one that IPv4 goes by
// has them; IPv6 finds its own, as in gatewayEndpoint.
func (m *Manager) SetDriverPorts(driver, network, id string, p DriverPorts) error {
	if _, err := parseSpecs(p.Specs); err != nil {
		return err
	}
	return m.change(unknownNetwork(network), func(o *op) error {
		n, r, err := o.driverEndpoint(driver, network, id)
		if err != nil {
			return err
		}
		c, ok, err := store.Get[Container](o.tx, bucketContainers, r.Container)
		ep := c.Endpoints[n.ID]
		if err == nil && (!ok || ep == nil) {
			err = conflict("endpoint %.12s: is in no sandbox", id)
		}
		if err != nil {
			return err
		}
		r.Ports = &p
		if err := o.putDriverRecord(r); err != nil {
			return err
		}
		if err := o.settleDriverPorts(&c, ep); err != nil {
			return err
		}
		return o.putContainer(&c)
	})
}

// ClearDriverPorts ends what SetDriverPorts began.
func (m *Manager) ClearDriverPorts(driver, network, id string) error {
	return m.ifDriverEndpoint(driver, network, id, func(o *op, n *Network, r *driverRecord) error {
		if r.Ports == nil {
			return nil
		}
		r.Ports = nil
		if err := o.putDriverRecord(r); err != nil {
			return err
		}
		c, ok, err := store.Get[Container](o.tx, bucketContainers, r.Container)
		ep := c.Endpoints[n.ID]
		if err != nil || !ok || ep == nil {
			return err
		}
		if err := o.settleDriverPorts(&c, ep); err != nil {
			return err
		}
		return o.putContainer(&c)
	})
}

// settleDriverPorts publishes a container's ports on the endpoint that is to have them, after
// something has changed of ep. The one that has them keeps them as long as it may: engines ask
// for the next before they take back the last, and for two when each has one family.
func (o *op) settleDriverPorts(c *Container, ep *Endpoint) error {
	var chosen *Endpoint
	var ports *DriverPorts
	for _, e := range endpointsOf(c) {
		r, _, err := store.Get[driverRecord](o.tx, bucketDriver, driverKey(e.Network, e.ID))
		if err != nil {
			return err
		}
		if r.Ports != nil && !e.Internal && (chosen == nil || r.Ports.IPv4 || e.Gateway && !ports.IPv4) {
			chosen, ports = e, r.Ports
		}
	}
	if chosen != nil && chosen.Gateway && chosen != ep {
		return o.widen(c) // ep may have brought IPv6
	}
	if err := o.closePorts(c); err != nil {
		return err
	}
	for _, e := range c.Endpoints {
		e.Gateway = e == chosen
	}
	if chosen == nil {
		return nil
	}
	if err := o.putSpecs(c, ports.Specs); err != nil {
		return err
	}
	return o.raisePorts(c)
}

// closePorts closes all doors of a container and forgets them.
func (o *op) closePorts(c *Container) error {
	if err := o.lowerPorts(c); err != nil {
		return err
	}
	return o.dropSpecs(c)
}
