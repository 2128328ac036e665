package datapath

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

const (
	icc      = loader.BPFNetworkFlagsNETWORK_ICC
	internal = loader.BPFNetworkFlagsNETWORK_INTERNAL
	isolate  = loader.BPFNetworkFlagsNETWORK_ISOLATE
)

// utter gives a frame to from_endpoint of a container.
func (w *world) utter(slot uint32, frame []byte, want want) result {
	w.t.Helper()
	return w.check(w.objs.FromEndpoint, w.containers[slot].ifindex, frame, want)
}

// ll is a container's link-local side.
func (w *world) ll(slot uint32, port uint16) side {
	c := w.containers[slot]
	return side{c.mac, c.ll6, port}
}

// delivered is the packet as a container gets it from its bridge.
func (w *world) delivered(number uint32, p packet) want {
	return sent(p.like(func(p *packet) { p.from.mac = w.bridgeMAC[number] }))
}

// toHost is the packet as the host gets it.
func (w *world) toHost(number uint32, p packet) want {
	return sent(p.like(func(p *packet) { p.to.mac = w.bridgeMAC[number] }))
}

func TestFromEndpointPeer(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			w.sub(protoNames[proto], func(w *world) {
				ask := opening(f.p, f.s.at(99), proto)
				w.say(epP, ask, w.delivered(net1, ask))
				reply := ask.answer()
				w.say(epS, reply, w.delivered(net1, reply))
				ask.flags, ask.seq, ask.ack = "A", 101, 501
				for range 3 {
					w.say(epP, ask, w.delivered(net1, ask))
					w.say(epS, reply, w.delivered(net1, reply))
				}
				require.Equal(w.t, uint8(loader.BPFFlowKindFLOW_PEER), w.entry(ask, w.containers[epP].ifindex).Kind)
			})
		}
		w.sub("in the middle of a connection", func(w *world) {
			p := packet{from: f.p.at(50001), to: f.s, proto: tcp, seq: 7, ack: 9}
			w.say(epP, p, w.delivered(net1, p))
		})
		w.sub("TTL is not ours to change", func(w *world) {
			p := opening(f.p.at(50002), f.s, udp)
			p.ttl = 1
			w.say(epP, p, w.delivered(net1, p))
		})
		w.sub("options", func(w *world) {
			p := opening(f.p.at(50003), f.s, udp)
			w.utter(epP, extended(p.frame(), 3), sent(extended(p.like(func(p *packet) { p.from.mac = f.gw.mac }), 3)))
		})
		w.sub("by way of the gateway's MAC", func(w *world) {
			p := opening(f.p.at(50004), f.s.via(f.gw), tcp)
			w.say(epP, p, sent(p.like(func(p *packet) { p.from.mac, p.to.mac = f.gw.mac, f.s.mac })))
		})
		for name, frame := range map[string][]byte{
			"another protocol": withProto(opening(f.p, f.s, udp).frame(), 47),
			"ICMP error":       icmpError(opening(f.s, f.p, udp).frame(), f.p.addr, 3, 3, 0),
		} {
			w.sub(name, func(w *world) { w.utter(epP, frame, handed()) })
		}
		first := fragment(opening(f.p.at(50005), f.s, udp).frame(), 0, true)
		w.utter(epP, first, sent(withMACs(first, nil, f.gw.mac)))
		w.utter(epP, fragment(opening(f.p, f.s, udp).frame(), 64, false), parked())
		w.sub("nobody", func(w *world) {
			for _, proto := range []uint8{tcp, udp, f.icmp} {
				nobody := withAddr(f.s, pick(six, netip.MustParseAddr("10.1.7.7"), netip.MustParseAddr("fd00:1::7777")))
				w.say(epP, opening(f.p, nobody, proto), refused(loader.BPFReasonREASON_NO_ENDPOINT))
			}
		})
		if six {
			w.sub("link-local", func(w *world) {
				for _, proto := range []uint8{tcp, udp, icmp6} {
					ask := opening(w.ll(epP, 50010), w.ll(epS, 80), proto)
					w.say(epP, ask, w.delivered(net1, ask))
					w.say(epS, ask.answer(), w.delivered(net1, ask.answer()))
					w.say(epP, opening(w.ll(epP, 50010), w.ll(epO, 80), proto), refused(loader.BPFReasonREASON_NO_ENDPOINT))
				}
			})
		}
	})
}

