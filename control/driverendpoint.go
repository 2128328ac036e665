// SPDX-License-Identifier: Apache-2.0

package control

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/bpfnet/bpfnet/control/ipam"
	"github.com/bpfnet/bpfnet/control/link"
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

// Plugged is a cable that waits for its engine to take its end into a sandbox.
type Plugged struct {
	Device   string // in the host's namespace
	Gateways []netip.Addr
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

// Unplug ends what Plug began; the cable stays until the endpoint goes, for its engine to
// take its end out of the sandbox, and carries nothing. An endpoint that is not there is fine.
func (m *Manager) Unplug(driver, network, id string) error {
	return m.ifDriverEndpoint(driver, network, id, func(o *op, n *Network, r *driverRecord) error {
		if err := o.unplug(n, r); err != nil {
			return err
		}
		return o.putDriverRecord(r)
	})
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

// Plug lays the cable of an endpoint to a sandbox, which an engine knows by a path. The
// packets' path knows it before it is up. exposed is "80/tcp" each.
func (m *Manager) Plug(driver, network, id, sandbox string, exposed []string) (*Plugged, error) {
	exposed, err := parseExposed(exposed)
	if err != nil {
		return nil, err
	}
	if !path.IsAbs(sandbox) || path.Clean(sandbox) != sandbox || len(sandbox) > 255 || strings.ContainsFunc(sandbox, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return nil, invalid("sandbox %.80q: not a path", sandbox)
	}
	var p *Plugged
	err = m.change(unknownNetwork(network), func(o *op) error {
		n, r, err := o.driverEndpoint(driver, network, id)
		if err != nil {
			return err
		}
		if err := o.unplug(n, r); err != nil {
			return err
		}
		c, err := o.sandbox(driver, sandbox, r)
		if err != nil {
			return err
		}
		if c.Endpoints[n.ID] != nil {
			return conflict("container %s: is on network %s already", c.Name, n.Name)
		}
		c.Exposed = exposed
		ep, err := o.plug(c, n, r)
		if err != nil {
			return err
		}
		p = &Plugged{Device: peerName(ep.HostIf)}
		if !n.Internal {
			for _, s := range n.Subnets {
				p.Gateways = append(p.Gateways, routerOf(s))
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// peerName is the container's end of a cable that an engine takes, while the host has it.
func peerName(hostIf string) string { return hostIf + "c" }

// sandboxID is the ID of the container that a sandbox is: it begins as the sandbox's does.
func sandboxID(driver, sandbox string) string {
	sum := sha256.Sum256([]byte(driver + " " + sandbox))
	id := hex.EncodeToString(sum[:])
	if base := path.Base(sandbox); len(base) == 12 && hexRule.MatchString(base) {
		id = base + id[12:]
	}
	return id
}

// sandbox is the container of a sandbox, made by its first endpoint.
func (o *op) sandbox(driver, sandbox string, r *driverRecord) (*Container, error) {
	id := sandboxID(driver, sandbox)
	old, had, err := store.Get[Container](o.tx, bucketContainers, id)
	if err != nil {
		return nil, err
	}
	if had && old.Engine != driver {
		return nil, conflict("container %s: has the ID of sandbox %s", old.Name, sandbox)
	}
	if had && o.up(&old) {
		return &old, nil
	}
	if had { // an earlier life's
		if err := o.finish(&old); err != nil {
			return nil, err
		}
	}
	name, err := o.firstFreeName([]string{r.Name, id[:12], id})
	if err != nil {
		return nil, err
	}
	now := time.Now()
	c := &Container{ID: id, Name: name, Engine: driver, Mode: ModeNetwork, Attached: true, AutoRemove: true,
		State: StateRunning, Created: now, Started: now, Netns: sandbox}
	return c, store.Put(o.tx, bucketNames, name, id)
}

// plug makes a record an endpoint of a container's.
func (o *op) plug(c *Container, n *Network, r *driverRecord) (*Endpoint, error) {
	slots, err := takeNumbers(o.tx, numSlots, 1)
	if err != nil {
		return nil, err
	}
	ep := &Endpoint{
		Slot: slots[0], Network: n.ID, Container: c.ID, HostIf: hostIfName(r.ID, n.ID), MAC: r.MAC,
		IPv4: r.IPv4, IPv6: r.IPv6, Internal: n.Internal, Created: time.Now(),
	}
	if c.Endpoints == nil {
		c.Endpoints = make(map[string]*Endpoint)
	}
	c.Endpoints[n.ID] = ep
	r.Container, r.Device = c.ID, ep.HostIf
	for _, x := range []struct {
		bucket, key string
		value       any
	}{
		{bucketSlots, slotKey(ep.Slot), slotRecord{c.ID, n.ID}},
		{bucketMembers, n.ID + "/" + c.ID, ep.Slot},
		{bucketDriver, driverKey(n.ID, r.ID), r},
	} {
		if err := store.Put(o.tx, x.bucket, x.key, x.value); err != nil {
			return nil, err
		}
	}
	if err := o.layPair(n, ep); err != nil {
		return nil, err
	}
	o.did("container %s: on network %s, %s", c.Name, n.Name, addrList(ep))
	return ep, o.putContainer(c)
}

func (o *op) layPair(n *Network, ep *Endpoint) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return err
	}
	// What a Plug whose answer was lost has left; the engine asks again.
	if err := link.DeleteVeth(ns, ep.HostIf); err != nil {
		return err
	}
	o.undo.add("device "+ep.HostIf, func() error { return errors.Join(o.uncable(n, ep), link.DeleteVeth(ns, ep.HostIf)) })
	_, err = link.CreatePair(ns, link.Pair{
		HostName: ep.HostIf, ContName: peerName(ep.HostIf), Bridge: n.Bridge, MAC: mac, MTU: n.MTU, GRO: true,
		Ready: func(index int) error {
			ep.HostIndex = index
			return o.tellEndpoint(n, ep)
		},
	})
	if err != nil {
		return err
	}
	return o.setNeighbors(n, ep)
}

// unplug takes an endpoint off its container, and the container away with its last one.
func (o *op) unplug(n *Network, r *driverRecord) error {
	c, ok, err := store.Get[Container](o.tx, bucketContainers, r.Container)
	ep := c.Endpoints[n.ID]
	if err != nil || !ok || ep == nil || ep.HostIf != r.Device {
		r.Container = "" // it has gone with its sandbox
		return err
	}
	r.Container = ""
	o.rebuild = true
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	if err := link.Unplug(ns, ep.HostIf); err != nil {
		return err
	}
	if ep.Gateway {
		if err := o.closePorts(&c); err != nil {
			return err
		}
	}
	if len(c.Endpoints) == 1 {
		return o.finish(&c)
	}
	if err := o.lowerEndpoint(&c, n, ep); err != nil {
		return err
	}
	delete(c.Endpoints, n.ID)
	return o.putContainer(&c)
}

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

// byCable says whether a container's cables are what tells that it is up.
func (c *Container) byCable() bool { return c.Engine != "" && c.NetnsID == "" }

// cabled says whether one of a container's cables is there: with its namespace they all go.
func (o *op) cabled(c *Container) bool {
	for _, ep := range c.Endpoints {
		dev, err := o.device(ep.HostIf)
		if err == nil && dev != nil && dev.Attrs().Index == ep.HostIndex {
			return true
		}
	}
	return false
}
