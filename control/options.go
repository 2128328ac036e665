// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net"
	"slices"
	"strings"
)

// check finds what is wrong with the options without looking at the host.
func (opts *ContainerOptions) check() error {
	if opts.ID != "" {
		if err := checkID(opts.ID); err != nil {
			return err
		}
	}
	if opts.Name != "" {
		if err := checkName("container", strings.TrimPrefix(opts.Name, "/")); err != nil {
			return err
		}
	}
	if opts.Hostname != "" {
		if err := checkHostname(opts.Hostname); err != nil {
			return err
		}
	}
	for _, h := range opts.AddHosts {
		if _, _, err := parseAddHost(h); err != nil {
			return err
		}
	}
	for _, s := range opts.DNS {
		if err := checkDNS(s); err != nil {
			return err
		}
	}
	if err := checkWords("dns-search", opts.DNSSearch); err != nil {
		return err
	}
	if err := checkWords("dns-option", opts.DNSOptions); err != nil {
		return err
	}
	if _, err := parseSpecs(opts.Publish); err != nil {
		return err
	}
	if _, err := parseExposed(opts.Expose); err != nil {
		return fmt.Errorf("expose: %w", err)
	}
	for _, l := range slices.Concat(opts.Links, opts.Endpoint.Links) {
		if _, _, err := parseLink(l); err != nil {
			return err
		}
	}
	if err := opts.Endpoint.check(); err != nil {
		return err
	}
	return opts.checkMode()
}

// checkMode refuses, as Docker does, what makes no sense without a namespace of one's own.
func (opts *ContainerOptions) checkMode() error {
	shared := strings.HasPrefix(opts.Network, ModeContainer+":")
	switch {
	case opts.Network == ModeHost || shared:
		if opts.Attach != "" {
			return invalid("conflicting options: a namespace that exists and --net %s", opts.Network)
		}
		if len(opts.Links) > 0 {
			if shared {
				return invalid("conflicting options: container type network can't be used with links. This would result in undefined behavior")
			}
			return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
	case opts.Network == ModeNone && len(opts.Links) > 0:
		return invalid("conflicting options: --net none can't be used with links")
	}
	if ep := &opts.Endpoint; shared || opts.Network == ModeHost || opts.Network == ModeNone {
		for _, x := range []struct {
			flag  string
			given bool
		}{
			{"ip", ep.IPv4.IsValid()}, {"ip6", ep.IPv6.IsValid()}, {"mac-address", ep.MAC != "" && !shared},
			{"network-alias", len(ep.Aliases) > 0}, {"ifname", ep.IfName != ""},
		} {
			if x.given {
				return invalid("conflicting options: --%s and --net %s, which has no interface of its own on a network", x.flag, opts.Network)
			}
		}
	}
	if !shared {
		return nil
	}
	switch {
	case len(opts.Publish) > 0 || opts.PublishAll:
		return invalid("conflicting options: port publishing and the container type network mode")
	case len(opts.Expose) > 0:
		return invalid("conflicting options: port exposing and the container type network mode")
	case opts.Hostname != "":
		return invalid("conflicting options: hostname and the network mode")
	case len(opts.DNS) > 0:
		return invalid("conflicting options: dns and the network mode")
	case len(opts.AddHosts) > 0:
		return invalid("conflicting options: custom host-to-IP mapping and the network mode")
	case opts.Endpoint.MAC != "":
		return invalid("conflicting options: mac-address and the network mode")
	}
	return nil
}

func (e *EndpointOptions) check() error {
	if e.MAC != "" {
		mac, err := net.ParseMAC(e.MAC)
		if err != nil || len(mac) != 6 {
			return invalid("mac-address %q: not valid", e.MAC)
		}
		if mac[0]&1 != 0 || slices.Equal(mac, make([]byte, 6)) {
			return invalid("mac-address %q: not of a single device", e.MAC)
		}
		e.MAC = mac.String()
	}
	if e.IPv4.IsValid() && !e.IPv4.Is4() {
		return invalid("ip %s: not IPv4", e.IPv4)
	}
	if e.IPv6.IsValid() && (!e.IPv6.Is6() || e.IPv6.Is4In6() || e.IPv6.Zone() != "") {
		return invalid("ip6 %s: not IPv6", e.IPv6)
	}
	if e.IfName != "" && !validDevice(e.IfName) {
		return invalid("ifname %q: no device name", e.IfName)
	}
	for _, r := range e.Routes {
		if !r.To.IsValid() || r.To != r.To.Masked() || r.To.Bits() == 0 || r.To.Addr().BitLen() != r.Via.BitLen() || r.Via.Zone() != "" {
			return invalid("route %s via %s: not valid, or a default route", r.To, r.Via)
		}
	}
	for _, a := range e.Aliases {
		if !hostWordRule.MatchString(a) {
			return invalid("alias %q: letters, digits, -, _ and . only", a)
		}
	}
	return nil
}
