// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// sum is the ones' complement sum of byte strings of even length (RFC 1071); the last may be odd.
func sum(parts ...[]byte) (s uint64) {
	for _, b := range parts {
		for i, c := range b {
			if i%2 == 0 {
				s += uint64(c) << 8
			} else {
				s += uint64(c)
			}
		}
	}
	return s
}

// region is what a checksum is over: bytes of the frame, and a pseudo header's addresses.
type region struct {
	from, to int
	check    int // offset of the checksum
	pseudo   func(frame []byte) [2]netip.Addr
	more     uint64 // of the pseudo header: where its length and protocol do not stay
	udp      bool
}

func (r region) sum(b []byte) uint64 {
	s := sum(b[r.from:r.to])
	if r.pseudo != nil {
		pair := r.pseudo(b)
		s += sum(pair[0].AsSlice(), pair[1].AsSlice())
	}
	return s + r.more
}

// mend computes a checksum anew: right if it was right before, else as wrong as it was, for the
// receiver to see. Both ways to write zero are one, except in UDP.
func (w *work) mend(before []byte, was, is region) {
	if is.check < is.from || is.check+2 > is.to {
		return
	}
	binary.BigEndian.PutUint16(w.out[is.check:], 0)
	field := uint16((was.sum(before)%65535 + 65535 - is.sum(w.out)%65535) % 65535)
	if is.udp && field == 0 {
		field = 0xffff
	} else if !is.udp {
		w.answer.zeros = append(w.answer.zeros, is.check)
	}
	binary.BigEndian.PutUint16(w.out[is.check:], field)
}

// pair reads the addresses of an IP header.
func pair(off int, six bool) func([]byte) [2]netip.Addr {
	return func(b []byte) [2]netip.Addr {
		if six {
			return [2]netip.Addr{addr6(b[off+8:]), addr6(b[off+24:])}
		}
		return [2]netip.Addr{addr4(b[off+12:]), addr4(b[off+16:])}
	}
}

func putPair(b []byte, off int, six bool, src, dst netip.Addr) {
	if six {
		copy(b[off+8:], src.AsSlice())
		copy(b[off+24:], dst.AsSlice())
	} else {
		copy(b[off+12:], src.AsSlice())
		copy(b[off+16:], dst.AsSlice())
	}
}

func headerLen(b []byte, off int) int { return int(b[off]&15) * 4 }

// header4 is the region of an IPv4 header's checksum.
func header4(b []byte, off int) region {
	return region{from: off, to: min(off+headerLen(b, off), len(b)), check: off + 10}
}

// transport is the region of a transport checksum; false: there is none.
func transport(b []byte, ip, l4 int, six bool, proto uint8) (region, bool) {
	r := region{from: l4, to: len(b), pseudo: pair(ip, six)}
	switch proto {
	case tcp:
		r.check = l4 + 16
	case udp:
		r.check, r.udp = l4+6, true
		if f := bytes(b, r.check, 2); f == nil || be16(f) == 0 {
			return r, false
		}
	case icmp4:
		r.check, r.pseudo = l4+2, nil
	case icmp6:
		r.check = l4 + 2
	default:
		return r, false
	}
	return r, true
}

// readdress writes the flow's addresses into the packet, one hop further if it is a router's.
func (w *work) readdress(f *Flow, src, dst netip.Addr) {
	p := &w.p
	before := slices.Clone(w.out)
	putPair(w.out, p.l2, p.six, src, dst)
	if f.Flags&hop != 0 {
		if p.six {
			w.out[p.l2+7]--
		} else {
			w.out[p.l2+8]--
		}
	}
	if !p.six {
		w.mend(before, header4(before, p.l2), header4(w.out, p.l2))
	}
}

// rewrite makes the packet what its flow says.
func (w *work) rewrite(f *Flow) {
	p := &w.p
	before := slices.Clone(w.out)
	w.readdress(f, f.Src, f.Dst)
	switch p.proto {
	case tcp, udp:
		binary.BigEndian.PutUint16(w.out[p.l4:], f.SPort)
		binary.BigEndian.PutUint16(w.out[p.l4+2:], f.DPort)
	case icmp4, icmp6:
		binary.BigEndian.PutUint16(w.out[p.l4+4:], f.SPort|f.DPort)
	}
	if r, ok := transport(before, p.l2, p.l4, p.six, p.proto); ok {
		w.mend(before, r, r)
	}
}

// change makes the packet one of the other family (RFC 7915), or says why not.
func (w *work) change(f *Flow) bool {
	p := &w.p
	header := 20
	if p.six {
		header = 40
	}
	if p.more || p.l4 != p.l2+header || p.proto != tcp && p.proto != udp {
		w.drop(unsupported)
		return false
	}
	before := slices.Clone(w.out)
	if w.a.Segment == 0 { // padding is not of the packet
		before = before[:min(len(before), p.l4+p.payload)]
	}
	body := slices.Clone(before[p.l4:])
	old, some := transport(before, p.l2, p.l4, p.six, p.proto)
	if !some && !p.six {
		w.drop(unsupported) // IPv6 has no datagram without a checksum
		return false
	}
	binary.BigEndian.PutUint16(body, f.SPort)
	binary.BigEndian.PutUint16(body[2:], f.DPort)
	w.out = append(slices.Clone(before[:12]), ipHeader(f.Src, f.Dst, p.proto, len(body), 0x4000)...)
	l4 := len(w.out)
	w.out = append(w.out, body...)
	if some {
		is := old
		is.from, is.to, is.check, is.pseudo = l4, len(w.out), l4+old.check-p.l4, pair(etherLen, !p.six)
		w.mend(before, old, is)
	}
	return true
}

// ipHeader is an ethertype and a plain IP header of our own.
func ipHeader(src, dst netip.Addr, proto uint8, length int, fragment uint16) []byte {
	if src.Is4() {
		h := []byte{8, 0, 0x45, 0}
		h = binary.BigEndian.AppendUint16(h, uint16(20+length))
		h = binary.BigEndian.AppendUint16(h, 0)
		h = binary.BigEndian.AppendUint16(h, fragment)
		h = append(h, 64, proto, 0, 0)
		h = append(append(h, src.AsSlice()...), dst.AsSlice()...)
		binary.BigEndian.PutUint16(h[12:], uint16((65535-sum(h[2:])%65535)%65535))
		return h
	}
	h := []byte{0x86, 0xdd, 0x60, 0, 0, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(length))
	h = append(h, proto, 64)
	return append(append(h, src.AsSlice()...), dst.AsSlice()...)
}
