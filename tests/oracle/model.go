// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
)

// Hook is where a packet is seen.
type Hook int

const (
	FromUplink Hook = iota
	FromTunnel
	ToUplink
	ToTunnel
	FromEndpoint
	ToEndpoint
	ToBridge
	FromLo
	ToParent
)

func (h Hook) String() string {
	return [...]string{"from_uplink", "from_tunnel", "to_uplink", "to_tunnel", "from_endpoint", "to_endpoint", "to_bridge", "from_lo", "to_parent"}[h]
}

// Arrival is a packet at a hook.
type Arrival struct {
	Hook      Hook
	Ifindex   uint32
	Frame     []byte
	Ethertype uint16 // as the kernel has it
	ForUs     bool   // the frame is addressed to the device
	Forwarded bool   // the kernel has taken it from another device
	Mark      uint32
	Segment   int // bytes of each segment of a packet that the device put together; 0: it is one
}

// Verdict is what becomes of a packet.
type Verdict int

const (
	Pass     Verdict = -1
	Drop     Verdict = 2
	Redirect Verdict = 7
	miss     Verdict = -2
)

// passed is the mark of what from_endpoint has let through.
const passed = 0x62706e66

// way is how a packet, or a copy of it, was sent.
type way uint32

const (
	wayNone    way = iota
	wayOut         // egress of a device
	wayIn          // ingress of a device
	wayPeer        // into a container
	wayNeigh       // out of a device by way of a next hop
	wayCopyOut     // a copy, as wayOut
	wayCopyIn
)

// call is one packet that was sent.
type call struct {
	way     way
	ifindex uint32
	next    netip.Addr // of wayNeigh
	copied  string     // of the copies: the packet
}

// Answer is all that can be seen of the treatment of a packet.
type Answer struct {
	Verdict Verdict
	Reasons []loader.BPFReason // counted
	Out     []byte
	Mark    uint32
	Sent    []call

	zeros []int  // where 0 and 0xffff mean the same
	any   bool   // of the packet only the verdict can be compared
	rare  string // what has happened, for the record of what was tried
}

// Sockets are those of the host.
type Sockets interface {
	// Has says whether a packet to local would reach a socket, and if one that is connected to remote.
	Has(proto uint8, local, remote netip.AddrPort) (any, connected bool)
}

// Model is the datapath. Now is its clock, in ticks.
type Model struct {
	Tables
	Now     uint32
	Sockets Sockets
	// Chose is the port that masquerade gave a new flow: a random choice, taken from the programs'
	// answer and checked. own: its UDP socket has it for itself.
	Chose func(Tuple) (port uint16, own, ok bool)
	// Remembers says whether the programs still have a flow that has timed out.
	Remembers func(Tuple) bool

	established, half table
	slots             int
	cursor            uint32 // of the gateway's ports
	errors            struct {
		tick, sent uint32
	}
	mappings  map[inner]mapping
	owners    map[netip.AddrPort]owner
	datagrams map[datagramKey]*datagram
	parked    map[parkedKey]string
	wrong     string // a choice that was not allowed
}

// NewModel has empty tables.
func NewModel() *Model {
	m := &Model{Tables: Tables{
		Endpoints: map[uint32]*Endpoint{}, Networks: map[uint32]*Network{}, Rules: map[uint32]*Rule{}, Ports: map[Port]uint32{},
		Host: map[netip.Addr]bool{}, RouteTables: map[uint32]uint32{}, Links: map[Link]uint32{},
	}}
	m.Forget()
	return m
}

// Forget forgets all flows.
func (m *Model) Forget() {
	m.established, m.half = table{}, table{}
	m.mappings, m.owners = map[inner]mapping{}, map[netip.AddrPort]owner{}
	m.datagrams, m.parked = map[datagramKey]*datagram{}, map[parkedKey]string{}
	m.slots = 0
	for _, e := range m.Endpoints {
		e.Flows = 0
	}
}

// work is the treatment of one packet.
type work struct {
	*Model
	a         Arrival
	p         packet
	out       []byte
	zone      uint32
	endpoint  uint32 // the sending container, or 0
	network   uint32 // its network
	contained bool   // comes out of a container
	answer    *Answer
	refused   bool // an error about the packet is sent in its place
	flow, rev Flow // being made
	tuple     Tuple
}