func TestFromEndpointICCOff(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		o, q, denied := w.end(epO, six, 50000), w.end(epQ, six, 80), refused(loader.BPFReasonREASON_ICC_DENIED)
		speaker := w.gate(net2, six, 22)
		cases := map[string][]byte{
			"TCP":              opening(o, q, tcp).frame(),
			"TCP, no SYN":      packet{from: o, to: q, proto: tcp}.frame(),
			"TCP, SYN-ACK":     opening(o, q, tcp).like(func(p *packet) { p.flags = "SA" }),
			"by the gateway":   opening(o, q.via(speaker), tcp).frame(),
			"UDP":              opening(o, q, udp).frame(),
			"ping":             opening(o.at(7), q, f.icmp).frame(),
			"echo reply":       packet{from: o.at(0), to: q.at(7), proto: f.icmp, reply: true}.frame(),
			"first fragment":   fragment(opening(o, q, udp).frame(), 0, true),
			"another protocol": withProto(opening(o, q, udp).frame(), 47),
			"options":          extended(opening(o, q, udp).frame(), 2),
			"ICMP error":       icmpError(opening(q, o, udp).frame(), o.addr, 3, 3, 0),
		}
		if six {
			cases["link-local"] = opening(w.ll(epO, 50000), w.ll(epQ, 80), tcp).frame()
			cases["to link-local"] = opening(o, w.ll(epQ, 80), udp).frame()
			cases["neighbour solicitation"] = nd(o, solicited(q.addr), 135, about(q.addr), linkOption(1, o.mac))
			cases["neighbour advertisement"] = nd(o, q, 136, about(o.addr), linkOption(2, o.mac))
		} else {
			cases["ARP request"] = arp(1, o, q)
			cases["ARP answer"] = arp(2, o, q)
		}
		for name, frame := range cases {
			w.sub(name, func(w *world) { w.utter(epO, frame, denied) })
		}
		w.utter(epO, fragment(opening(o, q, udp).frame(), 64, false), parked())
		w.sub("raw Ethernet", func(w *world) {
			w.utter(epO, ether(q.mac, o.mac, 0x88b5), denied)
			w.utter(epP, ether(f.s.mac, f.p.mac, 0x88b5), refused(loader.BPFReasonREASON_UNSUPPORTED))
		})
		established, half := w.tables()
		require.Zero(w.t, established+half, "flows made")
		w.sub("broadcast and multicast reach the host only", func(w *world) {
			g := group(pick(six, group4, group6).String(), 5353)
			flooded := w.counter(loader.BPFCounterCOUNTER_FLOODED)
			w.say(epO, packet{from: o, to: g, proto: udp}, handed().because(loader.BPFReasonREASON_ICC_DENIED))
			require.Equal(w.t, flooded, w.counter(loader.BPFCounterCOUNTER_FLOODED))
		})
		w.sub("the gateway is reached", func(w *world) {
			p := opening(o, speaker, tcp)
			w.say(epO, p, handed())
			if six {
				w.utter(epO, nd(o, solicited(speaker.addr), 135, about(speaker.addr), linkOption(1, o.mac)), handed())
			} else {
				w.utter(epO, arp(1, o, speaker), handed())
			}
		})
		// The server cannot resolve its neighbour, so the gateway asks.
		w.sub("a neighbour's published port is reached", func(w *world) {
			w.publish(ruleQ, epQ, 8085, 80, 0)
			ask := opening(o, f.host.at(8085).via(speaker), tcp)
			r := w.say(epO, ask, handed().any())
			seen := ask.with(func(p *packet) { p.from, p.to = speaker.at(sourcePort(r.raw)), q })
			require.Equal(w.t, dump(seen.frame()), dump(r.raw))
			reply := seen.answer()
			w.say(epQ, reply, sent(reply.like(func(p *packet) { p.from, p.to = f.host.at(8085).via(speaker), o })))
			w.allow(ruleLink, epO, epQ, 0, 0)
			ask.from.port++
			w.say(epO, ask, sent(ask.like(func(p *packet) { p.from.mac, p.to = speaker.mac, q })))
		})
	})
}

