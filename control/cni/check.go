// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"net"
	"net/netip"
	"slices"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
)

// check compares what the runtime was told with the store, and that with the kernel.
func (p *plugin) check(args *skel.CmdArgs) error {
	c, err := p.begin(args)
	if err != nil {
		return err
	}
	defer c.m.Close()
	if err := c.checkNetns(); err != nil {
		return err
	}
	if len(c.conf.PrevResult) == 0 {
		return failure(types.ErrInvalidNetworkConfig, "prevResult: missing; CHECK compares with it")
	}
	prev, err := c.prevResult()
	if err != nil {
		return err
	}
	if err := c.delegateCheck(); err != nil {
		return err
	}
	a, err := c.attachment()
	if err != nil {
		return err
	}
	if err := c.compare(a.Endpoint, prev); err != nil {
		return err
	}
	if a.Container.Engine == "" { // else that is the business of who made it
		if err := c.inside(a.Endpoint); err != nil {
			return err
		}
	}
	if err := c.published(a); err != nil {
		return err
	}
	return c.hooks(a.Endpoint)
}

// published looks whether every port mapping leads to the container.
func (c *call) published(a *control.Attachment) error {
	want, err := checked(c.conf.asked.PortMappings)
	if err != nil || a.Endpoint.Internal || len(want) == 0 {
		return err
	}
	list, err := c.m.Publications(a.Container.ID)
	if err != nil {
		return err
	}
	for _, m := range want {
		if !slices.ContainsFunc(list, func(p control.Publication) bool {
			at := m.HostPort - int(p.HostPort)
			return p.Proto == m.Protocol && at >= 0 && at < int(p.Count) && int(p.Port)+at == m.ContainerPort &&
				(m.HostIP == "" || p.HostIP.String() == m.HostIP)
		}) {
			return failure(codeDiffers, "portMappings: %s: is not published", m.spec(1))
		}
	}
	return nil
}

func (c *call) prevResult() (*current.Result, error) {
	conf := &types.PluginConf{CNIVersion: c.conf.CNIVersion}
	err := json.Unmarshal(c.conf.PrevResult, &conf.RawPrevResult)
	if err == nil {
		err = version.ParsePrevResult(conf)
	}
	var r *current.Result
	if err == nil {
		r, err = current.NewResultFromResult(conf.PrevResult)
	}
	if err != nil {
		return nil, failure(types.ErrDecodingFailure, "prevResult: %v", err)
	}
	return r, nil
}

// attachment is what the store has of the call's interface.
func (c *call) attachment() (*control.Attachment, error) {
	list, err := c.attachments()
	if err != nil {
		return nil, err
	}
	id := containerID(c.ContainerID)
	i := slices.IndexFunc(list, func(a control.Attachment) bool {
		return a.Container.ID == id && a.Endpoint.Interface() == c.IfName
	})
	if i < 0 {
		return nil, failure(types.ErrUnknownContainer, "container %s: has no interface %s on network %s", c.ContainerID, c.IfName, c.conf.Name)
	}
	ns, err := netns.Open(c.Netns)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if a := &list[i]; a.Up && a.Container.NetnsID == ns.ID() {
		return a, nil
	}
	return nil, failure(codeDiffers, "container %s: was attached with another namespace than %s", c.ContainerID, c.Netns)
}

// compare holds the runtime's result against the store.
func (c *call) compare(ep *control.Endpoint, prev *current.Result) error {
	mine := -1
	for i, l := range prev.Interfaces {
		if l.Sandbox == c.Netns && l.Name == c.IfName {
			mine = i
			if mac, err := net.ParseMAC(l.Mac); err == nil && mac.String() != ep.MAC {
				return failure(codeDiffers, "prevResult: interface %s: has MAC %s, not %s", l.Name, ep.MAC, mac)
			}
		}
	}
	if mine < 0 {
		return failure(codeDiffers, "prevResult: has no interface %s in %s", c.IfName, c.Netns)
	}
	var said []netip.Prefix
	for _, ip := range prev.IPs {
		if ip.Interface != nil && *ip.Interface != mine {
			continue
		}
		p, ok := prefixOf(ip.Address)
		if !ok || p != ep.IPv4 && p != ep.IPv6 {
			return failure(codeDiffers, "prevResult: address %s: is not the interface's", ip.Address.String())
		}
		said = append(said, p)
	}
	for _, p := range addresses(ep) {
		if !slices.Contains(said, p) {
			return failure(codeDiffers, "prevResult: does not have the interface's address %s", p)
		}
	}
	return nil
}

// inside looks at the container's namespace.
func (c *call) inside(ep *control.Endpoint) error {
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
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return failure(codeDiffers, "interface %s: is not in %s", c.IfName, c.Netns)
	}
	if err != nil {
		return err
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		return failure(codeDiffers, "interface %s: is down", c.IfName)
	}
	if is := l.Attrs().HardwareAddr.String(); is != ep.MAC {
		return failure(codeDiffers, "interface %s: has MAC %s, not %s", c.IfName, is, ep.MAC)
	}
	has, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, p := range addresses(ep) {
		if !slices.ContainsFunc(has, func(a netlink.Addr) bool { is, ok := prefixOf(*a.IPNet); return ok && is == p }) {
			return failure(codeDiffers, "interface %s: does not have %s", c.IfName, p)
		}
	}
	want := ep.Routes
	if ep.Gateway {
		want = append(slices.Clone(want), control.Route{To: everything(ep.IPv4.Addr())})
	}
	routes, err := h.RouteList(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, r := range want {
		if !slices.ContainsFunc(routes, func(is netlink.Route) bool { return sameRoute(&is, r) }) {
			return failure(codeDiffers, "interface %s: there is no route to %s by it", c.IfName, r.To)
		}
	}
	return nil
}

func sameRoute(is *netlink.Route, want control.Route) bool {
	gw, _ := netip.AddrFromSlice(is.Gw)
	if want.Via.IsValid() && gw.Unmap() != want.Via {
		return false
	}
	if is.Dst == nil {
		return want.To.Bits() == 0
	}
	to, ok := prefixOf(*is.Dst)
	return ok && to == want.To
}

// hooks looks whether the interface's programs are where they belong.
func (c *call) hooks(ep *control.Endpoint) error {
	s, err := c.m.Status()
	if err != nil {
		return err
	}
	seen := false
	for _, h := range s.Hooks {
		if h.Device != ep.HostIf {
			continue
		}
		if seen = true; !h.OK {
			return failure(codeDiffers, "device %s: program %s is missing: bpfnet reconcile puts it back", h.Device, h.Program)
		}
	}
	if !seen && s.Datapath == control.DatapathBPF {
		return failure(codeDiffers, "device %s: has no programs: bpfnet reconcile puts them back", ep.HostIf)
	}
	return nil
}

func addresses(ep *control.Endpoint) (list []netip.Prefix) {
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if p.IsValid() {
			list = append(list, p)
		}
	}
	return list
}

// status says whether an ADD could be served.
func (p *plugin) status(args *skel.CmdArgs) error {
	c, err := p.begin(args)
	if err != nil {
		return err
	}
	defer c.m.Close()
	if err := control.CheckNetwork(c.conf.network()); err != nil {
		return err
	}
	if err := c.m.Ready(); err != nil {
		return failure(types.ErrPluginNotAvailable, "%v", err)
	}
	return c.delegateStatus()
}
