// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"net/netip"

	"github.com/bpfnet/bpfnet/control/ipam"
	"github.com/bpfnet/bpfnet/control/store"
)

// DriverEndpoint is what an engine asks of its driver.
type DriverEndpoint struct {
	Driver  string // as AddDriverNetwork was told
	Network string // ID
	ID      string // 64 hex digits
	IPv4    netip.Prefix
	IPv6    netip.Prefix
	MAC     string // "": one is made of the address
	Name    string // that the container is to have; "": the first 12 digits of its sandbox
}

// DriverState is what became of it.
type DriverState struct {
	Network  *Network
	MAC      string
	Endpoint *Endpoint // nil unless it is plugged in
}

// AddDriverEndpoint remembers an endpoint, and says which MAC address it is to have. An
// address that another endpoint had is the new one's: the engine gives them.
func (m *Manager) AddDriverEndpoint(e DriverEndpoint) (mac string, err error) {
	if err := e.check(); err != nil {
		return "", err
	}
	err = m.change(unknownNetwork(e.Network), func(o *op) error {
		n, err := o.driverNetwork(e.Driver, e.Network)
		if err != nil {
			return err
		}
		r := &driverRecord{Network: n.ID, ID: e.ID, IPv4: e.IPv4, IPv6: e.IPv6, MAC: e.MAC, Name: e.Name}
		if old, had, err := store.Get[driverRecord](o.tx, bucketDriver, driverKey(n.ID, e.ID)); err != nil {
			return err
		} else if had {
			if err := o.forgetDriverEndpoint(n, &old); err != nil {
				return err
			}
		}
		if err := o.takeDriverAddresses(n, r); err != nil {
			return err
		}
		if r.MAC == "" {
			r.MAC = ipam.MACFor(r.IPv4.Addr()).String()
		}
		mac = r.MAC
		return o.putDriverRecord(r)
	})
	return mac, err
}

func (e *DriverEndpoint) check() error {
	if err := checkEngineID("endpoint", e.ID); err != nil {
		return err
	}
	opts := EndpointOptions{IPv4: e.IPv4.Addr(), IPv6: e.IPv6.Addr(), MAC: e.MAC}
	if err := opts.check(); err != nil {
		return err
	}
	e.MAC = opts.MAC
	if e.Name != "" {
		return checkName("container", e.Name)
	}
	return nil
}

// takeDriverAddresses makes sure that the addresses can be the endpoint's.
func (o *op) takeDriverAddresses(n *Network, r *driverRecord) error {
	for i := range n.Subnets {
		s := &n.Subnets[i]
		p := r.IPv4
		if s.Prefix.Addr().Is6() {
			p = r.IPv6
		}
		if !p.IsValid() {
			return invalid("network %s: an endpoint needs an address of %s", n.Name, s.Prefix)
		}
		if p.Masked() != s.Prefix {
			return invalid("network %s: address %s: not of %s", n.Name, p, s.Prefix)
		}
		holder, taken, err := store.Get[string](o.tx, bucketAddresses, addressKey(n, p.Addr()))
		if err != nil {
			return err
		}
		if taken {
			if err := o.evict(n, holder); err != nil {
				return err
			}
		}
		if _, err := o.takeAddress(n, s, p.Addr(), netip.Addr{}, r.ID); err != nil {
			return err
		}
	}
	if r.IPv6.IsValid() && len(n.Subnets) == 1 {
		return invalid("network %s: has no IPv6 subnet", n.Name)
	}
	return nil
}

// evict forgets the endpoint whose address has been given to another one.
func (o *op) evict(n *Network, holder string) error {
	r, ok, err := store.Get[driverRecord](o.tx, bucketDriver, driverKey(n.ID, holder))
	if err != nil || !ok {
		return err
	}
	return o.forgetDriverEndpoint(n, &r)
}

func (o *op) putDriverRecord(r *driverRecord) error {
	return store.Put(o.tx, bucketDriver, driverKey(r.Network, r.ID), r)
}

// RemoveDriverEndpoint forgets an endpoint. One that is not there is fine.
func (m *Manager) RemoveDriverEndpoint(driver, network, id string) error {
	return m.ifDriverEndpoint(driver, network, id, (*op).forgetDriverEndpoint)
}

// ifDriverEndpoint runs fn if there is such an endpoint.
func (m *Manager) ifDriverEndpoint(driver, network, id string, fn func(*op, *Network, *driverRecord) error) error {
	return m.change(nil, func(o *op) error {
		n, r, err := o.driverEndpoint(driver, network, id)
		if errors.Is(err, ErrNotFound) {
			return nil
		}
		if err != nil {
			return err
		}
		return fn(o, n, r)
	})
}

func (o *op) driverEndpoint(driver, network, id string) (*Network, *driverRecord, error) {
	n, err := o.driverNetwork(driver, network)
	if err != nil {
		return nil, nil, err
	}
	r, ok, err := store.Get[driverRecord](o.tx, bucketDriver, driverKey(network, id))
	if err == nil && !ok {
		err = notFound("endpoint %.12s: not known on network %s", id, n.Name)
	}
	return n, &r, err
}

// DriverEndpoint says what there is of an endpoint. ErrNotFound.
func (m *Manager) DriverEndpoint(driver, network, id string) (s DriverState, err error) {
	ok, err := m.view(func(o *op) error {
		n, r, err := o.driverEndpoint(driver, network, id)
		if err != nil {
			return err
		}
		s = DriverState{Network: n, MAC: r.MAC}
		if c, ok, _ := store.Get[Container](o.tx, bucketContainers, r.Container); ok {
			s.Endpoint = c.Endpoints[n.ID]
		}
		return nil
	})
	if err == nil && !ok {
		err = notFound("endpoint %.12s: not known", id)
	}
	return s, err
}
