// SPDX-License-Identifier: Apache-2.0

// Package iptables is the datapath of netfilter: the rules that Docker's own backend has, made by
// iptables-restore in one transaction for each command and family. What it is told is kept
// in the store; the rules of what changed are computed from that when the command ends.
//
//	raw     PREROUTING ─ BPFNET-RAW ─ BPFNET-DIRECT           nobody reaches a container's address directly
//	nat     PREROUTING, OUTPUT (LOCAL) ─ BPFNET-DNAT ─ BPFNET-PORTS       published ports
//	        POSTROUTING ─ BPFNET-POSTROUTING ─ BPFNET-HAIRPIN             masquerade
//	filter  FORWARD ─ BPFNET-USER                             the administrator's: never flushed
//	                └ BPFNET-FORWARD ┬ BPFNET-SOURCES ─ BPFNET-S-rule     from=
//	                                 └ BPFNET-TO-network ┬ BPFNET-PUB-network    what is published
//	                                                     └ BPFNET-LINK-network   links, where icc is off
package iptables

import (
	"cmp"
	"errors"
	"fmt"
	gomaps "maps"
	"reflect"
	"slices"
	"strings"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/maps"
)

// Path is the datapath for one command.
type Path struct {
	host datapath.Host

	networks  kind[network]
	endpoints kind[endpoint]
	rules     kind[rule]
	pages     map[page]map[uint32]bool // of rules that this command has changed
	about     *meta
	before    meta // about, as it was

	full bool  // all rules are written anew
	was  *tool // of another flavour, until it is rid of its rules
}

var _ datapath.Datapath = (*Path)(nil)

// New touches nothing yet.
func New(h datapath.Host) *Path {
	p := &Path{host: h, pages: make(map[page]map[uint32]bool)}
	p.networks = newKind[network](p, keyNetworks)
	p.endpoints = newKind[endpoint](p, keyEndpoints)
	p.rules = newKind[rule](p, keyRules)
	return p
}

// Close has nothing to close.
func (p *Path) Close() error { return nil }

// Install finds the programs, and makes the kernel forward; the rules come with Flush.
func (p *Path) Install() error {
	m, err := p.meta()
	if err != nil {
		return err
	}
	*m = meta{}
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	if err := p.chooseFlavour(m); err != nil {
		return err
	}
	if err := p.checkPrograms(); err != nil {
		return err
	}
	if err := ns.Do(loadBridgeFilter); err != nil {
		return err
	}
	p.full = true
	p.host.Undo("rules", func() error {
		t, err := p.tool()
		if err != nil {
			return err
		}
		return t.purge()
	})
	return p.configure(m)
}

// Resume writes all rules anew, after whatever happened to them.
func (p *Path) Resume() error {
	m, err := p.meta()
	if err != nil {
		return err
	}
	if p.host.New() {
		m.Settings, m.Bridges, m.Router = nil, nil, false
	}
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	if err := ns.Do(loadBridgeFilter); err != nil {
		return err
	}
	p.full = true
	return p.Configure()
}

// Configure follows ip-forward, the flavour and the ports of masquerade.
func (p *Path) Configure() error {
	m, err := p.meta()
	if err != nil {
		return err
	}
	if err := p.chooseFlavour(m); err != nil {
		return err
	}
	if err := p.checkPrograms(); err != nil {
		return err
	}
	return p.configure(m)
}

func (p *Path) configure(m *meta) error {
	s, err := p.host.Settings()
	if err != nil {
		return err
	}
	if m.Pool = joinPool(s.Pool, s.PoolAsked); s.PoolAsked && len(s.Pool) > 1 {
		p.host.Warn("masquerade-ports: iptables takes one range, %s: the others are not used", m.Pool)
	}
	if len(s.LimitsAsked) > 0 {
		p.host.Warn("%s: kept for --datapath bpf, and not in force: conntrack has limits of its own, for the whole host (sysctl net.netfilter)",
			strings.Join(s.LimitsAsked, ", "))
	}
	return p.forward()
}

// chooseFlavour keeps the one that is in use, unless another is asked for.
func (p *Path) chooseFlavour(m *meta) error {
	s, err := p.host.Settings()
	if err != nil {
		return err
	}
	if m.Flavour != "" && (s.Flavour == "" || s.Flavour == m.Flavour) {
		return nil
	}
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	var found string
	err = ns.Do(func() (err error) {
		found, err = findFlavour(s.Flavour)
		return err
	})
	if err != nil {
		return err
	}
	if m.Flavour != "" && m.Flavour != found {
		p.was = &tool{ns, m.Flavour}
		p.host.Did("iptables: %s in the place of %s", found, m.Flavour)
	}
	m.Flavour, p.full = found, true
	return nil
}

