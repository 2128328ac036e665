// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// told is an error in two families: type, code and the second half of the header as they are said, and as
// they are heard. heard is 0: nothing is.
type told struct {
	kind, code     uint8
	rest           uint32
	heard, hearing uint8
	means          uint32
}

// RFC 7915 section 4.2; the pointers are those of figure 3.
var toldSix = []told{
	{3, 0, 0, 1, 0, 0}, {3, 1, 0, 1, 0, 0}, {3, 2, 0, 4, 1, 6}, {3, 3, 0, 1, 4, 0}, {3, 5, 0, 1, 0, 0}, {3, 6, 0, 1, 0, 0}, {3, 7, 0, 1, 0, 0},
	{3, 8, 0, 1, 0, 0}, {3, 9, 0, 1, 1, 0}, {3, 10, 0, 1, 1, 0}, {3, 11, 0, 1, 0, 0}, {3, 12, 0, 1, 0, 0}, {3, 13, 0, 1, 1, 0}, {3, 14, 0, 0, 0, 0},
	{3, 15, 0, 1, 1, 0}, {3, 16, 0, 0, 0, 0}, {3, 255, 0, 0, 0, 0},
	{3, 4, 1400, 2, 0, 1420}, {3, 4, 1500, 2, 0, 1520}, {3, 4, 1260, 2, 0, 1280}, {3, 4, 1259, 2, 0, 1280}, {3, 4, 68, 2, 0, 1280}, {3, 4, 1, 2, 0, 1280},
	{3, 4, 65535, 2, 0, 65555}, {3, 4, 1261, 2, 0, 1281}, {3, 4, 0xabcd0000 + 1400, 2, 0, 1420},
	{3, 3, 0x00200000, 1, 4, 0}, // RFC 4884's length of what is quoted
	{11, 0, 0, 3, 0, 0}, {11, 1, 0, 3, 1, 0}, {11, 1, 0x00200000, 3, 1, 0},
	{12, 1, 0, 0, 0, 0}, {12, 3, 0, 0, 0, 0}, {12, 2, 9 << 24, 4, 0, 6},
	{12, 0, 0 << 24, 4, 0, 0}, {12, 0, 1 << 24, 4, 0, 1}, {12, 0, 2 << 24, 4, 0, 4}, {12, 0, 3 << 24, 4, 0, 4}, {12, 0, 4 << 24, 0, 0, 0}, {12, 0, 5 << 24, 0, 0, 0},
	{12, 0, 6 << 24, 0, 0, 0}, {12, 0, 7 << 24, 0, 0, 0}, {12, 0, 8 << 24, 4, 0, 7}, {12, 0, 9 << 24, 4, 0, 6}, {12, 0, 10 << 24, 0, 0, 0}, {12, 0, 11 << 24, 0, 0, 0},
	{12, 0, 12 << 24, 4, 0, 8}, {12, 0, 15 << 24, 4, 0, 8}, {12, 0, 16 << 24, 4, 0, 24}, {12, 0, 19 << 24, 4, 0, 24}, {12, 0, 20 << 24, 0, 0, 0}, {12, 0, 255 << 24, 0, 0, 0},
}

// RFC 7915 section 5.2; the pointers are those of figure 6.
var toldFour = []told{
	{1, 0, 0, 3, 1, 0}, {1, 1, 0, 3, 10, 0}, {1, 2, 0, 3, 1, 0}, {1, 3, 0, 3, 1, 0}, {1, 4, 0, 3, 3, 0}, {1, 5, 0, 0, 0, 0}, {1, 6, 0, 0, 0, 0}, {1, 255, 0, 0, 0, 0},
	{1, 4, 0x12000000, 3, 3, 0},
	{2, 0, 1500, 3, 4, 1480}, {2, 0, 1280, 3, 4, 1260}, {2, 7, 1280, 3, 4, 1260}, {2, 0, 88, 3, 4, 68}, {2, 0, 87, 3, 4, 68}, {2, 0, 0, 3, 4, 68}, {2, 0, 65536, 3, 4, 65516},
	{2, 0, 65555, 3, 4, 65535}, {2, 0, 65556, 3, 4, 65535}, {2, 0, 0xffffffff, 3, 4, 65535},
	{3, 0, 0, 11, 0, 0}, {3, 1, 0, 11, 1, 0}, {3, 1, 0x12000000, 11, 1, 0},
	{4, 1, 6, 3, 2, 0}, {4, 1, 40, 3, 2, 0}, {4, 2, 0, 0, 0, 0}, {4, 3, 0, 0, 0, 0},
	{4, 0, 0, 12, 0, 0 << 24}, {4, 0, 1, 12, 0, 1 << 24}, {4, 0, 2, 0, 0, 0}, {4, 0, 3, 0, 0, 0}, {4, 0, 4, 12, 0, 2 << 24}, {4, 0, 5, 12, 0, 2 << 24}, {4, 0, 6, 12, 0, 9 << 24},
	{4, 0, 7, 12, 0, 8 << 24}, {4, 0, 8, 12, 0, 12 << 24}, {4, 0, 23, 12, 0, 12 << 24}, {4, 0, 24, 12, 0, 16 << 24}, {4, 0, 39, 12, 0, 16 << 24}, {4, 0, 40, 0, 0, 0},
	{4, 0, 256 + 6, 0, 0, 0}, {4, 0, 0x80000006, 0, 0, 0},
}

