// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

// States of a container.
const (
	StateCreated = "created" // its network is up, its command is not
	StateRunning = "running"
	StateExited  = "exited" // or its namespace is gone

	exitUnseen = 255 // the code of a command that ended while nobody looked, as Docker has it
)

// CreateContainer makes the namespace (or takes the one of o.Attach), joins the
// networks and publishes the ports. A failure leaves nothing.
func (m *Manager) CreateContainer(opts ContainerOptions) (*Container, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	var ns *netns.NS
	var path string
	if opts.Attach != "" {
		var err error
		if ns, path, err = openAttach(opts.Attach); err != nil {
			return nil, err
		}
		defer ns.Close()
	}
	var c *Container
	err := m.update(func(o *op) (err error) {
		c, err = o.createContainer(&opts, ns, path)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (o *op) createContainer(opts *ContainerOptions, ns *netns.NS, path string) (*Container, error) {
	c := &Container{
		ID:         cmpString(opts.ID, newID()),
		Name:       strings.TrimPrefix(opts.Name, "/"),
		Created:    time.Now(),
		Held:       opts.Held,
		Attached:   ns != nil,
		Netns:      path,
		Args:       opts.Args,
		Env:        opts.Env,
		Rootfs:     opts.Rootfs,
		TTY:        opts.TTY,
		AutoRemove: opts.AutoRemove,
		Hostname:   opts.Hostname,
		DNS:        opts.DNS,
		DNSSearch:  opts.DNSSearch,
		DNSOptions: opts.DNSOptions,
		ExtraHosts: opts.AddHosts,
		PublishAll: opts.PublishAll,
		State:      StateCreated,
	}
	if _, taken, err := store.Get[Container](o.tx, bucketContainers, c.ID); err != nil {
		return nil, err
	} else if taken {
		return nil, conflict("container %s: is there already", c.ID)
	}
	if c.Name == "" {
		name, err := freeName(o.tx)
		if err != nil {
			return nil, err
		}
		c.Name = name
	}
	other, taken, err := store.Get[string](o.tx, bucketNames, c.Name)
	if err == nil && taken {
		if _, err = o.reap(other); err == nil { // with --rm that frees the name
			other, taken, err = store.Get[string](o.tx, bucketNames, c.Name)
		}
	}
	if err != nil {
		return nil, err
	}
	if taken {
		return nil, conflict("Conflict. The container name \"/%s\" is already in use by container %q. You have to remove (or rename) that container to be able to reuse that name.", c.Name, other)
	}
	if c.Exposed, err = parseExposed(opts.Expose); err != nil {
		return nil, err
	}
	network, err := o.resolveMode(c, opts)
	if err != nil {
		return nil, err
	}
	if c.Hostname == "" {
		if c.Hostname, err = o.hostnameOf(c); err != nil {
			return nil, err
		}
	}
	if err := store.Put(o.tx, bucketNames, c.Name, c.ID); err != nil {
		return nil, err
	}
	for _, l := range opts.Links {
		link, err := o.resolveLink(c, l)
		if err != nil {
			return nil, err
		}
		c.Links = append(c.Links, link)
	}
	if network != nil {
		ep := newEndpoint(c, network, opts.Endpoint)
		for _, l := range opts.Endpoint.Links {
			link, err := o.resolveLink(c, l)
			if err != nil {
				return nil, err
			}
			ep.Links = append(ep.Links, link)
		}
		c.Endpoints = map[string]*Endpoint{network.ID: ep}
	}
	if err := o.linkable(c, allLinks(c)); err != nil {
		return nil, err
	}
	if err := o.putSpecs(c, opts.Publish); err != nil {
		return nil, err
	}
	return c, o.raiseContainer(c, ns)
}

// hostnameOf is the name of a container that nobody has given one: of whom it shares the network
// with, else its own.
func (o *op) hostnameOf(c *Container) (string, error) {
	switch c.Mode {
	case ModeHost:
		return os.Hostname()
	case ModeContainer:
		target, err := containerByID(o.tx, c.ModeTarget)
		if err != nil {
			return "", err
		}
		return target.Hostname, nil
	}
	return c.ID[:12], nil
}

// resolveMode turns --net into the mode, and the network to join if it is one.
func (o *op) resolveMode(c *Container, opts *ContainerOptions) (*Network, error) {
	switch net := opts.Network; {
	case net == ModeNone:
		c.Mode = ModeNone
		return nil, nil
	case net == ModeHost:
		c.Mode = ModeHost
		return nil, nil
	case strings.HasPrefix(net, ModeContainer+":"):
		target, err := findContainer(o.tx, strings.TrimPrefix(net, ModeContainer+":"))
		if err != nil {
			return nil, err
		}
		if err := notAdopted("container", target.Name, target.Engine); err != nil {
			return nil, err // its hosts and resolv.conf are not here
		}
		c.Mode, c.ModeTarget = ModeContainer, target.ID
		return nil, nil
	case net == "" || net == "default" || net == DefaultNetwork:
		c.Mode = ModeNetwork
		return o.defaultNetwork()
	default:
		c.Mode = ModeNetwork
		return ownNetwork(o, net)
	}
}

// deleteContainer forgets a container whose network is down.
func (o *op) deleteContainer(c *Container) error {
	for _, l := range slices.Concat(c.Links, endpointLinks(c)) {
		if err := store.Delete(o.tx, bucketLinkedBy, l.Target+"/"+c.ID); err != nil {
			return err
		}
	}
	if err := o.forgetTarget(c); err != nil {
		return err
	}
	if err := o.dropSpecs(c); err != nil {
		return err
	}
	for _, x := range []struct{ bucket, key string }{
		{bucketNames, c.Name}, {bucketContainers, c.ID}, {bucketHosts, c.ID},
	} {
		if err := store.Delete(o.tx, x.bucket, x.key); err != nil {
			return err
		}
	}
	o.after = append(o.after, func() error { return os.RemoveAll(o.m.ContainerDir(c.ID)) })
	o.did("container %s: removed", c.Name)
	return nil
}

// putContainer keeps the record without the specs, which have a bucket of their own.
func (o *op) putContainer(c *Container) error {
	stored := *c
	stored.Publish = nil
	return store.Put(o.tx, bucketContainers, c.ID, stored)
}

// isIn says whether a namespace is the container's: another one may have its inode by now, but
// not its cookie.
func (c *Container) isIn(ns *netns.NS) bool {
	if ns.ID() != c.NetnsID {
		return false
	}
	cookie, err := ns.Cookie()
	return err == nil && (c.Cookie == 0 || cookie == c.Cookie)
}

// up says whether a container's network is up and somebody uses it.
func (o *op) up(c *Container) bool {
	switch {
	case c.State == StateExited || o.booted():
		return false
	case c.byCable():
		return o.cabled(c)
	case c.Attached:
		if c.PID != 0 && !alive(c.PID, c.PIDStart) {
			return false
		}
		ns, err := netns.Open(c.Netns)
		if err != nil {
			return false
		}
		defer ns.Close()
		return c.isIn(ns)
	case c.State == StateRunning:
		return alive(c.PID, c.PIDStart)
	default:
		return alive(c.Supervisor, c.SupStart)
	}
}
