// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

const procNet = "/proc/sys/net/"

// Settings of the host's that the kernel's forwarding needs.
const (
	forward4 = "ipv4/ip_forward"
	forward6 = "ipv6/conf/all/forwarding"
)

// changedBy are the settings that turning on forwarding changes beside itself, by what
// turns it on: net/ipv4/devinet.c, inet_forward_change; net/ipv6/addrconf.c, addrconf_fixup_forwarding.
var changedBy = map[string][]string{
	forward4: {"ipv4/conf/*/forwarding", "ipv4/conf/all/accept_redirects"},
	forward6: {"ipv6/conf/*/forwarding"},
}

// forward makes the kernel forward, and remembers how it was. What is not a container's
// is then not forwarded all the same (BPFNET-ROUTER), unless the host was a router before.
func (p *Path) forward() error {
	m, err := p.meta()
	if err != nil {
		return err
	}
	s, err := p.host.Settings()
	if err != nil || !s.Forward {
		return err
	}
	up, err := p.host.Uplinks()
	if err != nil {
		return err
	}
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	router := m.Router
	defer func() {
		if m.Router && !router {
			m.Foreign, _ = p.foreign()
		}
	}()
	return ns.Do(func() error {
		for key, others := range changedBy {
			on, err := readNet(key)
			if errors.Is(err, fs.ErrNotExist) { // no IPv6
				continue
			}
			if err != nil {
				return err
			}
			if key == forward6 {
				// A router takes no router advertisements, and would lose its own default route.
				for _, l := range up {
					if err := p.setting(m, "ipv6/conf/"+l.Name+"/accept_ra", "1", "2"); err != nil {
						return err
					}
				}
			}
			if on != "0" {
				continue
			}
			for _, pattern := range others {
				paths, _ := filepath.Glob(procNet + pattern)
				for _, path := range paths {
					if value, err := readNet(strings.TrimPrefix(path, procNet)); err == nil {
						m.remember(strings.TrimPrefix(path, procNet), value)
					}
				}
			}
			if err := p.setting(m, key, "0", "1"); err != nil {
				return err
			}
			m.Router = true
		}
		return nil
	})
}

func (m *meta) remember(key, value string) {
	if m.Settings == nil {
		m.Settings = make(map[string]string)
	}
	if _, known := m.Settings[key]; !known {
		m.Settings[key] = value
	}
}

// setting changes one that is was, and remembers that. It runs on a thread in the namespace.
func (p *Path) setting(m *meta, key, was, to string) error {
	value, err := readNet(key)
	if errors.Is(err, fs.ErrNotExist) || err == nil && value != was {
		return nil
	}
	if err == nil {
		err = os.WriteFile(procNet+key, []byte(to), 0)
	}
	if err != nil {
		return fmt.Errorf("setting net/%s: %w", key, err)
	}
	m.remember(key, value)
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	p.host.Undo(key, func() error {
		return ns.Do(func() error { return ignoreMissing(os.WriteFile(procNet+key, []byte(was), 0)) })
	})
	p.host.Did("setting net/%s: %s", key, to)
	return nil
}

// foreign counts others' rules for what the host forwards.
func (p *Path) foreign() (n int, err error) {
	t, err := p.tool()
	if err != nil {
		return 0, err
	}
	for family := range families {
		have, err := t.look(family)
		if err != nil {
			return 0, err
		}
		n += have.foreign
	}
	return n, nil
}

// unforward puts back what forward changed, where it still is as we left it. Forwarding stays on if
// somebody has made rules for it since: another engine finds it on, and does not say that it needs it.
func (p *Path) unforward() error {
	m, err := p.meta()
	if err != nil || len(m.Settings) == 0 {
		return err
	}
	ns, err := p.host.Netns()
	if err != nil {
		return err
	}
	if n, err := p.foreign(); m.Router && err == nil && n > m.Foreign {
		p.host.Warn("net.ipv4.ip_forward stays 1: rules that are not bpfnet's have come, and may need it")
		return nil
	}
	return ns.Do(func() error {
		var errs []error
		for key := range changedBy {
			was, changed := m.Settings[key]
			now, err := readNet(key)
			if !changed || err != nil || now == was {
				continue // somebody has turned it off since
			}
			errs = append(errs, os.WriteFile(procNet+key, []byte(was), 0))
		}
		for _, key := range sortedKeys(m.Settings) {
			if now, err := readNet(key); err == nil && now != m.Settings[key] {
				errs = append(errs, os.WriteFile(procNet+key, []byte(m.Settings[key]), 0))
			}
		}
		return errors.Join(errs...)
	})
}

func readNet(key string) (string, error) {
	raw, err := os.ReadFile(procNet + key)
	return strings.TrimSpace(string(raw)), err
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
