// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// withOptions puts IPv4 options, a multiple of 4 bytes, behind the header.
func withOptions(frame, options []byte) []byte {
	return edited(slices.Insert(slices.Clone(frame), ethLen+ip4Len, options...), func(b []byte) {
		b[ethLen] += byte(len(options) / 4)
		binary.BigEndian.PutUint16(b[16:], binary.BigEndian.Uint16(b[16:])+uint16(len(options)))
	})
}

// Every header length, 5 to 15 words, and up to eight extension headers: translated as without, each
// way, for the first packet and for later ones.
func TestOptions(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		for n := 0; n <= pick(six, 10, 8); n++ {
			for i, proto := range []uint8{tcp, udp} {
				w.sub(fmt.Sprint(protoNames[proto], " ", n), func(w *world) {
					d := w.dialog(six, proto, uint16(41000+n*2+i))
					steps := []struct {
						out      bool
						flags    string
						seq, ack uint32
					}{{false, "S", 100, 0}, {true, "SA", 500, 101}, {false, "A", 101, 501}, {true, "A", 501, 101}, {false, "PA", 101, 501}}
					for _, s := range steps {
						if s.out {
							p := d.answers(s.flags, s.seq, s.ack)
							out := p.like(func(p *packet) { p.from.addr, p.from.port, p.ttl = f.host.addr, f.host.port, 63 })
							w.utter(epS, extended(p.frame(), n), sent(extended(out, n)))
							continue
						}
						p := d.asks(s.flags, s.seq, s.ack)
						w.check(w.objs.FromUplink, w.uplink, extended(p.frame(), n), sent(extended(w.inside(p, f.s).frame(), n)))
					}
					require.True(w.t, d.request().established)
				})
			}
		}
		if six {
			w.utter(epP, extended(opening(f.p, f.s, udp).frame(), 9), refused(loader.BPFReasonREASON_UNSUPPORTED))
		}
	})
}

// A source route says that the destination is not the last one: from a container it is dropped, from the
// world it is the host's to refuse, and neither makes a flow.
func TestOptionsSourceRoute(t *testing.T) {
	w := newWorld(t)
	f := w.family(false)
	route := func(kind, length byte) []byte { return []byte{kind, length, 4, 10, 1, 0, 2, 0} }
	for name, c := range map[string]struct {
		options []byte
		routed  bool
	}{
		"loose":                   {route(131, 7), true},
		"strict":                  {route(137, 7), true},
		"behind no-operations":    {append([]byte{1, 1, 1, 1}, route(131, 7)...), true},
		"behind a timestamp":      {append([]byte{68, 8, 9, 0, 0, 0, 0, 0}, route(137, 7)...), true},
		"behind 32 no-operations": {append(slices.Repeat([]byte{1}, 32), route(131, 7)...), true},
		"of no length":            {[]byte{131, 0, 0, 0}, true},
		"the last byte":           {[]byte{1, 1, 1, 131}, true},
		"behind the end":          {append([]byte{0, 0, 0, 0}, route(131, 7)...), false},
		"in a record route":       {[]byte{7, 11, 4, 131, 7, 4, 10, 1, 0, 2, 131, 0}, false},
		"behind one of no length": {append([]byte{68, 0, 1, 1}, route(131, 7)...), false}, // who sees the 0 goes no further
		"record route":            {[]byte{7, 7, 4, 0, 0, 0, 0, 0}, false},
		"router alert":            {[]byte{148, 4, 0, 0}, false},
	} {
		w.sub(name, func(w *world) {
			in := withOptions(opening(f.client, f.host, udp).frame(), c.options)
			out := withOptions(w.inside(opening(f.client, f.host, udp), f.s).frame(), c.options)
			ask := withOptions(opening(f.p, f.s.at(99), udp).frame(), c.options)
			if c.routed {
				w.check(w.objs.FromUplink, w.uplink, in, passed())
				w.utter(epP, ask, refused(loader.BPFReasonREASON_UNSUPPORTED))
				return
			}
			w.check(w.objs.FromUplink, w.uplink, in, sent(out))
			w.utter(epP, ask, sent(withMACs(ask, nil, f.gw.mac)))
		})
	}
}

// IPv6's routing headers likewise, while there are segments left; and headers that end elsewhere than they say.
func TestOptionsRouting(t *testing.T) {
	w := newWorld(t)
	f := w.family(true)
	in, out := opening(f.client, f.host, udp), w.inside(opening(f.client, f.host, udp), f.s)
	routing := func(frame []byte, kind, left byte) []byte {
		return withHeader(frame, 43, append([]byte{0, 2, kind, left, 0, 0, 0, 0}, make([]byte, 16)...))
	}
	unsupported, malformed := refused(loader.BPFReasonREASON_UNSUPPORTED), refused(loader.BPFReasonREASON_MALFORMED)
	for _, kind := range []byte{0, 2, 3, 4, 253} {
		w.check(w.objs.FromUplink, w.uplink, routing(in.frame(), kind, 1), passed())
		w.check(w.objs.FromUplink, w.uplink, extended(routing(extended(in.frame(), 2), kind, 255), 2), passed())
		w.utter(epP, routing(opening(f.p, f.s, udp).frame(), kind, 1), unsupported)
		w.check(w.objs.FromUplink, w.uplink, routing(in.frame(), kind, 0), sent(routing(out.frame(), kind, 0)))
	}
	// Hop-by-hop, destination options, an atomic fragment (RFC 6946), in any order.
	for _, kind := range []byte{0, 60} {
		header := []byte{0, 0, 1, 4, 0, 0, 0, 0}
		w.check(w.objs.FromUplink, w.uplink, withHeader(in.frame(), kind, header), sent(withHeader(out.frame(), kind, header)))
	}
	atomic := []byte{0, 0, 0, 0, 0, 0, 0, 9}
	w.check(w.objs.FromUplink, w.uplink, withHeader(in.frame(), 44, atomic), sent(withHeader(out.frame(), 44, atomic)))
	// Of two, the receiver goes by the first.
	piece := []byte{44, 0, 0, 1, 0, 0, 0, 9}
	w.utter(epS, withHeader(withHeader(opening(f.s, f.p, udp).frame(), 44, atomic), 44, piece), refused(loader.BPFReasonREASON_UNSUPPORTED))
	ask := opening(f.p, f.client.at(53).via(f.gw), udp).frame()
	for name, frame := range map[string][]byte{
		"header past the packet":             edited(extended(ask, 1), func(b []byte) { b[ethLen+ip6Len+1] = 1 }),
		"header past the frame":              edited(extended(ask, 1), func(b []byte) { b[ethLen+ip6Len+1] = 255 }),
		"transport header cut by the length": edited(ask, func(b []byte) { b[18], b[19] = 0, 7 }),
		"no transport header":                edited(extended(ask, 1), func(b []byte) { b[18], b[19] = 0, 8 }),
		"no fragment header":                 edited(ask, func(b []byte) { b[18], b[19], b[20] = 0, 0, 44 }),
	} {
		w.sub(name, func(w *world) { w.utter(epP, frame, malformed) })
	}
	established, half := w.tables()
	require.Equal(t, []int{0, 2}, []int{established, half}, "the published one alone")
}
