// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/link"
)

// Options names the host that a Manager works on. Empty: what the host's store
// remembers, else the defaults (/var/lib/bpfnet, /sys/fs/bpf/bpfnet, the
// caller's netns, the cgroup v2 mount).
type Options struct {
	Root     string
	BPFFS    string
	Netns    string // path; "" is the caller's
	Cgroup   string
	Datapath string // bpf or iptables
	Config   string // path of the configuration file

	// Warn gets lines for the user that are no errors; nil: nobody does.
	Warn func(line string)
}

// NetworkOptions are the flags of network create. Zero values are defaults.
type NetworkOptions struct {
	Name            string
	Subnets         []netip.Prefix
	Gateways        []netip.Addr
	Ranges          []netip.Prefix
	IPv6            bool
	Internal        bool
	ICC             *bool
	Masquerade      *bool
	Isolate         *bool
	Routed          bool
	FullCone        bool
	AllowDHCPServer bool
	MTU             int
	Bridge          string
	BindAddress     string
	Labels          map[string]string

	id, driver string // of a network of a driver's: see AddDriverNetwork
}

// EndpointOptions are the flags of network connect, and of run's --net.
type EndpointOptions struct {
	IPv4, IPv6 netip.Addr
	MAC        string
	IfName     string
	Aliases    []string
	Links      []string // NAME[:ALIAS]
	Runtime    string   // who asked for it, if not the user: cni, netavark
	Routes     []Route  // beside the default route
}

// Route is a way of a container's, by an address of a network that it is on.
type Route = link.StaticRoute

// ContainerOptions are the network flags of run and attach.
type ContainerOptions struct {
	ID         string // 64 hex digits; "": a new one
	Name       string
	Network    string // name or ID, none, host, container:NAME; "" is the default network
	Publish    []string
	PublishAll bool
	Expose     []string
	Links      []string
	Endpoint   EndpointOptions
	Hostname   string
	DNS        []string
	DNSSearch  []string
	DNSOptions []string
	AddHosts   []string // HOST:IP; IP may be "host-gateway"
	Env        []string
	Rootfs     string
	TTY        bool
	AutoRemove bool
	Args       []string // the command of run
	Held       bool     // somebody else has sockets on the published ports: no bind guard, no look who holds them
	Attach     string   // pid:N, netns:PATH, docker:NAME: somebody else's namespace
}

// FlowFilter narrows Flows; zero values match everything.
type FlowFilter struct {
	Container string // name or ID
	Port      uint16 // on any side
	Proto     string
}

// What the packets' path says of itself.
type (
	FlowInfo    = datapath.FlowInfo
	Status      = datapath.Status
	HookStatus  = datapath.HookStatus
	TableStatus = datapath.TableStatus
	DropStatus  = datapath.DropStatus
)

// BridgeInfo is one bridge as the kernel has it, and who is behind its ports.
type BridgeInfo struct {
	Name    string       `json:"name"`
	ID      string       `json:"id"` // "8000.0242ac110001": priority and MAC
	STP     bool         `json:"stp"`
	Network string       `json:"network"` // name
	Ports   []BridgePort `json:"interfaces"`
}

// BridgePort is a device on a bridge; Container and Interface are empty for one that is not bpfnet's.
type BridgePort struct {
	Device    string `json:"device"`
	Container string `json:"container,omitempty"` // name
	Interface string `json:"interface,omitempty"` // in the container
}
