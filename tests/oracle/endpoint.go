// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// toEndpoint: only the host itself reaches a container without a redirect.
func (w *work) toEndpoint() Verdict {
	if !w.a.Forwarded || w.a.Mark == passed {
		return Pass
	}
	return w.drop(directAccess)
}

// fromEndpoint: container to anything. In doubt it is dropped.
func (w *work) fromEndpoint() Verdict {
	w.zone = w.a.Ifindex
	if v, ok := w.plain(); ok {
		return v
	}
	var reason loader.BPFReason
	w.p, reason = parse(w.a.Frame, etherLen, w.ethertype(etherLen), w.a.Segment != 0)
	p := &w.p
	// A flow was decided with all that follows, as on the fast path.
	w.contained = true
	if reason == none {
		if v := w.known(); v != miss {
			return v
		}
	}
	w.endpoint = w.endpointAt(w.a.Ifindex)
	if w.endpoint == 0 {
		return w.drop(unknownEndpoint)
	}
	e := w.Endpoints[w.endpoint]
	w.network = e.Network
	n := w.Networks[e.Network]
	switch {
	case p.srcMAC != e.MAC:
		return w.drop(spoofedMAC)
	case reason != none && reason != fragmentReason:
		return w.drop(reason)
	case p.kind == arpKind:
		return w.guardARP(e)
	case !p.ip && !n.ICC:
		return w.drop(iccDenied)
	case !p.ip:
		return w.drop(unsupported)
	}
	if spoofed := w.guardSource(e); spoofed != none {
		return w.drop(spoofed)
	}
	// RFC 6980: neighbour discovery is never in fragments.
	if p.six && p.kind == fragment && p.icmpType >= 133 && p.icmpType <= 137 {
		return w.drop(spoofedND)
	}
	if p.six && p.kind == icmpKind {
		if v := w.guardND(e); v != miss {
			return v
		}
	}
	clientPort := uint16(68)
	if p.six {
		clientPort = 546
	}
	switch {
	case p.proto == udp && !(p.kind == fragment && p.at > 0) && p.dport == clientPort && !e.DHCPServer:
		return w.drop(dhcpServer)
	case reason != none:
		return w.drop(reason)
	case p.dst.IsMulticast() || broadcast(p.dst) || p.dst == n.Broadcast4:
		return w.spreadOut()
	case p.dst.IsLoopback():
		return w.drop(loopback)
	case p.dst.IsUnspecified():
		return w.drop(malformed)
	case p.kind != fragment:
		return w.unicast()
	case p.at == 0:
		p.kind = p.whole
		return w.firstFragment(w.unicast())
	}
	v := miss
	if w.followed() {
		early := Drop
		if n.Bridge == 0 && w.ours(p.dst) {
			early = Pass
		}
		v = w.laterFragment(early)
	}
	if v == miss {
		return w.untracked()
	}
	return v
}

func (w *work) unicast() Verdict {
	v := miss
	if w.p.kind == icmpKind {
		v = w.related()
	} else {
		v = w.known()
	}
	if v != miss {
		return v
	}
	if w.p.kind != query {
		return w.untracked()
	}
	reason := w.decide()
	if reason == upTheStack {
		return Pass
	}
	return w.decided(reason)
}

// upTheStack is no reason: the packet is the host's, and where it is to be.
const upTheStack = loader.BPFReasonREASON_COUNT

// ours says whether an address is the host's, as a network's containers see it.
func (w *work) ours(a netip.Addr) bool {
	n := w.Networks[w.network]
	if n.Bridge == 0 { // a cable, with the host at its other end
		return w.hostAddr(a) || linkLocal6(a)
	}
	return w.hostAddr(a) || a == n.LinkLocal
}

// gate says whether it is the host's on this very network.
func (w *work) gate(a netip.Addr) bool {
	n := w.Networks[w.network]
	return a == n.Gateway4 || a == n.Gateway6 || a == n.LinkLocal
}

// decide says where a packet with a tuple may go.
func (w *work) decide() loader.BPFReason {
	p, n := &w.p, w.Networks[w.network]
	if w.ours(p.dst) {
		if n.Internal {
			if !w.gate(p.dst) {
				return internal
			}
			return w.decideHost()
		}
		if id := w.publicationHere(); id != 0 && p.opens() {
			return w.decidePublished(id)
		}
		return w.decideHost()
	}
	number := w.network
	if !linkLocal6(p.dst) {
		number = w.networkOf(p.dst)
	}
	switch {
	case number == w.network:
		id := w.endpointOf(number, p.dst)
		if id == 0 {
			return noEndpoint
		}
		rule := number
		if !n.ICC {
			if rule = 0; p.opens() {
				rule = w.Links[Link{w.endpoint, id, p.dport, p.proto}]
			}
		}
		if rule == 0 {
			return iccDenied
		}
		return w.decidePeer(number, rule, peer, optional)
	case number != 0:
		m := w.Networks[number]
		if n.Isolate || n.Internal || m.Isolate || m.Internal {
			return isolated
		}
		return w.decidePeer(number, w.network, routed, optional|hop)
	}
	return w.decideWorld()
}

