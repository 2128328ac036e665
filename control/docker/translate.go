// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/bpfnet/bpfnet/control"
)

// Options of the Engine's bridge driver, and what they are when a network does not say.
const (
	optBridge   = "com.docker.network.bridge.name"
	optICC      = "com.docker.network.bridge.enable_icc"
	optMasq     = "com.docker.network.bridge.enable_ip_masquerade"
	optMTU      = "com.docker.network.driver.mtu"
	optMode4    = "com.docker.network.bridge.gateway_mode_ipv4"
	optMode6    = "com.docker.network.bridge.gateway_mode_ipv6"
	optBinding  = "com.docker.network.bridge.host_binding_ipv4"
	optDefault  = "com.docker.network.bridge.default_bridge"
	driver      = "bridge"
	modeNAT     = "nat"
	modeRouted  = "routed"
	modeNoGate  = "isolated"
	shortLength = 12 // of an ID in the name of a bridge
)

// networkOf is a network as we carry it; ok is false for what is none of the bridge
// driver's. What it asks for and does not get is a problem, a line each; in doubt it is
// more closed than with the Engine's own rules.
func networkOf(n *network.Network) (a control.AdoptedNetwork, problems []string, ok bool) {
	if n.Driver != driver || n.Scope != "local" || n.ConfigOnly || len(n.ID) < shortLength {
		return a, nil, false
	}
	problem := func(format string, args ...any) {
		problems = append(problems, "network "+n.Name+": "+fmt.Sprintf(format, args...))
	}
	flag := func(key string, or bool) bool {
		text, ok := n.Options[key]
		if !ok {
			return or
		}
		yes, err := strconv.ParseBool(text)
		if err != nil {
			problem("%s is %.40q: not true or false; taken for false", key, text)
		}
		return yes
	}
	a = control.AdoptedNetwork{
		ID: n.ID, Name: n.Name, Bridge: n.Options[optBridge], Created: n.Created,
		Internal: n.Internal, ICC: flag(optICC, true), Masquerade: flag(optMasq, true), Isolate: true,
		// Without iptables the Engine says no masquerade of it, and cannot have icc off.
		Default: flag(optDefault, false),
	}
	if a.Bridge == "" {
		a.Bridge = "br-" + n.ID[:shortLength]
	}
	if text := n.Options[optMTU]; text != "" {
		mtu, err := strconv.Atoi(text)
		if err != nil {
			problem("%s is %.40q: not a number; taken for 1500", optMTU, text)
		}
		a.MTU = mtu
	}
	for _, c := range n.IPAM.Config {
		v6 := c.Subnet.Addr().Is6()
		switch {
		case !c.Subnet.IsValid() || v6 && !n.EnableIPv6:
		case slices.ContainsFunc(a.Subnets, func(s control.Subnet) bool { return s.Prefix.Addr().Is6() == v6 }):
			problem("subnet %s: only the first of its family is carried", c.Subnet)
		default:
			a.Subnets = append(a.Subnets, control.Subnet{Prefix: c.Subnet.Masked(), Gateway: c.Gateway})
		}
	}
	// The Engine has those that were asked for first.
	slices.SortFunc(a.Subnets, func(x, y control.Subnet) int { return x.Prefix.Addr().BitLen() - y.Prefix.Addr().BitLen() })
	mode4, mode6 := n.Options[optMode4], n.Options[optMode6]
	for _, mode := range []string{mode4, mode6} {
		switch mode {
		case "", modeNAT, modeRouted, modeNoGate:
		default:
			problem("gateway mode %.40q: taken for nat", mode)
		}
	}
	has4 := slices.ContainsFunc(a.Subnets, func(s control.Subnet) bool { return s.Prefix.Addr().Is4() })
	has6 := slices.ContainsFunc(a.Subnets, func(s control.Subnet) bool { return s.Prefix.Addr().Is6() })
	routed4, routed6 := !has4 || mode4 == modeRouted, !has6 || mode6 == modeRouted
	switch {
	case a.Internal:
	case routed4 && routed6 && has4 || routed6 && has6 && !has4:
		a.Routed = true
	case has4 && mode4 == modeRouted || has6 && mode6 == modeRouted:
		problem("gateway mode routed: for one family only; taken for nat")
	}
	if mode4 == modeNoGate && has4 || mode6 == modeNoGate && has6 {
		a.Internal, a.Routed = true, false
	}
	return a, problems, true
}

