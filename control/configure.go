// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/store"
)

// configure puts a changed configuration in force. What the default network was
// made from can change as long as nobody is on it.
func (o *op) configure(flags *Config) error {
	h := o.host
	merged, err := overlay(h.Flags, flags)
	if err != nil {
		return err
	}
	next, err := o.m.effective(&merged)
	if err != nil {
		return err
	}
	old := h.Config
	h.Flags, h.Config = merged, next
	if flags != nil && len(flags.Uplinks) > 0 {
		if err := o.someUplink(); err != nil {
			return err
		}
	}
	if err := o.changeDefault(&old, &next); err != nil {
		return err
	}
	if err := o.configureAdopted(); err != nil {
		return err
	}
	if next.FlowTableSize != old.FlowTableSize || next.HalfOpenTableSize != old.HalfOpenTableSize {
		err := o.path().Resize()
		var refused *datapath.RefusedError
		if errors.As(err, &refused) {
			return conflict("%v", refused)
		}
		o.rebuild = true // reconcile makes them as large as they were
		if err != nil {
			return err
		}
	}
	if err := o.path().Configure(); err != nil {
		return err
	}
	if err := o.refreshHost(); err != nil {
		return err
	}
	return o.putHost()
}

// someUplink refuses names of which none is a device that may be an uplink: the world would not
// come any more.
func (o *op) someUplink() error {
	up, err := o.uplinks()
	if err != nil || len(up) > 0 {
		return err
	}
	named := o.host.Config.Uplinks
	o.host.Config.Uplinks = nil
	all, err := o.uplinks()
	o.host.Config.Uplinks = named
	if err != nil || len(named) == 0 {
		return err
	}
	have := make([]string, 0, len(all))
	for _, l := range all {
		have = append(have, l.Name)
	}
	return invalid("uplink %s: no such device that leads to the world; there is: %s (%s: each of them)", strings.Join(named, ", "), someNames(have), allUplinks)
}

// changeDefault makes the default network follow: live where it can, else by
// making it anew when it is needed next.
func (o *op) changeDefault(old, next *Config) error {
	n, err := findNetwork(o.tx, DefaultNetwork)
	if err := ignore(err, ErrNotFound); err != nil {
		return err
	}
	if n == nil {
		return o.defaultPossible(nil)
	}
	for _, x := range []struct {
		key      string
		was, now any
	}{
		{"bridge", old.Bridge, next.Bridge},
		{"bip", old.BIP, next.BIP},
		{"bip6", old.BIP6, next.BIP6},
		{"fixed-cidr", old.FixedCIDR, next.FixedCIDR},
		{"fixed-cidr-v6", old.FixedCIDRv6, next.FixedCIDRv6},
		{"default-gateway", old.DefaultGateway, next.DefaultGateway},
		{"default-gateway-v6", old.DefaultGatewayV6, next.DefaultGatewayV6},
		{"ipv6", *old.IPv6, *next.IPv6},
		{"mtu", n.MTU, next.MTU}, // which an earlier init may have left as it was
	} {
		if reflect.DeepEqual(x.was, x.now) {
			continue
		}
		if err := o.unusedNetwork(n); err != nil {
			if x.key == "mtu" {
				o.m.warn("mtu: network %s keeps %d while containers are on it; init again when none is", n.Name, n.MTU)
				continue
			}
			return fmt.Errorf("%s: cannot change from %v to %v now: %w", x.key, shown(x.was), shown(x.now), err)
		}
		if err := o.defaultPossible(n); err != nil {
			return err
		}
		return o.removeNetwork(n)
	}
	if n.ICC == *next.ICC && n.Masquerade == *next.IPMasq {
		return nil
	}
	was := *n
	n.ICC, n.Masquerade = *next.ICC, *next.IPMasq
	index, err := o.bridgeIndex(n)
	if err != nil {
		return err
	}
	changed, err := n.forPath(index)
	if err != nil {
		return err
	}
	back, err := was.forPath(index)
	if err != nil {
		return err
	}
	o.undo.add("network "+n.Name, func() error { return o.path().SetNetwork(n.Number, back, n.Bridge) })
	if err := o.path().SetNetwork(n.Number, changed, n.Bridge); err != nil {
		return err
	}
	return o.putNetwork(n)
}

// defaultPossible says what keeps the default network from being made as configured, in
// place of old: else the first container after init would hear of it.
func (o *op) defaultPossible(old *Network) error {
	c := &o.host.Config
	asked := c.BIP + c.BIP6 + c.FixedCIDR + c.FixedCIDRv6 + c.DefaultGateway + c.DefaultGatewayV6
	if asked == "" && c.Bridge == defaultBridge || c.Bridge == noDefaultNetwork {
		return nil
	}
	used, counted, err := store.Get[numbers](o.tx, bucketNumbers, numNetworks)
	if err != nil {
		return err
	}
	if old != nil { // as if it were gone already
		if err := store.Delete(o.tx, bucketNetworks, old.ID); err != nil {
			return err
		}
	}
	opts, err := c.defaultNetwork()
	if err != nil {
		return err
	}
	if _, err := o.planNetwork(opts); err != nil {
		return fmt.Errorf("network %s: %w", DefaultNetwork, err)
	}
	// The plan took a number, and moved on where the next is looked for.
	if counted {
		err = store.Put(o.tx, bucketNumbers, numNetworks, used)
	} else {
		err = store.Delete(o.tx, bucketNumbers, numNetworks)
	}
	if err != nil || old == nil {
		return err
	}
	return o.putNetwork(old)
}

func shown(v any) any {
	if v == "" {
		return "the default"
	}
	return v
}
