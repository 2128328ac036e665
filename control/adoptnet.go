// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"

	"github.com/bpfnet/bpfnet/control/ipam"
	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/store"
)

func (n *AdoptedNetwork) check() error {
	if err := checkEngineID("network", n.ID); err != nil {
		return err
	}
	for _, name := range []string{n.Bridge, n.Parent} {
		if name != "" {
			if err := link.CheckName(name); err != nil {
				return err
			}
		}
	}
	if n.Bridge != "" && n.Parent != "" {
		return invalid("a bridge and a parent")
	}
	if err := checkMTU(n.MTU, false); err != nil {
		return err
	}
	if n.Internal && n.Routed {
		return invalid("an internal network and routed")
	}
	seen := make(map[bool]bool)
	for _, s := range n.Subnets {
		if !s.Prefix.IsValid() || s.Prefix != s.Prefix.Masked() {
			return invalid("subnet %s: not valid", s.Prefix)
		}
		if err := ipam.CheckSubnet(s.Prefix); err != nil {
			return err
		}
		if v6 := s.Prefix.Addr().Is6(); seen[v6] {
			return invalid("subnet %s: one per family at most", s.Prefix)
		} else {
			seen[v6] = true
		}
		if s.Gateway.IsValid() && !s.Prefix.Contains(s.Gateway) {
			return invalid("gateway %s: is not in %s", s.Gateway, s.Prefix)
		}
	}
	return nil
}

// adoptNetwork makes a network of an engine's known, or follows what has changed of it.
func (o *op) adoptNetwork(engine string, want *AdoptedNetwork) error {
	if err := want.check(); err != nil {
		return err
	}
	old, had, err := store.Get[Network](o.tx, bucketNetworks, want.ID)
	if err != nil {
		return err
	}
	if had && old.Engine != engine {
		return conflict("another network has its ID")
	}
	if had && (old.Parent != want.Parent || (old.Bridge == "") != (want.Bridge == "")) {
		return conflict("it has containers of another kind, or of another device")
	}
	n, err := o.plannedNetwork(engine, want)
	if err != nil {
		return err
	}
	if had {
		n.Number = old.Number
		if n.Name != old.Name {
			if err := store.Delete(o.tx, bucketNetworkNames, old.Name); err != nil {
				return err
			}
		}
	} else {
		if err := o.bridgeFree(n); err != nil {
			return err
		}
		number, err := takeNumbers(o.tx, numNetworks, 1)
		if err != nil {
			return err
		}
		n.Number = number[0]
	}
	if err := store.Put(o.tx, bucketNetworkNames, n.Name, n.ID); err != nil {
		return err
	}
	if err := store.Put(o.tx, bucketNetworks, n.ID, n); err != nil {
		return err
	}
	if err := o.raiseNetwork(n); err != nil {
		if !had {
			return o.forgetNetwork(n, err)
		}
		return err
	}
	if had && reflect.DeepEqual(old.Subnets, n.Subnets) && old.Bridge == n.Bridge {
		return nil
	}
	o.did("network %s: adopted, device %s", n.Name, cmp.Or(n.Bridge, n.Parent, "none"))
	return o.devicesChanged(n)
}

// plannedNetwork is the record that an engine's network is to have. A gateway that the
// engine does not name is the bridge's address.
func (o *op) plannedNetwork(engine string, want *AdoptedNetwork) (*Network, error) {
	dev := &foreign{mac: bridgeMAC(want.ID)}
	if want.Bridge != "" {
		var err error
		if dev, err = o.foreignBridge(want.Bridge); err != nil {
			return nil, err
		}
		if dev == nil {
			return nil, notFound("bridge %s: no such device", want.Bridge)
		}
	}
	n := &Network{
		ID: want.ID, Engine: engine, Created: want.Created,
		Bridge: want.Bridge, Parent: want.Parent, ForeignBridge: true, MAC: dev.mac.String(),
		Internal: want.Internal, ICC: want.ICC, Masquerade: want.Masquerade && !want.Routed, Isolate: want.Isolate, Routed: want.Routed,
		MTU: want.mtu(),
	}
	if want.Default {
		n.EngineDefault, n.EngineICC = true, want.ICC
		n.obey(&o.host.Config)
	}
	for _, s := range want.Subnets {
		s.Range, s.Router = s.Prefix, s.Gateway
		for i, g := range dev.gateways {
			if !s.Gateway.IsValid() && s.Prefix.Contains(g) && dev.subnets[i].Bits() == s.Prefix.Bits() {
				s.Gateway = g
			}
		}
		s.Router = s.Gateway
		n.Subnets = append(n.Subnets, s)
	}
	if _, err := o.followParent(n); err != nil {
		return nil, err
	}
	var err error
	n.Name, err = o.engineName(bucketNetworkNames, engine, want.Name, want.ID)
	return n, err
}