// publicationHere is that of an address that is the host's, its link-local one included.
func (w *work) publicationHere() uint32 {
	p := &w.p
	if id, ok := w.Ports[Port{p.six, p.proto, p.dport, p.dst}]; ok {
		return id
	}
	return w.Ports[Port{Six: p.six, Proto: p.proto, Port: p.dport}]
}

func (w *work) decideHost() loader.BPFReason {
	e, n := w.Endpoints[w.endpoint], w.Networks[w.network]
	if n.Bridge == 0 {
		return upTheStack
	}
	w.begin(host, optional)
	f, r := &w.flow, &w.rev
	f.Verdict, f.Ifindex, f.TwinZone, f.DstMAC, f.SrcMAC = toHost, n.Bridge, n.Bridge, n.MAC, e.MAC
	f.Rule = w.referRule(hostPorts)
	r.Verdict, r.Ifindex, r.DstMAC, r.SrcMAC = toEgress, e.Ifindex, e.MAC, n.MAC
	return w.enterKeeping(w.endpoint)
}

func (w *work) decidePeer(number, rule uint32, kind loader.BPFFlowKind, flags loader.BPFFlowFlags) loader.BPFReason {
	id := w.endpointOf(number, w.p.dst)
	if id == 0 {
		return noEndpoint
	}
	w.begin(kind, flags)
	if reason := w.aim(id, toPeer); reason != none {
		return reason
	}
	w.aimBack()
	w.flow.Rule = w.referRule(rule)
	return w.enterKeeping(w.endpoint)
}

// decidePublished: a published port of this host, one's own included. The gateway asks where the
// server cannot answer: itself, or with icc off a peer that it cannot resolve; a child's own if it
// is a child, which may have no way to other containers.
func (w *work) decidePublished(id uint32) loader.BPFReason {
	n := w.Networks[w.network]
	w.begin(published, 0)
	if reason := w.aimPublication(id, w.p.six, toPeer); reason != none {
		return reason
	}
	w.aimBack()
	server := w.flow.To.ID
	elsewhere := w.Endpoints[server].Network != w.network
	if elsewhere {
		w.flow.Flags |= hop
		w.rev.Flags |= hop
	}
	if w.isChild(server) {
		if n = w.Networks[w.Endpoints[server].Network]; !n.gateway(w.p.six).IsValid() {
			return noRoute
		}
	} else if server != w.endpoint && (n.ICC || elsewhere || w.linked(w.endpoint, server)) {
		return w.enterKeeping(w.endpoint)
	}
	w.flow.Src = n.gateway(w.p.six)
	return w.gatewayPort(w.endpoint)
}

func (w *work) decideWorld() loader.BPFReason {
	p, n := &w.p, w.Networks[w.network]
	if n.Internal {
		return internal
	}
	way, ok := w.hopTo(w.endpoint, p.dst)
	if !ok || linkLocal6(p.dst) {
		return noRoute
	}
	if !p.opens() {
		return noFlow
	}
	w.begin(masquerade, hop)
	w.flow.aimUplink(way, p.dst)
	w.aimBack()
	w.flow.Rule = w.referRule(w.network)
	if !n.Masquerade || n.Routed {
		w.flow.Kind, w.rev.Kind = routed, routed
		return w.enterAgain(w.endpoint)
	}
	if !way.Source.IsValid() {
		return noRoute
	}
	w.flow.Src = way.Source
	return w.worldPort(w.endpoint)
}

// untracked: unicast without a tuple stays on its network or goes to the host.
func (w *work) untracked() Verdict {
	p, n := &w.p, w.Networks[w.network]
	if w.ours(p.dst) {
		if n.Internal && !w.gate(p.dst) {
			return w.drop(internal)
		}
		return w.handToHost()
	}
	number := w.networkOf(p.dst)
	switch {
	case linkLocal6(p.dst) || number == w.network:
		id := w.endpointOf(w.network, p.dst)
		if id == 0 {
			return w.drop(noEndpoint)
		}
		if !n.ICC {
			return w.drop(iccDenied)
		}
		return w.handTo(id)
	case number != 0:
		return w.drop(isolated)
	case n.Internal:
		return w.drop(internal)
	}
	return w.drop(unsupported)
}

func (w *work) handTo(slot uint32) Verdict {
	return w.send(call{way: wayPeer, ifindex: w.Endpoints[slot].Ifindex})
}

