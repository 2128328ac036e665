// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// Rules are what may allow a flow, numbered: those below MaxNetworks are
// networks (see Networks), the others publications and links. A change of a
// rule makes the programs judge its flows again.
type Rules struct {
	rules   ruleTable
	sources table[loader.BPFSourceKey, uint32]
}

// Publications and links have numbers from FirstRule to MaxRules-1.
const (
	FirstRule = MaxNetworks
	MaxRules  = uint32(loader.BPFLimitsRULE_HOST_PORTS)
)

// HostPortsChanged makes the programs judge again what containers send to the
// host: call it after a port was published or is published no more. Otherwise
// a container that already talks to the host's own service there would go on so.
func (r *Rules) HostPortsChanged() error {
	const num = uint32(loader.BPFLimitsRULE_HOST_PORTS)
	old, _, err := r.rules.get(num)
	if err != nil {
		return err
	}
	return r.rules.put(num, withGen(old, old.Gen+1))
}

// Publication leads a range of host ports to a container. Which addresses and
// ports lead to the publication is in Ports.
type Publication struct {
	Endpoint4 uint32         // slot of the server, reached by IPv4; 0: not in that family
	Endpoint6 uint32         // and by IPv6
	HostPort  uint16         // first of the range
	Port      uint16         // the container's, for HostPort
	Sources   []netip.Prefix // who may connect; empty: everybody
	Held      bool           // somebody else has sockets on the host ports: the bind guard leaves them alone
}

// SetPublication writes a publication; the same again changes nothing. One that
// does no more than gain or lose a family ends no flow of the other: those of a
// family that is lost end with the endpoint.
func (r *Rules) SetPublication(num uint32, p Publication) error {
	old, err := r.number(num)
	if err != nil {
		return err
	}
	want := make(map[loader.BPFSourceKey]bool)
	for _, source := range p.Sources {
		if !source.IsValid() {
			return fmt.Errorf("rule %d: prefix %s: not valid", num, source)
		}
		for _, part := range spread(source) {
			k, err := toPrefix(part)
			if err != nil {
				return fmt.Errorf("rule %d: %w", num, err)
			}
			want[loader.BPFSourceKey{Prefixlen: 32 + k.Prefixlen, Rule: num, Addr: k.Addr}] = true
		}
	}
	next := loader.BPFRule{
		Kind: uint8(loader.BPFRuleKindRULE_PUBLICATION), HostPort: p.HostPort, Port: p.Port,
		Endpoint4: p.Endpoint4, Endpoint6: p.Endpoint6,
	}
	if len(want) > 0 {
		next.Flags |= uint8(loader.BPFRuleFlagsRULE_SOURCES)
	}
	if p.Held {
		next.Flags |= uint8(loader.BPFRuleFlagsRULE_HELD)
	}
	have, err := r.sourcesOf(num, old)
	if err != nil {
		return err
	}
	sources := false // changed
	changed := old.Gen == 0 || next != withGen(old, 0)
	for k := range want {
		if have[k] {
			continue
		}
		changed, sources = true, true
		if err := r.sources.put(k, 1); err != nil {
			return err
		}
	}
	// While the sources are asked, those that lost their right go before the new
	// generation; where they are asked no more, after it.
	drop := func() error {
		for k := range have {
			if want[k] {
				continue
			}
			changed, sources = true, true
			if err := r.sources.del(k); err != nil {
				return err
			}
		}
		return nil
	}
	if len(want) > 0 {
		if err := drop(); err != nil {
			return err
		}
	}
	if changed {
		gen := old.Gen + 1
		if !sources && onlyFamilies(old, next) {
			gen = old.Gen
		}
		if err := r.rules.put(num, withGen(next, gen)); err != nil {
			return err
		}
	}
	if len(want) == 0 {
		return drop()
	}
	return nil
}

