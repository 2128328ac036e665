package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

var netipAddr = netip.MustParseAddr

const ruleHost4 = 6100 // IPv4 only: 8095 -> s:80

// loMAC is what comes back to lo from a container: LO_MARK of deliver.h.
var zeroMAC, loMAC = make([]byte, 6), []byte{2, 0, 0, 0, 0, 0}

// called is a call by from of a published address, as s sees it, and checks the
// way there and back.
func (w *world) called(six bool, from, to side, proto uint8) {
	w.t.Helper()
	f := w.family(six)
	from.mac, to.mac = zeroMAC, zeroMAC
	ask := opening(from, to, proto)
	r := w.call(ask, handed().any())
	seen := ask.with(func(p *packet) { p.from, p.to = f.gw.at(sourcePort(r.raw)), f.s })
	require.True(w.t, seen.from.port >= 20000 && seen.from.port <= 20999, "port %d is of the pool", seen.from.port)
	require.Equal(w.t, dump(seen.frame()), dump(r.raw))
	reply := seen.answer()
	back := reply.with(func(p *packet) { p.from, p.to = to, from; p.from.mac, p.to.mac = loMAC, zeroMAC })
	w.say(epS, reply, sent(back.frame()))
	w.check(w.objs.FromLo, 1, back.frame(), passed())
	ask.flags, ask.seq, ask.ack = "A", 101, 501
	seen.flags, seen.seq, seen.ack = "A", 101, 501
	for range 2 {
		w.call(ask, sent(seen.frame()))
		w.say(epS, reply, sent(back.frame()))
	}
	require.True(w.t, w.entry(ask, 1).established)
}

func TestFromLo(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		lo := side{addr: pick(six, netipAddr("127.0.0.1"), netip.IPv6Loopback()), port: 8080}
		targets := map[string][2]side{"loopback": {lo.at(45000), lo}, "the host's address": {f.host.at(45001), f.host}, "a gateway": {f.gw.at(45002), f.gw.at(8080)},
			"bound to another address": {f.host.at(45003), lo}, "another gateway": {lo.at(45004), w.gate(net2, six, 8080)}}
		if !six {
			targets["all of 127/8"] = [2]side{lo.at(45005), withAddr(lo, netipAddr("127.5.6.7"))}
			targets["published on loopback"] = [2]side{lo.at(45006), lo.at(8081)}
		}
		for name, c := range targets {
			for _, proto := range []uint8{tcp, udp} {
				w.sub(protoNames[proto]+" "+name, func(w *world) { w.called(six, c[0], c[1], proto) })
			}
		}
		w.sub("options", func(w *world) {
			p := opening(lo.at(45010), lo, udp)
			p.from.mac, p.to.mac = zeroMAC, zeroMAC
			r := w.check(w.objs.FromLo, 1, extended(p.frame(), 2), handed().any())
			valid(w.t, r.raw)
		})
		w.sub("more than the container's MTU", func(w *world) {
			p := opening(lo.at(45011), lo, udp)
			p.payload = make([]byte, 3000)
			w.call(p, handed().any())
		})
		w.sub("source denied", func(w *world) {
			w.call(opening(lo.at(45012), lo.at(8082), tcp), refused(loader.BPFReasonREASON_SOURCE_DENIED))
		})
	})
}

// What is not for a published port goes on as it came.
func TestFromLoBystanders(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		lo := side{zeroMAC, pick(six, netipAddr("127.0.0.1"), netip.IPv6Loopback()), 8080}
		host := f.host.via(lo)
		frames := map[string][]byte{
			"SYN-ACK from a published port": packet{from: lo, to: lo.at(46000), proto: tcp, flags: "SA"}.frame(),
			"ACK to a published port":       packet{from: lo.at(46000), to: lo, proto: tcp}.frame(),
			"RST to a published port":       packet{from: lo.at(46000), to: lo, proto: tcp, flags: "R"}.frame(),
			"published on loopback only":    opening(host.at(46000), host.at(8081), tcp).frame(),
			"the same by UDP":               opening(host.at(46000), host.at(8081), udp).frame(),
			"fragment":                      fragment(opening(lo.at(46000), lo, udp).frame(), 0, true),
			"later fragment":                fragment(opening(lo.at(46000), lo, udp).frame(), 64, false),
			"another protocol":              withProto(opening(lo.at(46000), lo, udp).frame(), 132),
			"multicast":                     opening(lo.at(46000), withAddr(lo, pick(six, group4, group6)), udp).frame(),
			"ICMP error":                    icmpError(opening(lo, lo, udp).frame(), lo.addr, 3, 3, 0),
			"a container's answer":          packet{from: side{loMAC, lo.addr, 46000}, to: lo, proto: tcp, flags: "S"}.frame(),
			"a container's datagram":        packet{from: side{loMAC, lo.addr, 46000}, to: lo, proto: udp}.frame(),
			"malformed":                     edited(opening(lo.at(46000), lo, tcp).frame(), func(b []byte) { b[ethLen] = 0 }),
		}
		if six {
			frames["published on IPv4 loopback only"] = opening(lo.at(46000), lo.at(8081), tcp).frame()
		} else {
			frames["broadcast"] = opening(lo.at(46000), withAddr(lo, netipAddr("255.255.255.255")), udp).frame()
		}
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			frames["unpublished "+protoNames[proto]] = opening(lo.at(46000), lo.at(9), proto).frame()
			frames["unpublished, host's address "+protoNames[proto]] = opening(host.at(46000), host.at(9), proto).frame()
		}
		for name, frame := range frames {
			w.sub(name, func(w *world) { w.check(w.objs.FromLo, 1, frame, passed()) })
		}
		established, half := w.tables()
		require.Zero(w.t, established+half, "flows made")
		w.sub("what the host sent from a published port by UDP", func(w *world) {
			w.check(w.objs.FromLo, 1, packet{from: lo, to: lo.at(53), proto: udp}.frame(), passed())
			w.check(w.objs.FromLo, 1, packet{from: lo.at(53), to: lo, proto: udp}.frame(), passed())
			w.called(six, lo.at(54), lo, udp)
		})
	})
}

