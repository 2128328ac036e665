// SPDX-License-Identifier: Apache-2.0

package control

import (
	"github.com/bpfnet/bpfnet/control/store"
)

// SetDriverPorts makes an endpoint the one on which its container's ports are published, and
// opens these: all of them or none.
func (m *Manager) SetDriverPorts(driver, network, id string, specs []string) error {
	if _, err := parseSpecs(specs); err != nil {
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
		if err := o.closePorts(&c); err != nil {
			return err
		}
		for _, other := range c.Endpoints {
			other.Gateway = other == ep && !n.Internal
		}
		if err := o.putSpecs(&c, specs); err != nil {
			return err
		}
		if err := o.raisePorts(&c); err != nil {
			return err
		}
		return o.putContainer(&c)
	})
}

// ClearDriverPorts ends what SetDriverPorts began.
func (m *Manager) ClearDriverPorts(driver, network, id string) error {
	return m.ifDriverEndpoint(driver, network, id, func(o *op, n *Network, r *driverRecord) error {
		c, ok, err := store.Get[Container](o.tx, bucketContainers, r.Container)
		ep := c.Endpoints[n.ID]
		if err != nil || !ok || ep == nil || !ep.Gateway {
			return err
		}
		if err := o.closePorts(&c); err != nil {
			return err
		}
		ep.Gateway = false
		return o.putContainer(&c)
	})
}

// closePorts closes all doors of a container and forgets them.
func (o *op) closePorts(c *Container) error {
	if err := o.lowerPorts(c); err != nil {
		return err
	}
	return o.dropSpecs(c)
}
