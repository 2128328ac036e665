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

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/store"
)

// Plugged is a cable that waits for its engine to take its end into a sandbox.
type Plugged struct {
	Device   string // in the host's namespace
	Gateways []netip.Addr
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
		ID: r.ID, Slot: slots[0], Network: n.ID, Container: c.ID, HostIf: hostIfName(r.ID, n.ID), MAC: r.MAC,
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
	r.Ports = nil
	if len(c.Endpoints) == 1 {
		return o.finish(&c)
	}
	if err := o.putDriverRecord(r); err != nil {
		return err
	}
	// Ports that lead to it lead elsewhere before its slot is another's.
	moved := ep.Gateway
	switch {
	case onlyIPv6(&c, ep):
		err = o.narrow(&c)
	case gatewayEndpoint(&c, true) == ep || moved:
		moved, err = true, o.closePorts(&c)
	}
	if err != nil {
		return err
	}
	if err := o.lowerEndpoint(&c, n, ep); err != nil {
		return err
	}
	delete(c.Endpoints, n.ID)
	if moved {
		if err := o.settleDriverPorts(&c, gatewayEndpoint(&c, false)); err != nil {
			return err
		}
	}
	return o.putContainer(&c)
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