func (p *Path) checkPrograms() error {
	t, err := p.tool()
	if err != nil {
		return err
	}
	for family := range families {
		for _, verb := range []string{"restore", "save"} {
			if _, err := t.path(family, verb); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Path) tool() (*tool, error) {
	m, err := p.meta()
	if err != nil {
		return nil, err
	}
	ns, err := p.host.Netns()
	if err != nil {
		return nil, err
	}
	return &tool{ns, m.Flavour}, nil
}

// Resize has nothing to do: netfilter's tables are the kernel's own.
func (p *Path) Resize() error { return nil }

// Refresh has nothing to do but a new uplink's router advertisements: rules name no uplink.
func (p *Path) Refresh() error { return p.forward() }

// RefreshAddrs has nothing to do: LOCAL is what the kernel says.
func (p *Path) RefreshAddrs() error { return nil }

// SetNetwork makes the rules of a network. They are in force before anything is on it.
func (p *Path) SetNetwork(number uint32, n maps.Network, device string) error {
	if strings.ContainsAny(device, "+\"'\\!") || strings.HasPrefix(device, "-") {
		return fmt.Errorf("bridge %s: iptables takes such a name for a pattern: choose another one", device)
	}
	had, err := p.networks.get(number)
	if err != nil {
		return err
	}
	if err := p.networks.set(number, &network{n, device}); err != nil {
		return err
	}
	if err := p.prepareBridge(n, device); err != nil {
		return err
	}
	if had == nil && !p.host.Reconciling() {
		return p.Flush()
	}
	return nil
}

// ClearNetwork forgets a network.
func (p *Path) ClearNetwork(number uint32, bridge int) error {
	n, err := p.networks.get(number)
	if err != nil || n == nil {
		return err
	}
	if err := p.restoreBridge(n.Device, bridge); err != nil {
		return err
	}
	return p.networks.set(number, nil)
}

// Bridge is the ifindex that SetNetwork was told.
func (p *Path) Bridge(number uint32) (ifindex int, ok bool, err error) {
	n, err := p.networks.get(number)
	if err != nil || n == nil {
		return 0, false, err
	}
	return n.Bridge, true, nil
}

// SetEndpoint keeps other networks and the world from its addresses.
func (p *Path) SetEndpoint(slot uint32, e maps.Endpoint, dev datapath.EndpointDevice) error {
	return p.endpoints.set(slot, &endpoint{e, dev.Name, dev.Bridge})
}

// ClearEndpoint forgets an endpoint.
func (p *Path) ClearEndpoint(slot, _ uint32) error { return p.endpoints.set(slot, nil) }

// ShutDevice has nothing to do: no engine's devices are carried.
func (p *Path) ShutDevice(int, string) error { return nil }

// DropDevice has nothing to do: no rule names the device.
func (p *Path) DropDevice(int) error { return nil }

// Keep forgets what belongs to nobody.
func (p *Path) Keep(w datapath.Wanted) error {
	err := p.endpoints.each(func(slot uint32, _ *endpoint) error {
		if w.Slots[slot] {
			return nil
		}
		p.host.Did("endpoint %d: cleared, nobody's", slot)
		return p.endpoints.set(slot, nil)
	})
	if err != nil {
		return err
	}
	return p.networks.each(func(number uint32, _ *network) error {
		if w.Networks[number] {
			return nil
		}
		p.host.Did("network %d: cleared, nobody's", number)
		return p.networks.set(number, nil)
	})
}

// Tables are the model's.
func (p *Path) Tables() (*datapath.Tables, error) {
	return &datapath.Tables{Rules: (*ruleTable)(p), Ports: (*portTable)(p), Links: (*linkTable)(p)}, nil
}

// Flush writes the rules of what has changed, and what was told into the store.
func (p *Path) Flush() error {
	m, err := p.meta()
	if err != nil {
		return err
	}
	if m.Flavour == "" {
		return nil // Remove was here
	}
	if p.was != nil {
		if err := p.was.purge(); err != nil {
			return err
		}
		p.was = nil
	}
	if err := p.write(); err != nil {
		return err
	}
	if err := errors.Join(p.networks.write(), p.endpoints.write(), p.rules.write(), p.writePages()); err != nil {
		return err
	}
	if !reflect.DeepEqual(*m, p.before) {
		if err := p.host.Records().Put(keyHost, m); err != nil {
			return err
		}
	}
	p.networks.settle()
	p.endpoints.settle()
	p.rules.settle()
	p.before, p.full = clone(*m), false
	return nil
}

// Remove takes our chains away, those of the administrator's excepted if they have rules, and
// puts back the host's settings.
func (p *Path) Remove() error {
	m, err := p.meta()
	if err != nil {
		return err
	}
	if m.Flavour != "" {
		t, err := p.tool()
		if err != nil {
			return err
		}
		if err := errors.Join(t.purge(), p.unforward()); err != nil {
			return err
		}
	}
	if err := errors.Join(p.unhairpin(), p.restoreBridges()); err != nil {
		return err
	}
	var keys []string
	err = p.host.Records().Each("", func(key string, _ func(any) error) error {
		keys = append(keys, key)
		return nil
	})
	for _, key := range keys {
		err = errors.Join(err, p.host.Records().Delete(key))
	}
	*p = *New(p.host)
	p.about = &meta{}
	return err
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(gomaps.Keys(m)) }
