// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// problem is an ICMP error: kind and code, the second half of its header, and what it quotes.
func problem(from, to side, ttl, kind, code uint8, rest uint32, quote []byte) []byte {
	eth := &layers.Ethernet{SrcMAC: from.mac, DstMAC: to.mac, EthernetType: layers.EthernetTypeIPv4}
	if from.addr.Is4() {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: ttl, Id: 5, Protocol: layers.IPProtocolICMPv4, SrcIP: from.addr.AsSlice(), DstIP: to.addr.AsSlice()}
		return serialize(eth, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Id: uint16(rest >> 16), Seq: uint16(rest)}, gopacket.Payload(quote))
	}
	eth.EthernetType = layers.EthernetTypeIPv6
	ip := &layers.IPv6{Version: 6, HopLimit: ttl, NextHeader: layers.IPProtocolICMPv6, SrcIP: from.addr.AsSlice(), DstIP: to.addr.AsSlice()}
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)}
	l.SetNetworkLayerForChecksum(ip)
	word := []byte{byte(rest >> 24), byte(rest >> 16), byte(rest >> 8), byte(rest)}
	return serialize(eth, ip, l, gopacket.Payload(slices.Concat(word, quote)))
}

// relation is a flow, one of whose packets somebody complains about: met is how that packet looked
// there, made is how its sender had made it (TTL apart).
type relation struct {
	name       string
	program    *ebpf.Program
	ifindex    int
	met, made  packet
	from, to   side  // of the error as it comes
	seen, goes side  // of the error as it arrives
	routed     uint8 // hops that it takes through us
}

// relations opens one flow of every kind.
func (w *world) relations(six bool, proto uint8) (list []relation) {
	w.t.Helper()
	f := w.family(six)
	beyond := f.client.at(443)
	router := side{w.clientMAC, pick(six, remote4, remote6), 0}
	if proto == f.icmp {
		beyond.port = 0
	}
	ttl := func(p packet) packet { p.ttl = 63; return p }
	turn := func(p packet) packet { return ttl(p.answer()) }
	endpoint := func(slot uint32) (*ebpf.Program, int) { return w.objs.FromEndpoint, w.containers[slot].ifindex }

	// p asks the world.
	ask := opening(f.p, beyond.via(f.gw), proto)
	port := sourcePort(w.say(epP, ask, handed().any()).raw)
	met := ask.with(func(p *packet) { p.from.addr, p.from.port = f.host.addr, port })
	for name, from := range map[string]side{"its receiver": beyond, "a router": router} {
		list = append(list, relation{"masquerade, " + name, w.objs.FromUplink, w.uplink, ttl(met), ttl(ask),
			from, f.host, from.via(f.gw), f.p, 1})
	}
	program, ifindex := endpoint(epP)
	list = append(list, relation{"masquerade, its sender about an answer", program, ifindex, turn(ask), turn(met),
		f.p, beyond.via(f.gw), withAddr(f.p, f.host.addr), beyond.via(f.gw), 1})

	// p asks a peer, and the host.
	peer := opening(f.p.at(50001), f.s.at(99), proto)
	w.say(epP, peer, w.delivered(net1, peer))
	program, ifindex = endpoint(epS)
	list = append(list, relation{"peer", program, ifindex, peer, peer, f.s, f.p, f.s.via(f.gw), f.p, 0})
	service := opening(f.p.at(50002), f.gw.at(22), proto)
	w.say(epP, service, w.toHost(net1, service))
	list = append(list, relation{"a service of the host", w.objs.ToBridge, w.bridges[net1], service, service, f.gw, f.p, f.gw, f.p, 0})
	// The host asks s.
	own := opening(f.gw.at(33000), f.s, proto)
	w.emit(net1, own, w.delivered(net1, own))
	list = append(list, relation{"the host asks", program, ifindex, own, own, f.s, f.gw, f.s, f.gw, 0})

	if proto == f.icmp {
		return list
	}
	// The world asks for the published port.
	in := opening(f.client, f.host, proto)
	w.arrive(in, sent(w.inside(in, f.s).frame()))
	list = append(list,
		relation{"published, the server", program, ifindex, w.inside(in, f.s), ttl(in), f.s, f.client.via(f.gw), withAddr(f.s, f.host.addr), f.client.via(f.gw), 1},
		relation{"published, the client about an answer", w.objs.FromUplink, w.uplink, turn(in), turn(w.inside(in, f.s)), f.client, f.host, f.client.via(f.gw), f.s, 1},
		relation{"published, a router about an answer", w.objs.FromUplink, w.uplink, turn(in), turn(w.inside(in, f.s)), router, f.host, router.via(f.gw), f.s, 1})
	// So do p, s itself, and the host by lo.
	local := opening(f.p.at(50003), f.host.via(f.gw), proto)
	served := local.with(func(p *packet) { p.from.mac, p.to = f.gw.mac, f.s })
	w.say(epP, local, sent(served.frame()))
	list = append(list, relation{"a neighbour's published port", program, ifindex, served, local, f.s, f.p, withAddr(f.gw, f.host.addr), f.p, 0})
	pin := opening(f.s.at(50004), f.host.via(f.gw), proto)
	gate := f.gw.at(sourcePort(w.say(epS, pin, handed().any()).raw))
	list = append(list, relation{"hairpin", program, ifindex, pin.with(func(p *packet) { p.from, p.to = gate, f.s }), pin, f.s, f.gw, withAddr(f.gw, f.host.addr), f.s, 0})
	zero := make([]byte, 6)
	lo := opening(side{zero, f.host.addr, 46000}, side{zero, f.host.addr, 8080}, proto)
	gate = f.gw.at(sourcePort(w.call(lo, handed().any()).raw))
	back := side{[]byte{2, 0, 0, 0, 0, 0}, f.host.addr, 0}
	list = append(list, relation{"the host's own, by lo", program, ifindex, lo.with(func(p *packet) { p.from, p.to = gate, f.s }), lo, f.s, f.gw, back, side{zero, f.host.addr, 0}, 0})
	return list
}

