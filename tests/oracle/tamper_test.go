// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"slices"
)

// lead keeps the next packets that the treatment of one lets expect: the answer, and one more.
func (g *maker) lead(a Arrival, out Answer) {
	if out.Verdict != Redirect || len(out.Sent) == 0 || len(out.Reasons) > 0 {
		return
	}
	l2 := l2Of(a.Hook)
	again := a
	again.Frame = slices.Clone(a.Frame)
	p, reason := parse(again.Frame, l2, a.Ethertype, false)
	if reason != none || p.kind == icmpKind {
		return
	}
	if p.proto == tcp && p.kind == query {
		h := again.Frame[p.l4:]
		h[13] = one[byte](g.Rand, ack, ack, 8|ack, fin|ack, rst, syn)
		binary.BigEndian.PutUint32(h[8:], 501)
		fix(again.Frame, l2, a.Ethertype)
	}
	g.keep(again)
	s := out.Sent[0]
	var b Arrival
	var dst, src MAC
	switch {
	case s.way == wayPeer || s.way == wayOut && a.Hook == ToBridge:
		b.Hook, b.Ifindex = FromEndpoint, s.ifindex
		slot := g.m.endpointAt(s.ifindex)
		if slot == 0 {
			return
		}
		e := g.m.Endpoints[slot]
		dst, src = g.m.Networks[e.Network].MAC, e.MAC
	case s.way == wayNeigh && s.ifindex == g.devices["tun"]:
		b.Hook, b.Ifindex = FromTunnel, s.ifindex
	case s.way == wayNeigh:
		b.Hook, b.Ifindex = FromUplink, s.ifindex
		dst, src = g.macs[s.ifindex], MAC{2, 0x42, 0, 0, 0xdd, 1}
	case s.way == wayIn && s.ifindex == 1:
		b.Hook, b.Ifindex = FromLo, 1
	case s.way == wayIn && g.m.networkAt(s.ifindex) == 0:
		b.Hook, b.Ifindex = ToParent, s.ifindex
		dst, src = MAC(out.Out[6:12]), MAC(out.Out[:6])
	case s.way == wayIn:
		b.Hook, b.Ifindex = ToBridge, s.ifindex
	default:
		return
	}
	f := out.Out
	q, reason := parse(f, etherLen, be16(f[min(12, len(f)-2):]), false)
	if reason != none || q.kind != query {
		return
	}
	flags := one[uint8](g.Rand, syn|ack, syn|ack, syn|ack, ack, fin|ack, rst)
	body := g.transport(q.proto, q.six, q.dport, q.sport, flags|ack, 500, q.seq+1)
	if q.proto == icmp4 || q.proto == icmp6 {
		body = g.transport(q.proto, q.six, q.sport|q.dport, 0, ack, 0, 0)
		if q.dport != 0 {
			body = g.transport(q.proto, q.six, q.dport, 0, 0, 0, 0)
		}
	}
	answer := g.ip(dst, src, q.dst, q.src, q.proto, body)
	complaint := func() []byte { // about it
		quote := f[etherLen:min(len(f), etherLen+one(g.Rand, 28, 48, 60, 200, 40))]
		if q.six {
			quote = f[etherLen:min(len(f), etherLen+one(g.Rand, 48, 72, 100, 400))]
		}
		kind, proto := one[byte](g.Rand, 3, 11, 12), uint8(icmp4)
		if q.six {
			kind, proto = one[byte](g.Rand, 1, 2, 3, 4), icmp6
		}
		from := q.dst
		if g.chance(3) {
			from = g.address(q.six)
		}
		return g.ip(dst, src, from, q.src, proto, slices.Concat([]byte{kind, one(g.Rand, 0, 4, byte(g.IntN(17))), 1, 1}, g.rest(), quote))
	}
	if p.six != q.six { // seldom, so much is made of it
		for range 3 {
			c := b
			g.onto(&c, complaint())
			g.keep(c)
		}
	}
	if g.chance(5) {
		answer = complaint()
	}
	if g.chance(8) {
		answer = g.fragmented(answer)
	}
	g.onto(&b, answer)
	g.keep(b)
}

