// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/bpfnet/bpfnet/control"
)

// What inspect prints of a container: Docker's names where Docker has them.
type containerInspect struct {
	ID              string          `json:"Id"`
	Created         string          `json:"Created"`
	Path            string          `json:"Path"`
	Args            []string        `json:"Args"`
	State           stateInspect    `json:"State"`
	Name            string          `json:"Name"` // "/web"
	ResolvConfPath  string          `json:"ResolvConfPath"`
	HostnamePath    string          `json:"HostnamePath"`
	HostsPath       string          `json:"HostsPath"`
	LogPath         string          `json:"LogPath"`
	Attached        bool            `json:"Attached"` // somebody else's namespace
	HostConfig      hostInspect     `json:"HostConfig"`
	Config          configInspect   `json:"Config"`
	NetworkSettings settingsInspect `json:"NetworkSettings"`
}

type stateInspect struct {
	Status     string `json:"Status"`
	Running    bool   `json:"Running"`
	Pid        int    `json:"Pid"`
	ExitCode   int    `json:"ExitCode"`
	StartedAt  string `json:"StartedAt"`
	FinishedAt string `json:"FinishedAt"`
}

type hostInspect struct {
	NetworkMode     string               `json:"NetworkMode"`
	PortBindings    map[string][]binding `json:"PortBindings"`
	Publish         []string             `json:"Publish"` // as asked for
	PublishAllPorts bool                 `json:"PublishAllPorts"`
	AutoRemove      bool                 `json:"AutoRemove"`
	Links           []string             `json:"Links"` // "/target:/web/alias"
	DNS             []string             `json:"Dns"`
	DNSOptions      []string             `json:"DnsOptions"`
	DNSSearch       []string             `json:"DnsSearch"`
	ExtraHosts      []string             `json:"ExtraHosts"`
	Rootfs          string               `json:"Rootfs"`
}

type configInspect struct {
	Hostname     string              `json:"Hostname"`
	Tty          bool                `json:"Tty"`
	Env          []string            `json:"Env"`
	Cmd          []string            `json:"Cmd"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts"`
}

type settingsInspect struct {
	SandboxID  string               `json:"SandboxID"` // device:inode of the namespace
	SandboxKey string               `json:"SandboxKey"`
	Ports      map[string][]binding `json:"Ports"` // null: exposed, not published
	// Of the endpoint with the default route, as Docker has them for its bridge.
	IPAddress           string                     `json:"IPAddress"`
	IPPrefixLen         int                        `json:"IPPrefixLen"`
	Gateway             string                     `json:"Gateway"`
	GlobalIPv6Address   string                     `json:"GlobalIPv6Address"`
	GlobalIPv6PrefixLen int                        `json:"GlobalIPv6PrefixLen"`
	IPv6Gateway         string                     `json:"IPv6Gateway"`
	MacAddress          string                     `json:"MacAddress"`
	Networks            map[string]endpointInspect `json:"Networks"`
}

type endpointInspect struct {
	IPAMConfig          ipamInspect `json:"IPAMConfig"`
	Links               []string    `json:"Links"`
	Aliases             []string    `json:"Aliases"`
	MacAddress          string      `json:"MacAddress"`
	NetworkID           string      `json:"NetworkID"`
	EndpointID          string      `json:"EndpointID"`
	Gateway             string      `json:"Gateway"`
	IPAddress           string      `json:"IPAddress"`
	IPPrefixLen         int         `json:"IPPrefixLen"`
	IPv6Gateway         string      `json:"IPv6Gateway"`
	GlobalIPv6Address   string      `json:"GlobalIPv6Address"`
	GlobalIPv6PrefixLen int         `json:"GlobalIPv6PrefixLen"`
	Interface           string      `json:"Interface"`
	HostInterface       string      `json:"HostInterface"`
	DefaultRoute        bool        `json:"DefaultRoute"`
}

type ipamInspect struct {
	IPv4Address string `json:"IPv4Address,omitempty"`
	IPv6Address string `json:"IPv6Address,omitempty"`
}

func containerView(m *control.Manager, c *control.Container) (*containerInspect, error) {
	networks, err := m.Networks()
	if err != nil {
		return nil, err
	}
	pubs, err := m.Publications(c.ID)
	if err != nil {
		return nil, err
	}
	return inspectContainer(c, pubs, networks, m.ContainerDir(c.ID)), nil
}

