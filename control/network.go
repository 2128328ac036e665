// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/store"
)

// DefaultNetwork is the name of the network that containers join by default.
const DefaultNetwork = "bridge"

// Names of our devices; what bears one and is in no record is removed by reconcile.
const (
	vethPrefix   = "bpfv"
	bridgePrefix = "bpfn-"
)

// CreateNetwork makes a bridge network. ErrConflict when its name or addresses are taken.
func (m *Manager) CreateNetwork(o NetworkOptions) (*Network, error) {
	if err := o.checkNew(); err != nil {
		return nil, err
	}
	var n *Network
	err := m.update(func(op *op) (err error) {
		n, err = op.createNetwork(o)
		return err
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// CheckNetwork says what of the options could never be, without looking at a host.
func CheckNetwork(o NetworkOptions) error { return o.checkNew() }

// checkNew is check with the name, which must not be one that means something else.
func (o *NetworkOptions) checkNew() error {
	if err := checkName("network", o.Name); err != nil {
		return err
	}
	switch o.Name {
	case DefaultNetwork, ModeNone, ModeHost, "default":
		return conflict("operation is not permitted on predefined %s network", o.Name)
	}
	return o.check()
}

// Networks lists all networks, oldest first.
func (m *Manager) Networks() ([]*Network, error) {
	var list []*Network
	_, err := m.view(func(o *op) (err error) {
		list, err = o.allNetworks()
		return err
	})
	slices.SortFunc(list, func(a, b *Network) int { return a.Created.Compare(b.Created) })
	return list, err
}

// Network finds a network by name, ID or unique prefix. ErrNotFound.
func (m *Manager) Network(ref string) (*Network, error) {
	var n *Network
	ok, err := m.view(func(o *op) (err error) {
		n, err = findNetwork(o.tx, ref)
		return err
	})
	if err == nil && !ok {
		err = notFound("network %s not found", ref)
	}
	return n, err
}

// RemoveNetwork removes a network that no running container is on.
func (m *Manager) RemoveNetwork(ref string) error {
	return m.change(notFound("network %s not found", ref), func(o *op) error {
		n, err := findNetwork(o.tx, ref)
		if err == nil { // of a driver's too: its engine may have forgotten it while nobody listened
			err = notAdopted("network", n.Name, n.Engine)
		}
		if err != nil {
			return err
		}
		if n.Name == DefaultNetwork {
			return conflict("%s is a pre-defined network and cannot be removed", n.Name)
		}
		return o.removeNetwork(n)
	})
}

// PruneNetworks removes unused networks and returns their names.
func (m *Manager) PruneNetworks() ([]string, error) {
	var names []string
	err := m.change(nil, func(o *op) error {
		list, err := o.allNetworks()
		if err != nil {
			return err
		}
		used := make(map[string]bool)
		err = store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
			for id := range c.Endpoints {
				used[id] = true
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, n := range list {
			if used[n.ID] || n.Name == DefaultNetwork || n.Engine+n.Driver != "" {
				continue
			}
			if err := o.removeNetwork(n); err != nil {
				return err
			}
			names = append(names, n.Name)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	return names, nil
}

func (o *op) allNetworks() ([]*Network, error) {
	var list []*Network
	err := store.Each(o.tx, bucketNetworks, func(_ string, n Network) error {
		list = append(list, &n)
		return nil
	})
	return list, err
}

func (o *op) createNetwork(opts NetworkOptions) (*Network, error) {
	if _, taken, err := store.Get[string](o.tx, bucketNetworkNames, opts.Name); err != nil {
		return nil, err
	} else if taken {
		return nil, conflict("network with name %s already exists", opts.Name)
	}
	n, err := o.planNetwork(opts)
	if err != nil {
		return nil, err
	}
	if err := store.Put(o.tx, bucketNetworkNames, n.Name, n.ID); err != nil {
		return nil, err
	}
	if err := store.Put(o.tx, bucketNetworks, n.ID, n); err != nil {
		return nil, err
	}
	if err := o.raiseNetwork(n); err != nil {
		return nil, err
	}
	return n, o.devicesChanged(n)
}

// devicesChanged tells the programs of a network that has come or gone. A bridge of the
// user's, or a cable of an engine's, is an uplink before and after, and none meanwhile.
func (o *op) devicesChanged(n *Network) error {
	if n.ForeignBridge {
		o.rebuild = true
		return o.refreshHost()
	}
	return o.path().RefreshAddrs()
}

// planNetwork chooses everything that was left open.
func (o *op) planNetwork(opts NetworkOptions) (*Network, error) {
	c := &o.host.Config
	yes := true
	n := &Network{
		ID:              cmpString(opts.id, newID()),
		Driver:          opts.driver,
		Name:            opts.Name,
		Created:         time.Now(),
		Bridge:          opts.Bridge,
		Internal:        opts.Internal,
		ICC:             *cmp.Or(opts.ICC, &yes),
		Masquerade:      *cmp.Or(opts.Masquerade, &yes) && !opts.Routed,
		Isolate:         *cmp.Or(opts.Isolate, &yes),
		Routed:          opts.Routed,
		FullCone:        opts.FullCone,
		AllowDHCPServer: opts.AllowDHCPServer,
		MTU:             cmp.Or(opts.MTU, c.MTU),
		BindAddress:     opts.BindAddress,
		Labels:          opts.Labels,
	}
	if n.Bridge == "" {
		n.Bridge = bridgePrefix + n.ID[:10]
	} else if own, err := o.ownBridges(); err != nil {
		return nil, err
	} else if own[n.Bridge] {
		return nil, conflict("bridge %s: another network uses it", n.Bridge)
	}
	number, err := takeNumbers(o.tx, numNetworks, 1)
	if err != nil {
		return nil, err
	}
	n.Number = number[0]
	dev, err := o.foreignBridge(n.Bridge)
	if err != nil {
		return nil, err
	}
	n.MAC = bridgeMAC(n.ID).String()
	if dev != nil {
		n.ForeignBridge = true
		n.MAC = dev.mac.String()
		if len(opts.Subnets) == 0 {
			opts.Subnets, opts.Gateways = dev.subnets, dev.gateways
		}
	}
	return n, o.planSubnets(n, opts)
}

// bridgeMAC is unicast and locally administered, and the same whenever the
// bridge has to be made again.
func bridgeMAC(id string) net.HardwareAddr {
	sum := sha256.Sum256([]byte("bridge " + id))
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2
	return mac
}

// raiseNetwork makes the kernel have the network; what is there already stays.
func (o *op) raiseNetwork(n *Network) error {
	if n.Bridge == "" {
		return o.tellNetwork(n, 0)
	}
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	had, err := o.device(n.Bridge)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(n.MAC)
	if err != nil {
		return err
	}
	b := link.Bridge{Name: n.Bridge, MAC: mac, MTU: n.MTU, Adopt: n.ForeignBridge}
	for _, s := range n.Subnets {
		if n.Engine == "" { // else its owner gives it addresses
			b.Addrs = append(b.Addrs, netip.PrefixFrom(s.Gateway, s.Prefix.Bits()))
		}
	}
	if had == nil && !n.ForeignBridge && !strings.HasPrefix(n.Bridge, bridgePrefix) {
		if err := o.note("bridge " + n.Bridge); err != nil {
			return err
		}
	}
	if had != nil && n.ForeignBridge {
		// The programs know this very device, so the command before came past here.
		known, err := o.bridgeIndex(n)
		b.Pinned = err == nil && known == had.Attrs().Index && bytes.Equal(had.Attrs().HardwareAddr, mac)
	}
	index, added, err := link.EnsureBridge(ns, b)
	if err != nil {
		return err
	}
	if n.ForeignBridge {
		o.undo.add("bridge "+n.Bridge, func() error { return added.TakeBack(ns, n.Bridge) })
	}
	known := len(n.Added)
	for _, p := range added.Addrs {
		if !slices.Contains(n.Added, p) { // it may have lost one that it had from us
			n.Added = append(n.Added, p)
		}
	}
	if len(n.Added) > known {
		if err := o.putNetwork(n); err != nil {
			return err
		}
	}
	if had == nil {
		o.did("network %s: bridge %s made", n.Name, n.Bridge)
		o.undo.add("bridge "+n.Bridge, func() error { return link.DeleteBridge(ns, n.Bridge) })
	}
	return o.tellNetwork(n, index)
}

// removeNetwork takes a network down for good.
func (o *op) removeNetwork(n *Network) error {
	if err := o.unusedNetwork(n); err != nil {
		return err
	}
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	o.rebuild = true
	dev, err := o.device(n.Bridge)
	if err != nil {
		return err
	}
	index := 0
	if dev != nil {
		index = dev.Attrs().Index
	}
	if err := o.path().ClearNetwork(n.Number, index); err != nil {
		return err
	}
	if n.ForeignBridge {
		err = link.Added{Addrs: n.Added}.TakeBack(ns, n.Bridge)
	} else {
		err = link.DeleteBridge(ns, n.Bridge)
	}
	if err != nil {
		return err
	}
	if n.Driver != "" {
		if err := o.eachDriverRecord(n, o.forgetDriverEndpoint); err != nil {
			return err
		}
	}
	if err := store.Delete(o.tx, bucketNetworkNames, n.Name); err != nil {
		return err
	}
	if err := store.Delete(o.tx, bucketNetworks, n.ID); err != nil {
		return err
	}
	if err := giveNumbers(o.tx, numNetworks, n.Number); err != nil {
		return err
	}
	for _, s := range n.Subnets {
		if err := store.Delete(o.tx, bucketNumbers, cursorKey(n, s.Prefix)); err != nil {
			return err
		}
	}
	o.did("network %s: removed", n.Name)
	return o.devicesChanged(n)
}

func (o *op) unusedNetwork(n *Network) error {
	var users []string
	err := store.EachPrefix(o.tx, bucketMembers, n.ID+"/", func(key string, _ uint32) error {
		c, err := containerByID(o.tx, key[len(n.ID)+1:])
		if err != nil {
			return err
		}
		users = append(users, c.Name)
		return nil
	})
	if err != nil || len(users) == 0 {
		return err
	}
	return conflict("network %s has active endpoints (%s)", n.Name, someNames(users))
}

func (o *op) putNetwork(n *Network) error { return store.Put(o.tx, bucketNetworks, n.ID, n) }

// someNames is a list for an error, cut where it gets long.
func someNames(names []string) string {
	slices.Sort(names)
	if len(names) > 5 {
		return strings.Join(names[:5], ", ") + ", …"
	}
	return strings.Join(names, ", ")
}
