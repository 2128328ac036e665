// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// begin starts a flow as the packet itself, and the other direction as its mirror image.
func (w *work) begin(kind loader.BPFFlowKind, flags loader.BPFFlowFlags) {
	p := &w.p
	w.tuple = w.tupleOf()
	w.flow = Flow{Seen: w.Now, Epoch: w.Epoch, MTU: 65535, Kind: kind, Flags: flags, Src: p.src, Dst: p.dst, SPort: p.sport, DPort: p.dport}
	w.rev = Flow{Seen: w.Now, Epoch: w.Epoch, MTU: 65535, Kind: kind, Flags: flags | isReply, Src: p.dst, Dst: p.src, SPort: p.dport, DPort: p.sport, TwinZone: w.zone}
	if w.endpoint != 0 {
		w.flow.From = w.refer(w.endpoint)
		w.rev.To = w.flow.From
		w.flow.Sender = p.srcMAC
	}
}

// aim sends the flow to an endpoint, where what comes back starts.
func (w *work) aim(slot uint32, verdict loader.BPFVerdict) loader.BPFReason {
	e := w.Endpoints[slot]
	if e == nil || w.Networks[e.Network] == nil || e.Ifindex == 0 {
		return noEndpoint
	}
	f := &w.flow
	f.Verdict, f.Ifindex, f.MTU = verdict, e.Ifindex, e.MTU
	if e.Child {
		f.Verdict = toHost // the parent knows it by its MAC
	}
	f.DstMAC, f.SrcMAC = e.MAC, w.Networks[e.Network].MAC
	f.To, f.TwinZone = w.refer(slot), e.Ifindex
	w.rev.From, w.rev.Sender = f.To, e.MAC
	return none
}

// aimBack sends the answer to the container that asks.
func (w *work) aimBack() {
	e := w.Endpoints[w.endpoint]
	r := &w.rev
	r.Verdict, r.Ifindex, r.MTU = toPeer, e.Ifindex, e.MTU
	r.DstMAC, r.SrcMAC = e.MAC, w.Networks[e.Network].MAC
}

func (f *Flow) aimUplink(h Hop, to netip.Addr) {
	f.Verdict, f.TwinZone = toUplink, zoneWorld
	f.take(h, to)
}

// spread chooses one of a route's hops by who sends to whom.
func (m *Model) spread(r *Route, endpoint uint32, a netip.Addr) Hop {
	if len(r.Hops) == 1 {
		return r.Hops[0]
	}
	var words [4]uint32
	b := a.As16()
	for i := range words {
		words[i] = uint32(b[4*i]) | uint32(b[4*i+1])<<8 | uint32(b[4*i+2])<<16 | uint32(b[4*i+3])<<24
	}
	h := (words[0] ^ words[1] ^ words[2] ^ words[3]) + endpoint*0x9e3779b1
	h = (h ^ h>>16) * 0x85ebca6b
	h = (h ^ h>>13) * 0xc2b2ae35
	return r.Hops[(h^h>>16)%uint32(len(r.Hops))]
}

// hopTo is the way of an endpoint's packets.
func (m *Model) hopTo(endpoint uint32, a netip.Addr) (Hop, bool) {
	r := m.route(endpoint, a)
	if r == nil {
		return Hop{}, false
	}
	return m.spread(r, endpoint, a), true
}

// aimPublication sends the flow to the server behind a publication.
func (w *work) aimPublication(id uint32, six bool, verdict loader.BPFVerdict) loader.BPFReason {
	r := w.Rules[id]
	if r == nil || r.Kind != loader.BPFRuleKindRULE_PUBLICATION {
		return noEndpoint
	}
	server := r.Endpoint4
	if six {
		server = r.Endpoint6
	}
	if server == 0 {
		return noEndpoint
	}
	if !r.allowed(w.p.src) {
		return sourceDenied
	}
	if reason := w.aim(server, verdict); reason != none {
		return reason
	}
	w.flow.Dst = w.Endpoints[server].addr(six)
	w.flow.DPort = r.Port + (w.p.dport - r.HostPort)
	w.flow.Rule = w.referRule(id)
	return none
}

func (w *work) isChild(slot uint32) bool { return w.Endpoints[slot] != nil && w.Endpoints[slot].Child }

// enter enters both directions as half-open. The answer's tuple is the reservation: noPort when
// somebody has it.
func (w *work) enter(owner uint32) loader.BPFReason {
	f, r := w.flow, w.rev
	if limit, e := int(w.Settings.Quota), w.Endpoints[owner]; f.Flags&optional == 0 && owner != 0 &&
		(e == nil || limit == 0 || w.endpoint != 0 && e.Flows >= limit) {
		return quota
	}
	f.Owner, r.Owner, r.Rule = owner, owner, f.Rule
	f.Timeout = w.timeoutOf(&f, w.p.proto)
	r.Timeout = f.Timeout
	if w.isChild(f.To.ID) { // its answers are seen where its parent sends
		switch r.Verdict {
		case toUplink:
			r.Verdict = onward
		case toPeer:
			r.Verdict = toEgress
		}
	}
	other := twin(w.tuple, &f)
	if w.find(other) != nil {
		return noPort
	}
	w.half[other] = &r
	if w.half[w.tuple] == nil {
		w.half[w.tuple] = &f
	} else if g := w.find(w.tuple); g.SPort != f.SPort || g.Src != f.Src {
		delete(w.half, other)
	}
	return none
}

// enterAgain enters a flow of which nothing can be chosen. Its own left-over other half, or
// what has timed out, is no obstacle.
func (w *work) enterAgain(owner uint32) loader.BPFReason {
	reason := w.enter(owner)
	if reason != noPort {
		return reason
	}
	other := twin(w.tuple, &w.flow)
	g := w.find(other)
	if twin(other, g) != w.tuple && !w.over(other, g) {
		return noPort
	}
	w.end(other, g)
	return w.enter(owner)
}

// enterKeeping keeps the source port, if it is free towards the server.
func (w *work) enterKeeping(owner uint32) loader.BPFReason {
	reason := w.enterAgain(owner)
	if reason == noPort {
		return w.gatewayPort(owner)
	}
	return reason
}