// fresh is an IPv4 packet as the programs make one of an IPv6 packet: with no identification, not
// to be fragmented.
func fresh(frame []byte) []byte {
	return edited(frame, func(b []byte) { b[18], b[19], b[20], b[21] = 0, 0, 0x40, 0 })
}

// classed is the frame with a traffic class and a hop limit.
func classed(frame []byte, class, ttl byte) []byte {
	return edited(frame, func(b []byte) {
		if isSix(b) {
			b[14], b[15], b[21] = 0x60|class>>4, class<<4, ttl
		} else {
			b[15], b[22] = class, ttl
		}
	})
}

// differing is a flow from [::1] to an IPv4-only container, and how one of its packets looked to who
// complains about it (met), and to who sent it (made).
type differing struct {
	program    *ebpf.Program
	ifindex    int
	six        bool // the error comes as ICMPv6, and arrives as ICMP; else the other way round
	met, made  packet
	from, to   side // of the error as it comes
	seen, goes side // of the error as it arrives
	kinds      []told
}

// Errors about a flow that changes its family change theirs, and are otherwise as all others: translated to
// the letter. What cannot be translated is dropped, and the flow stays as it was.
func TestRelatedOtherFamily(t *testing.T) {
	w := newWorld(t)
	four := w.family(false)
	lo := w.publishFour()
	for i, proto := range []uint8{tcp, udp} {
		ask := opening(lo.at(48000+uint16(i)), lo, proto)
		gate := four.gw.at(sourcePort(w.call(ask, handed().any()).raw))
		seen := ask.with(func(p *packet) { p.from, p.to = gate, four.s })
		for name, d := range map[string]differing{
			"the server":                {w.objs.FromEndpoint, w.containers[epS].ifindex, false, seen, ask, four.s, four.gw, side{loMAC, lo.addr, 0}, lo, toldSix},
			"the client, of the answer": {w.objs.FromLo, 1, true, ask.answer(), seen.answer(), lo, lo, four.gw, four.s, toldFour},
		} {
			w.sub(protoNames[proto]+" "+name, func(w *world) { w.differs(d, proto) })
		}
	}
}