// flows is every entry by its key, to see that nothing has changed.
func (w *world) flows() map[string]loader.BPFFlow {
	out := map[string]loader.BPFFlow{}
	for _, e := range w.entries() {
		e.Epoch = 0 // to look again whether it is stale changes nothing else
		out[fmt.Sprint(e.src, e.dst, e.zone, e.proto, e.established)] = e.BPFFlow
	}
	return out
}

// A quote of n bytes behind the IP headers of a frame; less than 0: all of it.
func quoted(frame []byte, headers, n int) []byte {
	end := ethLen + ip4Len
	if isSix(frame) {
		end = ethLen + ip6Len
	}
	if end += headers + n; n < 0 || end > len(frame) {
		end = len(frame)
	}
	return slices.Clone(frame[ethLen:end])
}

// Errors go to who sent the packet that they quote, translated back to the letter, and leave the flow as
// it was.
func TestRelated(t *testing.T) {
	type error struct {
		kind, code uint8
		rest       uint32
	}
	errors := map[bool][]error{
		false: {{3, 0, 0}, {3, 1, 0}, {3, 3, 0}, {3, 4, 1400}, {3, 10, 0}, {3, 13, 0}, {11, 0, 0}, {11, 1, 0}, {12, 0, 0x14000000}, {12, 1, 0}},
		true:  {{1, 0, 0}, {1, 1, 0}, {1, 4, 0}, {1, 5, 0}, {2, 0, 1400}, {3, 0, 0}, {3, 1, 0}, {4, 0, 40}, {4, 1, 6}},
	}
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			list := w.relations(six, proto)
			w.age(3)
			before := w.flows()
			for _, r := range list {
				w.sub(protoNames[proto]+" "+r.name, func(w *world) {
					r.met.payload = slices.Repeat([]byte("0123456"), 6)
					r.made.payload = r.met.payload
					met, made := r.met.frame(), r.made.frame()
					check := func(e error, met, made []byte, headers, n int) {
						w.t.Helper()
						out := problem(r.seen, r.goes, 64-r.routed, e.kind, e.code, e.rest, quoted(made, headers, n))
						in := problem(r.from, r.to, 64, e.kind, e.code, e.rest, quoted(met, headers, n))
						got := w.check(r.program, r.ifindex, in, sent(out))
						valid(w.t, got.raw)
						w.complete(r.program, r.ifindex, in)
					}
					for _, e := range errors[six] {
						check(e, met, made, 0, 8)
						check(e, met, made, 0, -1)
					}
					for n := 8; n <= 29; n++ { // the checksum of TCP is in it from 18 on
						if n != 17 { // half of it, which says nothing
							check(errors[six][2], met, made, 0, n)
						}
					}
					for n := 1; n <= pick(six, 10, 8); n++ {
						headers := n * pick(six, 4, 8)
						check(errors[six][0], extended(met, n), extended(made, n), headers, 8)
						check(errors[six][1], extended(met, n), extended(made, n), headers, -1)
					}
					if proto == udp && !six {
						r.met.noSum, r.made.noSum = true, true
						check(errors[six][0], r.met.frame(), r.made.frame(), 0, 8)
					}
					require.Equal(w.t, before, w.flows(), "the flows")
				})
			}
		}
	})
}