// A link opens exactly its port, in one direction; the pair's entry lets the two
// find each other.
func TestFromEndpointLink(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		o, q, denied := w.end(epO, six, 50000), w.end(epQ, six, 80), refused(loader.BPFReasonREASON_ICC_DENIED)
		find := func(slot uint32, from, to side) (out []byte) {
			if six {
				return nd(from, solicited(to.addr), 135, about(to.addr), linkOption(1, from.mac))
			}
			return arp(1, from, to)
		}
		w.utter(epO, find(epO, o, q), denied)
		w.allow(ruleLink, epO, epQ, 0, 0)
		w.utter(epO, find(epO, o, q), handed())
		w.utter(epQ, find(epQ, q, o), handed())
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			w.say(epO, opening(o, q, proto), denied)
			w.say(epO, opening(o.at(0), q.at(0), proto), denied)
			w.say(epQ, opening(q, o, proto), denied)
		}
		w.utter(epO, withProto(opening(o, q, udp).frame(), 0xfd), denied)
		for _, proto := range []uint8{tcp, udp} {
			w.allow(ruleLink, epO, epQ, proto, 80)
			w.sub(protoNames[proto], func(w *world) {
				ask := opening(o, q, proto)
				if proto == tcp {
					w.say(epO, ask.with(func(p *packet) { p.flags = "A" }), denied)
				}
				w.say(epO, ask, w.delivered(net2, ask))
				w.say(epQ, ask.answer(), w.delivered(net2, ask.answer()))
				ask.flags, ask.seq, ask.ack = "A", 101, 501
				w.say(epO, ask, w.delivered(net2, ask))
				w.say(epO, ask, w.delivered(net2, ask))
				w.say(epQ, ask.answer(), w.delivered(net2, ask.answer()))
				w.say(epO, opening(o, q.at(81), proto), denied)
				w.say(epQ, opening(q, o.at(80), proto), denied)
				w.say(epQ, opening(q, o.at(50001), proto), denied)
				w.say(epQ, opening(q.at(81), o, proto), denied)
			})
		}
		w.say(epO, opening(o.at(7), q, f.icmp), denied)
		w.utter(epO, fragment(opening(o, q.at(81), udp).frame(), 0, true), denied)
		w.sub("ends with the link", func(w *world) {
			for _, key := range []loader.BPFLinkKey{{Client: epO, Server: epQ}, {Client: epO, Server: epQ, Port: be16(80), Proto: tcp}, {Client: epO, Server: epQ, Port: be16(80), Proto: udp}} {
				require.NoError(w.t, w.objs.Links.Delete(key))
			}
			w.bump(ruleLink, loader.BPFRuleKindRULE_FREE)
			w.utter(epO, find(epO, o, q), denied)
			w.say(epO, packet{from: o, to: q, proto: tcp, seq: 101, ack: 501}, denied)
			w.say(epQ, packet{from: q, to: o, proto: tcp, seq: 501, ack: 101}, denied)
			w.say(epO, opening(o, q, udp), denied)
			w.say(epQ, opening(q, o, udp), denied)
		})
	})
}