func (w *world) differs(d differing, proto uint8) {
	d.met.payload = slices.Repeat([]byte("0123456"), 6)
	d.made.payload = d.met.payload
	head, other := pick(d.six, ip4Len, ip6Len), pick(d.six, ip6Len, ip4Len)
	made4 := func(b []byte) []byte { return b }
	if d.six {
		made4 = fresh
	}
	met, made := d.met.frame(), made4(d.made.frame())
	w.age(3)
	before := w.flows()
	in := func(k told, quote []byte) []byte { return problem(d.from, d.to, 64, k.kind, k.code, k.rest, quote) }
	out := func(k told, quote []byte) []byte {
		return made4(problem(d.seen, d.goes, 64, k.heard, k.hearing, k.means, quote))
	}
	no := refused(loader.BPFReasonREASON_UNSUPPORTED)
	check := func(w *world, k told, met, made []byte, n int) {
		w.t.Helper()
		said := in(k, quoted(met, 0, n))
		if k.heard == 0 {
			w.check(d.program, d.ifindex, said, no)
			return
		}
		got := w.check(d.program, d.ifindex, said, sent(out(k, quoted(made, 0, n))))
		valid(w.t, got.raw)
		w.complete(d.program, d.ifindex, said)
	}
	for _, k := range d.kinds {
		w.sub(fmt.Sprint(k.kind, " ", k.code, " ", k.rest), func(w *world) {
			check(w, k, met, made, 8)
			check(w, k, met, made, -1)
		})
	}
	plain := d.kinds[0]
	short := in(plain, quoted(met, 0, 8))
	becomes := out(plain, quoted(made, 0, 8))
	w.sub("quotes of all lengths", func(w *world) {
		for n := 8; n <= 29; n++ { // the checksum of TCP is in it from 18 on
			if n != 17 { // half of it, which says nothing
				check(w, plain, met, made, n)
			}
		}
	})
	w.sub("class and hop limit of what is quoted", func(w *world) {
		check(w, plain, classed(met, 0xb9, 7), classed(made, 0xb9, 7), -1)
	})
	w.sub("class and hop limit of the error", func(w *world) {
		valid(w.t, w.check(d.program, d.ifindex, classed(short, 0xc0, 9), sent(classed(becomes, 0xc0, 64))).raw)
	})
	w.sub("wrong checksum", func(w *world) { // as wrong as it was, for the receiver to see
		bad := slices.Clone(short)
		bad[ethLen+head+2] ^= 0x55
		got := w.check(d.program, d.ifindex, bad, handed().any()).raw
		at := ethLen + other + 2
		require.NotEqual(w.t, becomes[at:at+2], got[at:at+2])
		copy(got[at:], becomes[at:at+2])
		require.Equal(w.t, dump(becomes), dump(got))
	})
	w.sub("what follows the packet", func(w *world) {
		trailer := []byte{1, 2, 3}
		w.check(d.program, d.ifindex, slices.Concat(short, trailer), sent(slices.Concat(becomes, trailer)))
	})
	if proto == udp {
		w.sub("no checksum in what is quoted", func(w *world) {
			none := func(b []byte, head int) []byte {
				return edited(b, func(b []byte) { b[ethLen+head+6], b[ethLen+head+7] = 0, 0 })
			}
			check(w, plain, none(met, head), none(made, other), 8)
		})
	}
	if !d.six { // RFC 1191 section 7.1
		for length, mtu := range map[uint16]uint32{65535: 32020, 32001: 32020, 32000: 17934, 17914: 8186, 8166: 4372, 4352: 2022, 2002: 1512, 1493: 1512, 1492: 1280, 40: 1280} {
			w.sub(fmt.Sprintf("a packet of %d bytes was too long", length), func(w *world) {
				long := edited(met, func(b []byte) { binary.BigEndian.PutUint16(b[16:], length) })
				check(w, told{3, 4, 0, 2, 0, mtu}, long, edited(made, func(b []byte) { binary.BigEndian.PutUint16(b[18:], length-20) }), 8)
			})
		}
	}
	impossible := edited(met, func(b []byte) { copy(b[pick(d.six, 16, 18):], pick(d.six, []byte{0, 19}, []byte{0xff, 0xec})) })
	cases := map[string][]byte{
		"options":              extended(short, 1),
		"options quoted":       in(plain, quoted(extended(met, 1), pick(d.six, 4, 8), 8)),
		"a fragment quoted":    in(plain, quoted(fragment(met, 0, true), pick(d.six, 0, 8), 8)),
		"an impossible length": in(plain, quoted(impossible, 0, 8)),
	}
	if !d.six { // the host's own fragments pass lo as they are
		cases["a fragment"] = fragment(in(plain, quoted(met, 0, -1)), 0, true)
	}
	for name, frame := range cases {
		w.sub(name, func(w *world) { w.check(d.program, d.ifindex, frame, no) })
	}
	w.sub("of no flow", func(w *world) { // it is not ours to change
		other := in(plain, quoted(d.met.like(func(p *packet) { p.to.port += 300; p.from.port += 300 }), 0, 8))
		require.Equal(w.t, dump(other), dump(w.run(d.program, d.ifindex, other).raw))
	})
	require.Equal(w.t, before, w.flows(), "the flows")
	w.age(1000)
	w.check(d.program, d.ifindex, short, refused(loader.BPFReasonREASON_NO_FLOW))
	w.age(^uint32(999))
}