// Publication is what a rule says; ok is false when it is no publication.
func (r *Rules) Publication(num uint32) (p Publication, ok bool, err error) {
	w, err := r.number(num)
	if err != nil || w.Kind != uint8(loader.BPFRuleKindRULE_PUBLICATION) {
		return p, false, err
	}
	p = Publication{Endpoint4: w.Endpoint4, Endpoint6: w.Endpoint6, HostPort: w.HostPort, Port: w.Port,
		Held: w.Flags&uint8(loader.BPFRuleFlagsRULE_HELD) != 0}
	sources, err := r.sourcesOf(num, w)
	for k := range sources {
		p.Sources = append(p.Sources, fromPrefix(loader.BPFPrefix{Prefixlen: k.Prefixlen - 32, Addr: k.Addr}))
	}
	p.Sources = gather(p.Sources)
	return p, true, err
}

// SetLink makes a rule that link entries can name (see Links).
func (r *Rules) SetLink(num uint32) error {
	old, err := r.number(num)
	if err != nil || old.Kind == uint8(loader.BPFRuleKindRULE_LINK) {
		return err
	}
	return r.rules.put(num, loader.BPFRule{Gen: old.Gen + 1, Kind: uint8(loader.BPFRuleKindRULE_LINK)})
}

// LinkChanged makes the programs judge a link's flows again: call it after one of
// several entries that name the rule was deleted.
func (r *Rules) LinkChanged(num uint32) error {
	old, err := r.number(num)
	if err != nil || old.Kind != uint8(loader.BPFRuleKindRULE_LINK) {
		return err
	}
	return r.rules.put(num, withGen(old, old.Gen+1))
}

// Clear frees a rule, which ends its flows. The ports or links that name it go
// first (Ports.Unpublish, Links.Delete). Free is fine.
func (r *Rules) Clear(num uint32) error {
	old, err := r.number(num)
	if err != nil || old.Kind == uint8(loader.BPFRuleKindRULE_FREE) {
		return err
	}
	have, err := r.sourcesOf(num, old)
	if err != nil {
		return err
	}
	for k := range have {
		if err := r.sources.del(k); err != nil {
			return err
		}
	}
	return r.rules.put(num, loader.BPFRule{Gen: old.Gen + 1})
}

// List is the numbers of all publications and links.
func (r *Rules) List() (publications, links []uint32, err error) {
	err = r.rules.each(func(num uint32, w loader.BPFRule) error {
		switch loader.BPFRuleKind(w.Kind) {
		case loader.BPFRuleKindRULE_PUBLICATION:
			publications = append(publications, num)
		case loader.BPFRuleKindRULE_LINK:
			links = append(links, num)
		}
		return nil
	})
	return publications, links, err
}

// Gen is the generation of any rule, networks included.
func (r *Rules) Gen(num uint32) (uint32, error) {
	w, _, err := r.rules.get(num)
	return w.Gen, err
}

func (r *Rules) number(num uint32) (loader.BPFRule, error) {
	if num < FirstRule || num >= MaxRules {
		return loader.BPFRule{}, fmt.Errorf("rule %d: not %d to %d", num, FirstRule, MaxRules-1)
	}
	w, _, err := r.rules.get(num)
	return w, err
}

// sourcesOf reads the whole table only for a rule that has sources.
func (r *Rules) sourcesOf(num uint32, w loader.BPFRule) (map[loader.BPFSourceKey]bool, error) {
	have := make(map[loader.BPFSourceKey]bool)
	if w.Flags&uint8(loader.BPFRuleFlagsRULE_SOURCES) == 0 {
		return have, nil
	}
	err := r.sources.each(func(k loader.BPFSourceKey, _ uint32) error {
		if k.Rule == num {
			have[k] = true
		}
		return nil
	})
	return have, err
}

// onlyFamilies says whether the change from a to b is that a publication gained or
// lost a family, or is guarded or not: nobody's right to connect.
func onlyFamilies(a, b loader.BPFRule) bool {
	toggled := func(x, y uint32) bool { return x == y || x == 0 || y == 0 }
	if !toggled(a.Endpoint4, b.Endpoint4) || !toggled(a.Endpoint6, b.Endpoint6) {
		return false
	}
	const held = uint8(loader.BPFRuleFlagsRULE_HELD)
	b.Gen, b.Endpoint4, b.Endpoint6, b.Flags = a.Gen, a.Endpoint4, a.Endpoint6, b.Flags&^held|a.Flags&held
	return a == b
}

func withGen(w loader.BPFRule, gen uint32) loader.BPFRule {
	w.Gen = gen
	return w
}