// followParent makes what a network says of its parent true: its MAC, and the address of the
// host's on each subnet, as which the host reaches its macvlans.
func (o *op) followParent(n *Network) (changed bool, err error) {
	if n.Parent == "" {
		return false, nil
	}
	up, err := o.uplinks()
	if err != nil {
		return false, err
	}
	i := slices.IndexFunc(up, func(l link.Uplink) bool { return l.Name == n.Parent && l.Ethernet })
	dev, err := o.device(n.Parent)
	if err != nil {
		return false, err
	}
	if i < 0 || dev == nil {
		return false, notFound("device %s: is no uplink, by which clients come: bpfnet status lists those", n.Parent)
	}
	ns, err := o.hostNetns()
	if err != nil {
		return false, err
	}
	addrs, err := link.HostAddrs(ns)
	if err != nil {
		return false, err
	}
	was := n.MAC
	n.MAC = dev.Attrs().HardwareAddr.String()
	changed = n.MAC != was
	for i := range n.Subnets {
		s := &n.Subnets[i]
		was := s.Gateway
		s.Gateway = netip.Addr{}
		for _, a := range addrs {
			if !s.Gateway.IsValid() && a.Ifindex == dev.Attrs().Index && s.Prefix.Contains(a.Addr) {
				s.Gateway = a.Addr
			}
		}
		changed = changed || s.Gateway != was
	}
	return changed, nil
}

// parents are the devices whose macvlans networks have, by network.
func (o *op) parents() (map[string]string, error) {
	list := make(map[string]string)
	err := store.Each(o.tx, bucketNetworks, func(id string, n Network) error {
		if n.Parent != "" {
			list[id] = n.Parent
		}
		return nil
	})
	return list, err
}

// obey makes an engine's default network as the configuration has it.
func (n *Network) obey(c *Config) {
	n.ICC, n.Masquerade = n.EngineICC && *c.ICC, *c.IPMasq && !n.Routed
}

// configureAdopted makes engines' default networks follow a changed configuration.
func (o *op) configureAdopted() error {
	list, err := o.allNetworks()
	if err != nil {
		return err
	}
	for _, n := range list {
		was := *n
		if !n.EngineDefault {
			continue
		}
		if n.obey(&o.host.Config); was.ICC == n.ICC && was.Masquerade == n.Masquerade {
			continue
		}
		o.rebuild = true
		index, err := o.bridgeIndex(n)
		if err != nil {
			return err
		}
		told, err := n.forPath(index)
		if err != nil {
			return err
		}
		if err := o.path().SetNetwork(n.Number, told, n.Bridge); err != nil {
			return err
		}
		if err := o.putNetwork(n); err != nil {
			return err
		}
	}
	return nil
}

// bridgeFree says whether no other network has the bridge.
func (o *op) bridgeFree(n *Network) error {
	return store.Each(o.tx, bucketNetworks, func(id string, other Network) error {
		if id != n.ID && n.Bridge != "" && other.Bridge == n.Bridge {
			return conflict("bridge %s: network %s uses it", n.Bridge, other.Name)
		}
		return nil
	})
}

// letGoNetwork forgets an engine's network and everybody's endpoints on it.
func (o *op) letGoNetwork(n *Network) error {
	var members []string
	err := store.EachPrefix(o.tx, bucketMembers, n.ID+"/", func(key string, _ uint32) error {
		members = append(members, key[len(n.ID)+1:])
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range members {
		c, err := containerByID(o.tx, id)
		if err != nil {
			return err
		}
		if err := o.letGoEndpoint(c, n, c.Endpoints[n.ID]); err != nil {
			return err
		}
		if err := o.putContainer(c); err != nil {
			return err
		}
	}
	return o.removeNetwork(n)
}

// letGoEmpty lets those networks go that have no bridge, and no container any more, and
// returns the others.
func (o *op) letGoEmpty(all []*Network) (rest []*Network, err error) {
	for _, n := range all {
		members := 0
		err := store.EachPrefix(o.tx, bucketMembers, n.ID+"/", func(string, uint32) error {
			members++
			return nil
		})
		if err != nil {
			return nil, err
		}
		if n.Bridge != "" || members > 0 {
			rest = append(rest, n)
		} else if err := o.letGoNetwork(n); err != nil {
			return nil, err
		}
	}
	return rest, nil
}

// forgetNetwork takes a network that could not be raised out of the store again.
func (o *op) forgetNetwork(n *Network, why error) error {
	for bucket, key := range map[string]string{bucketNetworks: n.ID, bucketNetworkNames: n.Name} {
		if err := store.Delete(o.tx, bucket, key); err != nil {
			return err
		}
	}
	if err := giveNumbers(o.tx, numNetworks, n.Number); err != nil {
		return err
	}
	return why
}

// settleNetworks lists the networks. An engine's whose bridge is gone is let go; of one
// whose bridge was made anew the MAC is followed.
func (o *op) settleNetworks() (list []*Network, err error) {
	all, err := o.allNetworks()
	if err != nil {
		return nil, err
	}
	for _, n := range all {
		if n.Engine != "" && n.Bridge != "" {
			dev, err := o.device(n.Bridge)
			if err != nil {
				return nil, err
			}
			if dev == nil {
				o.did("network %s: bridge %s is gone", n.Name, n.Bridge)
				if err := o.letGoNetwork(n); err != nil {
					return nil, err
				}
				continue
			}
			if mac := dev.Attrs().HardwareAddr.String(); mac != n.MAC {
				n.MAC = mac
				if err := o.putNetwork(n); err != nil {
					return nil, err
				}
			}
		}
		if changed, err := o.followParent(n); err != nil {
			o.did("network %s: %v", n.Name, err)
			if err := o.letGoNetwork(n); err != nil {
				return nil, err
			}
			continue
		} else if changed {
			if err := o.putNetwork(n); err != nil {
				return nil, err
			}
		}
		list = append(list, n)
	}
	return list, nil
}
