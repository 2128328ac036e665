// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

// raiseContainer gives a container its namespace, networks, ports, links and
// files. ns is open already for somebody else's namespace.
func (o *op) raiseContainer(c *Container, ns *netns.NS) error {
	ns, err := o.raiseNetns(c, ns)
	if err != nil {
		return err
	}
	if ns != nil {
		defer ns.Close()
	}
	for _, ep := range endpointsOf(c) {
		n, err := networkByID(o.tx, ep.Network)
		if err != nil {
			return err
		}
		if err := o.raiseEndpoint(c, n, ep, ns); err != nil {
			return err
		}
	}
	if c.Attached {
		c.State, c.Started = StateRunning, time.Now()
	} else {
		c.State, c.Supervisor = StateCreated, os.Getpid()
		c.SupStart = startTime(c.Supervisor)
	}
	if err := o.raisePorts(c); err != nil {
		return err
	}
	if err := o.targetsUp(c, allLinks(c)); err != nil {
		return err
	}
	if err := o.raiseLinks(c); err != nil {
		return err
	}
	if err := o.writeFiles(c); err != nil {
		return err
	}
	if err := o.putContainer(c); err != nil {
		return err
	}
	if err := o.refreshClients(c); err != nil {
		return err
	}
	if c.Attached && !sameNetns(ns, c.Netns) {
		return fmt.Errorf("netns %s: changed while it was attached", c.Netns)
	}
	return nil
}

// raiseNetns opens or makes the namespace; nil for the host's own. The caller closes it.
func (o *op) raiseNetns(c *Container, given *netns.NS) (*netns.NS, error) {
	var ns *netns.NS
	var err error
	switch {
	case c.Mode == ModeHost:
		c.Netns = o.host.Netns
		return nil, nil
	case c.Mode == ModeContainer:
		target, err := containerByID(o.tx, c.ModeTarget)
		if err != nil {
			return nil, err
		}
		if !o.up(target) {
			return nil, conflict("cannot join network of a non running container: %s", target.Name)
		}
		c.Netns, c.NetnsID, c.Cookie = target.Netns, target.NetnsID, target.Cookie
		return nil, nil
	case given != nil:
		if err := o.notTheHost(given, "netns "+c.Netns); err != nil {
			return nil, err
		}
		ns, err = netns.Open(given.Path())
	default:
		ns, err = o.makeNetns(c)
	}
	if err != nil {
		return nil, err
	}
	c.NetnsID = ns.ID()
	if c.Cookie, err = ns.Cookie(); err != nil {
		ns.Close()
		return nil, err
	}
	key := fmt.Sprint(c.Cookie)
	other, taken, err := store.Get[string](o.tx, bucketNetns, key)
	if err == nil && taken && other != c.ID {
		if oc, _, _ := store.Get[Container](o.tx, bucketContainers, other); oc.ID != "" {
			err = conflict("netns %s: container %s is attached to it already", c.Netns, oc.Name)
		}
	}
	if err == nil {
		err = store.Put(o.tx, bucketNetns, key, c.ID)
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// makeNetns makes a namespace of our own, with lo up and a name under root.
func (o *op) makeNetns(c *Container) (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	path := filepath.Join(o.m.root, dirNetns, c.ID)
	o.undo.add("netns "+path, func() error { return netns.Unpersist(path) })
	err = netns.Persist(ns, path)
	if err == nil {
		err = loUp(ns)
	}
	if err != nil {
		ns.Close()
		return nil, err
	}
	c.Netns = path
	return ns, nil
}

func loUp(ns *netns.NS) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.LinkSetUp(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Name: "lo", Index: 1}}); err != nil {
		return fmt.Errorf("device lo: up: %w", err)
	}
	return nil
}

// lowerContainer takes everything of a container down but its record and files;
// the caller puts the record.
func (o *op) lowerContainer(c *Container) error {
	o.rebuild = true
	if err := o.lowerPorts(c); err != nil {
		return err
	}
	if err := o.forgetDoors(c); err != nil {
		return err
	}
	if err := o.lowerLinks(c); err != nil {
		return err
	}
	for _, ep := range endpointsOf(c) {
		n, err := networkByID(o.tx, ep.Network)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if err := o.lowerEndpoint(c, n, ep); err != nil {
			return err
		}
	}
	if c.Mode != ModeContainer && c.Cookie != 0 {
		key := fmt.Sprint(c.Cookie)
		if owner, _, err := store.Get[string](o.tx, bucketNetns, key); err != nil {
			return err
		} else if owner == c.ID {
			if err := store.Delete(o.tx, bucketNetns, key); err != nil {
				return err
			}
		}
	}
	if o.ownNetns(c) {
		if err := netns.Unpersist(c.Netns); err != nil {
			return err
		}
	}
	c.Cookie, c.NetnsID = 0, ""
	c.State, c.PID, c.PIDStart, c.Supervisor, c.SupStart = StateExited, 0, 0, 0, 0
	return nil
}

// ownNetns says whether the namespace's name is ours to remove.
func (o *op) ownNetns(c *Container) bool {
	return !c.Attached && (c.Mode == ModeNetwork || c.Mode == ModeNone) &&
		c.Netns == filepath.Join(o.m.root, dirNetns, c.ID)
}