func inspectContainer(c *control.Container, pubs []control.Publication, networks []*control.Network, dir string) *containerInspect {
	running := c.State == control.StateRunning
	v := &containerInspect{
		ID: c.ID, Created: stamp(c.Created), Name: "/" + c.Name, Attached: c.Attached, Args: []string{},
		ResolvConfPath: dir + "/resolv.conf", HostnamePath: dir + "/hostname", HostsPath: dir + "/hosts", LogPath: dir + "/" + logName,
		State: stateInspect{
			Status: c.State, Running: running, ExitCode: c.ExitCode,
			StartedAt: stamp(c.Started), FinishedAt: stamp(c.Finished),
		},
		HostConfig: hostInspect{
			NetworkMode: c.Mode, PortBindings: map[string][]binding{}, Publish: list(c.Publish), PublishAllPorts: c.PublishAll,
			AutoRemove: c.AutoRemove, Links: []string{}, DNS: list(c.DNS), DNSOptions: list(c.DNSOptions),
			DNSSearch: list(c.DNSSearch), ExtraHosts: list(c.ExtraHosts), Rootfs: c.Rootfs,
		},
		Config: configInspect{
			Hostname: c.Hostname, Tty: c.TTY, Env: list(c.Env), Cmd: list(c.Args), ExposedPorts: map[string]struct{}{},
		},
		NetworkSettings: settingsInspect{
			SandboxID: c.NetnsID, SandboxKey: c.Netns,
			Ports: map[string][]binding{}, Networks: map[string]endpointInspect{},
		},
	}
	if running {
		v.State.Pid = c.PID
	}
	if len(c.Args) > 0 {
		v.Path, v.Args = c.Args[0], c.Args[1:]
	}
	for _, e := range unpublished(pubs, c.Exposed) {
		v.Config.ExposedPorts[e.String()] = struct{}{}
		v.NetworkSettings.Ports[e.String()] = nil
	}
	for _, b := range bindings(pubs) {
		port := b.Port
		b.Port = ""
		v.Config.ExposedPorts[port] = struct{}{}
		v.NetworkSettings.Ports[port] = append(v.NetworkSettings.Ports[port], b)
		v.HostConfig.PortBindings[port] = append(v.HostConfig.PortBindings[port], b)
	}
	for _, l := range c.Links {
		v.HostConfig.Links = append(v.HostConfig.Links, linkText(c, l))
	}
	v.networks(c, networks)
	return v
}

func (v *containerInspect) networks(c *control.Container, networks []*control.Network) {
	switch c.Mode {
	case control.ModeContainer:
		v.HostConfig.NetworkMode = "container:" + c.ModeTarget
	case control.ModeNetwork:
		v.HostConfig.NetworkMode = ""
	}
	byID := map[string]*control.Network{}
	for _, n := range networks {
		byID[n.ID] = n
	}
	for id, e := range c.Endpoints {
		name := shortID(id, false)
		n := byID[id]
		if n != nil {
			name = n.Name
		}
		ei := inspectEndpoint(c, e, n)
		v.NetworkSettings.Networks[name] = ei
		if e.Gateway || len(c.Endpoints) == 1 {
			s := &v.NetworkSettings
			s.IPAddress, s.IPPrefixLen, s.Gateway = ei.IPAddress, ei.IPPrefixLen, ei.Gateway
			s.GlobalIPv6Address, s.GlobalIPv6PrefixLen, s.IPv6Gateway = ei.GlobalIPv6Address, ei.GlobalIPv6PrefixLen, ei.IPv6Gateway
			s.MacAddress = ei.MacAddress
			v.HostConfig.NetworkMode = name
		}
		if v.HostConfig.NetworkMode == "" {
			v.HostConfig.NetworkMode = name
		}
	}
}

func inspectEndpoint(c *control.Container, e *control.Endpoint, n *control.Network) endpointInspect {
	v := endpointInspect{
		NetworkID: e.Network, EndpointID: fmt.Sprint(e.Slot), MacAddress: e.MAC, Aliases: list(e.Aliases), Links: []string{},
		Interface: e.IfName, HostInterface: e.HostIf, DefaultRoute: e.Gateway,
		IPAMConfig: ipamInspect{addrText(e.WantIPv4), addrText(e.WantIPv6)},
	}
	if e.IPv4.IsValid() {
		v.IPAddress, v.IPPrefixLen = e.IPv4.Addr().String(), e.IPv4.Bits()
	}
	if e.IPv6.IsValid() {
		v.GlobalIPv6Address, v.GlobalIPv6PrefixLen = e.IPv6.Addr().String(), e.IPv6.Bits()
	}
	for _, l := range e.Links {
		v.Links = append(v.Links, linkText(c, l))
	}
	if n == nil || n.Internal {
		return v
	}
	for _, s := range n.Subnets {
		router := s.Gateway
		if s.Router.IsValid() {
			router = s.Router
		}
		switch {
		case s.Prefix.Addr().Is4() && e.IPv4.IsValid():
			v.Gateway = addrText(router)
		case s.Prefix.Addr().Is6() && e.IPv6.IsValid():
			v.IPv6Gateway = addrText(router)
		}
	}
	return v
}