// rest is the second half of an error's header: an MTU, or where the problem is.
func (g *maker) rest() []byte {
	at := byte(g.IntN(42))
	return one(g.Rand, []byte{0, 0, 5, 0}, []byte{0, 0, 5, 0}, []byte{0, 0, 0, 0}, []byte{0, 0, byte(g.IntN(256)), byte(g.IntN(256))}, []byte{at, 0, 0, 0}, []byte{0, 0, 0, at},
		binary.BigEndian.AppendUint32(nil, g.Uint32()))
}

func (g *maker) keep(a Arrival) {
	if len(g.going) < 48 {
		g.going = append(g.going, a)
	} else {
		g.going[g.IntN(len(g.going))] = a
	}
}

// next is a packet for a hook, or for any.
func (g *maker) next(h Hook) Arrival {
	var a Arrival
	if fits := g.indices(h); len(fits) > 0 && !g.chance(3) {
		a = g.going[one(g.Rand, fits...)]
		a.Frame, a.Segment = slices.Clone(a.Frame), 0
	} else {
		a = g.fresh(h)
	}
	for range one(g.Rand, 0, 0, 1, 1, 1, 2, 4) {
		g.mutate(&a)
		g.settle(&a)
	}
	// A device puts together what is right.
	if p, reason := parse(a.Frame, l2Of(h), a.Ethertype, false); reason == none && p.kind == query && len(a.Frame) > 700 && g.chance(3) {
		switch p.proto {
		case tcp:
			a.Segment = len(a.Frame) / 2
			if g.chance(2) { // what just fits, or does not
				header := p.l4 - l2Of(h) + int(a.Frame[p.l4+12]>>4)*4
				a.Segment = one(g.Rand, 1300, 1400, 1500, 1500) - header + g.IntN(2)
			}
		case sctp:
			a.Segment = pieces
		}
	}
	return a
}

func (g *maker) indices(h Hook) (fits []int) {
	for i, a := range g.going {
		if a.Hook == h {
			fits = append(fits, i)
		}
	}
	return fits
}

