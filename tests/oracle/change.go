// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"slices"
)

// An ICMP error about a flow that changes its family (RFC 7915 sections 4.2, 4.3, 5.2, 5.3).

// what an error says: type and code.
type what struct{ kind, code uint8 }

// means is that in the other family. Not in it: cannot be said, or depends on the half of the
// header that follows.
var (
	meansSix = map[what]what{
		{3, 0}: {1, 0}, {3, 1}: {1, 0}, {3, 2}: {4, 1}, {3, 3}: {1, 4}, {3, 5}: {1, 0}, {3, 6}: {1, 0}, {3, 7}: {1, 0}, {3, 8}: {1, 0},
		{3, 9}: {1, 1}, {3, 10}: {1, 1}, {3, 11}: {1, 0}, {3, 12}: {1, 0}, {3, 13}: {1, 1}, {3, 15}: {1, 1},
	}
	meansFour = map[what]what{
		{1, 0}: {3, 1}, {1, 1}: {3, 10}, {1, 2}: {3, 1}, {1, 3}: {3, 1}, {1, 4}: {3, 3}, {4, 1}: {3, 2},
	}
	// Figures 3 and 6: where the problem is, in the header of the other family.
	pointsSix = map[uint32]uint32{0: 0, 1: 1, 2: 4, 3: 4, 8: 7, 9: 6, 12: 8, 13: 8, 14: 8, 15: 8, 16: 24, 17: 24, 18: 24, 19: 24}
	// RFC 1191 section 7.1, of those that are not less than IPv6's least.
	plateaus = []int{65535, 32000, 17914, 8166, 4352, 2002, 1492}
)

func pointsFour(at uint32) (uint32, bool) {
	switch {
	case at <= 1:
		return at, true
	case at == 4 || at == 5:
		return 2, true
	case at == 6:
		return 9, true
	case at == 7:
		return 8, true
	case at >= 8 && at < 24:
		return 12, true
	case at >= 24 && at < 40:
		return 16, true
	}
	return 0, false
}

// inSix says in ICMPv6 what an ICMP error about a packet of a length says; rest is the second
// half of its header.
func inSix(is what, rest uint32, length int) (what, uint32, bool) {
	switch {
	case is == what{3, 4}:
		mtu := int(rest & 0xffff)
		if mtu == 0 {
			if i := slices.IndexFunc(plateaus, func(n int) bool { return n < length }); i >= 0 {
				mtu = plateaus[i]
			}
		}
		return what{2, 0}, uint32(max(1280, mtu+20)), true
	case is.kind == 11:
		return what{3, is.code}, 0, true
	case is.kind == 12:
		at, ok := pointsSix[rest>>24]
		return what{4, 0}, at, ok && (is.code == 0 || is.code == 2)
	}
	means, ok := meansSix[is]
	if is.code == 2 {
		return means, 6, ok // the pointer to the next header
	}
	return means, 0, ok
}

func inFour(is what, rest uint32) (what, uint32, bool) {
	switch {
	case is.kind == 2:
		return what{3, 4}, uint32(min(65535, max(68, int64(rest)-20))), true
	case is.kind == 3:
		return what{11, is.code}, 0, true
	case is == what{4, 0}:
		at, ok := pointsFour(rest)
		return what{12, 0}, at << 24, ok
	}
	means, ok := meansFour[is]
	return means, 0, ok
}

// headed is a plain IP header, and its ethertype, with class and hop limit of another packet's.
func headed(h []byte, class, ttl byte) []byte {
	if h[2]>>4 == 6 {
		h[2], h[3], h[9] = 0x60|class>>4, class<<4, ttl
		return h
	}
	h[3], h[10], h[12], h[13] = class, ttl, 0, 0
	binary.BigEndian.PutUint16(h[12:], uint16((65535-sum(h[2:])%65535)%65535))
	return h
}

// classOf is the traffic class of a packet.
func classOf(b []byte, six bool) byte {
	if six {
		return b[0]<<4 | b[1]>>4
	}
	return b[1]
}

// changeError makes the error one of the other family; false: it has none.
func (w *work) changeError(f *Flow, q quoted) bool {
	p, b := &w.p, w.a.Frame
	header, differ := 20, 20
	if p.six {
		header, differ = 40, -20
	}
	about := b[q.ip:]
	if p.more || p.l4 != p.l2+header || q.l4 != q.ip+header || q.tuple.Proto != tcp && q.tuple.Proto != udp {
		return false
	}
	is, rest := what{b[p.l4], b[p.l4+1]}, be32(b[p.l4+4:])
	length, ttl := int(be16(about[2:]))-20, about[8] // what is behind the header, and how far it went
	if p.six {
		length, ttl = int(be16(about[4:])), about[7]
	}
	if length < 0 || length+20 > 65535 || !p.six && be16(about[6:])&0x3fff != 0 {
		return false
	}
	var ok bool
	proto := uint8(icmp6)
	if p.six {
		proto = icmp4
		is, rest, ok = inFour(is, rest)
	} else {
		is, rest, ok = inSix(is, rest, length+20)
	}
	if !ok {
		return false
	}
	end := p.l4 + p.payload
	w.out = append(slices.Clone(b[:12]), headed(ipHeader(f.Src, f.Dst, proto, p.payload+differ, 0x4000), classOf(b[p.l2:], p.six), 64)...)
	l4 := len(w.out)
	w.out = append(w.out, is.kind, is.code, b[p.l4+2], b[p.l4+3])
	w.out = binary.BigEndian.AppendUint32(w.out, rest)
	ip := len(w.out)
	w.out = append(w.out, headed(ipHeader(f.Dst, f.Src, q.tuple.Proto, length, 0x4000), classOf(about, p.six), ttl)[2:]...)
	within := len(w.out)
	w.out = append(w.out, b[q.l4:]...)
	binary.BigEndian.PutUint16(w.out[within:], f.DPort)
	binary.BigEndian.PutUint16(w.out[within+2:], f.SPort)
	if was, some := transport(b[:end], q.ip, q.l4, p.six, q.tuple.Proto); some {
		now := was
		now.from, now.to, now.check, now.pseudo = within, within+end-q.l4, within+was.check-q.l4, pair(ip, !p.six)
		w.mend(b, was, now)
	}
	was := region{from: p.l4, to: end, check: p.l4 + 2}
	now := region{from: l4, to: l4 + p.payload + differ, check: l4 + 2}
	// Of the two only ICMPv6 has a pseudo header.
	if p.six {
		was.pseudo, was.more = pair(p.l2, true), uint64(p.payload)+icmp6
	} else {
		now.pseudo, now.more = pair(p.l2, true), uint64(p.payload+differ)+icmp6
	}
	w.mend(b, was, now)
	return true
}
