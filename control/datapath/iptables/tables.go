// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bpfnet/bpfnet/maps"
)

type ruleTable Path

func (t *ruleTable) edit(number uint32, fn func(r *rule)) error { return (*Path)(t).edit(number, fn) }

// edit changes a copy of a rule; one that says nothing any more is gone.
func (p *Path) edit(number uint32, fn func(r *rule)) error {
	now, err := p.rules.get(number)
	if err != nil {
		return err
	}
	var next rule
	if now != nil {
		next = *now
		next.Bindings, next.Links = slices.Clone(now.Bindings), slices.Clone(now.Links)
	}
	fn(&next)
	if next.Publication == nil && !next.Link && len(next.Bindings) == 0 && len(next.Links) == 0 {
		return p.rules.set(number, nil)
	}
	return p.rules.set(number, &next)
}

func (t *ruleTable) SetPublication(number uint32, pub maps.Publication) error {
	return t.edit(number, func(r *rule) { r.Publication = &pub })
}

func (t *ruleTable) Publication(number uint32) (pub maps.Publication, ok bool, err error) {
	r, err := (*Path)(t).rules.get(number)
	if err != nil || r == nil || r.Publication == nil {
		return pub, false, err
	}
	return *r.Publication, true, nil
}

// HostPortsChanged has nothing to do: Flush ends what went to the port before.
func (t *ruleTable) HostPortsChanged() error { return nil }

func (t *ruleTable) SetLink(number uint32) error {
	return t.edit(number, func(r *rule) { r.Link = true })
}

// LinkChanged has nothing to do: Flush ends what a link allowed.
func (t *ruleTable) LinkChanged(uint32) error { return nil }

func (t *ruleTable) Clear(number uint32) error {
	return t.edit(number, func(r *rule) { r.Publication, r.Link = nil, false })
}

func (t *ruleTable) List() (publications, links []uint32, err error) {
	err = (*Path)(t).rules.each(func(number uint32, r *rule) error {
		if r.Publication != nil {
			publications = append(publications, number)
		}
		if r.Link {
			links = append(links, number)
		}
		return nil
	})
	return publications, links, err
}

// page is 256 ports of a protocol: an index, so that publishing does not read what is there.
type page struct {
	proto maps.Proto
	high  uint8
}

func (g page) key(number uint32) string {
	return fmt.Sprintf("%s%d/%02x/%d", keyPages, g.proto, g.high, number)
}

func pagesOf(b maps.Binding) (list []page) {
	last := int(b.First) + b.Count - 1
	for high := int(b.First) >> 8; high <= min(last, 65535)>>8; high++ {
		list = append(list, page{b.Proto, uint8(high)})
	}
	return list
}

// writePages follows the rules that have changed.
func (p *Path) writePages() error {
	of := func(r *rule) map[page]bool {
		set := make(map[page]bool)
		if r != nil {
			for _, b := range r.Bindings {
				for _, g := range pagesOf(b) {
					set[g] = true
				}
			}
		}
		return set
	}
	for number, i := range p.rules.items {
		if !i.changed() {
			continue
		}
		was, now := of(i.was), of(i.now)
		for g := range now {
			if !was[g] {
				if err := p.host.Records().Put(g.key(number), true); err != nil {
					return err
				}
			}
		}
		for g := range was {
			if !now[g] {
				if err := p.host.Records().Delete(g.key(number)); err != nil {
					return err
				}
			}
		}
	}
	clear(p.pages)
	return nil
}

type portTable Path

// Publish is all or nothing.
func (t *portTable) Publish(list ...maps.Binding) error {
	for i, b := range list {
		port, taken, err := t.Conflict(b)
		if err == nil && taken {
			err = &maps.PublishedError{Binding: b, Port: port}
		}
		if err == nil {
			err = t.enter(b)
		}
		if err != nil {
			for _, done := range list[:i] {
				_ = t.Unpublish(done)
			}
			return err
		}
	}
	return nil
}

