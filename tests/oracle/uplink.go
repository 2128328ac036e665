// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// fromUplink: world to host. What is not certainly ours is the host's.
func (w *work) fromUplink(l2 int) Verdict {
	if l2 > 0 && !w.a.ForUs {
		return Pass
	}
	w.zone = zoneWorld
	if v, ok := w.plain(); ok {
		return v
	}
	var reason loader.BPFReason
	w.p, reason = parse(w.a.Frame, l2, w.ethertype(l2), w.a.Segment != 0)
	p := &w.p
	if reason != none || !p.ip {
		return Pass
	}
	if p.dst.IsLoopback() {
		return w.drop(loopback)
	}
	hosts := w.hostAddr(p.dst)
	switch {
	case p.kind != fragment || !w.followed():
		return w.worldPacket()
	case p.at == 0:
		p.kind = p.whole
		v := w.worldPacket()
		if hosts || v != Pass {
			return w.firstFragment(v)
		}
		return v
	}
	v := miss
	if hosts {
		v = w.laterFragment(Pass)
	} else if n := w.Networks[w.networkOf(p.dst)]; n != nil && n.Routed {
		v = w.laterFragment(Drop)
	}
	if v == miss {
		return w.worldPacket()
	}
	return v
}

// ethertype is what the frame says, or the kernel where there is no link-layer header.
func (w *work) ethertype(l2 int) uint16 {
	if l2 == 0 {
		return w.a.Ethertype
	}
	return be16(w.a.Frame[12:])
}

func (w *work) worldPacket() Verdict {
	p := &w.p
	v := miss
	if p.kind == icmpKind {
		v = w.related()
	} else {
		v = w.known()
	}
	if v != miss {
		return v
	}
	if !w.hostAddr(p.dst) {
		if number := w.networkOf(p.dst); number != 0 {
			return w.decided(w.decideRoutedIn(number))
		}
	}
	if p.kind != query || !p.opens() {
		return Pass
	}
	if id := w.publication(p.dst, p.proto, p.dport); id != 0 {
		if p.proto == udp {
			if _, connected := w.Sockets.Has(udp, netip.AddrPortFrom(p.dst, p.dport), netip.AddrPortFrom(p.src, p.sport)); connected {
				return Pass
			}
		}
		if linkLocal6(p.src) { // on a link that the container is not on
			return Pass
		}
		return w.decided(w.decidePublishedIn(id))
	}
	if o := w.cone(); o != nil {
		return w.decided(w.decideConeIn(o))
	}
	return Pass
}

// nobody: a source that nobody in the world can have.
func (w *work) nobody(a netip.Addr) bool {
	return a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || broadcast(a) || w.networkOf(a) != 0 || w.hostAddr(a)
}

// decideRoutedIn: containers of routed networks are reached by their own addresses, at their
// published ports and by ping.
func (w *work) decideRoutedIn(number uint32) loader.BPFReason {
	p := &w.p
	id := w.endpointOf(number, p.dst)
	way, ok := w.hopTo(id, p.src)
	if !w.Networks[number].Routed || id == 0 || !ok || p.kind != query || !p.opens() {
		return directAccess
	}
	if w.nobody(p.src) {
		return martian
	}
	rule := number
	if p.proto == tcp || p.proto == udp || p.proto == sctp {
		rule = w.Links[Link{Server: id, Port: p.dport, Proto: p.proto}]
		r := w.Rules[rule]
		if r == nil || r.Kind != loader.BPFRuleKindRULE_PUBLICATION {
			return directAccess
		}
		if !r.allowed(p.src) {
			return sourceDenied
		}
	}
	w.begin(routed, hop)
	if reason := w.aim(id, toPeer); reason != none {
		return reason
	}
	w.flow.Rule = w.referRule(rule)
	zone := w.flow.TwinZone
	w.rev.aimUplink(way, p.src)
	w.flow.TwinZone = zone
	return w.enterAgain(id)
}

func (w *work) decidePublishedIn(id uint32) loader.BPFReason {
	p := &w.p
	if w.nobody(p.src) {
		return martian
	}
	w.begin(published, hop)
	if reason := w.aimPublication(id, p.six, toPeer); reason != none {
		return reason
	}
	way, ok := w.hopTo(w.flow.To.ID, p.src)
	if !ok {
		return noRoute
	}
	w.rev.aimUplink(way, p.src)
	if !w.hostAddr(p.dst) {
		w.rev.Epoch = 0 // to be judged: nobody answers by an address that is not the host's
	}
	return w.enterKeeping(w.flow.To.ID)
}

