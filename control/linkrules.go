// SPDX-License-Identifier: Apache-2.0

package control

import (
	"slices"

	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// maxLinkPorts bounds the ports that one link opens: each is an entry of the links map.
const maxLinkPorts = 4096

// linkRecord is a link in force: its rules, one for each network that both are on.
type linkRecord struct {
	Rules []linkRule `json:"rules"`
}

type linkRule struct {
	Rule   uint32      `json:"rule"`
	Client uint32      `json:"client"` // slots
	Server uint32      `json:"server"`
	Ports  []protoPort `json:"ports"`
}

// linkable says whether links of a running client can be put in force now; only
// those that are asked for in this command have to be.
func (o *op) linkable(c *Container, links []Link) error {
	if err := o.targetsUp(c, links); err != nil {
		return err
	}
	for _, l := range links {
		t, err := containerByID(o.tx, l.Target)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(endpointsOf(c), func(ep *Endpoint) bool { return t.Endpoints[ep.Network] != nil }) {
			return conflict("cannot link to %s: it is on no network that %s is on", t.Name, c.Name)
		}
	}
	return nil
}

// targetsUp says whether the targets run, without which a client does not start.
func (o *op) targetsUp(c *Container, links []Link) error {
	for _, l := range links {
		t, err := containerByID(o.tx, l.Target)
		if err != nil {
			return err
		}
		if !o.up(t) {
			return conflict("Cannot link to a non running container: /%s AS /%s/%s", t.Name, c.Name, l.Alias)
		}
	}
	return nil
}

// raiseLinks puts all links of a client in force, or brings them up to date. One
// whose target does not run, or has no network in common with the client any more,
// rests, as Docker's do: it comes into force when that changes.
func (o *op) raiseLinks(c *Container) error {
	done := make(map[string]bool)
	for _, l := range allLinks(c) {
		if done[l.Target] {
			continue
		}
		done[l.Target] = true
		t, err := containerByID(o.tx, l.Target)
		if err != nil {
			return err
		}
		if !o.up(t) {
			continue
		}
		if err := o.raiseLink(c, t); err != nil {
			return err
		}
	}
	return nil
}

// raiseLink opens a client's way to one target, on every network that both are on;
// none is fine. What was open and stays keeps its rule, and with it its flows.
func (o *op) raiseLink(c, t *Container) error {
	exposed, err := o.exposedPorts(t)
	if err != nil {
		return err
	}
	if len(exposed) > maxLinkPorts {
		o.m.warn("link to %s: it exposes more than %d ports; the link opens the first of them only", t.Name, maxLinkPorts)
		exposed = exposed[:maxLinkPorts]
	}
	key := c.ID + "/" + t.ID
	old, _, err := store.Get[linkRecord](o.tx, bucketLinks, key)
	if err != nil {
		return err
	}
	var rec linkRecord
	for _, ep := range endpointsOf(c) {
		te := t.Endpoints[ep.Network]
		if te == nil || te.Slot == 0 || ep.Slot == 0 {
			continue
		}
		rec.Rules = append(rec.Rules, linkRule{Client: ep.Slot, Server: te.Slot, Ports: exposed})
	}
	if len(rec.Rules) == 0 {
		return o.dropLink(c.ID, t.ID)
	}
	for _, was := range old.Rules {
		if rec.find(was) < 0 {
			if err := o.endLink(was); err != nil {
				return err
			}
		}
	}
	for i := range rec.Rules {
		r := &rec.Rules[i]
		if j := old.find(*r); j >= 0 {
			r.Rule = old.Rules[j].Rule
			err = o.changeLink(old.Rules[j], *r)
		} else {
			err = o.newLink(r)
		}
		if err != nil {
			return err
		}
	}
	return store.Put(o.tx, bucketLinks, key, rec)
}

// find is the place of the rule between the same two endpoints; -1: none.
func (r linkRecord) find(as linkRule) int {
	return slices.IndexFunc(r.Rules, func(x linkRule) bool { return x.Client == as.Client && x.Server == as.Server })
}

func (o *op) newLink(r *linkRule) error {
	numbers, err := takeNumbers(o.tx, numRules, 1)
	if err != nil {
		return err
	}
	r.Rule = numbers[0]
	made := *r
	o.undo.add("link", func() error { return o.clearLink(made) })
	return o.setLink(made)
}

// changeLink gives a rule in force other ports; only a port that goes makes its
// flows be judged again.
func (o *op) changeLink(was, r linkRule) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	before := make(map[maps.Link]bool)
	for _, l := range was.entries() {
		before[l] = true
	}
	for _, l := range r.entries() {
		if !before[l] {
			o.undo.add("link", func() error { return t.Links.Delete(l) })
		}
		delete(before, l)
	}
	if err := o.setLink(r); err != nil || len(before) == 0 {
		return err
	}
	o.rebuild = true
	for l := range before {
		if err := t.Links.Delete(l); err != nil {
			return err
		}
	}
	return t.Rules.LinkChanged(r.Rule)
}

// endLink takes one rule out of force.
func (o *op) endLink(r linkRule) error {
	o.rebuild = true
	if err := o.clearLink(r); err != nil {
		return err
	}
	return giveNumbers(o.tx, numRules, r.Rule)
}

// dropLink takes a link out of force; none is fine.
func (o *op) dropLink(client, target string) error {
	return o.trimLink(client, target, func(linkRule) bool { return true })
}

// trimLink takes those rules of a link out of force that gone names; none is fine.
func (o *op) trimLink(client, target string, gone func(linkRule) bool) error {
	key := client + "/" + target
	rec, ok, err := store.Get[linkRecord](o.tx, bucketLinks, key)
	if err != nil || !ok {
		return err
	}
	var kept linkRecord
	for _, r := range rec.Rules {
		if !gone(r) {
			kept.Rules = append(kept.Rules, r)
			continue
		}
		if err := o.endLink(r); err != nil {
			return err
		}
	}
	switch len(kept.Rules) {
	case len(rec.Rules):
		return nil
	case 0:
		return store.Delete(o.tx, bucketLinks, key)
	default:
		return store.Put(o.tx, bucketLinks, key, kept)
	}
}

// forgetLink ends a link of c's that nothing asks for any more.
func (o *op) forgetLink(c *Container, target string) error {
	if linksTo(c, target) {
		return nil
	}
	if err := o.dropLink(c.ID, target); err != nil {
		return err
	}
	return store.Delete(o.tx, bucketLinkedBy, target+"/"+c.ID)
}

// lowerLinks takes everything from and to a container out of force.
func (o *op) lowerLinks(c *Container) error {
	return o.trimLinks(c, func(linkRule) bool { return true })
}

// lowerSlotLinks takes everything from and to one endpoint out of force.
func (o *op) lowerSlotLinks(c *Container, slot uint32) error {
	return o.trimLinks(c, func(r linkRule) bool { return r.Client == slot || r.Server == slot })
}

func (o *op) trimLinks(c *Container, gone func(linkRule) bool) error {
	for _, l := range allLinks(c) {
		if err := o.trimLink(c.ID, l.Target, gone); err != nil {
			return err
		}
	}
	clients, err := o.clientsOf(c.ID)
	if err != nil {
		return err
	}
	for _, client := range clients {
		if err := o.trimLink(client, c.ID, gone); err != nil {
			return err
		}
	}
	return nil
}
