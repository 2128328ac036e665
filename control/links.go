// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/bpfnet/bpfnet/control/store"
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

// Link lets a container reach the exposed ports of another: target is
// NAME[:ALIAS]. Both run.
func (m *Manager) Link(ref, target string) error {
	if _, _, err := parseLink(target); err != nil {
		return err
	}
	return m.change(notFound("No such container: %s", ref), func(o *op) error {
		c, err := findContainer(o.tx, ref)
		if err != nil {
			return err
		}
		if c.Mode != ModeNetwork {
			return conflict("container %s: has no network of its own (%s)", c.Name, c.Mode)
		}
		l, err := o.resolveLink(c, target)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(c.Links, func(x Link) bool { return x.Target == l.Target && x.Alias == l.Alias }) {
			return nil
		}
		c.Links = append(c.Links, l)
		if o.up(c) {
			if err := o.raiseLinks(c); err != nil {
				return err
			}
			if err := o.writeHosts(c); err != nil {
				return err
			}
		}
		return o.putContainer(c)
	})
}

// Unlink ends a link; target is a name or ID, or NAME:ALIAS for one of several.
func (m *Manager) Unlink(ref, target string) error {
	name, alias, err := parseLink(target)
	if err != nil {
		return err
	}
	if !strings.Contains(target, ":") {
		alias = ""
	}
	return m.change(notFound("No such container: %s", ref), func(o *op) error {
		c, err := findContainer(o.tx, ref)
		if err != nil {
			return err
		}
		id := ""
		if t, err := findContainer(o.tx, name); err == nil {
			id = t.ID
		}
		drop := func(l Link) bool {
			return (l.Target == id || l.Name == name) && (alias == "" || l.Alias == alias)
		}
		i := slices.IndexFunc(c.Links, drop)
		if i < 0 {
			return notFound("container %s: no link to %s", c.Name, target)
		}
		gone := c.Links[i].Target
		c.Links = slices.DeleteFunc(c.Links, drop)
		o.rebuild = true
		if err := o.dropLink(c.ID, gone); err != nil {
			return err
		}
		if !linksTo(c, gone) {
			if err := store.Delete(o.tx, bucketLinkedBy, gone+"/"+c.ID); err != nil {
				return err
			}
		}
		if o.up(c) {
			if err := o.raiseLinks(c); err != nil {
				return err
			}
			if err := o.writeHosts(c); err != nil {
				return err
			}
		}
		return o.putContainer(c)
	})
}

func parseLink(s string) (name, alias string, err error) {
	name, alias, ok := strings.Cut(strings.TrimPrefix(s, "/"), ":")
	if !ok {
		alias = name
	}
	if name == "" || !hostWordRule.MatchString(name) || !hostWordRule.MatchString(alias) {
		return "", "", invalid("bad format for links: %q", s)
	}
	return name, alias, nil
}

// resolveLink finds the target and remembers who links to it.
func (o *op) resolveLink(c *Container, s string) (Link, error) {
	name, alias, err := parseLink(s)
	if err != nil {
		return Link{}, err
	}
	t, err := findContainer(o.tx, name)
	if err != nil {
		return Link{}, err
	}
	if t.ID == c.ID {
		return Link{}, invalid("container %s: cannot link to itself", c.Name)
	}
	if t.Mode != ModeNetwork {
		return Link{}, conflict("cannot link to %s, as it does not belong to a bridge network", t.Name)
	}
	return Link{Target: t.ID, Name: name, Alias: alias}, store.Put(o.tx, bucketLinkedBy, t.ID+"/"+c.ID, true)
}

func endpointLinks(c *Container) []Link {
	var list []Link
	for _, ep := range endpointsOf(c) {
		list = append(list, ep.Links...)
	}
	return list
}

func allLinks(c *Container) []Link { return slices.Concat(c.Links, endpointLinks(c)) }

func linksTo(c *Container, target string) bool {
	return slices.ContainsFunc(allLinks(c), func(l Link) bool { return l.Target == target })
}

// raiseLinks puts all links of a client in force, or brings them up to date.
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
			if o.reconciling {
				continue
			}
			return conflict("Cannot link to a non running container: /%s AS /%s/%s", t.Name, c.Name, l.Alias)
		}
		if err := o.raiseLink(c, t); err != nil {
			return err
		}
	}
	return nil
}

