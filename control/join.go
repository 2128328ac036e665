// SPDX-License-Identifier: Apache-2.0

package control

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

// JoinOptions bring the container of a runtime onto a network. Runtimes know containers
// by an ID and a namespace, and ask for one network after the other.
type JoinOptions struct {
	Runtime   string          // cni, netavark: what Leave and Attachments go by
	Network   NetworkOptions  // made if there is none of its name; else what is given must be what it has
	ID        string          // of the container: 64 hex digits
	Names     []string        // the first that is free becomes the container's; none is: the ID's first 12 digits
	Netns     string          // path
	Endpoint  EndpointOptions // Runtime is filled in
	Publish   []string        // what the container has published already stays as it is
	Held      bool            // see ContainerOptions
	DNS       []string
	DNSSearch []string
}

// RuntimeID is the ID of a runtime's container: the same, if it can be.
func RuntimeID(runtime, id string) string {
	if checkID(id) == nil {
		return id
	}
	sum := sha256.Sum256([]byte(runtime + " " + id))
	return hex.EncodeToString(sum[:])
}

// Joined is what Join made.
type Joined struct {
	Network   *Network
	Container *Container
	Endpoint  *Endpoint
	HostMAC   string // of the host's end
}

// Default says whether the default route of a family goes by the attachment.
func (j *Joined) Default(v6 bool) bool { return gatewayEndpoint(j.Container, v6) == j.Endpoint }

// errStale says that a container of the ID is there from an earlier life.
var errStale = errors.New("container is there from an earlier life")