func (w *work) handToHost() Verdict {
	bridge := w.Networks[w.network].Bridge
	if bridge == 0 {
		return Pass
	}
	return w.send(call{way: wayIn, ifindex: bridge})
}

// spreadOut: broadcast and multicast, to the host, and with icc on to all members. Group membership
// is between a container and its router.
func (w *work) spreadOut() Verdict {
	p, n := &w.p, w.Networks[w.network]
	membership := p.proto == igmp || p.six && p.kind == icmpKind && (p.icmpType == 143 || p.icmpType >= 130 && p.icmpType <= 132)
	if !membership {
		switch {
		case !n.ICC:
			w.drop(iccDenied)
		case n.Bridge != 0:
			w.flood(w.network, w.endpoint)
		}
	}
	return w.handToHost()
}

// flood sends a copy to each member.
func (w *work) flood(number, except uint32) {
	for _, slot := range w.Networks[number].Members {
		if e := w.Endpoints[slot]; e != nil && e.Ifindex != 0 && slot != except {
			w.answer.Sent = append(w.answer.Sent, call{way: wayCopyOut, ifindex: e.Ifindex, copied: string(w.a.Frame)})
		}
	}
	w.answer.Mark = 0
}

// neighbour: a question or an answer about an address.
func (w *work) neighbour(about netip.Addr) Verdict {
	if w.ours(about) || w.gate(about) {
		return w.handToHost()
	}
	id := w.endpointOf(w.network, about)
	if id == 0 {
		return w.drop(noEndpoint)
	}
	if !w.Networks[w.network].ICC && !w.linked(w.endpoint, id) {
		return w.drop(iccDenied)
	}
	return w.handTo(id)
}

// guardARP: RFC 826, 5227. Probes and announcements ask nobody.
func (w *work) guardARP(e *Endpoint) Verdict {
	h := bytes(w.a.Frame, etherLen, 28)
	if h == nil {
		return w.drop(malformed)
	}
	op, sender, target := be16(h[6:]), addr4(h[14:]), addr4(h[24:])
	if be16(h) != 1 || be16(h[2:]) != typeIP4 || h[4] != 6 || h[5] != 4 || op != 1 && op != 2 || MAC(h[8:14]) != e.MAC {
		return w.drop(spoofedARP)
	}
	probe := op == 1 && sender.IsUnspecified() && target == e.IP4
	if !probe && sender != e.IP4 {
		return w.drop(spoofedARP)
	}
	if target == e.IP4 {
		return Drop
	}
	return w.neighbour(target)
}

// guardND: RFC 4861, 4862. Every link-layer address in a message is the sender's own.
func (w *work) guardND(e *Endpoint) Verdict {
	p := &w.p
	switch p.icmpType {
	case 134, 137:
		return w.drop(spoofedRA)
	case 133:
		if !w.optionsTrue(p.l4+8, e.MAC) {
			return w.drop(spoofedND)
		}
		return w.handToHost()
	case 135, 136:
	default:
		return miss
	}
	h := bytes(w.a.Frame, p.l4+8, 16)
	if h == nil {
		return w.drop(malformed)
	}
	target := addr6(h)
	own := target == e.IP6 || target == e.LinkLocal
	if !w.optionsTrue(p.l4+24, e.MAC) {
		return w.drop(spoofedND)
	}
	switch {
	case p.icmpType == 136 && !own:
		return w.drop(spoofedND)
	case p.icmpType == 136 && p.dst.IsMulticast():
		return Drop
	case p.icmpType == 136:
		return w.neighbour(p.dst)
	case own:
		return Drop
	case p.src.IsUnspecified():
		return w.drop(spoofedND)
	}
	return w.neighbour(target)
}

func (w *work) optionsTrue(off int, mac MAC) bool {
	b := w.a.Frame
	for n := 0; off < len(b); n++ {
		o := bytes(b, off, 8)
		if n == 8 || o == nil || o[1] == 0 {
			return false
		}
		if (o[0] == 1 || o[0] == 2) && (o[1] != 1 || MAC(o[2:8]) != mac) {
			return false
		}
		off += 8 * int(o[1])
	}
	return true
}

// guardSource: only the endpoint's own addresses, or none yet.
func (w *work) guardSource(e *Endpoint) loader.BPFReason {
	p := &w.p
	if p.src == e.addr(p.six) || p.src == e.LinkLocal {
		return none
	}
	if !p.six {
		if p.src.IsUnspecified() && p.kind == query && p.proto == udp && p.sport == 68 && p.dport == 67 && broadcast(p.dst) {
			return none
		}
		return spoofedIPv4
	}
	if t := p.icmpType; p.src.IsUnspecified() && p.kind == icmpKind && (t == 135 || t == 133 || t == 143 || t >= 130 && t <= 132) {
		return none
	}
	return spoofedIPv6
}