// Run treats a packet.
func (m *Model) Run(a Arrival) Answer {
	w := &work{Model: m, a: a, out: slices.Clone(a.Frame), answer: &Answer{Mark: a.Mark}}
	m.wrong = ""
	switch a.Hook {
	case FromUplink:
		w.answer.Verdict = w.fromUplink(etherLen)
	case FromTunnel:
		w.answer.Verdict = w.fromUplink(0)
	case ToUplink:
		w.answer.Verdict = w.toUplink(etherLen)
	case ToTunnel:
		w.answer.Verdict = w.toUplink(0)
	case FromEndpoint:
		w.answer.Verdict = w.fromEndpoint()
	case ToEndpoint:
		w.answer.Verdict = w.toEndpoint()
	case ToBridge:
		w.answer.Verdict = w.toBridge()
	case FromLo:
		w.answer.Verdict = w.fromLo()
	case ToParent:
		w.answer.Verdict = w.toParent()
	}
	w.answer.Out = w.out
	return *w.answer
}

// drop counts a reason.
func (w *work) drop(reason loader.BPFReason) Verdict {
	w.answer.Reasons = append(w.answer.Reasons, reason)
	return Drop
}

func (w *work) send(c call) Verdict {
	w.answer.Sent = append(w.answer.Sent, c)
	return Redirect
}

func (w *work) tupleOf() Tuple {
	return Tuple{w.p.src, w.p.dst, w.p.sport, w.p.dport, w.zone, w.p.proto}
}

// dispatch sends the packet, which has been rewritten, the way of its flow.
func (w *work) dispatch(f *Flow, six bool) Verdict {
	if f.Verdict == toStack {
		return Pass
	}
	if w.p.l2 == 0 {
		// A device without a link-layer header: the container expects one, and only it is sent to.
		if f.Verdict != toPeer {
			return w.drop(failed)
		}
		w.out = append(make([]byte, etherLen), w.out...)
		w.out[12], w.out[13] = 8, 0
		if six {
			w.out[12], w.out[13] = 0x86, 0xdd
		}
		for i := range w.answer.zeros {
			w.answer.zeros[i] += etherLen
		}
	}
	macs := func(c call) Verdict {
		copy(w.out, f.DstMAC[:])
		copy(w.out[6:], f.SrcMAC[:])
		return w.send(c)
	}
	switch f.Verdict {
	case onward:
		return Pass
	case toPeer:
		return macs(call{way: wayPeer, ifindex: f.Ifindex})
	case toEgress:
		return macs(call{way: wayOut, ifindex: f.Ifindex})
	case toHost:
		return macs(call{way: wayIn, ifindex: f.Ifindex})
	case toLo:
		f.DstMAC, f.SrcMAC = MAC{}, MAC{2}
		return macs(call{way: wayIn, ifindex: f.Ifindex})
	default:
		w.answer.Mark = passed
		return w.send(call{way: wayNeigh, ifindex: f.Ifindex, next: f.Next})
	}
}

// tooLong says whether the packet is too long for f's way. One that the device has put together
// counts as its segments; header is where their payload begins.
func (w *work) tooLong(f *Flow, header int) bool {
	if len(w.a.Frame)-w.p.l2 <= int(f.MTU) {
		return false
	}
	if w.a.Segment == pieces {
		return false // those that a device has put together fit, and a test run has none
	}
	return w.a.Segment == 0 || header-w.p.l2+w.a.Segment > int(f.MTU)
}

// pieces is the Segment of a packet of SCTP's: they have sizes of their own.
const pieces = 0xffff

// follow sends the packet the way of its flow.
func (w *work) follow(f *Flow) Verdict {
	p := &w.p
	header := p.l4 + 20
	if p.proto == udp {
		header = p.l4 + 8
	} else if h := bytes(w.a.Frame, p.l4, 20); p.proto == tcp && h != nil {
		header = p.l4 + int(h[12]>>4)*4
	}
	switch {
	case f.Flags&hop != 0 && p.ttl <= 1:
		return w.report(f, ttlExceeded, 0)
	case w.tooLong(f, header):
		return w.report(f, tooBig, f.MTU)
	case f.Verdict == toStack:
		return Pass
	case f.Flags&(toIPv4|toIPv6) != 0:
		if !w.change(f) {
			return Drop
		}
		return w.dispatch(f, !p.six)
	case p.l4 > 255:
		return w.drop(unsupported)
	}
	w.rewrite(f)
	return w.dispatch(f, p.six)
}