func TestFromEndpointIsolated(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		o, isolated := w.end(epO, six, 80), refused(loader.BPFReasonREASON_ISOLATED)
		via := func(p packet) packet { p.to.mac = f.gw.mac; return p }
		for name, frame := range map[string][]byte{
			"TCP":              via(opening(f.p, o, tcp)).frame(),
			"TCP, no SYN":      via(packet{from: f.p, to: o, proto: tcp}).frame(),
			"UDP":              via(opening(f.p, o, udp)).frame(),
			"ping":             via(opening(f.p.at(7), o, f.icmp)).frame(),
			"to its MAC":       opening(f.p, o, tcp).frame(),
			"first fragment":   fragment(via(opening(f.p, o, udp)).frame(), 0, true),
			"another protocol": withProto(via(opening(f.p, o, udp)).frame(), 47),
			"nobody's address": via(opening(f.p, withAddr(o, pick(six, netip.MustParseAddr("10.2.7.7"), netip.MustParseAddr("fd00:2::7777"))), tcp)).frame(),
		} {
			w.sub(name, func(w *world) { w.utter(epP, frame, isolated) })
		}
		w.utter(epP, fragment(via(opening(f.p, o, udp)).frame(), 64, true), parked())
		w.sub("the other gateway is a service of the host", func(w *world) {
			p := opening(f.p, w.gate(net2, six, 22).via(f.gw), tcp)
			w.say(epP, p, handed())
		})
		w.sub("published", func(w *world) {
			ask := opening(o.at(50000), f.host.via(w.gate(net2, six, 0)), tcp)
			w.say(epO, ask, sent(ask.like(func(p *packet) { p.from.mac, p.to, p.ttl = f.gw.mac, f.s, 63 })))
		})
		w.sub("one of the two is isolated", func(w *world) {
			for _, number := range []uint32{net1, net2} {
				w.flags(number, 0, isolate)
				w.say(epP, via(opening(f.p, o, tcp)), isolated)
				w.flags(number, isolate, 0)
			}
		})
		w.sub("neither is", func(w *world) {
			w.flags(net1, 0, isolate)
			w.flags(net2, 0, isolate)
			for _, proto := range []uint8{tcp, udp, f.icmp} {
				ask := opening(f.p, o.via(f.gw), proto)
				out := ask.with(func(p *packet) { p.from.mac, p.to.mac, p.ttl = w.bridgeMAC[net2], o.mac, 63 })
				w.say(epP, ask, sent(out.frame()))
				reply := ask.with(func(p *packet) { p.to.mac = o.mac }).answer()
				reply.to.mac = w.bridgeMAC[net2]
				w.say(epO, reply, sent(reply.like(func(p *packet) { p.from.mac, p.to.mac, p.ttl = f.gw.mac, f.p.mac, 63 })))
			}
			in := withTTL(opening(f.p.at(50009), o.via(f.gw), udp).frame(), 1)
			w.utter(epP, in, expired(in, f.gw))
		})
	})
}

func TestFromEndpointInternal(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		beyond := f.client.at(443).via(f.gw)
		before := opening(f.p.at(49999), beyond, udp)
		w.say(epP, before, handed().any())
		w.flags(net1, internal, 0)
		no := refused(loader.BPFReasonREASON_INTERNAL)
		for name, frame := range map[string][]byte{
			"TCP":                   opening(f.p, beyond, tcp).frame(),
			"UDP":                   opening(f.p, beyond, udp).frame(),
			"a flow from before":    before.frame(),
			"ping":                  opening(f.p.at(7), beyond, f.icmp).frame(),
			"beyond a router":       opening(f.p, withAddr(beyond, pick(six, remote4, remote6)), tcp).frame(),
			"first fragment":        fragment(opening(f.p, beyond, udp).frame(), 0, true),
			"another protocol":      withProto(opening(f.p, beyond, udp).frame(), 47),
			"the host's uplink":     opening(f.p, f.host.at(22).via(f.gw), tcp).frame(),
			"published":             opening(f.p, f.host.via(f.gw), tcp).frame(),
			"the uplink, fragments": fragment(opening(f.p, f.host.via(f.gw), udp).frame(), 0, true),
			"another gateway":       opening(f.p, w.gate(net2, six, 22).via(f.gw), tcp).frame(),
		} {
			w.sub(name, func(w *world) { w.utter(epP, frame, no) })
		}
		w.utter(epP, fragment(opening(f.p, beyond, udp).frame(), 64, false), parked())
		w.sub("another network", func(w *world) {
			w.flags(net2, 0, isolate)
			w.flags(net1, 0, isolate)
			w.say(epP, opening(f.p, w.end(epO, six, 80).via(f.gw), tcp), refused(loader.BPFReasonREASON_ISOLATED))
			w.say(epO, opening(w.end(epO, six, 80), f.p.via(w.gate(net2, six, 0)), tcp), refused(loader.BPFReasonREASON_ISOLATED))
		})
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			w.sub(protoNames[proto]+" peer and gateway", func(w *world) {
				p := opening(f.p, f.s, proto)
				w.say(epP, p, w.delivered(net1, p))
				p = opening(f.p, f.gw.at(22), proto)
				w.say(epP, p, w.toHost(net1, p))
			})
		}
	})
}
