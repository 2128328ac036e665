// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// toBridge: host to container.
func (w *work) toBridge() Verdict {
	if w.a.Forwarded {
		return w.drop(directAccess)
	}
	w.zone = w.a.Ifindex
	if v, ok := w.plain(); ok {
		return v
	}
	number := w.networkAt(w.a.Ifindex)
	if number == 0 {
		return Pass
	}
	n := w.Networks[number]
	var reason loader.BPFReason
	w.p, reason = parse(w.a.Frame, etherLen, w.ethertype(etherLen), w.a.Segment != 0)
	p := &w.p
	if reason != none {
		return Pass
	}
	if p.kind == arpKind {
		h := bytes(w.a.Frame, etherLen+24, 4)
		if h == nil {
			return Pass
		}
		return w.emit(w.endpointOf(number, addr4(h)))
	}
	if !p.ip {
		return Pass
	}
	if p.dst.IsMulticast() || broadcast(p.dst) || p.dst == n.Broadcast4 {
		// A question about one neighbour goes to that one.
		if h := bytes(w.a.Frame, p.l4+8, 16); p.six && p.kind == icmpKind && p.icmpType == 135 && h != nil {
			return w.emit(w.endpointOf(number, addr6(h)))
		}
		w.flood(number, 0)
		return Drop
	}
	id := w.endpointOf(number, p.dst)
	if id == 0 {
		return w.drop(noEndpoint)
	}
	v := miss
	if p.kind == icmpKind {
		v = w.related()
	} else {
		v = w.known()
	}
	if v != miss {
		return v
	}
	if p.kind != query {
		return w.emit(id)
	}
	w.begin(host, optional)
	if reason := w.aim(id, toEgress); reason != none {
		return w.drop(reason)
	}
	w.flow.Rule = w.referRule(number)
	r := &w.rev
	r.Verdict, r.Ifindex, r.DstMAC, r.SrcMAC = toHost, w.a.Ifindex, n.MAC, w.Endpoints[id].MAC
	return w.decided(w.enterKeeping(id))
}

// emit gives the bridge's frame to one endpoint.
func (w *work) emit(slot uint32) Verdict {
	if slot == 0 {
		return w.drop(noEndpoint)
	}
	return w.send(call{way: wayOut, ifindex: w.Endpoints[slot].Ifindex})
}

// fromLo: the host's own connections to its published ports. Everything else passes.
func (w *work) fromLo() Verdict {
	w.zone = zoneLo
	if v, ok := w.plain(); ok {
		return v
	}
	var reason loader.BPFReason
	w.p, reason = parse(w.a.Frame, etherLen, w.ethertype(etherLen), w.a.Segment != 0)
	p := &w.p
	if reason != none || p.srcMAC[0] == 2 {
		return Pass // the latter is what a container answered
	}
	if p.kind == icmpKind {
		if v := w.related(); v != miss {
			return v
		}
		return Pass
	}
	if p.kind != query || p.proto != tcp && p.proto != udp && p.proto != sctp {
		return Pass
	}
	if v := w.known(); v != miss {
		return v
	}
	if p.dst.IsMulticast() || broadcast(p.dst) || !p.opens() {
		return Pass
	}
	six := p.six
	id := w.publicationHere()
	if id == 0 && p.dst == netip.IPv6Loopback() {
		six = false
		id = w.Ports[Port{Proto: p.proto, Port: p.dport}]
		if any, _ := w.Sockets.Has(p.proto, netip.AddrPortFrom(p.dst, p.dport), netip.AddrPortFrom(p.src, p.sport)); any && p.proto != sctp {
			id = 0
		}
	}
	connected := false
	if p.proto == udp {
		_, connected = w.Sockets.Has(udp, netip.AddrPortFrom(p.dst, p.dport), netip.AddrPortFrom(p.src, p.sport))
	}
	if id == 0 || connected {
		if p.proto == udp {
			w.remember()
		}
		return Pass
	}
	reason = w.decideLocal(id, six)
	if reason == upTheStack {
		return Pass
	}
	return w.decided(reason)
}

// decideLocal: the server sees its gateway.
func (w *work) decideLocal(id uint32, six bool) loader.BPFReason {
	w.begin(published, 0)
	if six != w.p.six {
		w.flow.Flags, w.rev.Flags = toIPv4, isReply|toIPv6
	}
	if reason := w.aimPublication(id, six, toPeer); reason != none {
		return reason
	}
	w.rev.Verdict, w.rev.Ifindex = toLo, zoneLo
	w.flow.Src = w.Networks[w.Endpoints[w.flow.To.ID].Network].gateway(six)
	if !w.flow.Src.IsValid() {
		if w.isChild(w.flow.To.ID) {
			return upTheStack
		}
		return noRoute
	}
	// lo carries 64 KiB.
	w.flow.MTU, w.rev.MTU = 65535, 65535
	return w.gatewayPort(w.flow.To.ID)
}