func (t *portTable) enter(b maps.Binding) error {
	for _, g := range pagesOf(b) {
		if t.pages[g] == nil {
			t.pages[g] = make(map[uint32]bool)
		}
		t.pages[g][b.Rule] = true
	}
	return (*Path)(t).edit(b.Rule, func(r *rule) {
		if !slices.Contains(r.Bindings, b) {
			r.Bindings = append(r.Bindings, b)
		}
	})
}

func (t *portTable) Unpublish(b maps.Binding) error {
	return (*Path)(t).edit(b.Rule, func(r *rule) {
		r.Bindings = slices.DeleteFunc(r.Bindings, func(x maps.Binding) bool { return x == b })
	})
}

// Conflict finds the first port that leads to another rule: all addresses of a family
// conflict with each single one of it.
func (t *portTable) Conflict(b maps.Binding) (port uint16, taken bool, err error) {
	p := (*Path)(t)
	seen := map[uint32]bool{b.Rule: true}
	first := 1 << 16
	look := func(number uint32) error {
		if seen[number] {
			return nil
		}
		seen[number] = true
		r, err := p.rules.get(number)
		if err != nil || r == nil {
			return err
		}
		for _, x := range r.Bindings {
			if overlap(x, b) {
				first = min(first, max(int(x.First), int(b.First)))
			}
		}
		return nil
	}
	for _, g := range pagesOf(b) {
		for number := range p.pages[g] {
			if err := look(number); err != nil {
				return 0, false, err
			}
		}
		prefix := strings.TrimSuffix(g.key(0), "0")
		err := p.host.Records().Each(prefix, func(key string, _ func(any) error) error {
			number, err := strconv.ParseUint(strings.TrimPrefix(key, prefix), 10, 32)
			if err != nil {
				return fmt.Errorf("record %s: %w", key, err)
			}
			return look(uint32(number))
		})
		if err != nil {
			return 0, false, err
		}
	}
	return uint16(first), first < 1<<16, nil
}

func overlap(a, b maps.Binding) bool {
	return a.Proto == b.Proto && a.Addr.Is4() == b.Addr.Is4() &&
		(a.Addr == b.Addr || a.Addr.IsUnspecified() || b.Addr.IsUnspecified()) &&
		int(a.First) < int(b.First)+b.Count && int(b.First) < int(a.First)+a.Count
}

func (t *portTable) List() (list []maps.Binding, err error) {
	err = (*Path)(t).rules.each(func(_ uint32, r *rule) error {
		list = append(list, r.Bindings...)
		return nil
	})
	return list, err
}

// Recount has nothing to do: nothing is counted.
func (t *portTable) Recount() error { return nil }

type linkTable Path

func (t *linkTable) Set(l maps.Link, number uint32) error {
	return (*Path)(t).edit(number, func(r *rule) {
		if !slices.Contains(r.Links, l) {
			r.Links = append(r.Links, l)
		}
	})
}

// Delete reads all rules only if this command has not seen the entry.
func (t *linkTable) Delete(l maps.Link) error {
	p := (*Path)(t)
	take := func(number uint32, r *rule) error {
		if r == nil || !slices.Contains(r.Links, l) {
			return nil
		}
		return p.edit(number, func(r *rule) {
			r.Links = slices.DeleteFunc(r.Links, func(x maps.Link) bool { return x == l })
		})
	}
	return p.rules.each(take)
}

func (t *linkTable) List() (map[maps.Link]uint32, error) {
	list := make(map[maps.Link]uint32)
	err := (*Path)(t).rules.each(func(number uint32, r *rule) error {
		for _, l := range r.Links {
			list[l] = number
		}
		return nil
	})
	return list, err
}

func slotAddr(e *endpoint, family int) netip.Addr {
	if e == nil {
		return netip.Addr{}
	}
	if family == v4 {
		return e.IPv4
	}
	return e.IPv6
}
