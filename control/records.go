// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"time"
)

// Config holds daemon.json's keys, as the configuration file and the flags of
// init spell them. A nil pointer or empty value means "the default".
type Config struct {
	Bridge              string        `json:"bridge,omitempty"`                // device of the default network; "none": no default network
	BIP                 string        `json:"bip,omitempty"`                   // gateway and prefix of the default network, "10.9.0.1/24"
	BIP6                string        `json:"bip6,omitempty"`                  // the same for IPv6
	FixedCIDR           string        `json:"fixed-cidr,omitempty"`            // range that containers get addresses from
	FixedCIDRv6         string        `json:"fixed-cidr-v6,omitempty"`         //
	DefaultGateway      string        `json:"default-gateway,omitempty"`       // of containers on the default network, when not the bridge
	DefaultGatewayV6    string        `json:"default-gateway-v6,omitempty"`    //
	ICC                 *bool         `json:"icc,omitempty"`                   // true
	IP                  string        `json:"ip,omitempty"`                    // binding address of -p without one; 0.0.0.0 and ::
	IPForward           *bool         `json:"ip-forward,omitempty"`            // iptables datapath only: true
	IPTables            string        `json:"iptables-flavour,omitempty"`      // nft, legacy; "": what is in use, else the host's default
	IPMasq              *bool         `json:"ip-masq,omitempty"`               // true
	IPv6                *bool         `json:"ipv6,omitempty"`                  // default network gets an IPv6 ULA too; false
	MTU                 int           `json:"mtu,omitempty"`                   // 1500
	DNS                 []string      `json:"dns,omitempty"`                   //
	DNSSearch           []string      `json:"dns-search,omitempty"`            //
	DNSOptions          []string      `json:"dns-opts,omitempty"`              //
	DefaultAddressPools []AddressPool `json:"default-address-pools,omitempty"` // Docker's defaults
	Uplinks             []string      `json:"uplinks,omitempty"`               // devices that are uplinks; "all" alone, or none: all but our own and lo
	MasqueradePorts     string        `json:"masquerade-ports,omitempty"`      // "1024-32767,61000-65535"
	FlowTableSize       int           `json:"flow-table-size,omitempty"`       // established flows per family, 1024..1048576; 131072
	HalfOpenTableSize   int           `json:"half-open-table-size,omitempty"`  // half-open flows per family, 512..1048576; 32768
	Quota               int           `json:"flow-quota,omitempty"`            // established flows per endpoint; a quarter of the table

	// Go durations, 1s to 19h: see maps.Timeouts.
	TimeoutTCP           string `json:"timeout-tcp,omitempty"`            // 124m
	TimeoutTCPTransitory string `json:"timeout-tcp-transitory,omitempty"` // 4m
	TimeoutUDP           string `json:"timeout-udp,omitempty"`            // 5m
	TimeoutUDPNewIn      string `json:"timeout-udp-new-in,omitempty"`     // 30s
	TimeoutUDPNewOut     string `json:"timeout-udp-new-out,omitempty"`    // 2m
	TimeoutICMP          string `json:"timeout-icmp,omitempty"`           // 1m
}

// AddressPool is one of default-address-pools: networks get prefixes of Size
// bits out of Base.
type AddressPool struct {
	Base string `json:"base"`
	Size int    `json:"size"`
}

// Network is a bridge network as the store keeps it.
type Network struct {
	ID              string            `json:"id"`     // 64 hex digits
	Name            string            `json:"name"`   // "bridge" is the default network
	Number          uint32            `json:"number"` // the programs' id, 1..4095
	Created         time.Time         `json:"created"`
	Bridge          string            `json:"bridge"`                  // device; "": none, each cable ends at the host
	Parent          string            `json:"parent,omitempty"`        // device whose macvlans its containers have, in place of a bridge
	Engine          string            `json:"engine,omitempty"`        // whose it is: see Manager.Adopt
	EngineDefault   bool              `json:"engineDefault,omitempty"` // the network of its engine that obeys icc and ip-masq
	EngineICC       bool              `json:"engineICC,omitempty"`     // what the engine says of it
	Driver          string            `json:"driver,omitempty"`        // for whose engine we keep it: see Manager.AddDriverNetwork
	ForeignBridge   bool              `json:"foreignBridge,omitempty"` // existed before us: never deleted
	Added           []netip.Prefix    `json:"added,omitempty"`         // addresses that it has from us
	MAC             string            `json:"mac"`                     // of the bridge
	Subnets         []Subnet          `json:"subnets"`                 // one per family at most, IPv4 first
	Internal        bool              `json:"internal"`
	ICC             bool              `json:"icc"`
	Masquerade      bool              `json:"masquerade"`
	Isolate         bool              `json:"isolate"`
	Routed          bool              `json:"routed"` // --gateway-mode routed
	FullCone        bool              `json:"fullCone,omitempty"`
	AllowDHCPServer bool              `json:"allowDHCPServer,omitempty"`
	MTU             int               `json:"mtu"`
	BindAddress     string            `json:"bindAddress,omitempty"` // of -p without an address
	Labels          map[string]string `json:"labels,omitempty"`
}

