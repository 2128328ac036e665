// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

// ReconcileOptions change what Reconcile may do.
type ReconcileOptions struct {
	// DropFlows lets an upgrade end all connections, when what the programs
	// remember cannot be carried over. Without it such an upgrade is refused.
	DropFlows bool
}

// Reconcile makes the kernel match the store and says what it had to do, a line
// each. What cannot be restored is in the error; all else has been done.
func (m *Manager) Reconcile() ([]string, error) { return m.ReconcileWith(ReconcileOptions{}) }

// ReconcileWith is Reconcile with options.
func (m *Manager) ReconcileWith(opts ReconcileOptions) ([]string, error) {
	if _, err := os.Stat(m.storePath()); errors.Is(err, fs.ErrNotExist) {
		return nil, m.Init(nil)
	}
	db, err := m.openStore()
	if err != nil {
		return nil, err
	}
	defer db.Close()
	h, err := hostOf(db)
	if err != nil {
		return nil, err
	}
	if h == nil {
		return nil, m.run(db, func(o *op) error { return o.initHost(nil) })
	}
	if err := m.sameHost(h); err != nil {
		return nil, err
	}
	if _, err := m.unsettled(h); err != nil {
		return nil, err
	}
	o, err := m.try(db, func(o *op) error {
		o.dropFlows = opts.DropFlows
		return o.reconcile()
	})
	if err == nil && len(o.problems) > 0 {
		err = errors.New(strings.Join(o.problems, "; "))
	}
	return o.steps, err
}

// view of the kernel that reconcile compares with; one dump each.
type observed struct {
	devices map[string]netlink.Link // of the host
	byIndex map[int]netlink.Link
}

func (o *op) observe() (*observed, error) {
	ns, err := o.hostNetns()
	if err != nil {
		return nil, err
	}
	links, err := link.Devices(ns)
	if err != nil {
		return nil, err
	}
	seen := &observed{make(map[string]netlink.Link), make(map[int]netlink.Link)}
	for _, l := range links {
		seen.devices[l.Attrs().Name] = l
		seen.byIndex[l.Attrs().Index] = l
	}
	return seen, nil
}

// attempt runs a step of reconcile that must not keep the others from running.
func (o *op) attempt(what string, fn func() error) {
	if err := fn(); err != nil {
		o.problems = append(o.problems, what+": "+err.Error())
	}
}

// reconcile brings the kernel from wherever it is to what the store says. Its
// steps are those of the commands; each can be repeated, and none is taken back.
func (o *op) reconcile() error {
	o.reconciling = true
	if err := o.resumeHost(); err != nil {
		return err
	}
	networks, err := o.settleNetworks()
	if err != nil {
		return err
	}
	containers, err := o.allContainers()
	if err != nil {
		return err
	}
	live, err := o.settleContainers(containers)
	if err != nil {
		return err
	}
	if networks, err = o.letGoEmpty(networks); err != nil {
		return err
	}
	for _, n := range networks {
		o.attempt("network "+n.Name, func() error { return o.raiseNetwork(n) })
	}
	for _, c := range live {
		o.attempt("container "+c.Name, func() error { return o.repairContainer(c) })
	}
	if err := o.settlePorts(live); err != nil {
		return err
	}
	for _, c := range live {
		o.attempt("links of "+c.Name, func() error { return o.raiseLinks(c) })
		o.attempt("hosts file of "+c.Name, func() error { return o.writeHosts(c) })
	}
	if err := o.dropLeftovers(networks, live); err != nil {
		return err
	}
	if err := o.refreshHost(); err != nil {
		return err
	}
	return o.putHost()
}

// resumeHost makes sure of what the packets' path needs of the host, after a boot too.
func (o *op) resumeHost() error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	cookie, err := ns.Cookie()
	if err != nil {
		return err
	}
	boot, err := bootID()
	if err != nil {
		return err
	}
	h := o.host
	o.newHost = cookie != h.Cookie || boot != h.Boot
	h.Cookie, h.Boot = cookie, boot
	return o.path().Resume()
}

func (o *op) allContainers() ([]*Container, error) {
	var list []*Container
	err := store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
		list = append(list, &c)
		return nil
	})
	return list, err
}

// settleContainers takes down those whose process or namespace is gone, and
// returns the others.
func (o *op) settleContainers(all []*Container) ([]*Container, error) {
	var live []*Container
	for _, c := range all {
		if c.State == StateExited {
			continue
		}
		if !o.newHost && o.up(c) {
			live = append(live, c)
			continue
		}
		what := "its process is gone"
		if c.Attached {
			what = "its namespace is gone"
		}
		if c.Attached && c.Netns == "" {
			what = "it has not started yet"
		}
		o.did("container %s: exited, %s", c.Name, what)
		if err := o.finishUnseen(c); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
	}
	return live, nil
}

// repairContainer makes sure of the cables of a container that lives.
func (o *op) repairContainer(c *Container) error {
	if c.Engine != "" {
		return o.repairAdopted(c)
	}
	if c.Mode != ModeNetwork {
		return nil
	}
	ns, err := o.openContainer(c)
	if err != nil {
		return err
	}
	defer ns.Close()
	var cabled []string
	for _, ep := range endpointsOf(c) {
		if ep.Slot == 0 {
			continue
		}
		n, err := networkByID(o.tx, ep.Network)
		if err != nil {
			return err
		}
		anew, err := o.repairEndpoint(c, n, ep, ns)
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
		if anew {
			cabled = append(cabled, ep.HostIf)
		}
	}
	if len(cabled) > 0 {
		if err := o.setRoutes(c, ns); err != nil {
			return err
		}
	}
	for _, hostIf := range cabled {
		if err := o.note(noteLaid + hostIf); err != nil {
			return err
		}
	}
	return o.putContainer(c)
}

// repairEndpoint says whether the cable had to be laid anew.
func (o *op) repairEndpoint(c *Container, n *Network, ep *Endpoint, ns *netns.NS) (anew bool, err error) {
	dev, err := o.device(ep.HostIf)
	if err != nil {
		return false, err
	}
	if dev != nil && o.halfLaid(ep.HostIf) {
		host, err := o.hostNetns()
		if err != nil {
			return false, err
		}
		if err := link.DeleteVeth(host, ep.HostIf); err != nil {
			return false, err
		}
		dev = nil
	}
	if dev == nil {
		return true, o.cable(c, n, ep, ns)
	}
	ep.HostIndex = dev.Attrs().Index
	if err := o.tellEndpoint(n, ep); err != nil {
		return false, err
	}
	bridge, err := o.bridgeIndex(n)
	if err != nil {
		return false, err
	}
	if dev.Attrs().MasterIndex != bridge {
		if err := o.enslave(dev, bridge); err != nil {
			return false, err
		}
	}
	return false, o.setNeighbors(n, ep)
}

// enslave makes a host end a port of its bridge again; a bridge that is full is fine.
func (o *op) enslave(dev netlink.Link, bridge int) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	err = h.LinkSetMasterByIndex(dev, bridge)
	if errors.Is(err, unix.EXFULL) {
		return nil
	}
	if err == nil {
		o.did("device %s: port of its bridge again", dev.Attrs().Name)
	}
	return err
}
