// SPDX-License-Identifier: Apache-2.0

// Package datapath is what the control plane asks of the packets' path: which networks,
// endpoints, ports and links there are, and how the host is set up for them. It has two
// implementations, bpf and iptables; nothing above knows which one runs.
//
// The words for what is told are those of package maps: netip types and numbers that the
// store hands out. What is told may be told again at will.
package datapath

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/maps"
)

// Datapath carries the packets of one host, for the length of one command: it is made with
// the command's Host, and closed when that ends.
type Datapath interface {
	// Install sets the host up for the first time. What it does it also takes back (Host.Undo).
	Install() error
	// Resume makes sure of what Install made, whatever has happened to it: a boot, a crash,
	// a newer program, somebody else's hand.
	Resume() error
	// Remove takes everything of this datapath out of the kernel, and puts back the host's
	// own settings as far as nobody has changed them since.
	Remove() error
	// Configure puts Host.Settings in force, all but the sizes of tables.
	Configure() error
	// Resize makes tables as large as Host.Settings says; what they remember is kept.
	Resize() error
	// Refresh follows the host's devices, addresses and routes.
	Refresh() error
	// RefreshAddrs follows the host's addresses: after a bridge has come or gone.
	RefreshAddrs() error

	// SetNetwork makes a network known, by its number; device is its bridge's name, "" if
	// each endpoint's cable ends at the host.
	SetNetwork(number uint32, n maps.Network, device string) error
	// ClearNetwork forgets one; bridge is the ifindex of its device, 0 when that is gone.
	ClearNetwork(number uint32, bridge int) error
	// Bridge is the ifindex that SetNetwork was told; ok is false for an unknown network.
	Bridge(number uint32) (ifindex int, ok bool, err error)

	// SetEndpoint makes an endpoint known, by its slot, before its device is up.
	SetEndpoint(slot uint32, e maps.Endpoint, dev EndpointDevice) error
	// ClearEndpoint forgets one.
	ClearEndpoint(slot, network uint32) error
	// ShutDevice lets nothing pass a device that will be an endpoint's, until SetEndpoint
	// says whose.
	ShutDevice(ifindex int, name string) error
	// DropDevice forgets the device of an endpoint that is gone.
	DropDevice(ifindex int) error
	// Keep forgets all networks, endpoints and devices but these.
	Keep(w Wanted) error

	// Tables are what ports and links are told.
	Tables() (*Tables, error)

	// Flush puts in force what was told. It is called before the command's transaction
	// commits; an implementation may have done so at once. If the commit fails, what
	// Host.Undo was given takes it back.
	Flush() error

	// Status adds what the user wants to know of it.
	Status(s *Status) error
	// Flows are the connections that it knows.
	Flows() ([]Flow, error)
	// Wrong says whether something of it is missing in the kernel. The Patrol is its own.
	Wrong(p Patrol) (bool, error)

	Close() error
}

// A RefusedError says that what was asked for cannot be, and that nothing was changed.
type RefusedError struct{ Text string }

func (e *RefusedError) Error() string { return e.Text }

// EndpointDevice is the host's end of a cable, or the parent of a macvlan.
type EndpointDevice struct {
	Name   string
	Bridge string // name of the bridge of its network, "": none
}

// Wanted is what Keep keeps.
type Wanted struct {
	Slots    map[uint32]bool
	Networks map[uint32]bool     // numbers
	Members  map[uint32][]uint32 // slots, by network
	Devices  map[int]bool        // indices of the host's ends and of bridges
}

// Tables are who may connect to what.
type Tables struct {
	Rules Rules
	Ports Ports
	Links Links
}

// Rules are publications and links, by the numbers that ports and link entries name.
type Rules interface {
	SetPublication(rule uint32, p maps.Publication) error
	Publication(rule uint32) (p maps.Publication, ok bool, err error)
	// HostPortsChanged is called after ports were published, or are published no more.
	HostPortsChanged() error
	SetLink(rule uint32) error
	// LinkChanged is called after some of the entries that name a link were deleted.
	LinkChanged(rule uint32) error
	// Clear frees a rule, and ends what it allowed. Free is fine.
	Clear(rule uint32) error
	List() (publications, links []uint32, err error)
}

// Ports lead host ports to publications; the methods are maps.Ports'.
type Ports interface {
	// Publish is all or nothing; a *maps.PublishedError says which port is taken.
	Publish(list ...maps.Binding) error
	Unpublish(b maps.Binding) error
	// Conflict finds the first port of b that leads to another rule than b.Rule.
	Conflict(b maps.Binding) (port uint16, taken bool, err error)
	List() ([]maps.Binding, error)
	// Recount mends what a killed process left.
	Recount() error
}

// Links say who may talk although icc is off, and which ports of routed networks are open
// (client 0).
type Links interface {
	Set(l maps.Link, rule uint32) error
	Delete(l maps.Link) error
	List() (map[maps.Link]uint32, error)
}

// Patrol looks again and again whether what is in the kernel is still there, without
// asking the store. It runs on a thread in the host's namespace.
type Patrol interface {
	Look() (Sight, error)
}

// Sight is what a Patrol saw.
type Sight struct {
	Changed bool // something is not as at the last look; always true of the first
	Lost    int  // things that do not do their work
}

// Settings are what a Datapath is configured with.
type Settings struct {
	FlowTable, HalfOpen int // sizes
	Quota               int
	Pool                []maps.PortRange // source ports of masquerade
	PoolAsked           bool             // Pool was named by the user
	Timeouts            maps.Timeouts
	LimitsAsked         []string // keys of those of sizes, quota and timeouts that the user named
	Forward             bool     // the kernel's forwarding may be turned on
	Flavour             string   // of iptables: nft, legacy; "" looks
}

// Network is what Host knows of a network beside what SetNetwork is told.
type Network struct {
	Number  uint32
	Name    string
	Bridge  string // device, "": none
	Foreign bool   // the bridge was there before us
	Subnets []netip.Prefix
}

// Endpoint is one that is up, and has a cable.
type Endpoint struct {
	Slot      uint32
	Device    string // host's end
	Ifindex   int
	Container string // name
}

// Host is the command that a Datapath works for, and the host it works on.
type Host interface {
	Netns() (*netns.NS, error)
	Cookie() uint64 // of the namespace
	Pins() string   // directory of a BPF file system
	Owner() string  // file that is there as long as they are ours
	Cgroup() string // directory
	Settings() (Settings, error)
	Uplinks() ([]link.Uplink, error)
	Networks() ([]Network, error)
	Endpoints() ([]Endpoint, error)

	// Records are the Datapath's own part of the store, in the command's transaction.
	Records() Records
	// Lo is what lo's settings were before bpfnet.
	Lo() *link.Lo
	// New says that the kernel knows nothing of what the store has: after a boot.
	New() bool
	// Reconciling says that everything is told anew.
	Reconciling() bool
	// DropFlows says that what cannot be carried over may end.
	DropFlows() bool

	Did(format string, a ...any)         // a step, for the user
	Warn(format string, a ...any)        // a line that is no error
	Undo(what string, back func() error) // how to take back what was just done
}

// Records are JSON values by key. A value is not changed after the transaction has ended.
type Records interface {
	Get(key string, v any) (ok bool, err error)
	Put(key string, v any) error
	Delete(key string) error
	// Each calls fn in the order of the keys that begin with prefix; decode fills a value.
	Each(prefix string, fn func(key string, decode func(v any) error) error) error
}