// What network inspect prints.
type networkInspect struct {
	Name          string                   `json:"Name"`
	ID            string                   `json:"Id"`
	Created       string                   `json:"Created"`
	Scope         string                   `json:"Scope"`
	Driver        string                   `json:"Driver"`
	EnableIPv4    bool                     `json:"EnableIPv4"`
	EnableIPv6    bool                     `json:"EnableIPv6"`
	IPAM          ipamConfigs              `json:"IPAM"`
	Internal      bool                     `json:"Internal"`
	Containers    map[string]memberInspect `json:"Containers"` // by ID
	Options       map[string]string        `json:"Options"`
	Labels        map[string]string        `json:"Labels"`
	ForeignBridge bool                     `json:"ForeignBridge"` // existed before bpfnet
}

type ipamConfigs struct {
	Driver string       `json:"Driver"`
	Config []ipamConfig `json:"Config"`
}

type ipamConfig struct {
	Subnet  string `json:"Subnet"`
	IPRange string `json:"IPRange,omitempty"`
	Gateway string `json:"Gateway,omitempty"`
}

type memberInspect struct {
	Name        string `json:"Name"`
	EndpointID  string `json:"EndpointID"`
	MacAddress  string `json:"MacAddress"`
	IPv4Address string `json:"IPv4Address"` // with the length
	IPv6Address string `json:"IPv6Address"`
}

func networkView(m *control.Manager, n *control.Network) (*networkInspect, error) {
	containers, err := m.Containers()
	if err != nil {
		return nil, err
	}
	return inspectNetwork(n, containers), nil
}

func inspectNetwork(n *control.Network, containers []*control.Container) *networkInspect {
	mode := "nat"
	if n.Routed {
		mode = "routed"
	}
	v := &networkInspect{
		Name: n.Name, ID: n.ID, Created: stamp(n.Created), Scope: "local", Driver: driver, Internal: n.Internal,
		IPAM: ipamConfigs{Driver: "default", Config: []ipamConfig{}}, Containers: map[string]memberInspect{},
		Labels: n.Labels, ForeignBridge: n.ForeignBridge,
		Options: map[string]string{
			optBridge: n.Bridge, optICC: fmt.Sprint(n.ICC), optMasquerade: fmt.Sprint(n.Masquerade), optMTU: fmt.Sprint(n.MTU),
			optGatewayMode4: mode, optGatewayMode6: mode,
			"bpfnet.isolate": fmt.Sprint(n.Isolate), "bpfnet.full_cone": fmt.Sprint(n.FullCone),
			"bpfnet.allow_dhcp_server": fmt.Sprint(n.AllowDHCPServer),
		},
	}
	if n.BindAddress != "" {
		v.Options[optBindAddress] = n.BindAddress
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	for _, s := range n.Subnets {
		if s.Prefix.Addr().Is6() {
			v.EnableIPv6 = true
		} else {
			v.EnableIPv4 = true
		}
		c := ipamConfig{Subnet: s.Prefix.String(), Gateway: addrText(s.Gateway)}
		if s.Range.IsValid() && s.Range != s.Prefix {
			c.IPRange = s.Range.String()
		}
		v.IPAM.Config = append(v.IPAM.Config, c)
	}
	for _, c := range containers {
		if e := c.Endpoints[n.ID]; e != nil && c.State == control.StateRunning {
			v.Containers[c.ID] = memberInspect{
				Name: c.Name, EndpointID: fmt.Sprint(e.Slot), MacAddress: e.MAC,
				IPv4Address: prefixText(e.IPv4), IPv6Address: prefixText(e.IPv6),
			}
		}
	}
	return v
}

func linkText(c *control.Container, l control.Link) string {
	return "/" + strings.TrimPrefix(l.Name, "/") + ":/" + c.Name + "/" + l.Alias
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) }

// list is never null in JSON.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}
