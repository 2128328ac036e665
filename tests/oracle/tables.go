// SPDX-License-Identifier: Apache-2.0

// Package oracle is a slow and obvious model of the datapath: the same tables, a hook and
// a packet give a verdict, a packet and the change of the flows. Tables are Go maps,
// addresses netip.Addr, checksums are computed anew. Its tests run the real programs on the
// same packets, and every difference is a fault of one of the two.
package oracle

import (
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
)

// MAC is a link-layer address.
type MAC [6]byte

// Endpoint is a container's attachment to a network. Its slot is its key in Tables; 0 is nobody's.
type Endpoint struct {
	Gen, Ifindex, Network uint32
	DHCPServer            bool
	Child                 bool // a macvlan, whose parent is Ifindex
	MAC                   MAC
	MTU                   uint16
	IP4, IP6, LinkLocal   netip.Addr
	Flows                 int // established ones that count in its quota
}

// Network is a bridge network.
type Network struct {
	ICC, Internal, Masquerade, Isolate, Routed, FullCone bool

	Bridge             uint32 // 0: none, each endpoint's cable ends at the host
	MAC                MAC
	Gateway4, Gateway6 netip.Addr
	LinkLocal          netip.Addr
	Broadcast4         netip.Addr
	Subnet4, Subnet6   netip.Prefix
	Members            []uint32 // endpoints
}

// Rule is what allows a flow: a network (by its number), a publication or a link.
type Rule struct {
	Gen                  uint32
	Kind                 loader.BPFRuleKind
	HostPort, Port       uint16
	Endpoint4, Endpoint6 uint32
	Sources              []netip.Prefix // nil: anybody
}

func (r *Rule) server(six bool) uint32 {
	if six {
		return r.Endpoint6
	}
	return r.Endpoint4
}

// Port is where a publication is found. Addr is not valid: on all of the host's.
type Port struct {
	Six   bool
	Proto uint8
	Port  uint16
	Addr  netip.Addr
}

// Hop is one way of a route.
type Hop struct {
	Ifindex uint32
	MTU     uint16
	Next    netip.Addr // not valid: on-link
	Source  netip.Addr // of what is masqueraded
}

// Route leads to a prefix. Without hops there is no way, nor by a shorter prefix.
type Route struct {
	Table uint32
	To    netip.Prefix
	Hops  []Hop
}

// Link lets a client reach a port of a server; port and protocol 0: they may know each other.
type Link struct {
	Client, Server uint32
	Port           uint16
	Proto          uint8
}

// Range is a range of ports, both included.
type Range struct{ First, Last uint16 }

// Settings are the host's.
type Settings struct {
	Quota, ICMPRate uint32
	Slots           uint32
	Pool            []Range
	Timeouts        [6]uint16
}

// Tables are what the control plane fills.
type Tables struct {
	Endpoints   map[uint32]*Endpoint
	Networks    map[uint32]*Network
	Rules       map[uint32]*Rule
	Ports       map[Port]uint32
	Host        map[netip.Addr]bool
	Routes      []Route
	RouteTables map[uint32]uint32
	Links       map[Link]uint32
	Settings    Settings
	Epoch       uint32
}

func (t *Tables) hostAddr(a netip.Addr) bool { return t.Host[a] }

// networkOf is the number of the network in whose subnet an address lies; 0: in none.
func (t *Tables) networkOf(a netip.Addr) uint32 {
	for number, n := range t.Networks {
		if n.Subnet4.IsValid() && n.Subnet4.Contains(a) || n.Subnet6.IsValid() && n.Subnet6.Contains(a) {
			return number
		}
	}
	return 0
}

// endpointOf is who has an address on a network; 0: nobody.
func (t *Tables) endpointOf(network uint32, a netip.Addr) uint32 {
	for slot, e := range t.Endpoints {
		if e.Network == network && e.Ifindex != 0 && (a == e.IP4 || a == e.IP6 || a == e.LinkLocal) {
			return slot
		}
	}
	return 0
}

// endpointAt is whose host end a device is.
func (t *Tables) endpointAt(ifindex uint32) uint32 {
	for slot, e := range t.Endpoints {
		if e.Ifindex == ifindex && !e.Child {
			return slot
		}
	}
	return 0
}

// networkAt is whose bridge a device is.
func (t *Tables) networkAt(ifindex uint32) uint32 {
	for number, n := range t.Networks {
		if n.Bridge == ifindex && ifindex != 0 {
			return number
		}
	}
	return 0
}

// routeTo is the way of an endpoint's packets; nil: none.
func (t *Tables) route(endpoint uint32, a netip.Addr) *Route {
	var best *Route
	for i, r := range t.Routes {
		if r.Table == t.RouteTables[endpoint] && r.To.Contains(a) && (best == nil || r.To.Bits() > best.To.Bits()) {
			best = &t.Routes[i]
		}
	}
	if best == nil || len(best.Hops) == 0 {
		return nil
	}
	return best
}

// published says whether anybody publishes a port of the host, on whatever address.
func (t *Tables) published(six bool, proto uint8, port uint16) bool {
	for p := range t.Ports {
		if p.Six == six && p.Proto == proto && p.Port == port {
			return true
		}
	}
	return false
}

// publication is the rule that a packet to an address and port of the host's is for; 0: none.
func (t *Tables) publication(to netip.Addr, proto uint8, port uint16) uint32 {
	if id, ok := t.Ports[Port{to.Is6(), proto, port, to}]; ok {
		return id
	}
	if !t.hostAddr(to) {
		return 0
	}
	return t.Ports[Port{Six: to.Is6(), Proto: proto, Port: port}]
}

// allowed says whether a source may use a publication.
func (r *Rule) allowed(from netip.Addr) bool {
	return r.Sources == nil || slices.ContainsFunc(r.Sources, func(p netip.Prefix) bool { return p.Contains(from) })
}

func (n *Network) gateway(six bool) netip.Addr {
	if six {
		return n.Gateway6
	}
	return n.Gateway4
}

func (e *Endpoint) addr(six bool) netip.Addr {
	if six {
		return e.IP6
	}
	return e.IP4
}

// linked says whether two endpoints may know each other.
func (t *Tables) linked(a, b uint32) bool {
	_, there := t.Links[Link{Client: a, Server: b}]
	_, back := t.Links[Link{Client: b, Server: a}]
	return there || back
}