// raiseLink opens a client's way to one target, on every network that both are on.
func (o *op) raiseLink(c, t *Container) error {
	exposed, err := o.exposedPorts(t)
	if err != nil {
		return err
	}
	if len(exposed) > maxLinkPorts {
		o.m.warn("link to %s: it exposes more than %d ports; the link opens the first of them only", t.Name, maxLinkPorts)
		exposed = exposed[:maxLinkPorts]
	}
	old, _, err := store.Get[linkRecord](o.tx, bucketLinks, c.ID+"/"+t.ID)
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
		return conflict("cannot link to %s: it is on no network that %s is on", t.Name, c.Name)
	}
	if old.same(rec) {
		rec = old // the same again ends no flow
	} else {
		if err := o.dropLink(c.ID, t.ID); err != nil {
			return err
		}
		numbers, err := takeNumbers(o.tx, numRules, len(rec.Rules))
		if err != nil {
			return err
		}
		for i := range rec.Rules {
			rec.Rules[i].Rule = numbers[i]
		}
	}
	for _, r := range rec.Rules {
		if !old.same(rec) {
			o.undo.add("link to "+t.Name, func() error { return o.clearLink(r) })
		}
		if err := o.setLink(r); err != nil {
			return err
		}
	}
	return store.Put(o.tx, bucketLinks, c.ID+"/"+t.ID, rec)
}

// same says whether two records differ in nothing but the rules' numbers.
func (r linkRecord) same(other linkRecord) bool {
	return slices.EqualFunc(r.Rules, other.Rules, func(a, b linkRule) bool {
		return a.Client == b.Client && a.Server == b.Server && slices.Equal(a.Ports, b.Ports)
	})
}

// dropLink takes a link out of force; none is fine.
func (o *op) dropLink(client, target string) error {
	key := client + "/" + target
	rec, ok, err := store.Get[linkRecord](o.tx, bucketLinks, key)
	if err != nil || !ok {
		return err
	}
	o.rebuild = true
	for _, r := range rec.Rules {
		if err := o.clearLink(r); err != nil {
			return err
		}
		if err := giveNumbers(o.tx, numRules, r.Rule); err != nil {
			return err
		}
	}
	return store.Delete(o.tx, bucketLinks, key)
}

// lowerLinks takes everything from and to a container out of force.
func (o *op) lowerLinks(c *Container) error {
	for _, l := range allLinks(c) {
		if err := o.dropLink(c.ID, l.Target); err != nil {
			return err
		}
	}
	clients, err := o.clientsOf(c.ID)
	if err != nil {
		return err
	}
	for _, client := range clients {
		if err := o.dropLink(client, c.ID); err != nil {
			return err
		}
	}
	return nil
}

func (o *op) clientsOf(target string) ([]string, error) {
	var list []string
	err := store.EachPrefix(o.tx, bucketLinkedBy, target+"/", func(key string, _ bool) error {
		list = append(list, key[len(target)+1:])
		return nil
	})
	return list, err
}

// refreshClients makes links to a container, and their clients' files, follow
// what has changed of it.
func (o *op) refreshClients(t *Container) error {
	clients, err := o.clientsOf(t.ID)
	if err != nil {
		return err
	}
	for _, id := range clients {
		c, err := containerByID(o.tx, id)
		if err != nil {
			return err
		}
		if !o.up(c) || c.Mode != ModeNetwork {
			continue
		}
		if o.up(t) {
			if err := o.raiseLink(c, t); err != nil && !errors.Is(err, ErrConflict) {
				return err
			}
		}
		if err := o.writeHosts(c); err != nil {
			return err
		}
	}
	return nil
}

// forgetTarget ends the links of others to a container that is deleted.
func (o *op) forgetTarget(t *Container) error {
	clients, err := o.clientsOf(t.ID)
	if err != nil {
		return err
	}
	for _, id := range clients {
		if err := store.Delete(o.tx, bucketLinkedBy, t.ID+"/"+id); err != nil {
			return err
		}
		c, err := containerByID(o.tx, id)
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		gone := func(l Link) bool { return l.Target == t.ID }
		c.Links = slices.DeleteFunc(c.Links, gone)
		for _, ep := range c.Endpoints {
			ep.Links = slices.DeleteFunc(ep.Links, gone)
		}
		if o.up(c) {
			if err := o.writeHosts(c); err != nil {
				return err
			}
		}
		if err := o.putContainer(c); err != nil {
			return err
		}
	}
	return nil
}

// linkEntries are a client's lines for its links: "ADDRESS ALIAS HOSTNAME NAME".
func (o *op) linkEntries(c *Container) ([]hostsEntry, error) {
	var list []hostsEntry
	for _, l := range allLinks(c) {
		t, err := containerByID(o.tx, l.Target)
		if err != nil {
			return nil, err
		}
		names := l.Alias + " " + t.Hostname
		if l.Alias != t.Name {
			names += " " + t.Name
		}
		for _, ep := range endpointsOf(c) {
			te := t.Endpoints[ep.Network]
			if te == nil || te.Slot == 0 {
				continue
			}
			for _, a := range []netip.Prefix{te.IPv4, te.IPv6} {
				if a.IsValid() {
					list = append(list, hostsEntry{a.Addr(), names})
				}
			}
			break
		}
	}
	return list, nil
}
