// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
)

// speaker is who we are to f's sender: the gateway to a container, else the address that was asked;
// where that is a container's, the host's on the way back.
func (w *work) speaker(f *Flow) netip.Addr {
	if w.network != 0 {
		return w.Networks[w.network].gateway(w.p.six)
	}
	if w.zone != zoneWorld || f.Kind != routed {
		return w.p.dst
	}
	if r := w.route(f.To.ID, w.p.src); r != nil {
		if h := w.spread(r, f.To.ID, w.p.src); h.Source.IsValid() {
			return h.Source
		}
	}
	return w.Networks[w.Endpoints[f.To.ID].Network].gateway(w.p.six)
}

// report tells the sender why f's packet is not forwarded (RFC 792, 1191, 4443); so many a second,
// but for those without which a transfer stalls.
func (w *work) report(f *Flow, reason loader.BPFReason, mtu uint16) Verdict {
	w.drop(reason)
	from := w.speaker(f)
	if !from.IsValid() || from.IsUnspecified() {
		return Drop
	}
	if w.errors.tick != w.Now {
		w.errors.tick, w.errors.sent = w.Now, 0
	}
	if reason != tooBig {
		if w.errors.sent >= w.Settings.ICMPRate {
			return Drop
		}
		w.errors.sent++
	}
	w.refused = true
	p := &w.p
	// The header with its options, and of the transport what a TCP header takes, or what there is.
	packet := w.a.Frame[p.l2:]
	header := p.l4 - p.l2
	quote := header + 20
	if p.six {
		header, quote = 40, 72
	} else if quote < 48 {
		quote = 48
	}
	if len(packet) < quote {
		quote = header + 8
	}
	packet = packet[:min(quote, len(packet))]
	message := make([]byte, 8, 8+len(packet))
	message[0], message[1] = 11, 0
	switch {
	case reason == tooBig && !p.six:
		message[0], message[1] = 3, 4
	case reason == tooBig:
		message[0] = 2
	case p.six:
		message[0] = 3
	}
	binary.BigEndian.PutUint16(message[6:], mtu)
	message = append(message, packet...)
	proto := uint8(icmp4)
	s := sum(message)
	if p.six {
		proto = icmp6
		s += sum(from.AsSlice(), p.src.AsSlice()) + uint64(len(message)) + icmp6
	}
	binary.BigEndian.PutUint16(message[2:], uint16((65535-s%65535)%65535))
	head := ipHeader(from, p.src, proto, len(message), 0)
	if p.l2 > 0 {
		w.out = slices.Concat(p.srcMAC[:], p.dstMAC[:], head, message)
		w.answer.zeros = append(w.answer.zeros, etherLen+len(head)-2+2)
	} else {
		w.out = slices.Concat(head[2:], message)
		w.answer.any = true // a test run has a link-layer header all the same
	}
	switch {
	case w.endpoint != 0:
		return w.send(call{way: wayPeer, ifindex: w.a.Ifindex})
	case w.zone != zoneWorld:
		return w.send(call{way: wayIn, ifindex: w.a.Ifindex})
	}
	w.answer.Mark = passed
	return w.send(call{way: wayOut, ifindex: w.a.Ifindex})
}

// quoted is the packet that an error is about: the tuple of the answer to it.
type quoted struct {
	tuple  Tuple
	ip, l4 int
}

// quote reads it. It was sent by who the error is for.
func (w *work) quote() (q quoted, ok bool) {
	p := &w.p
	b := w.a.Frame[:min(len(w.a.Frame), p.l4+p.payload)]
	q.ip = p.l4 + 8
	t := &q.tuple
	t.Zone = w.zone
	if p.six {
		h := bytes(b, q.ip, 40)
		if h == nil || h[0]>>4 != 6 {
			return q, false
		}
		c, reason := walk(b, q.ip+40, h[6])
		if reason != none || c.fragment != 0 && c.word&0xfff8 != 0 {
			return q, false
		}
		t.Src, t.Dst, t.Proto, q.l4 = addr6(h[24:]), addr6(h[8:]), c.proto, c.l4
	} else {
		h := bytes(b, q.ip, 20)
		if h == nil || h[0]>>4 != 4 || h[0]&15 < 5 || be16(h[6:])&0x1fff != 0 {
			return q, false
		}
		t.Src, t.Dst, t.Proto, q.l4 = addr4(h[16:]), addr4(h[12:]), h[9], q.ip+headerLen(b, q.ip)
	}
	h := bytes(b, q.l4, 8)
	if h == nil || t.Dst != p.dst || t.Src.Is4In6() || t.Dst.Is4In6() {
		return q, false
	}
	switch t.Proto {
	case tcp, udp, sctp:
		t.SPort, t.DPort = be16(h[2:]), be16(h)
	case icmp4, icmp6:
		if (t.Proto == icmp6) != p.six {
			return q, false
		}
		switch h[0] {
		case echoRequest(p.six):
			t.DPort = be16(h[4:])
		case echoReply(p.six):
			t.SPort = be16(h[4:])
		default:
			return q, false
		}
	default:
		return q, false
	}
	return q, true
}

// related sends an error where the packet that it quotes came from, as if nothing had been
// translated. Errors never create, refresh or end a flow.
func (w *work) related() Verdict {
	if !w.p.isError() {
		return miss
	}
	q, ok := w.quote()
	if !ok {
		return miss
	}
	entry := w.find(q.tuple)
	if entry == nil || entry.Kind == local || entry.Verdict == toStack {
		return miss
	}
	if w.stale(entry) != none || w.idle(entry) {
		return w.drop(noFlow)
	}
	g := *entry
	f, p := &g, &w.p
	if w.zone == 0 && w.nobody(p.src) {
		return w.drop(martian)
	}
	if f.Flags&hop != 0 && p.ttl <= 1 {
		return w.drop(ttlExceeded)
	}
	if f.Flags&(toIPv4|toIPv6) != 0 {
		if !w.changeError(f, q) {
			return w.drop(unsupported)
		}
		w.answer.rare = "an error that becomes one of IPv4"
		if !p.six {
			w.answer.rare = "an error that becomes one of IPv6"
		}
		return w.dispatch(f, !p.six)
	}
	end := min(len(w.out), p.l4+p.payload)
	before := slices.Clone(w.out)
	// The quoted packet: from what the flow calls its destination.
	putPair(w.out, q.ip, p.six, f.Dst, f.Src)
	if !p.six {
		w.mend(before, header4(before, q.ip), header4(w.out, q.ip))
	}
	switch q.tuple.Proto {
	case tcp, udp:
		binary.BigEndian.PutUint16(w.out[q.l4:], f.DPort)
		binary.BigEndian.PutUint16(w.out[q.l4+2:], f.SPort)
	case sctp:
	default:
		binary.BigEndian.PutUint16(w.out[q.l4+4:], f.SPort|f.DPort)
	}
	if r, ok := transport(before[:end], q.ip, q.l4, p.six, q.tuple.Proto); ok {
		w.mend(before, r, r)
	}
	// The error: from the flow's other end, or from whoever on the way cannot forward. A
	// container's own address means nothing elsewhere.
	from := p.src
	if w.endpoint != 0 || p.src == q.tuple.Src {
		from = f.Src
	}
	w.readdress(f, from, f.Dst)
	r := region{from: p.l4, to: end, check: p.l4 + 2}
	if p.six {
		r.pseudo = pair(p.l2, true)
	}
	w.mend(before, r, r)
	return w.dispatch(f, p.six)
}