// containerOf is a container as we carry it; ok is false for one that does not run, or has
// no endpoint on a network of the bridge driver's: those are let go. names finds the ID
// of a container by its name; "" when there is none.
func containerOf(c *container.InspectResponse, bridges map[string]bool, names func(string) string) (a control.AdoptedContainer, ok bool) {
	if c.State == nil || !c.State.Running || c.State.Pid <= 0 || c.NetworkSettings == nil || c.Config == nil {
		return a, false
	}
	a = control.AdoptedContainer{
		ID: c.ID, Name: strings.TrimPrefix(c.Name, "/"), Hostname: c.Config.Hostname,
		Netns: fmt.Sprintf("/proc/%d/ns/net", c.State.Pid), PID: c.State.Pid,
		Created: moment(c.Created), Started: moment(c.State.StartedAt),
		Args: append([]string{c.Path}, c.Args...),
	}
	a.Endpoints = endpointsOf(c.NetworkSettings.Networks, bridges)
	if len(a.Endpoints) == 0 {
		return a, false
	}
	for p, list := range c.NetworkSettings.Ports {
		for _, b := range list {
			port, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil {
				continue // not bound yet
			}
			ip := b.HostIP
			if !ip.IsValid() {
				ip = netip.IPv4Unspecified()
			}
			a.Ports = append(a.Ports, control.AdoptedPort{Proto: string(p.Proto()), HostIP: ip, HostPort: uint16(port), Port: p.Num()})
		}
	}
	for p := range c.Config.ExposedPorts {
		a.Exposed = append(a.Exposed, p.String())
	}
	slices.Sort(a.Exposed)
	if c.HostConfig != nil {
		a.Links = linksOf(c.HostConfig.Links, names)
	}
	return a, true
}

func endpointsOf(networks map[string]*network.EndpointSettings, bridges map[string]bool) (list []control.AdoptedEndpoint) {
	var first *network.EndpointSettings // for the way out, by the priorities given
	several := false
	for _, name := range sortedKeys(networks) {
		s := networks[name]
		if s == nil || s.EndpointID == "" || !bridges[s.NetworkID] || len(s.MacAddress) == 0 {
			continue
		}
		ep := control.AdoptedEndpoint{Network: s.NetworkID, MAC: s.MacAddress.String(), Aliases: s.Aliases}
		if s.IPAddress.IsValid() {
			ep.IPv4 = netip.PrefixFrom(s.IPAddress, s.IPPrefixLen)
		}
		if s.GlobalIPv6Address.IsValid() {
			ep.IPv6 = netip.PrefixFrom(s.GlobalIPv6Address, s.GlobalIPv6PrefixLen)
		}
		list = append(list, ep)
		if first == nil {
			first = s
		} else if s.GwPriority != first.GwPriority {
			several = true
			if s.GwPriority > first.GwPriority {
				first = s
			}
		}
	}
	for i := range list {
		list[i].Gateway = several && list[i].Network == first.NetworkID
	}
	return list
}

// ownBinding says whether a network binds ports to an address of its own.
func ownBinding(options map[string]string) bool {
	a := options[optBinding]
	return a != "" && a != "0.0.0.0"
}

// fixed is what is known of a container before it starts: the host ports that were asked
// for by number, on an address or on all.
func fixed(c *container.InspectResponse) control.AdoptedContainer {
	a := control.AdoptedContainer{ID: c.ID, Name: strings.TrimPrefix(c.Name, "/"), Created: moment(c.Created)}
	if c.HostConfig == nil || !c.HostConfig.NetworkMode.IsPrivate() {
		return a
	}
	for p, bindings := range c.HostConfig.PortBindings {
		for _, b := range bindings {
			port, err := strconv.ParseUint(b.HostPort, 10, 16)
			if err != nil || port == 0 {
				continue // any, or one of a range
			}
			addrs := []netip.Addr{b.HostIP}
			if !b.HostIP.IsValid() {
				addrs = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
			}
			for _, ip := range addrs {
				a.Ports = append(a.Ports, control.AdoptedPort{Proto: string(p.Proto()), HostIP: ip, HostPort: uint16(port), Port: p.Num()})
			}
		}
	}
	return a
}

// linksOf reads "/TARGET:/CLIENT/ALIAS".
func linksOf(links []string, names func(string) string) (list []control.Link) {
	for _, l := range links {
		target, alias, ok := strings.Cut(l, ":")
		target = strings.TrimPrefix(target, "/")
		if !ok || target == "" {
			continue
		}
		if id := names(target); id != "" {
			list = append(list, control.Link{Target: id, Name: target, Alias: alias[strings.LastIndex(alias, "/")+1:]})
		}
	}
	return list
}

// moment reads a time; zero when it is none.
func moment(text string) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, text)
	return t
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
