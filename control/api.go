// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"time"
)

// Options names the host that a Manager works on. Empty: what the host's store
// remembers, else the defaults (/var/lib/bpfnet, /sys/fs/bpf/bpfnet, the
// caller's netns, the cgroup v2 mount).
type Options struct {
	Root     string
	BPFFS    string
	Netns    string // path; "" is the caller's
	Cgroup   string
	Datapath string // bpf (iptables: later)
	Config   string // path of the configuration file

	// Warn gets lines for the user that are no errors; nil: nobody does.
	Warn func(line string)
}

// DatapathBPF is the only datapath so far.
const DatapathBPF = "bpf"

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
}

// EndpointOptions are the flags of network connect, and of run's --net.
type EndpointOptions struct {
	IPv4, IPv6 netip.Addr
	MAC        string
	IfName     string
	Aliases    []string
	Links      []string // NAME[:ALIAS]
}

// ContainerOptions are the network flags of run and attach.
type ContainerOptions struct {
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
	Attach     string   // pid:N, netns:PATH, docker:NAME: somebody else's namespace
}

// FlowInfo is one flow, both directions, with the names of what it touches.
type FlowInfo struct {
	Proto       string         `json:"proto"`
	Kind        string         `json:"kind"`        // published, masquerade, routed, peer, host, local
	State       string         `json:"state"`       // new, answered, established, closing
	Source      netip.AddrPort `json:"source"`      // as the initiator sent it
	Destination netip.AddrPort `json:"destination"` //
	NewSource   netip.AddrPort `json:"newSource"`   // as the responder got it
	NewDest     netip.AddrPort `json:"newDestination"`
	Container   string         `json:"container,omitempty"` // names
	Peer        string         `json:"peer,omitempty"`
	Idle        time.Duration  `json:"idle"`
	Expires     time.Duration  `json:"expires"`
	Packets     uint64         `json:"packets"` // both ways
	Bytes       uint64         `json:"bytes"`
}

// FlowFilter narrows Flows; zero values match everything.
type FlowFilter struct {
	Container string // name or ID
	Port      uint16 // on any side
	Proto     string
}

// Status is what bpfnet status prints.
type Status struct {
	Datapath string            `json:"datapath"`
	Netns    string            `json:"netns"`
	Root     string            `json:"root"`
	BPFFS    string            `json:"bpffs"`
	Cgroup   string            `json:"cgroup"`
	FastPath bool              `json:"fastPath"`
	Hooks    []HookStatus      `json:"hooks"`
	Tables   []TableStatus     `json:"tables"`
	Counters map[string]uint64 `json:"counters"`
	Drops    []DropStatus      `json:"drops"`
	Problems []string          `json:"problems"` // one line each, with what mends it
	Kernel   string            `json:"kernel"`
	Features map[string]bool   `json:"features"` // tcx, …
}

type HookStatus struct {
	Device  string `json:"device"`
	Program string `json:"program"`
	Kind    string `json:"kind"` // tcx, clsact, cgroup
	OK      bool   `json:"ok"`
}

// TableStatus is of a table of the programs'. Refused are new flows that found it
// full: of flows4 and flows6 those that stayed half-open, of half4 and half6 those
// of which the packet was dropped.
type TableStatus struct {
	Name    string `json:"name"`
	Used    int    `json:"used"` // entries
	Size    int    `json:"size"`
	Refused uint64 `json:"refused"`
}

type DropStatus struct {
	Device    string `json:"device"` // "(gone)": all that have been removed since
	Container string `json:"container,omitempty"`
	Reason    string `json:"reason"`
	Packets   uint64 `json:"packets"`
}

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
