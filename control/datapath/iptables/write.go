// SPDX-License-Identifier: Apache-2.0

package iptables

import "errors"

// write puts the rules of what has changed in force; all of them where something of ours is not
// as it was left.
func (p *Path) write() error {
	m, err := p.meta()
	if err != nil {
		return err
	}
	if err := p.countSources(m); err != nil {
		return err
	}
	if !p.full && !p.dirty() {
		return nil
	}
	t, err := p.tool()
	if err != nil {
		return err
	}
	was, now := view{p, true, &p.before}, view{p, false, m}
	for family := range families {
		done := false
		if !p.full {
			old, err := was.changed(family)
			if err != nil {
				return err
			}
			next, err := now.changed(family)
			if err != nil {
				return err
			}
			script, deletions := delta(old, next)
			done = script == ""
			if !done && deletions < manyDeletions {
				err = t.restore(family, script)
				if done = err == nil; done {
					p.host.Undo("rules of "+families[family], func() error {
						back, _ := delta(next, old)
						return t.restore(family, back)
					})
				}
			}
		}
		if done {
			continue
		}
		// Somebody's hand was in our chains, or much goes, or this is a reconcile.
		if err := p.writeAll(t, now, family); err != nil {
			return err
		}
	}
	return errors.Join(p.hairpins(), p.endFlows())
}

// writeAll makes the rules of a family those of the model, in one transaction.
func (p *Path) writeAll(t *tool, now view, family int) error {
	all, err := now.everything(family)
	if err != nil {
		return err
	}
	have, err := t.look(family)
	if err != nil {
		return err
	}
	if err := t.restore(family, whole(all, have)); err != nil || p.host.Reconciling() {
		return err
	}
	before, err := view{p, true, &p.before}.everything(family)
	if err != nil {
		return err
	}
	p.host.Undo("rules of "+families[family], func() error {
		have, err := t.look(family)
		if err != nil {
			return err
		}
		return t.restore(family, whole(before, have))
	})
	return nil
}

// dirty says whether rules may have to change.
func (p *Path) dirty() bool {
	return anyChanged(p.networks.items) || anyChanged(p.endpoints.items) || anyChanged(p.rules.items) || p.structural()
}

func anyChanged[T any](items map[uint32]*item[T]) bool {
	for _, i := range items {
		if i.changed() {
			return true
		}
	}
	return false
}

// structural says whether chains that are written as a whole change.
func (p *Path) structural() bool {
	return anyChanged(p.networks.items) || p.before.Router != p.about.Router || p.before.Pool != p.about.Pool || p.before.Sources > 0 != (p.about.Sources > 0)
}

// changed is the rules of what this command has changed.
func (v view) changed(family int) (*ruleset, error) {
	r := newRuleset()
	nets := anyChanged(v.p.networks.items)
	if v.p.structural() {
		if err := v.structure(r, family); err != nil {
			return nil, err
		}
	}
	if nets { // an endpoint is protected as its network says
		if err := v.p.endpoints.read(); err != nil {
			return nil, err
		}
	}
	for _, slot := range sortedKeys(v.p.endpoints.items) {
		i := v.p.endpoints.items[slot]
		if e := pick(v, i); e != nil && (nets || i.changed()) {
			if err := v.direct(r, family, e); err != nil {
				return nil, err
			}
		}
	}
	for _, number := range sortedKeys(v.p.rules.items) {
		i := v.p.rules.items[number]
		if x := pick(v, i); x != nil && i.changed() {
			if err := v.rule(r, family, number, x); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// everything is all rules.
func (v view) everything(family int) (*ruleset, error) {
	r := newRuleset()
	if err := v.structure(r, family); err != nil {
		return nil, err
	}
	if err := errors.Join(v.p.endpoints.read(), v.p.rules.read()); err != nil {
		return nil, err
	}
	for _, slot := range sortedKeys(v.p.endpoints.items) {
		if e := pick(v, v.p.endpoints.items[slot]); e != nil {
			if err := v.direct(r, family, e); err != nil {
				return nil, err
			}
		}
	}
	for _, number := range sortedKeys(v.p.rules.items) {
		if x := pick(v, v.p.rules.items[number]); x != nil {
			if err := v.rule(r, family, number, x); err != nil {
				return nil, err
			}
		}
	}
	return r, nil
}

// countSources keeps count of the publications with sources.
func (p *Path) countSources(m *meta) error {
	has := func(r *rule) int {
		if r != nil && r.Publication != nil && len(r.Publication.Sources) > 0 {
			return 1
		}
		return 0
	}
	if p.full {
		m.Sources = 0
		return p.rules.each(func(_ uint32, r *rule) error {
			m.Sources += has(r)
			return nil
		})
	}
	for _, i := range p.rules.items {
		m.Sources += has(i.now) - has(i.was)
	}
	return nil
}