// What quotes nothing of a flow, or comes from or goes to somebody else, does not get through.
func TestRelatedForged(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		second := side{w.hostMAC, pick(six, other4, other6), 0}
		w.put(w.objs.HostAddrs, addr(second.addr), uint32(w.uplink))
		kind, quench, redirected := pick[uint8](six, 3, 1), pick[uint8](six, 4, 137), pick[uint8](six, 5, 137)
		headers := pick(six, ip4Len, ip6Len)
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			list := w.relations(six, proto)
			w.age(3)
			before := w.flows()
			for _, r := range list {
				if r.program == w.objs.ToBridge {
					continue // the host may say what it likes
				}
				w.sub(protoNames[proto]+" "+r.name, func(w *world) {
					frame := r.met.frame()
					quote := quoted(frame, 0, 8)
					in := func(from, to side, kind uint8, quote []byte) []byte {
						return problem(from, to, 64, kind, 0, 0, quote)
					}
					about := func(edit func(*packet)) []byte { return quoted(r.met.like(edit), 0, 8) }
					changed := func(at int, v byte) []byte { q := slices.Clone(quote); q[at] = v; return q }
					cases := map[string][]byte{
						"another port":          in(r.from, r.to, kind, about(func(p *packet) { p.from.port += 300 })),
						"another receiver":      in(r.from, r.to, kind, about(func(p *packet) { p.to.addr = p.to.addr.Next() })),
						"another protocol":      in(r.from, r.to, kind, changed(pick(six, 9, 6), 132)),
						"seven bytes":           in(r.from, r.to, kind, quote[:headers+7]),
						"seven and a trailer":   append(in(r.from, r.to, kind, quote[:headers+7]), quote[headers+7]),
						"no transport header":   in(r.from, r.to, kind, quote[:headers]),
						"half an IP header":     in(r.from, r.to, kind, quote[:headers/2]),
						"nothing":               in(r.from, r.to, kind, nil),
						"the other IP version":  in(r.from, r.to, kind, changed(0, pick[byte](six, 0x65, 0x40))),
						"redirect":              in(r.from, r.to, redirected, quote),
						"source quench":         in(r.from, r.to, quench, quote),
						"no sender of this":     in(r.from, r.to, kind, about(func(p *packet) { p.from, p.to = p.to, p.from })),
						"another addressee":     in(r.from, second.via(r.to), kind, quote),
						"of a later fragment":   in(r.from, r.to, kind, quoted(fragment(frame, 2, false), pick(six, 0, 8), 8)),
						"an error about errors": in(r.from, r.to, kind, quoted(problem(r.to, r.from, 64, kind, 0, 0, quote), 0, 60)),
					}
					if r.program == w.objs.FromUplink {
						for _, from := range []netip.Addr{pick(six, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), f.s.addr, f.host.addr, second.addr} {
							w.check(r.program, r.ifindex, in(withAddr(r.from, from), r.to, kind, quote), refused(loader.BPFReasonREASON_MARTIAN))
						}
					}
					for name, in := range cases {
						w.sub(name, func(w *world) {
							if r.program == w.objs.FromUplink {
								w.check(r.program, r.ifindex, in, passed())
								return
							}
							// From a container: as it is, to the host or a neighbour, or not at all.
							got := w.run(r.program, r.ifindex, in)
							if got.verdict != drop {
								require.Equal(w.t, redirect, got.verdict)
								require.Equal(w.t, dump(in), dump(got.raw))
							}
						})
					}
				})
			}
			// p complains about what s alone got: the flow is not one of p's.
			w.sub(protoNames[proto]+" in another's name", func(w *world) {
				for _, r := range list {
					if r.ifindex != w.containers[epS].ifindex || r.to.addr == f.gw.addr {
						continue
					}
					in := problem(f.p, r.to.via(f.gw), 64, kind, 0, 0, quoted(r.met.frame(), 0, 8))
					if r.to.addr == f.p.addr {
						continue
					}
					w.utter(epP, in, refused(loader.BPFReasonREASON_UNSUPPORTED))
				}
			})
			require.Equal(w.t, before, w.flows(), "the flows")
		}
	})
}

// An error about a flow that has ended, or that cannot go on, is not sent on; neither does it end one.
func TestRelatedEnded(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		kind := pick[uint8](six, 3, 1)
		in := opening(f.client, f.host, udp)
		open := func() []byte {
			w.arrive(in, handed().any())
			return problem(f.client, f.host, 64, kind, 3, 0, quoted(in.answer().frame(), 0, 8))
		}
		e := open()
		w.check(w.objs.FromUplink, w.uplink, e, handed().any())
		w.age(31)
		w.check(w.objs.FromUplink, w.uplink, e, refused(loader.BPFReasonREASON_NO_FLOW))
		open()
		w.bump(rulePublished, loader.BPFRuleKindRULE_PUBLICATION)
		before := w.flows()
		w.check(w.objs.FromUplink, w.uplink, e, refused(loader.BPFReasonREASON_NO_FLOW))
		require.Equal(w.t, before, w.flows())
		open()
		w.check(w.objs.FromUplink, w.uplink, withTTL(e, 1), refused(loader.BPFReasonREASON_TTL_EXCEEDED))
		w.check(w.objs.FromUplink, w.uplink, e, handed().any())
	})
}
