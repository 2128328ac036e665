// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// What the comparison with the model (tests/oracle) has found.

// An echo reply that nobody asked for begins nothing that has to be translated: its identifier
// is the asker's.
func TestFoundEchoReply(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		beyond := f.client.via(f.gw)
		reply := packet{from: f.p.at(0), to: beyond.at(4711), proto: f.icmp, reply: true}
		w.say(epP, reply, refused(loader.BPFReasonREASON_NO_FLOW))
		w.say(epP, opening(f.p.at(4711), beyond, f.icmp), handed().any())
		// Untranslated it may, as any packet.
		mate := packet{from: f.p.at(0), to: f.s.at(4711), proto: f.icmp, reply: true}
		w.say(epP, mate, w.delivered(net1, mate))
		// But not with another identifier, when its own is taken towards the receiver.
		other := mate.with(func(p *packet) { p.to.port = 4712 })
		w.say(epS, opening(f.s.at(4712), f.p, f.icmp), handed().any())
		r := w.say(epP, other, handed().any())
		valid(t, r.raw)
		require.EqualValues(t, 4712, sourcePort(r.raw))
	})
}

// errorFor is an error from the world about what s has answered to the client.
func (d dialog) errorFor(speaker side) []byte {
	left := d.answers("A", 501, 101).with(func(p *packet) { p.from = d.f.host.at(8080); p.to = d.client })
	kind := uint8(3)
	if isSix(left.frame()) {
		kind = 1
	}
	return withMACs(icmpError(left.frame(), speaker.addr, kind, 1, 0), d.hostMAC, d.clientMAC)
}

// shortened is an ICMP error that ends so many bytes behind the header that it quotes. What follows
// in the frame is padding.
func shortened(frame []byte, n int) []byte {
	b := edited(frame, func(b []byte) {
		if isSix(b) {
			binary.BigEndian.PutUint16(b[18:], uint16(8+ip6Len+n))
		} else {
			binary.BigEndian.PutUint16(b[16:], uint16(ip4Len+8+ip4Len+n))
		}
	})
	l4, pseudo := ethLen+ip4Len, []byte(nil)
	end := l4 + 8 + ip4Len + n
	if isSix(b) {
		l4, end = ethLen+ip6Len, ethLen+ip6Len+8+ip6Len+n
		pseudo = append(append(pseudo, b[22:54]...), 0, icmp6, byte((end-l4)>>8), byte(end-l4))
	}
	b[l4+2], b[l4+3] = 0, 0
	binary.BigEndian.PutUint16(b[l4+2:], checksum(append(pseudo, b[l4:end]...)))
	return b
}

// Padding behind an error is no quotation: nothing is read from it, nothing written.
func TestFoundPaddedError(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		for i, proto := range []uint8{tcp, udp} {
			d := w.dialog(six, proto, uint16(52000+i))
			d.open()
			full := d.errorFor(d.client)
			w.check(w.objs.FromUplink, w.uplink, full, handed().any())
			w.check(w.objs.FromUplink, w.uplink, shortened(full, 7), passed())
			least := shortened(full, 8)
			r := w.check(w.objs.FromUplink, w.uplink, least, handed().any())
			valid(t, r.raw)
			end := ethLen + 2*pick(six, ip4Len, ip6Len) + 8 + 8
			require.Equal(t, least[end:], r.raw[end:], "padding")
		}
	})
}

// A device's sum over the whole packet is kept right where no checksum inside makes up for what
// changes: IPv6 without one, SCTP's of another kind, and the hop limit.
func TestFoundSummedByDevice(t *testing.T) {
	w := newWorld(t)
	f := w.family(true)
	bare := opening(f.client, f.host, udp).frame()
	bare[ethLen+ip6Len+6], bare[ethLen+ip6Len+7] = 0, 0
	w.complete(w.objs.FromUplink, w.uplink, bare)
	w.put(w.objs.Rules, uint32(6200), loader.BPFRule{Gen: 1, Kind: uint8(loader.BPFRuleKindRULE_PUBLICATION), HostPort: 8080, Port: 8080, Endpoint4: epS, Endpoint6: epS})
	w.put(w.objs.Ports6, uint32(2*65536+8080), uint32(6200))
	association := withProto(opening(f.client, f.host, udp).like(func(p *packet) { p.payload = append(make([]byte, 4), 1, 0, 0, 4) }), 132)
	w.check(w.objs.FromUplink, w.uplink, association, handed().any())
	w.complete(w.objs.FromUplink, w.uplink, association)
	d := w.dialog(true, tcp, 53000)
	d.open()
	w.check(w.objs.FromUplink, w.uplink, d.errorFor(d.client), handed().any())
	w.complete(w.objs.FromUplink, w.uplink, d.errorFor(d.client))
}

