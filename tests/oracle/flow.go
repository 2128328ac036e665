// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"math"
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// Tuple is one direction of a flow as its packets arrive.
type Tuple struct {
	Src, Dst     netip.Addr
	SPort, DPort uint16
	Zone         uint32
	Proto        uint8
}

func (t Tuple) six() bool { return t.Src.Is6() }

// Ref is an object and its generation when a decision was based on it.
type Ref struct{ ID, Gen uint32 }

// Flow is one direction of a flow: what becomes of its packets. The fields are those of
// struct flow, without what is derived from them.
type Flow struct {
	Seen           uint32
	Timeout, MTU   uint16
	Verdict        loader.BPFVerdict
	State          loader.BPFFlowState
	Kind           loader.BPFFlowKind
	Flags          loader.BPFFlowFlags
	Ifindex        uint32
	Src, Dst       netip.Addr // after translation
	SPort, DPort   uint16
	Next           netip.Addr
	DstMAC, SrcMAC MAC
	Sender         MAC
	TwinZone       uint32
	Packets, Bytes uint64
	From, To, Rule Ref
	Expect, Owner  uint32
	Epoch          uint32
}

// table is the flows of one stage of life. They live apart: pressure on one is none on the other.
type table map[Tuple]*Flow

// twin is how the other direction of f arrives, f's own being t.
func twin(t Tuple, f *Flow) Tuple {
	return Tuple{f.Dst, f.Src, f.DPort, f.SPort, f.TwinZone, t.Proto}
}

func (m *Model) find(t Tuple) *Flow {
	if f := m.established[t]; f != nil {
		return f
	}
	return m.half[t]
}

func (m *Model) idle(f *Flow) bool { return int32(m.Now-f.Seen) > int32(f.Timeout) }

func (m *Model) timeout(k loader.BPFTimeoutKind) uint16 { return m.Settings.Timeouts[k] }

// timeoutOf is how long a flow in its state waits (RFC 4787 REQ-5, 5382 REQ-5, 5508 REQ-2).
func (m *Model) timeoutOf(f *Flow, proto uint8) uint16 {
	switch {
	case proto == tcp && f.State == stateEstablished:
		return m.timeout(loader.BPFTimeoutKindTIMEOUT_TCP_ESTABLISHED)
	case proto == tcp:
		return m.timeout(loader.BPFTimeoutKindTIMEOUT_TCP_TRANSITORY)
	case proto == icmp4 || proto == icmp6:
		return m.timeout(loader.BPFTimeoutKindTIMEOUT_ICMP)
	case f.State != stateNew:
		return m.timeout(loader.BPFTimeoutKindTIMEOUT_UDP)
	case f.Kind == published:
		return m.timeout(loader.BPFTimeoutKindTIMEOUT_UDP_NEW_IN)
	}
	return m.timeout(loader.BPFTimeoutKindTIMEOUT_UDP_NEW_OUT)
}

func (m *Model) refer(slot uint32) Ref {
	if e := m.Endpoints[slot]; e != nil {
		return Ref{slot, e.Gen}
	}
	return Ref{ID: slot}
}

func (m *Model) referRule(id uint32) Ref {
	if r := m.Rules[id]; r != nil {
		return Ref{id, r.Gen}
	}
	return Ref{ID: id}
}

// stale says what is wrong with a flow since something has changed: noFlow, it is over;
// noRoute, it has no way now.
func (m *Model) stale(f *Flow) loader.BPFReason {
	if f.Epoch == m.Epoch {
		return none
	}
	if m.refer(f.From.ID) != f.From || m.refer(f.To.ID) != f.To || m.referRule(f.Rule.ID) != f.Rule {
		return noFlow
	}
	if reason := m.wayOf(f); reason != none {
		return reason
	}
	f.Epoch = m.Epoch
	return none
}

// wayOf brings f up to date with the host's addresses and routes.
func (m *Model) wayOf(f *Flow) loader.BPFReason {
	reply := f.Flags&isReply != 0
	inHostsName := f.Kind == masquerade && f.Verdict == toUplink || f.Kind == published && reply && f.Verdict != toLo
	lost := inHostsName && !m.hostAddr(f.Src)
	if lost && f.Kind == published {
		return noRoute
	}
	if f.Kind == host && f.Verdict == toHost && !reply && !m.hostAddr(f.Dst) && !linkLocal6(f.Dst) {
		return noFlow
	}
	if f.Verdict != toUplink {
		return none
	}
	if m.hostAddr(f.Dst) {
		return noFlow
	}
	r := m.route(f.From.ID, f.Dst)
	if r == nil {
		return noRoute
	}
	way := m.kept(r, f)
	switch another := way.Source != f.Src; {
	case lost && (!another || !way.Source.IsValid()):
		return noRoute
	case f.Kind == masquerade && another && (lost || way.Ifindex != f.Ifindex):
		return noFlow
	}
	f.take(way, f.Dst)
	return none
}

// kept is the hop that f uses, if its route still has it, or another.
func (m *Model) kept(r *Route, f *Flow) Hop {
	for _, h := range r.Hops {
		if h.Ifindex == f.Ifindex && (h.Next == f.Next || !h.Next.IsValid() && f.Next == f.Dst) {
			return h
		}
	}
	return m.spread(r, f.From.ID, f.Dst)
}

// take makes f leave by a hop.
func (f *Flow) take(h Hop, to netip.Addr) {
	f.Ifindex, f.MTU, f.Next = h.Ifindex, h.MTU, h.Next
	if !h.Next.IsValid() {
		f.Next = to
	}
}