// seen counts the packet and gives a copy of its flow, which this very packet may end.
func (w *work) seen(f *Flow) *Flow {
	f.Seen = w.Now
	f.Packets++
	f.Bytes += uint64(len(w.a.Frame))
	g := *f
	return &g
}

// plain: an established flow's packet without options, fragments and flags is looked at no closer;
// its lengths are the receiver's to judge.
func (w *work) plain() (Verdict, bool) {
	b, l2, p := w.a.Frame, 0, packet{}
	if w.a.Hook != FromTunnel {
		l2 = etherLen
		copy(p.dstMAC[:], b)
		copy(p.srcMAC[:], b[6:])
	}
	p.l2 = l2
	switch h4, h6 := bytes(b, l2, 20), bytes(b, l2, 40); {
	case w.a.Ethertype == typeIP4 && h4 != nil && h4[0] == 0x45 && be16(h4[6:])&0x3fff == 0:
		p.src, p.dst, p.proto, p.ttl, p.l4 = addr4(h4[12:]), addr4(h4[16:]), h4[9], h4[8], l2+20
	case w.a.Ethertype == typeIP6 && h6 != nil:
		p.six, p.src, p.dst, p.proto, p.ttl, p.l4 = true, addr6(h6[8:]), addr6(h6[24:]), h6[6], h6[7], l2+40
	default:
		return miss, false
	}
	least := 8
	if p.proto == tcp {
		least = 20
	}
	h := bytes(b, p.l4, least)
	if h == nil || p.proto != tcp && p.proto != udp || p.proto == tcp && h[13]&(syn|fin|rst) != 0 {
		return miss, false
	}
	p.sport, p.dport, p.kind = be16(h), be16(h[2:]), query
	w.p = p
	t := w.tupleOf()
	f := w.established[t]
	header := p.l4 + 8
	if p.proto == tcp {
		header = p.l4 + int(h[12]>>4)*4
	}
	switch {
	case f == nil || f.Epoch != w.Epoch || w.idle(f) || f.State != stateEstablished || f.Flags&(toIPv4|toIPv6) != 0:
	case f.Flags&hop != 0 && p.ttl <= 1 || w.tooLong(f, header):
	case (w.a.Hook == FromEndpoint || w.a.Hook == ToParent) && p.srcMAC != f.Sender:
	default:
		return w.forward(w.seen(f)), true
	}
	return miss, false
}

func (w *work) forward(f *Flow) Verdict {
	if f.Verdict == toStack {
		return Pass
	}
	w.rewrite(f)
	return w.dispatch(f, w.p.six)
}

// known treats the packet of a flow that is known, or misses.
func (w *work) known() Verdict {
	if w.p.kind != query {
		return miss
	}
	t := w.tupleOf()
	f := w.find(t)
	if f == nil {
		return miss
	}
	if w.contained {
		if w.p.srcMAC != f.Sender {
			return miss
		}
		w.endpoint = f.From.ID
		if e := w.Endpoints[w.endpoint]; e != nil {
			w.network = e.Network
		}
	}
	switch w.stale(f) {
	case noRoute:
		if !w.over(t, f) {
			return w.drop(noRoute)
		}
		fallthrough
	case noFlow:
		w.end(t, f)
		return miss
	}
	if f.Kind == local {
		if w.idle(f) {
			delete(w.half, t)
			return miss
		}
		f.Seen = w.Now
		return Pass
	}
	opening := w.p.proto == tcp && w.p.flags&(syn|ack) == syn
	if other := w.find(twin(t, f)); opening || f.Flags&listed == 0 || w.idle(f) {
		// A flow whose other half was evicted cannot be answered.
		if other == nil || opening && closed(f) || w.idle(f) && w.idle(other) {
			w.end(t, f)
			return miss
		}
	}
	g := w.seen(f)
	w.track(&w.p, t, f)
	return w.follow(g)
}

// first sends the first packet of the flow that was just entered.
func (w *work) first() Verdict {
	f := w.find(w.tupleOf())
	if f == nil {
		return w.drop(tableFull)
	}
	return w.follow(w.seen(f))
}

// decided ends a decision: the flow is there, or a reason.
func (w *work) decided(reason loader.BPFReason) Verdict {
	if reason != none {
		return w.drop(reason)
	}
	return w.first()
}