// A neighbour with an IPv4 address written as IPv6 is nobody's.
func TestFoundMappedNeighbour(t *testing.T) {
	w := newWorld(t)
	f := w.family(true)
	mapped := func(a netip.Addr) []byte { return about(netip.AddrFrom16(a.As16())) }
	asked := func(from side, target []byte) []byte {
		return nd(from, solicited(f.s.addr), 135, target, linkOption(1, from.mac))
	}
	w.utter(epP, asked(f.p, about(f.s.addr)), handed())
	w.check(w.objs.ToBridge, w.bridges[net1], asked(f.gw, about(f.s.addr)), handed())
	for _, a := range []netip.Addr{w.containers[epS].ip4, host4, gateway(net1, 4)} {
		w.utter(epP, asked(f.p, mapped(a)), refused(loader.BPFReasonREASON_NO_ENDPOINT))
	}
	w.check(w.objs.ToBridge, w.bridges[net1], asked(f.gw, mapped(w.containers[epS].ip4)), refused(loader.BPFReasonREASON_NO_ENDPOINT))
}

// A piece that is there, and now says that it is the last while another lies behind it: whichever
// of them came first.
func TestFoundLastFragmentAgain(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		for i, order := range [][]uint16{{3, 6}, {6, 3}} {
			from := f.client
			from.addr = netip.AddrFrom4([4]byte{198, 18, 7, byte(100 + i)})
			if six {
				from.addr = netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0xff, 15: byte(100 + i)})
			}
			p := packet{from: from, to: f.host, proto: udp, payload: make([]byte, 16)}
			arrive := func(offset uint16, more bool, want want) {
				t.Helper()
				frame := edited(fragment(p.frame(), offset, more), func(b []byte) {
					binary.BigEndian.PutUint16(b[pick(six, 18, ethLen+ip6Len+6):], 5) // one datagram
				})
				w.check(w.objs.FromUplink, w.uplink, frame, want)
			}
			arrive(0, true, handed().any())
			arrive(order[0], true, handed().any())
			arrive(order[1], true, handed().any())
			arrive(3, true, handed().any())
			arrive(3, false, refused(loader.BPFReasonREASON_FRAGMENT))
		}
	})
}

// SCTP has no port 0 (RFC 9260 section 3.1): where ports are chosen it stands for "none yet".
func TestFoundPortlessAssociation(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		associate := func(from, to side) []byte {
			return withProto(opening(from, to, udp).like(func(p *packet) { p.payload = append(make([]byte, 4), 1, 0, 0, 4) }), 132)
		}
		beyond := f.client.at(443).via(f.gw)
		w.utter(epP, associate(f.p, beyond), handed().any())
		w.utter(epP, associate(f.p.at(0), beyond), refused(loader.BPFReasonREASON_MALFORMED))
		w.utter(epP, associate(f.p, beyond.at(0)), refused(loader.BPFReasonREASON_MALFORMED))
	})
}

// What the kernel has joined of SCTP's chunks has pieces of any size (GSO_BY_FRAGS): it is no packet of so many bytes.
func TestFoundPieces(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		joined := func(s *skb) { s.gsoSize, s.gsoSegs = 0xffff, 2 }
		big := withProto(opening(f.p, f.client.at(443).via(f.gw), udp).like(func(p *packet) { p.payload = append([]byte{0, 0, 0, 0, 1, 0, 0, 4}, make([]byte, 1600)...) }), 132)
		w.check(w.objs.FromEndpoint, w.containers[epP].ifindex, big, handed().any(), joined)
		w.check(w.objs.FromEndpoint, w.containers[epP].ifindex, big, tooBig(big, f.gw, 1500).any())
	})
}