// mutate tampers with a packet, knowing its fields or not; sums are made right half of the time.
func (g *maker) mutate(a *Arrival) {
	b := a.Frame
	l2 := l2Of(a.Hook)
	p, _ := parse(b, l2, a.Ethertype, true)
	anywhere := func() int { return g.IntN(min(len(b), one(g.Rand, 14, 34, 64, 100, 4000))) }
	put16 := func(off int, v uint16) {
		if off >= 0 && off+2 <= len(b) {
			binary.BigEndian.PutUint16(b[off:], v)
		}
	}
	put := func(off int, v ...byte) {
		if off >= 0 && off+len(v) <= len(b) {
			copy(b[off:], v)
		}
	}
	length := []uint16{0, 1, 7, 8, 19, 20, 21, 27, 28, 40, 48, 60, uint16(len(b) - l2), uint16(len(b) - l2 + 1), uint16(len(b) - l2 - 1), 1500, 65535}
	switch g.IntN(24) {
	case 0, 1:
		b[anywhere()] ^= 1 << g.IntN(8)
	case 2:
		b[anywhere()] = one[byte](g.Rand, 0, 1, 4, 5, 6, 17, 0x45, 0x60, 0x7f, 0x80, 0xff)
	case 3:
		b = b[:14+g.IntN(len(b)-13)]
	case 4:
		b = append(b, make([]byte, 1+g.IntN(60))...)
	case 5: // somebody else's bytes
		if len(g.going) > 0 {
			other := one(g.Rand, g.going...).Frame
			at := anywhere()
			b = append(b[:at:at], other[min(at, len(other)):]...)
		}
	case 6:
		if p.six {
			put16(l2+4, one(g.Rand, length...))
		} else {
			put16(l2+2, one(g.Rand, length...))
		}
	case 7:
		if p.six {
			put(l2+7, one[byte](g.Rand, 0, 1, 2, 255))
		} else {
			put(l2+8, one[byte](g.Rand, 0, 1, 2, 255))
		}
	case 8:
		if p.ip {
			src, dst := g.likely(a, p.six)
			if g.chance(3) {
				src = g.address(p.six)
			}
			if g.chance(2) {
				src = p.src
			} else {
				dst = p.dst
			}
			putPair(b, l2, p.six, src, dst)
		}
	case 9:
		put16(p.l4, g.port())
	case 10:
		put16(p.l4+2, g.port())
	case 11:
		put(p.l4+13, byte(g.IntN(64)))
	case 12:
		put(p.l4+12, byte(g.IntN(16))<<4)
	case 13:
		if p.six {
			put(l2+6, one[byte](g.Rand, 0, 1, 6, 17, 43, 44, 47, 50, 58, 59, 60, 132))
		} else {
			put(l2+9, one[byte](g.Rand, 1, 2, 6, 17, 47, 58, 132, 0))
		}
	case 14: // options, extension headers
		if !p.ip || len(b) < l2+40 {
			break
		}
		if !p.six {
			words := min(1+g.IntN(10), 15-int(b[l2]&15))
			option := one(g.Rand, []byte{1}, []byte{0}, []byte{131, 3, 4, 1}, []byte{137, 3, 4, 1}, []byte{68, 4, 5, 0}, []byte{7, 3, 4, 1}, []byte{9, 0}, []byte{1, 1, 1, 131})
			extra := make([]byte, 4*words)
			for i := 0; i+len(option) <= len(extra); i += len(option) {
				copy(extra[i:], option)
			}
			b = slices.Insert(b, l2+20, extra...)
			b[l2] += byte(words)
		} else {
			for range one(g.Rand, 1, 1, 2, 7, 8, 9) {
				kind := one[byte](g.Rand, 0, 43, 60, 60, 44)
				header := []byte{b[l2+6], 0, 1, 4, 0, 0, 0, 0}
				switch kind {
				case 43:
					header[2], header[3] = 0, one[byte](g.Rand, 0, 0, 1)
				case 44:
					header[2], header[3] = 0, one[byte](g.Rand, 0, 0, 1, 8)
				case 60:
					if g.chance(6) {
						header[1] = one[byte](g.Rand, 1, 2, 255)
						header = append(header, make([]byte, 8*g.IntN(4))...)
					}
				}
				b = slices.Insert(b, l2+40, header...)
				b[l2+6] = kind
			}
		}
		fix(b, l2, a.Ethertype)
	case 15:
		if p.ip && l2 == etherLen {
			b = g.fragmented(b)
		}
	case 16:
		if !p.six {
			put16(l2+6, one[uint16](g.Rand, 0x2000, 0x2001, 1, 2, 3, 100, 0x1fff, 0x3fff, 0x8000, 0x4000, 8189))
			put16(l2+4, uint16(g.IntN(3)))
		}
	case 17:
		put16(p.l4+4, one(g.Rand, length...))
	case 18:
		put(p.l4, one[byte](g.Rand, 0, 3, 5, 8, 11, 12, 1, 2, 4, 128, 129, 133, 134, 135, 136, 137, 143))
	case 19:
		put(l2, byte(g.IntN(256)))
	case 20:
		if l2 == etherLen {
			put16(12, one[uint16](g.Rand, typeIP4, typeIP6, typeARP, 0x8100, 0x88a8, 0x1234, 20))
		}
	case 21:
		if l2 == etherLen {
			b[one(g.Rand, 5, 11)] ^= 1
		}
	case 22:
		put16(p.l4+6, 0)
	case 23: // padding, as short frames have
		if len(b) < 60 {
			b = append(b, make([]byte, 60-len(b))...)
		}
		a.Frame = b
		return
	}
	if len(b) >= 14 && g.chance(2) {
		fix(b, l2, be16(b[12:]))
	}
	a.Frame = b
}