// cone is the UDP socket of a full-cone network behind the address that is asked (RFC 4787
// section 5: endpoint-independent filtering), or nil.
func (w *work) cone() *owner {
	p := &w.p
	o, ok := w.owners[netip.AddrPortFrom(p.dst, p.dport)]
	if p.proto != udp || !ok || !w.fresh(o.seen) || w.refer(o.endpoint.ID) != o.endpoint {
		return nil
	}
	n := w.Networks[w.Endpoints[o.endpoint.ID].Network]
	if n == nil || !n.FullCone || w.hostHas(w.tupleOf()) {
		return nil
	}
	return &o
}

func (w *work) decideConeIn(o *owner) loader.BPFReason {
	p := &w.p
	if w.nobody(p.src) {
		return martian
	}
	w.begin(masquerade, hop)
	if reason := w.aim(o.endpoint.ID, toPeer); reason != none {
		return reason
	}
	w.flow.Dst, w.flow.DPort = o.inner.socket.Addr(), o.inner.socket.Port()
	w.flow.Rule = w.referRule(w.Endpoints[o.endpoint.ID].Network)
	way, ok := w.hopTo(o.endpoint.ID, p.src)
	if !ok {
		return noRoute
	}
	w.rev.aimUplink(way, p.src)
	w.rev.Epoch = 0 // the address may not be the host's any more
	return w.enterAgain(o.endpoint.ID)
}

// toUplink: host to world. The last place to stop a container's packet that fromEndpoint did not
// pass, and where the host's own UDP and pings are remembered.
func (w *work) toUplink(l2 int) Verdict {
	b := w.a.Frame
	if w.a.Mark == passed && w.a.Forwarded {
		if l2 == 0 { // an Ethernet device's packet may leave by another one
			w.answer.Mark = 0
		}
		return Pass
	}
	w.zone = zoneWorld
	// TCP's answers are told apart without being remembered.
	if h := bytes(b, l2, 20); !w.a.Forwarded && w.a.Ethertype == typeIP4 && h != nil && h[9] == tcp {
		return Pass
	}
	if h := bytes(b, l2, 40); !w.a.Forwarded && w.a.Ethertype == typeIP6 && h != nil && h[6] == tcp {
		return Pass
	}
	var reason loader.BPFReason
	w.p, reason = parse(b, l2, w.ethertype(l2), w.a.Segment != 0)
	p := &w.p
	if !p.ip {
		return Pass
	}
	src := p.src.Unmap() // a container's address is one in whatever family it is written
	if w.a.Forwarded && !w.hostAddr(src) {
		if w.networkOf(src) != 0 {
			return w.drop(bypass)
		}
		return Pass
	}
	if p.kind == fragment && p.at == 0 {
		p.kind = p.whole
	}
	if reason == none && p.kind == query && p.proto != tcp {
		w.remember()
	}
	return Pass
}

// toParent: toUplink of a device whose children answer to who reached their published ports.
func (w *work) toParent() Verdict {
	w.zone = w.a.Ifindex
	if v, ok := w.plain(); ok {
		return v
	}
	if v := w.fromChild(); v != miss {
		return v
	}
	return w.toUplink(etherLen)
}

func (w *work) fromChild() Verdict {
	var reason loader.BPFReason
	w.p, reason = parse(w.a.Frame, etherLen, w.ethertype(etherLen), w.a.Segment != 0)
	p := &w.p
	if reason != none {
		return miss
	}
	if p.kind == fragment && p.at > 0 {
		if !w.followed() || w.datagram() == nil {
			return miss
		}
		return w.laterFragment(Pass)
	}
	fragmented := p.kind == fragment
	if fragmented {
		p.kind = p.whole
	}
	switch p.kind {
	case icmpKind:
		return w.related()
	case query:
	default:
		return miss
	}
	if f := w.find(w.tupleOf()); f == nil || f.Sender != p.srcMAC {
		return miss
	}
	v := w.known()
	if !fragmented || v == miss {
		return v
	}
	fate := v
	if v == Pass { // though it is not the host's
		fate = Redirect
	}
	if w.firstFragment(fate) == Drop {
		return Drop
	}
	return v
}

// remember: answers to what the host sends by UDP from a port that is published, or to its
// pings, are the host's.
func (w *work) remember() {
	p := &w.p
	kind := loader.BPFTimeoutKindTIMEOUT_ICMP
	switch {
	case p.proto == sctp:
		return
	case p.proto == udp:
		kind = loader.BPFTimeoutKindTIMEOUT_UDP
		if !w.published(p.six, udp, p.sport) {
			return
		}
	case p.sport == 0:
		return
	}
	w.begin(local, optional)
	w.flow.Verdict, w.flow.Timeout = toStack, w.timeout(kind)
	f := w.flow
	back := Tuple{p.dst, p.src, p.dport, p.sport, w.zone, p.proto}
	if g := w.find(back); g != nil && p.proto != udp && g.Kind != local {
		w.end(back, g)
	}
	w.half[back] = &f
}
