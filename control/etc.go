// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bpfnet/bpfnet/control/store"
)

// writeFiles makes the files of a container's /etc anew, when its network comes up.
func (o *op) writeFiles(c *Container) error {
	dir := o.m.ContainerDir(c.ID)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		o.undo.add(dir, func() error { return os.RemoveAll(dir) })
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o710); err != nil {
		return err
	}
	switch c.Mode {
	case ModeContainer:
		return o.shareFiles(c, dir)
	case ModeHost:
		return o.writeHostFiles(c, dir)
	}
	if err := o.writeFile(filepath.Join(dir, fileHostname), []byte(c.Hostname+"\n")); err != nil {
		return err
	}
	ipv6 := slices.ContainsFunc(endpointsOf(c), func(ep *Endpoint) bool { return ep.IPv6.IsValid() })
	conf := &o.host.Config
	resolv := resolvConf(hostResolvConf(), either(c.DNS, conf.DNS), either(c.DNSSearch, conf.DNSSearch), either(c.DNSOptions, conf.DNSOptions), ipv6)
	if err := o.writeFile(filepath.Join(dir, fileResolv), resolv); err != nil {
		return err
	}
	if err := store.Delete(o.tx, bucketHosts, c.ID); err != nil {
		return err
	}
	if err := o.writeFile(filepath.Join(dir, fileHosts), nil); err != nil {
		return err
	}
	return o.writeHosts(c)
}

func either(first, second []string) []string {
	if len(first) > 0 {
		return first
	}
	return second
}

// writeHosts brings our lines of a container's hosts file up to date and leaves
// all others alone.
func (o *op) writeHosts(c *Container) error {
	if c.Engine != "" {
		return nil // its engine does
	}
	entries, err := o.hostsEntries(c)
	if err != nil {
		return err
	}
	_, err = os.Stat("/proc/sys/net/ipv6")
	lines := hostsLines(entries, err == nil)
	before, _, err := store.Get[[]string](o.tx, bucketHosts, c.ID)
	if err != nil {
		return err
	}
	path := filepath.Join(o.m.ContainerDir(c.ID), fileHosts)
	current, err := readFile(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if slices.Equal(before, lines) && err == nil {
		return nil
	}
	if err := o.writeFile(path, mergeLines(current, before, lines)); err != nil {
		return err
	}
	return store.Put(o.tx, bucketHosts, c.ID, lines)
}

// hostsEntries are --add-host, links and own addresses, in Docker's order.
func (o *op) hostsEntries(c *Container) ([]hostsEntry, error) {
	list, err := o.extraHosts(c)
	if err != nil {
		return nil, err
	}
	links, err := o.linkEntries(c)
	if err != nil {
		return nil, err
	}
	list = append(list, links...)
	for _, ep := range endpointsOf(c) {
		for _, a := range []netip.Prefix{ep.IPv4, ep.IPv6} {
			if a.IsValid() {
				list = append(list, hostsEntry{a.Addr(), ownNames(c.Hostname)})
			}
		}
	}
	return list, nil
}

func (o *op) extraHosts(c *Container) ([]hostsEntry, error) {
	var list []hostsEntry
	for _, s := range c.ExtraHosts {
		host, ip, err := parseAddHost(s)
		if err != nil {
			return nil, err
		}
		if ip != hostGateway {
			list = append(list, hostsEntry{netip.MustParseAddr(ip), host})
			continue
		}
		eps := endpointsOf(c)
		if len(eps) == 0 {
			return nil, invalid("add-host %s: host-gateway needs a network", host)
		}
		n, err := networkByID(o.tx, eps[0].Network)
		if err != nil {
			return nil, err
		}
		for _, s := range n.Subnets {
			list = append(list, hostsEntry{s.Gateway, host})
		}
	}
	return list, nil
}

// shareFiles gives a container the files of the one whose namespace it shares:
// the same inodes, so that later changes show in both.
func (o *op) shareFiles(c *Container, dir string) error {
	from := o.m.ContainerDir(c.ModeTarget)
	for _, name := range []string{fileHosts, fileHostname, fileResolv} {
		path := filepath.Join(dir, name)
		if err := removeIfThere(path); err != nil {
			return err
		}
		if err := os.Link(filepath.Join(from, name), path); err != nil {
			return fmt.Errorf("%s: %w", name, errors.Unwrap(err))
		}
		o.undo.add(path, func() error { return removeIfThere(path) })
	}
	return nil
}

// writeHostFiles are copies of the host's own, as Docker makes them for --net host.
func (o *op) writeHostFiles(c *Container, dir string) error {
	hosts, err := os.ReadFile("/etc/hosts")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b strings.Builder
	b.Write(hosts)
	for _, s := range c.ExtraHosts {
		host, ip, err := parseAddHost(s)
		if err != nil {
			return err
		}
		if ip == hostGateway {
			ip = "127.0.0.1"
		}
		fmt.Fprintf(&b, "%s\t%s\n", ip, host)
	}
	resolv, _ := os.ReadFile("/etc/resolv.conf")
	if len(c.DNS)+len(c.DNSSearch)+len(c.DNSOptions) > 0 {
		resolv = resolvConf(resolv, c.DNS, c.DNSSearch, c.DNSOptions, true)
	}
	name := []byte(c.Hostname + "\n")
	for _, f := range []struct {
		name    string
		content []byte
	}{{fileHosts, []byte(b.String())}, {fileHostname, name}, {fileResolv, resolv}} {
		if err := o.writeFile(filepath.Join(dir, f.name), f.content); err != nil {
			return err
		}
	}
	return nil
}
