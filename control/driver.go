// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/store"
)

// An engine that has no networks of its own kind asks a driver for them: for a network, for
// endpoints on it, and for a cable to each, which it takes into its sandbox itself. It gives
// the addresses, and names everything by IDs of its own. What it has said once it does not
// say again: networks and endpoints are kept here until it takes them back.
//
// In the store such a network has Driver, the name of who keeps it, and no other command
// puts anything on it. A sandbox is a container with Engine; its namespace is not there yet
// when its cables are, and is never looked at: it is up as long as one of its cables is.

// driverRecord is an endpoint that a driver was asked for.
type driverRecord struct {
	Network   string       `json:"network"`
	ID        string       `json:"id"`
	IPv4      netip.Prefix `json:"ipv4,omitzero"`
	IPv6      netip.Prefix `json:"ipv6,omitzero"`
	MAC       string       `json:"mac"`
	Name      string       `json:"name,omitempty"` // that its container is to have
	Ports     *DriverPorts `json:"ports,omitempty"`
	Container string       `json:"container,omitempty"` // while it is plugged in
	Device    string       `json:"device,omitempty"`    // of its cable; stays until the endpoint goes
}

func driverKey(network, id string) string { return network + "/" + id }

// AddDriverNetwork makes a network for an engine, of the ID that the engine has for it. One
// that is there already stays, if it is what the options say.
func (m *Manager) AddDriverNetwork(driver, id string, opts NetworkOptions) (*Network, error) {
	if !engineRule.MatchString(driver) {
		return nil, invalid("driver %q: not a name", driver)
	}
	if err := checkEngineID("network", id); err != nil {
		return nil, err
	}
	if opts.Name == "" {
		opts.Name = id[:12]
	}
	if err := opts.checkNew(); err != nil {
		return nil, err
	}
	if len(opts.Subnets) == 0 || !opts.Subnets[0].Addr().Is4() {
		return nil, invalid("network %s: has no IPv4 subnet", opts.Name)
	}
	opts.id, opts.driver = id, driver
	var n *Network
	err := m.update(func(o *op) error {
		old, had, err := store.Get[Network](o.tx, bucketNetworks, id)
		switch {
		case err != nil:
			return err
		case !had:
			if err = o.driverOverlap(&opts); err == nil {
				n, err = o.createNetwork(opts)
			}
			return err
		case old.Driver != driver:
			return conflict("network %s: another network has its ID", old.Name)
		}
		n = &old
		return n.is(&opts)
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// driverOverlap refuses addresses of another network of the driver's: its engine gives none
// twice, so it has removed that one while nobody listened.
func (o *op) driverOverlap(opts *NetworkOptions) error {
	all, err := o.allNetworks()
	for _, n := range all {
		for _, p := range n.prefixes() {
			if n.Driver == opts.driver && slices.ContainsFunc(opts.Subnets, p.Overlaps) {
				return conflict("network %s: has %s; if its engine has removed it, bpfnet network rm %s removes it here", n.Name, p, n.Name)
			}
		}
	}
	return err
}

// RemoveDriverNetwork forgets a network, and whatever is on it: its engine has. One that is
// not there is fine.
func (m *Manager) RemoveDriverNetwork(driver, id string) error {
	return m.change(nil, func(o *op) error {
		n, err := o.driverNetwork(driver, id)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		err = o.eachDriverRecord(n, o.forgetDriverEndpoint)
		if err != nil {
			return err
		}
		return o.removeNetwork(n)
	})
}

// driverNetwork is a network that a driver keeps.
func (o *op) driverNetwork(driver, id string) (*Network, error) {
	n, ok, err := store.Get[Network](o.tx, bucketNetworks, id)
	if err != nil {
		return nil, err
	}
	if !ok || n.Driver != driver {
		return nil, unknownNetwork(id)
	}
	return &n, nil
}

func unknownNetwork(id string) error {
	return notFound("network %.12s: not known to bpfnet; remove it from its engine, and create it anew", id)
}

// eachDriverRecord calls fn for what a network has been asked for, in or out of use.
func (o *op) eachDriverRecord(n *Network, fn func(*Network, *driverRecord) error) error {
	var list []*driverRecord
	err := store.EachPrefix(o.tx, bucketDriver, n.ID+"/", func(_ string, r driverRecord) error {
		list = append(list, &r)
		return nil
	})
	for _, r := range list {
		if err == nil {
			err = fn(n, r)
		}
	}
	return err
}

// forgetDriverEndpoint ends an endpoint for good.
func (o *op) forgetDriverEndpoint(n *Network, r *driverRecord) error {
	if err := o.unplug(n, r); err != nil {
		return err
	}
	if r.Device != "" {
		ns, err := o.hostNetns()
		if err != nil {
			return err
		}
		o.rebuild = true
		if err := link.DeleteVeth(ns, r.Device); err != nil {
			return err
		}
	}
	for _, p := range []netip.Prefix{r.IPv4, r.IPv6} {
		if !p.IsValid() {
			continue
		}
		if err := store.Delete(o.tx, bucketAddresses, addressKey(n, p.Addr())); err != nil {
			return err
		}
	}
	return store.Delete(o.tx, bucketDriver, driverKey(r.Network, r.ID))
}