// Join attaches a container to a network in one transaction: the network and the
// container are made if they are not there, the ports published. A container that is there with
// another namespace is of an earlier life: it is removed first. ErrConflict when
// it is on the network already, or an address or port is taken.
func (m *Manager) Join(opts JoinOptions) (*Joined, error) {
	if err := opts.check(); err != nil {
		return nil, err
	}
	ns, path, err := openAttach("netns:" + opts.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	var j *Joined
	join := func(o *op) (err error) {
		j, err = o.join(&opts, ns, path)
		return err
	}
	if err = m.update(join); errors.Is(err, errStale) {
		if err = m.RemoveContainer(opts.ID); err == nil || errors.Is(err, ErrNotFound) {
			err = m.update(join)
		}
	}
	if err != nil {
		return nil, err
	}
	return j, nil
}

func (opts *JoinOptions) check() error {
	opts.Endpoint.Runtime = opts.Runtime
	if err := opts.Network.checkNew(); err != nil {
		return err
	}
	if err := checkID(opts.ID); err != nil {
		return err
	}
	c := opts.container("")
	return c.check()
}

func (opts *JoinOptions) container(name string) ContainerOptions {
	return ContainerOptions{
		ID: opts.ID, Name: name, Attach: "netns:" + opts.Netns, Endpoint: opts.Endpoint, Publish: opts.Publish,
		Held: opts.Held, DNS: opts.DNS, DNSSearch: opts.DNSSearch,
		AutoRemove: true, // with its namespace: the runtime has forgotten it, or asks anew
	}
}

func (o *op) join(opts *JoinOptions, ns *netns.NS, path string) (*Joined, error) {
	n, err := o.joinedNetwork(&opts.Network)
	if err != nil {
		return nil, err
	}
	c, there, err := store.Get[Container](o.tx, bucketContainers, opts.ID)
	if err != nil {
		return nil, err
	}
	if there {
		if err := notAdopted("container", c.Name, c.Engine); err != nil {
			return nil, err
		}
	}
	switch {
	case there && (!c.Attached || !o.up(&c) || c.NetnsID != ns.ID()):
		return nil, errStale
	case there:
		if err := o.connect(n, &c, &opts.Endpoint); err != nil {
			return nil, err
		}
		if err := o.publishMissing(&c, opts.Publish); err != nil {
			return nil, err
		}
	default:
		name, err := o.firstFreeName(append(slices.Clone(opts.Names), opts.ID[:12], opts.ID))
		if err != nil {
			return nil, err
		}
		create := opts.container(name)
		create.Network = n.ID
		made, err := o.createContainer(&create, ns, path)
		if err != nil {
			return nil, err
		}
		c = *made
	}
	j := &Joined{Network: n, Container: &c, Endpoint: c.Endpoints[n.ID]}
	dev, err := o.device(j.Endpoint.HostIf)
	if err == nil && dev != nil {
		j.HostMAC = dev.Attrs().HardwareAddr.String()
	}
	return j, err
}

// joinedNetwork finds a network by its whole name, or makes it.
func (o *op) joinedNetwork(opts *NetworkOptions) (*Network, error) {
	id, there, err := store.Get[string](o.tx, bucketNetworkNames, opts.Name)
	if err != nil {
		return nil, err
	}
	if !there {
		return o.createNetwork(*opts)
	}
	n, err := networkByID(o.tx, id)
	if err == nil {
		err = notAdopted("network", n.Name, n.Driver)
	}
	if err != nil {
		return nil, err
	}
	return n, n.is(opts)
}

// is refuses options by which another network than n is meant; what they leave open is as it is.
func (n *Network) is(opts *NetworkOptions) error {
	other := func(what string, is, want any) error {
		return conflict("network %s: is there with %s %v, not %v; bpfnet network rm %s removes it, when nothing is on it any more", n.Name, what, is, want, n.Name)
	}
	for _, want := range opts.Subnets {
		if !slices.ContainsFunc(n.Subnets, func(s Subnet) bool { return s.Prefix == want.Masked() }) {
			return other("subnets", n.prefixes(), want.Masked())
		}
	}
	for _, s := range n.Subnets {
		for _, g := range opts.Gateways {
			if s.Prefix.Contains(g) && g != s.Gateway {
				return other("gateway", s.Gateway, g)
			}
		}
		for _, r := range opts.Ranges {
			if s.Prefix.Contains(r.Addr()) && r.Masked() != s.Range {
				return other("range", s.Range, r.Masked())
			}
		}
	}
	for _, b := range []struct {
		what string
		is   bool
		want *bool
	}{{"icc", n.ICC, opts.ICC}, {"masquerade", n.Masquerade, opts.Masquerade}, {"isolate", n.Isolate, opts.Isolate}} {
		if b.want != nil && *b.want != b.is {
			return other(b.what, b.is, *b.want)
		}
	}
	switch {
	case opts.Internal != n.Internal:
		return other("internal", n.Internal, opts.Internal)
	case opts.IPv6 && len(n.Subnets) == 1:
		return other("subnets", n.prefixes(), "one of IPv6")
	case opts.MTU != 0 && opts.MTU != n.MTU:
		return other("mtu", n.MTU, opts.MTU)
	case opts.Bridge != "" && opts.Bridge != n.Bridge:
		return other("bridge", n.Bridge, opts.Bridge)
	}
	return nil
}

func (n *Network) prefixes() []netip.Prefix {
	var list []netip.Prefix
	for _, s := range n.Subnets {
		list = append(list, s.Prefix)
	}
	return list
}

func (o *op) firstFreeName(names []string) (string, error) {
	for _, name := range names {
		if checkName("container", name) != nil {
			continue
		}
		other, taken, err := store.Get[string](o.tx, bucketNames, name)
		if err == nil && taken {
			if _, err = o.reap(other); err == nil {
				_, taken, err = store.Get[string](o.tx, bucketNames, name)
			}
		}
		if err != nil || !taken {
			return name, err
		}
	}
	return "", conflict("container names %q: all are taken", names)
}

// publishMissing publishes what of the specs a container does not have yet.
func (o *op) publishMissing(c *Container, specs []string) error {
	lines, err := o.specs(c.ID)
	if err != nil {
		return err
	}
	have, err := parseSpecs(lines)
	if err != nil {
		return err
	}
	has := make(map[string]bool, len(have))
	for i := range have {
		has[have[i].String()] = true
	}
	want, err := parseSpecs(specs)
	if err != nil {
		return err
	}
	b := &portBatch{}
	for i := range want {
		if !has[want[i].String()] {
			b.Specs = append(b.Specs, specs[want[i].index])
		}
	}
	if len(b.Specs) == 0 {
		return nil
	}
	if err := o.raiseBatch(c, b, nil); err != nil {
		return err
	}
	if err := store.Put(o.tx, bucketPorts, batchKey(c.ID), b); err != nil {
		return err
	}
	if err := o.syncRouted(c, true); err != nil {
		return err
	}
	return o.refreshClients(c)
}

// Leave ends what Join made; the container goes with the last attachment of a runtime's.
// Its namespace need not be there any more. ErrNotFound when there is no such interface.
func (m *Manager) Leave(network, id, ifName string) error {
	missing := notFound("container %s is not connected to network %s", id, network)
	return m.change(missing, func(o *op) error {
		c, err := containerByID(o.tx, id)
		if err != nil {
			return err
		}
		nid, _, err := store.Get[string](o.tx, bucketNetworkNames, network)
		if err != nil {
			return err
		}
		ep := c.Endpoints[nid]
		if ep == nil || ep.Runtime == "" || ep.Interface() != ifName {
			return missing
		}
		last := true
		for _, other := range c.Endpoints {
			last = last && (other == ep || other.Runtime == "")
		}
		if last && c.Attached {
			if err := o.lowerContainer(c); err != nil {
				return err
			}
			return o.deleteContainer(c)
		}
		n, err := networkByID(o.tx, nid)
		if err != nil {
			return err
		}
		return o.disconnect(n, c, ep)
	})
}

// Attachment is an endpoint that a runtime asked for.
type Attachment struct {
	Container *Container
	Endpoint  *Endpoint
	Up        bool // its namespace is there
}

// Attachments lists what a runtime has on a network, by the network's whole name.
func (m *Manager) Attachments(runtime, network string) ([]Attachment, error) {
	var list []Attachment
	_, err := m.view(func(o *op) error {
		nid, there, err := store.Get[string](o.tx, bucketNetworkNames, network)
		if err != nil || !there {
			return err
		}
		return store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
			if ep := c.Endpoints[nid]; ep != nil && ep.Runtime == runtime {
				list = append(list, Attachment{&c, ep, o.up(&c)})
			}
			return nil
		})
	})
	return list, err
}

// Interface is the endpoint's device in the container, up or not.
func (ep *Endpoint) Interface() string { return cmpString(ep.IfName, ep.WantIf) }
