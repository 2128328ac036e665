// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
)

// cables are the names that the plugins bridge and ptp give their veths.
const cables = "^veth[0-9a-f]{8}$"

// Chained: another plugin of the list, bridge, ptp or macvlan, has made the interface and given
// the addresses, and its result comes with the call. The Manager adopts them as an engine's: it carries the
// packets and publishes the ports, and makes or deletes nothing.

// madeHere are settings of a network of our own making.
func (c *config) madeHere() (key string) {
	for key, set := range map[string]bool{
		"bridge": c.Bridge != "", "subnets": len(c.Subnets) > 0, "gateways": len(c.Gateways) > 0, "ranges": len(c.Ranges) > 0,
		"ipv6": c.IPv6, "mtu": c.MTU != 0, "internal": c.Internal, "ipam": c.ipam != "",
	} {
		if set {
			return key
		}
	}
	return ""
}

// networkID is the Manager's ID of a network that another plugin made.
func networkID(name string) string { return control.RuntimeID(runtime, "network "+name) }

// chain adopts what the plugins before made, and publishes.
func (c *call) chain() error {
	if key := c.conf.madeHere(); key != "" {
		return failure(types.ErrInvalidNetworkConfig, "%s: is the business of the plugin that made the interface; bpfnet follows it in the list", key)
	}
	prev, err := c.prevResult()
	if err != nil {
		return err
	}
	n, ep, err := c.found(prev)
	if err != nil {
		return err
	}
	ports, err := adoptedPorts(c.conf.asked.PortMappings)
	if err != nil {
		return err
	}
	ep.Aliases = c.want.aliases
	want, err := c.adopted(containerID(c.ContainerID), c.Netns)
	if err != nil {
		return err
	}
	if want == nil {
		want = &control.AdoptedContainer{ID: containerID(c.ContainerID), Name: c.names()[0], Netns: c.Netns}
	}
	before := *want
	if slices.ContainsFunc(want.Endpoints, func(e control.AdoptedEndpoint) bool { return e.Network == ep.Network }) {
		return failure(codeConflict, "container %s: is on network %s already", c.ContainerID, n.Name)
	}
	want.Netns = c.Netns
	want.Endpoints = append(slices.Clone(want.Endpoints), *ep)
	want.Ports = append(slices.Clone(want.Ports), ports...)
	if err := c.adopt1(*n, want); err != nil {
		return errors.Join(adoptError(err), c.restore(&before))
	}
	if err := types.PrintResult(prev, c.conf.CNIVersion); err != nil {
		return errors.Join(failure(types.ErrIOFailure, "result: %v", err), c.restore(&before))
	}
	return nil
}

func (c *call) adopt1(n control.AdoptedNetwork, want *control.AdoptedContainer) error {
	_, err := c.m.Adopt(control.Adopted{
		Engine: runtime, Held: c.conf.PortsHeld, Devices: cables, Networks: []control.AdoptedNetwork{n}, Containers: []control.AdoptedContainer{*want},
	})
	return err
}

// restore makes a container what it was before; one that was not there goes.
func (c *call) restore(before *control.AdoptedContainer) error {
	a := control.Adopted{Engine: runtime, Held: c.conf.PortsHeld, Devices: cables, Containers: []control.AdoptedContainer{*before}}
	if len(before.Endpoints) == 0 {
		a.Containers, a.Gone = nil, []string{before.ID}
	}
	_, err := c.m.Adopt(a)
	return err
}

// adoptError: what could not be adopted is in somebody's way, or is not as it was said.
func adoptError(err error) error {
	for _, known := range []error{control.ErrInvalid, control.ErrNotFound, control.ErrLocked, control.ErrNotRoot} {
		if errors.Is(err, known) {
			return asError(err)
		}
	}
	return failure(codeConflict, "%v", err)
}

// found reads the network and the container's end out of the result of the plugins before.
func (c *call) found(prev *current.Result) (*control.AdoptedNetwork, *control.AdoptedEndpoint, error) {
	bad := func(format string, a ...any) error {
		return failure(types.ErrInvalidNetworkConfig, "prevResult: "+format, a...)
	}
	n := &control.AdoptedNetwork{
		ID: networkID(c.conf.Name), Name: c.conf.Name,
		ICC: truth(c.conf.ICC), Masquerade: truth(c.conf.IPMasq), Isolate: truth(c.conf.Isolate),
	}
	devices, err := c.devices()
	if err != nil {
		return nil, nil, err
	}
	mine, ep := -1, &control.AdoptedEndpoint{Network: n.ID}
	for i, l := range prev.Interfaces {
		switch dev := devices[l.Name]; {
		case l.Sandbox == c.Netns && l.Name == c.IfName:
			mine, ep.MAC = i, l.Mac
		case l.Sandbox != "" || dev == nil:
		case dev.Type() == "bridge":
			n.Bridge, n.MTU = l.Name, dev.Attrs().MTU
		case dev.Type() == "veth" && n.Bridge == "":
			ep.Device, n.MTU = l.Name, dev.Attrs().MTU
		}
	}
	if mine < 0 {
		return nil, nil, bad("has no interface %s in %s", c.IfName, c.Netns)
	}
	if n.Bridge+ep.Device == "" {
		if err := c.parent(n, devices); err != nil {
			return nil, nil, err
		}
	}
	if n.Bridge+ep.Device+n.Parent == "" {
		return nil, nil, bad("names no bridge and no veth of the host's, and %s is no macvlan: bpfnet can follow the plugins bridge, ptp and macvlan", c.IfName)
	}
	if _, err := net.ParseMAC(ep.MAC); err != nil {
		return nil, nil, bad("interface %s: mac %.40q: no MAC address", c.IfName, ep.MAC)
	}
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface != mine {
			continue
		}
		p, ok := prefixOf(ip.Address)
		if !ok {
			return nil, nil, bad("address %s: not valid", ip.Address.String())
		}
		to := &ep.IPv4
		if p.Addr().Is6() {
			to = &ep.IPv6
		}
		if to.IsValid() {
			return nil, nil, bad("addresses %s and %s: one of a family at most", *to, p)
		}
		*to = p
		s := control.Subnet{Prefix: p.Masked()}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok {
			s.Gateway = gw.Unmap()
		}
		n.Subnets = append(n.Subnets, s)
	}
	if !ep.IPv4.IsValid() {
		return nil, nil, bad("interface %s: has no IPv4 address", c.IfName)
	}
	slices.SortFunc(n.Subnets, func(a, b control.Subnet) int { return a.Prefix.Addr().BitLen() - b.Prefix.Addr().BitLen() })
	return n, ep, nil
}