// count changes what counts in the quota of whoever owns f.
func (m *Model) count(f *Flow, n int) {
	ref := f.To
	if f.From.ID == f.Owner {
		ref = f.From
	}
	if e := m.Endpoints[ref.ID]; e != nil && ref.ID != 0 && e.Gen == ref.Gen {
		e.Flows += n
	}
}

// end takes both directions away.
func (m *Model) end(t Tuple, f *Flow) {
	other := twin(t, f)
	if f.Flags&listed != 0 {
		m.unlist(t, f, other)
		return
	}
	delete(m.half, t)
	delete(m.half, other)
}

func (m *Model) unlist(t Tuple, f *Flow, other Tuple) {
	m.count(f, -1)
	m.slots--
	delete(m.established, t)
	delete(m.established, other)
}

// retire: both sides have closed. The flow waits out its time among the half-open.
func (m *Model) retire(t Tuple, f *Flow) {
	other := twin(t, f)
	g := m.established[other]
	if g == nil {
		return
	}
	m.unlist(t, f, other)
	for at, f := range map[Tuple]*Flow{t: f, other: g} {
		f.State, f.Flags = stateClosing, f.Flags&^listed
		m.half[at] = f
	}
}

// promote: the initiator has proved itself.
func (m *Model) promote(t Tuple, f *Flow) {
	other := twin(t, f)
	g := m.half[other]
	if g == nil {
		return
	}
	limit := int(m.Settings.Quota)
	if f.From.ID != f.Owner { // others opened it: an eighth is left for the owner's own
		limit -= limit / 8
	}
	if e := m.Endpoints[f.Owner]; f.Owner != 0 && e != nil && e.Flows >= limit {
		return
	}
	if m.slots >= int(m.Settings.Slots) || m.established[t] != nil || m.established[other] != nil {
		return
	}
	delete(m.half, t)
	delete(m.half, other)
	f.State, g.State = stateEstablished, stateEstablished
	f.Expect = 0
	f.Timeout = m.timeoutOf(f, t.Proto)
	g.Timeout = f.Timeout
	f.Flags |= listed
	g.Flags |= listed
	m.established[t], m.established[other] = f, g
	m.slots++
	m.count(f, 1)
}

// closed says whether a SYN opens a new connection (RFC 6191): both sides have said FIN, or it
// never was one; a reset may be made up.
func closed(f *Flow) bool {
	return f.State == stateClosing && (f.Flags&sentFIN != 0 && f.Flags&twinFIN != 0 || f.Flags&(listed|isReply) == 0)
}

// over says whether neither direction of a flow was used in time.
func (m *Model) over(t Tuple, f *Flow) bool { return m.silent(t, f, math.MaxInt32) }

// silent says so, or that neither was for more than so many ticks.
func (m *Model) silent(t Tuple, f *Flow, ticks int32) bool {
	g := m.find(twin(t, f))
	is := func(f *Flow) bool { return m.idle(f) || int32(m.Now-f.Seen) > ticks }
	return is(f) && (g == nil || is(g))
}

// track follows the state of a flow by one packet.
func (m *Model) track(p *packet, t Tuple, f *Flow) {
	other := twin(t, f)
	g := m.half[other]
	if f.Flags&listed != 0 {
		g = m.established[other]
	}
	reply, strict := f.Flags&isReply != 0, p.proto == tcp && f.Flags&optional == 0
	ends := p.proto == tcp && p.flags&(rst|fin) != 0
	over := f.State == stateClosing && f.Flags&sentFIN != 0 && f.Flags&twinFIN != 0
	if f.State == stateClosing && !ends && !over {
		// A reset that nobody obeyed (RFC 5961 section 3).
		switch {
		case f.Flags&listed != 0:
			f.State = stateEstablished
		case !reply && f.Expect != 0:
			f.State = stateAnswered
		default:
			f.State = stateNew
		}
		f.Timeout = m.timeoutOf(f, p.proto)
	}
	switch {
	case ends:
		if p.flags&fin != 0 {
			f.Flags |= sentFIN
			if g != nil {
				g.Flags |= twinFIN
			}
		}
		if p.flags&rst != 0 || f.Flags&twinFIN != 0 {
			for _, f := range []*Flow{f, g} {
				if f != nil {
					f.State = stateClosing
					f.Timeout = m.timeout(loader.BPFTimeoutKindTIMEOUT_TCP_TRANSITORY)
				}
			}
		}
	case over:
		if f.Flags&listed != 0 {
			m.retire(t, f)
		}
	case f.Flags&listed != 0:
	case reply && f.State == stateNew:
		if strict && p.flags&(syn|ack) != syn|ack {
			return
		}
		f.State = stateAnswered
		f.Timeout = m.timeoutOf(f, p.proto)
		if g != nil {
			g.State, g.Timeout, g.Expect = stateAnswered, f.Timeout, 0
			if p.flags&syn != 0 {
				g.Expect = p.seq + 1
			}
		}
	case !reply && f.State == stateAnswered:
		// What the responder has sent can be acknowledged, and nothing else (RFC 5961 section 5.2).
		if strict && (g == nil || p.flags&ack == 0 || p.flags&syn != 0 || uint64(p.ack-f.Expect) > min(g.Bytes, 0x7fffffff)) {
			return
		}
		m.promote(t, f)
	}
}