// Subnet is one family of a network.
type Subnet struct {
	Prefix  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`          // the bridge's address
	Range   netip.Prefix `json:"ipRange,omitzero"` // where addresses come from; Prefix when zero
	Router  netip.Addr   `json:"router,omitzero"`  // what containers use as default gateway when it is not Gateway
}

// Modes of a container's network namespace.
const (
	ModeNetwork   = "network"   // endpoints on bridge networks
	ModeNone      = "none"      // only lo
	ModeHost      = "host"      // the host's
	ModeContainer = "container" // another container's
)

// Container is a name, a network namespace and its attachments.
type Container struct {
	ID         string               `json:"id"` // 64 hex digits
	Name       string               `json:"name"`
	Created    time.Time            `json:"created"`
	Mode       string               `json:"mode"`
	ModeTarget string               `json:"modeTarget,omitempty"` // container ID, for ModeContainer
	Engine     string               `json:"engine,omitempty"`     // whose it is: see Manager.Adopt
	Held       bool                 `json:"held,omitempty"`       // its engine has sockets on the published ports
	Problems   []string             `json:"problems,omitempty"`   // what of its engine's wishes could not be done, a line each
	Attached   bool                 `json:"attached,omitempty"`   // somebody else's namespace: detached by rm, never killed
	Netns      string               `json:"netns"`                // path of the namespace (ours: under root)
	NetnsID    string               `json:"netnsId"`              // "dev:inode", to notice a swapped path
	Cookie     uint64               `json:"netnsCookie"`          // the kernel's number of it, never used twice before a reboot
	Args       []string             `json:"args,omitempty"`
	Env        []string             `json:"env,omitempty"`
	Rootfs     string               `json:"rootfs,omitempty"`
	TTY        bool                 `json:"tty,omitempty"`
	AutoRemove bool                 `json:"autoRemove,omitempty"`
	Hostname   string               `json:"hostname"`
	DNS        []string             `json:"dns,omitempty"`
	DNSSearch  []string             `json:"dnsSearch,omitempty"`
	DNSOptions []string             `json:"dnsOptions,omitempty"`
	ExtraHosts []string             `json:"extraHosts,omitempty"` // "host:ip"
	Exposed    []string             `json:"exposed,omitempty"`    // "80/tcp", without those of Ports
	PublishAll bool                 `json:"publishAll,omitempty"`
	Publish    []string             `json:"publish,omitempty"` // the specs as given, for start
	Links      []Link               `json:"links,omitempty"`
	Endpoints  map[string]*Endpoint `json:"endpoints,omitempty"` // by network ID
	State      string               `json:"state"`               // "created", "running", "exited"
	PID        int                  `json:"pid,omitempty"`
	PIDStart   uint64               `json:"pidStart,omitempty"`   // start time in ticks, field 22 of /proc/PID/stat
	Supervisor int                  `json:"supervisor,omitempty"` // process that waits for PID, or makes it
	SupStart   uint64               `json:"supervisorStart,omitempty"`
	Started    time.Time            `json:"started,omitzero"`
	Finished   time.Time            `json:"finished,omitzero"`
	ExitCode   int                  `json:"exitCode"`
}

// Endpoint is a container's attachment to one network.
type Endpoint struct {
	ID        string       `json:"id,omitempty"` // that an engine whose driver we are has for it
	Slot      uint32       `json:"slot"`         // index in the endpoints map, 1..16383; 0: down
	Network   string       `json:"network"`
	Container string       `json:"container"`
	HostIf    string       `json:"hostInterface"`
	HostIndex int          `json:"hostIndex"` // ifindex
	IfName    string       `json:"interface"` // in the container
	MAC       string       `json:"mac"`
	IPv4      netip.Prefix `json:"ipv4,omitzero"` // with the subnet's length
	IPv6      netip.Prefix `json:"ipv6,omitzero"`
	WantIPv4  netip.Addr   `json:"wantIPv4,omitzero"` // --ip, kept over restarts
	WantIPv6  netip.Addr   `json:"wantIPv6,omitzero"`
	WantMAC   string       `json:"wantMAC,omitempty"`
	WantIf    string       `json:"wantInterface,omitempty"` // --ifname
	LastIPv4  netip.Addr   `json:"lastIPv4,omitzero"`       // of a stopped container: taken again if it is free
	LastIPv6  netip.Addr   `json:"lastIPv6,omitzero"`
	Aliases   []string     `json:"aliases,omitempty"`
	Links     []Link       `json:"links,omitempty"`
	Gateway   bool         `json:"gateway"`            // carries the default route
	Internal  bool         `json:"internal,omitempty"` // its network has no way out
	Runtime   string       `json:"runtime,omitempty"`  // who asked for it, if not the user
	Routes    []Route      `json:"routes,omitempty"`   // beside the default route
	Created   time.Time    `json:"created"`
}

// Link lets a container reach the exposed ports of another under icc off, by an alias.
type Link struct {
	Target string `json:"target"` // container ID
	Name   string `json:"name"`   // as given
	Alias  string `json:"alias"`
}

// Publication is a range of host ports that leads to a container: what one -p
// became once host ports were chosen. Ports map one to one; a range is one Publication.
type Publication struct {
	Rule      uint32         `json:"rule"` // index in the rules map
	Container string         `json:"container"`
	Spec      string         `json:"spec"`           // the -p it came from
	Proto     string         `json:"proto"`          // tcp, udp, sctp
	HostIP    netip.Addr     `json:"hostIP"`         // 0.0.0.0, :: or one address
	HostPort  uint16         `json:"hostPort"`       // first
	Port      uint16         `json:"port"`           // first, in the container
	Count     uint32         `json:"count"`          // 1..65536
	From      []netip.Prefix `json:"from,omitempty"` // who may connect; empty: everybody
}