func truth(b *bool) bool { return b == nil || *b }

// parent finds the device of the host whose macvlan the container's interface is.
func (c *call) parent(n *control.AdoptedNetwork, devices map[string]netlink.Link) error {
	ns, err := netns.Open(c.Netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(c.IfName)
	if err != nil {
		return failure(types.ErrInvalidNetworkConfig, "interface %s: %v", c.IfName, err)
	}
	for name, dev := range devices {
		if l.Type() == "macvlan" && dev.Attrs().Index == l.Attrs().ParentIndex {
			n.Parent, n.MTU = name, l.Attrs().MTU
		}
	}
	return nil
}

// devices are those of the runtime's namespace, where the plugins before have worked.
func (c *call) devices() (map[string]netlink.Link, error) {
	ns, err := netns.Current()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	h, err := ns.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	found := make(map[string]netlink.Link)
	for _, l := range links {
		found[l.Attrs().Name] = l
	}
	return found, nil
}

// adoptedPorts are port mappings as an engine's: on all addresses where none is named.
func adoptedPorts(list []portMapping) ([]control.AdoptedPort, error) {
	list, err := checked(list)
	var out []control.AdoptedPort
	for _, m := range list {
		addrs := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
		if m.HostIP != "" {
			addrs = []netip.Addr{netip.MustParseAddr(m.HostIP)}
		}
		for _, a := range addrs {
			out = append(out, control.AdoptedPort{Proto: m.Protocol, HostIP: a, HostPort: uint16(m.HostPort), Port: uint16(m.ContainerPort)})
		}
	}
	return out, err
}

// adopted is a container as it is adopted now; nil when it is not. One with another
// namespace than the one that is given is of an earlier life.
func (c *call) adopted(id, netns string) (*control.AdoptedContainer, error) {
	have, err := c.m.Container(id)
	if errors.Is(err, control.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if have.Engine != runtime || have.State != control.StateRunning || netns != "" && have.Netns != netns {
		return nil, nil
	}
	want := &control.AdoptedContainer{
		ID: have.ID, Name: strings.TrimSuffix(strings.TrimPrefix(have.Name, runtime+"/"), "."+have.ID[:12]), Netns: have.Netns, Hostname: have.Hostname, Created: have.Created, Started: have.Started,
	}
	for _, ep := range have.Endpoints {
		want.Endpoints = append(want.Endpoints, control.AdoptedEndpoint{
			Network: ep.Network, Device: ep.HostIf, MAC: ep.MAC, IPv4: ep.IPv4, IPv6: ep.IPv6, Aliases: ep.Aliases, Gateway: ep.Gateway,
		})
	}
	list, err := c.m.Publications(have.ID)
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		for i := range uint16(p.Count) {
			want.Ports = append(want.Ports, control.AdoptedPort{Proto: p.Proto, HostIP: p.HostIP, HostPort: p.HostPort + i, Port: p.Port + i})
		}
	}
	return want, nil
}

// unchain ends what chain made of an interface; done says whether there was such a thing.
func (c *call) unchain(id, network, ifName string) (done bool, err error) {
	have, err := c.m.Container(id)
	if errors.Is(err, control.ErrNotFound) {
		return false, nil
	}
	if err != nil || have.Engine != runtime {
		return false, err
	}
	ep := have.Endpoints[networkID(network)]
	if ep == nil || ep.Interface() != ifName {
		return true, nil
	}
	a := control.Adopted{Engine: runtime, Held: have.Held, Devices: cables}
	if len(have.Endpoints) == 1 || have.State != control.StateRunning {
		a.Gone = []string{id}
	} else {
		want, err := c.adopted(id, "")
		if err != nil || want == nil {
			return true, err
		}
		want.Endpoints = slices.DeleteFunc(want.Endpoints, func(e control.AdoptedEndpoint) bool { return e.Network == ep.Network })
		a.Containers = []control.AdoptedContainer{*want}
	}
	_, err = c.m.Adopt(a)
	return true, err
}
