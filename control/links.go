// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"github.com/bpfnet/bpfnet/control/store"
)

// Link lets a container reach the exposed ports of another: target is
// NAME[:ALIAS]. Both run.
func (m *Manager) Link(ref, target string) error {
	if _, _, err := parseLink(target); err != nil {
		return err
	}
	return m.change(notFound("No such container: %s", ref), func(o *op) error {
		c, err := ownContainer(o, ref)
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
			if err := o.linkable(c, []Link{l}); err != nil {
				return err
			}
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
		c, err := ownContainer(o, ref)
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
		if err := o.forgetLink(c, gone); err != nil {
			return err
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
	t, err := ownContainer(o, name)
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
			if err := o.raiseLink(c, t); err != nil {
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