// publishFour publishes s by IPv4 alone, and returns where the host reaches it by IPv6.
func (w *world) publishFour() side {
	w.t.Helper()
	w.put(w.objs.Rules, uint32(ruleHost4), loader.BPFRule{Gen: 1, Kind: uint8(loader.BPFRuleKindRULE_PUBLICATION), HostPort: 8095, Port: 80, Endpoint4: epS})
	for proto := range uint32(2) {
		w.put(w.objs.Ports4, proto*65536+8095, uint32(ruleHost4))
	}
	return side{zeroMAC, netip.IPv6Loopback(), 8095}
}

// [::1] to a container that has IPv4 only: there and back.
func TestFromLoOtherFamily(t *testing.T) {
	w := newWorld(t)
	four := w.family(false)
	lo := w.publishFour()
	plain := func(frame []byte) []byte { return edited(frame, func(b []byte) { b[18], b[19] = 0, 0 }) } // no IPv4 id
	for _, proto := range []uint8{tcp, udp} {
		for name, payload := range map[string][]byte{"payload": nil, "none": {}, "odd": make([]byte, 1), "long": make([]byte, 1401)} {
			w.sub(protoNames[proto]+" "+name, func(w *world) {
				ask := opening(lo.at(47000+uint16(len(payload))+uint16(len(name))), lo, proto)
				ask.payload = payload
				var seen packet
				for _, flags := range []string{"S", "A", "PA"} {
					ask.flags = flags
					if flags != "S" {
						ask.seq, ask.ack = 101, 501
					}
					r := w.call(ask, handed().any())
					seen = ask.with(func(p *packet) { p.from, p.to = four.gw.at(sourcePort(r.raw)), four.s })
					require.Equal(w.t, dump(plain(unpadded(seen.frame()))), dump(r.raw))
					reply := seen.answer()
					back := reply.with(func(p *packet) { p.from, p.to = ask.to, ask.from; p.from.mac, p.to.mac = loMAC, zeroMAC })
					w.utter(epS, unpadded(reply.frame()), sent(back.frame()))
					w.check(w.objs.FromLo, 1, back.frame(), passed())
				}
				require.True(w.t, w.entry(ask, 1).established)
				w.sub("options and extension headers have no counterpart", func(w *world) {
					no := refused(loader.BPFReasonREASON_UNSUPPORTED)
					w.check(w.objs.FromLo, 1, extended(ask.frame(), 1), no)
					w.utter(epS, extended(seen.answer().frame(), 1), no)
				})
			})
		}
	}
	w.sub("one's own fragments", func(w *world) {
		w.check(w.objs.FromLo, 1, fragment(opening(lo.at(47900), lo, udp).frame(), 64, false), passed())
	})
	w.sub("another address of the host", func(w *world) {
		host := side{zeroMAC, host6, 47901}
		w.call(opening(host, host.at(8095), tcp), passed())
	})
	answered := func(proto uint8, port uint16) (reply, back packet) {
		ask := opening(lo.at(port), lo, proto)
		r := w.call(ask, handed().any())
		reply = ask.with(func(p *packet) { p.from, p.to = four.gw.at(sourcePort(r.raw)), four.s }).answer()
		return reply, reply.with(func(p *packet) { p.from, p.to = ask.to, ask.from; p.from.mac, p.to.mac = loMAC, zeroMAC })
	}
	// What fills a frame up to 60 bytes is no part of the packet.
	for _, proto := range []uint8{tcp, udp} {
		w.sub("padded answer by "+protoNames[proto], func(w *world) {
			reply, back := answered(proto, 47902)
			reply.payload, back.payload = []byte{1}, []byte{1}
			require.Len(w.t, reply.frame(), 60)
			require.Less(w.t, len(unpadded(reply.frame())), 60)
			out := w.utter(epS, reply.frame(), handed().any())
			require.Equal(w.t, dump(back.frame()), dump(unpadded(out.raw)))
		})
	}
	// RFC 7915 section 4.5: IPv6 knows no datagram without a checksum.
	w.sub("answer without a checksum", func(w *world) {
		reply, _ := answered(udp, 47903)
		reply.noSum = true
		w.utter(epS, unpadded(reply.frame()), refused(loader.BPFReasonREASON_UNSUPPORTED))
	})
}

// unpadded is the frame without what follows the packet.
func unpadded(frame []byte) []byte {
	if isSix(frame) {
		return frame[:ethLen+ip6Len+int(binary.BigEndian.Uint16(frame[18:]))]
	}
	return frame[:ethLen+int(binary.BigEndian.Uint16(frame[16:]))]
}
