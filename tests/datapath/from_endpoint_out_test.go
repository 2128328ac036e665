package datapath

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// The answers to a masqueraded flow are in from_uplink_test.go.
func TestFromEndpointWorld(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		beyond := f.client.at(443).via(f.gw)
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			for name, to := range map[string]side{"on-link": beyond, "beyond a router": withAddr(beyond, pick(six, remote4, remote6))} {
				w.sub(protoNames[proto]+" "+name, func(w *world) {
					ask := opening(f.p, to, proto)
					r := w.say(epP, ask, handed().any())
					port := sourcePort(r.raw)
					require.True(w.t, port >= 20000 && port <= 20999, "port %d is of the pool", port)
					out := ask.with(func(p *packet) { p.from.addr, p.from.port, p.ttl = f.host.addr, port, 63 })
					require.Equal(w.t, dump(out.frame()), dump(r.raw))
					w.say(epP, ask, sent(out.frame())) // again: the same port
					require.Equal(w.t, uint8(loader.BPFFlowKindFLOW_MASQUERADE), w.entry(ask, w.containers[epP].ifindex).Kind)
				})
			}
		}
		w.sub("one ICMP id of two containers", func(w *world) {
			ids := map[uint16]bool{}
			for slot, c := range map[uint32]side{epP: f.p, epS: f.s} {
				r := w.say(slot, opening(c.at(4711), beyond, f.icmp), handed().any())
				ids[sourcePort(r.raw)] = true
			}
			require.Len(w.t, ids, 2)
		})
		w.sub("options", func(w *world) {
			in := extended(opening(f.p.at(50001), beyond, udp).frame(), 2)
			r := w.utter(epP, in, handed().any())
			valid(w.t, r.raw)
		})
		w.sub("expired", func(w *world) {
			for _, proto := range []uint8{tcp, udp, f.icmp} {
				in := withTTL(opening(f.p.at(50002), beyond, proto).frame(), 1)
				w.utter(epP, in, expired(in, f.gw))
			}
		})
		w.sub("too big", func(w *world) {
			r := route(w.uplink, netip.Addr{}, f.host.addr)
			r.Mtu = 1400
			w.put(w.objs.Routes, way(0, netip.PrefixFrom(f.client.addr, f.client.addr.BitLen()).String()), r)
			in := opening(f.p.at(50003), beyond, udp).like(func(p *packet) { p.payload = make([]byte, 1400) })
			w.utter(epP, in, tooBig(in, f.gw, 1400))
		})
		for name, flags := range map[string]string{"ACK": "A", "SYN-ACK": "SA", "FIN": "FA", "RST": "R", "SYN with RST": "SR"} {
			w.sub("no flow: "+name, func(w *world) {
				w.say(epP, packet{from: f.p.at(50004), to: beyond, proto: tcp, flags: flags}, refused(loader.BPFReasonREASON_NO_FLOW))
			})
		}
		w.sub("what has no ports", func(w *world) {
			datagram := opening(f.p, beyond, udp).frame()
			w.utter(epP, fragment(datagram, 64, false), parked())
			if later := fragment(withProto(datagram, 47), 64, false); six { // it need not show its protocol
				w.utter(epP, later, parked())
			} else {
				w.utter(epP, later, refused(loader.BPFReasonREASON_UNSUPPORTED))
			}
			w.utter(epP, withProto(datagram, 47), refused(loader.BPFReasonREASON_UNSUPPORTED))
		})
		w.sub("loopback", func(w *world) {
			for _, a := range []string{"127.0.0.1", "127.9.9.9", "::1"} {
				if lo := netip.MustParseAddr(a); lo.Is6() == six {
					for _, proto := range []uint8{tcp, udp, f.icmp} {
						w.say(epP, opening(f.p, withAddr(f.host, lo).via(f.gw), proto), refused(loader.BPFReasonREASON_LOOPBACK))
					}
					w.utter(epP, fragment(opening(f.p, withAddr(f.host, lo).via(f.gw), udp).frame(), 64, false), refused(loader.BPFReasonREASON_LOOPBACK))
				}
			}
		})
		w.sub("the unspecified address", func(w *world) {
			w.say(epP, opening(f.p, withAddr(beyond, pick(six, netip.IPv4Unspecified(), netip.IPv6Unspecified())), udp), refused(loader.BPFReasonREASON_MALFORMED))
		})
		w.sub("no route", func(w *world) {
			// Package maps keeps IPv6's default route out of IPv4; this world's does not.
			for _, all := range []string{"0.0.0.0/0", "::/0"} {
				require.NoError(w.t, w.objs.Routes.Delete(way(0, all)))
			}
			w.say(epP, opening(f.p.at(50005), withAddr(beyond, pick(six, remote4, remote6)), tcp), refused(loader.BPFReasonREASON_NO_ROUTE))
		})
		w.sub("no masquerade", func(w *world) {
			w.flags(net1, 0, loader.BPFNetworkFlagsNETWORK_MASQUERADE)
			for _, proto := range []uint8{tcp, udp, f.icmp} {
				ask := opening(f.p.at(50006), f.client.at(444).via(f.gw), proto)
				w.say(epP, ask, sent(ask.like(func(p *packet) { p.ttl = 63 })))
				reply := ask.with(func(p *packet) { p.to.mac = f.client.mac }).answer()
				reply.to.mac = f.host.mac
				w.arrive(reply, sent(reply.like(func(p *packet) { p.from.mac, p.to.mac, p.ttl = f.gw.mac, f.p.mac, 63 })))
			}
			stray := packet{from: f.client.at(445), to: f.p.at(50006).via(f.host), proto: udp}
			w.arrive(stray, refused(loader.BPFReasonREASON_DIRECT_ACCESS))
		})
	})
}

// What a half-open flow leaves behind when one of its two entries was evicted
// must not stand in the way of the next.
func TestFromEndpointEvicted(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		evict := func(p packet, zone int) {
			e := w.entry(p, zone)
			require.NoError(w.t, e.table.Delete(e.key))
		}
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			w.sub(protoNames[proto]+" to a peer", func(w *world) {
				p := opening(f.p, f.s, proto)
				w.say(epP, p, w.delivered(net1, p))
				evict(p, w.containers[epP].ifindex)
				w.say(epP, p, w.delivered(net1, p))
			})
			w.sub(protoNames[proto]+" to the world, masqueraded", func(w *world) {
				p := opening(f.p, f.client.at(443).via(f.gw), proto)
				w.say(epP, p, handed().any())
				evict(p, w.containers[epP].ifindex)
				w.say(epP, p, handed().any())
			})
			w.sub(protoNames[proto]+" to the world, not masqueraded", func(w *world) {
				w.flags(net1, 0, loader.BPFNetworkFlagsNETWORK_MASQUERADE)
				defer w.flags(net1, loader.BPFNetworkFlagsNETWORK_MASQUERADE, 0)
				p := opening(f.p, f.client.at(444).via(f.gw), proto)
				out := sent(p.like(func(p *packet) { p.ttl = 63 }))
				w.say(epP, p, out)
				evict(p, w.containers[epP].ifindex)
				w.say(epP, p, out)
			})
		}
		w.sub("a published port", func(w *world) {
			d := w.dialog(six, tcp, 41000)
			d.in("S", 100, 0)
			evict(d.asks("S", 100, 0), 0)
			w.arrive(d.asks("S", 100, 0), handed().any())
		})
	})
}

// A container that talks to a server by its published port and directly, from
// one source port: two connections, which the server can tell apart.
func TestFromEndpointBothWays(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		for _, proto := range []uint8{tcp, udp} {
			w.sub(protoNames[proto], func(w *world) {
				ask := opening(f.p, f.host.via(f.gw), proto)
				out := func(p packet) want {
					return sent(p.like(func(p *packet) { p.from.mac, p.to = f.gw.mac, f.s }))
				}
				answer := func(flags string, seq, ack uint32) {
					p := packet{from: f.s, to: f.p, proto: proto, flags: flags, seq: seq, ack: ack}
					w.say(epS, p, sent(p.like(func(p *packet) { p.from = f.host.via(f.gw) })))
				}
				w.say(epP, ask, out(ask))
				answer("SA", 500, 101)
				ask.flags, ask.seq, ask.ack = "A", 101, 501
				w.say(epP, ask, out(ask))
				require.True(w.t, w.entry(ask, w.containers[epP].ifindex).established)

				direct := opening(f.p, f.s, proto)
				r := w.say(epP, direct, handed().any())
				valid(w.t, r.raw)
				w.say(epP, ask, out(ask))
				answer("A", 501, 101)
				require.True(w.t, w.entry(ask, w.containers[epP].ifindex).established, "the first connection lives")
				back := packet{from: f.s, to: f.p.at(sourcePort(r.raw)), proto: proto, flags: "SA", seq: 900, ack: 101}
				w.say(epS, back, sent(back.like(func(p *packet) { p.from.mac, p.to.port = f.gw.mac, f.p.port })))
			})
		}
	})
}

func TestFromEndpointHost(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		targets := map[string]side{"gateway": f.gw.at(22), "uplink": f.host.at(22).via(f.gw), "loopback-only publication": f.host.at(8081).via(f.gw),
			"another gateway": w.gate(net2, six, 22).via(f.gw)}
		if six {
			targets["link-local"] = side{f.gw.mac, linkLocal(f.gw.mac), 22}
		}
		for name, to := range targets {
			for _, proto := range []uint8{tcp, udp, f.icmp} {
				w.sub(protoNames[proto]+" "+name, func(w *world) {
					ask := opening(f.p, to, proto)
					w.say(epP, ask, w.toHost(net1, ask))
					e := w.entry(ask, w.containers[epP].ifindex)
					require.EqualValues(w.t, loader.BPFVerdictVERDICT_HOST, e.Verdict)
					require.EqualValues(w.t, w.bridges[net1], e.Ifindex)
					w.emit(net1, ask.answer(), sent(ask.answer().frame()))
					ask.flags, ask.seq, ask.ack = "A", 101, 501
					for range 2 {
						w.say(epP, ask, w.toHost(net1, ask))
						w.emit(net1, ask.answer(), sent(ask.answer().frame()))
					}
				})
			}
		}
		w.sub("in the middle of a connection", func(w *world) {
			w.say(epP, packet{from: f.p.at(50001), to: f.gw.at(22), proto: tcp}, handed())
		})
		for name, frame := range map[string][]byte{
			"another protocol": withProto(opening(f.p, f.gw.at(22), udp).frame(), 47),
			"ICMP error":       icmpError(opening(f.gw, f.p, udp).frame(), f.p.addr, 3, 3, 0),
		} {
			w.sub(name, func(w *world) { w.utter(epP, frame, handed()) })
		}
		first := fragment(opening(f.p.at(50002), f.gw.at(22), udp).frame(), 0, true)
		w.utter(epP, first, sent(first))
		w.utter(epP, fragment(opening(f.p, f.gw.at(22), udp).frame(), 64, true), parked())
	})
}

// Published ports as containers see them: the client keeps its address and port,
// and only a server that asks itself gets another.
func TestFromEndpointPublished(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		for name, to := range map[string]side{"host": f.host.via(f.gw), "gateway": f.gw.at(8080), "another gateway": w.gate(net2, six, 8080).via(f.gw)} {
			for _, proto := range []uint8{tcp, udp} {
				w.sub(protoNames[proto]+" "+name, func(w *world) {
					ask := opening(f.p.at(50100), to, proto)
					port := f.p.port
					w.sub("peer", func(w *world) {
						ask.from.port = port + uint16(len(name))
						w.say(epP, ask, sent(ask.like(func(p *packet) { p.from.mac, p.to = f.gw.mac, f.s })))
						reply := ask.with(func(p *packet) { p.to = f.s }).answer()
						w.say(epS, reply, sent(reply.like(func(p *packet) { p.from = to })))
					})
					w.sub("hairpin", func(w *world) {
						ask := opening(f.s.at(port), to, proto)
						r := w.say(epS, ask, handed().any())
						seen := ask.with(func(p *packet) { p.from, p.to = f.gw.at(sourcePort(r.raw)), f.s })
						require.True(w.t, seen.from.port >= 20000 && seen.from.port <= 20999, "port %d is of the pool", seen.from.port)
						require.Equal(w.t, dump(seen.frame()), dump(r.raw))
						reply := seen.answer()
						w.say(epS, reply, sent(reply.like(func(p *packet) { p.from, p.to = to, ask.from })))
						w.say(epS, ask, sent(seen.frame()))
					})
				})
			}
		}
		w.sub("source denied", func(w *world) {
			w.say(epP, opening(f.p, f.host.at(8082).via(f.gw), tcp), refused(loader.BPFReasonREASON_SOURCE_DENIED))
		})
		w.sub("no SYN: the host's to refuse", func(w *world) {
			w.say(epP, packet{from: f.p.at(50200), to: f.host.via(f.gw), proto: tcp}, handed())
		})
	})
}

// One port to masquerade with serves one flow to each destination.
func TestFromEndpointNoPort(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		w.configure(func(c *loader.BPFConfig) {
			c.PoolSize, c.PoolCount, c.Pool = 1, 1, [8]loader.BPFPortRange{{First: 20000, Last: 20000}}
		})
		for _, proto := range []uint8{tcp, udp, f.icmp} {
			w.sub(protoNames[proto], func(w *world) {
				to := f.client.at(443).via(f.gw)
				first := opening(f.p, to, proto)
				r := w.say(epP, first, handed().any())
				require.EqualValues(w.t, 20000, sourcePort(r.raw))
				full := refused(loader.BPFReasonREASON_NO_PORT)
				w.say(epP, opening(f.p.at(50001), to, proto), full)
				w.say(epS, opening(f.s, to, proto), full)
				w.say(epO, opening(w.end(epO, six, 50000), to.via(w.gate(net2, six, 0)), proto), full)
				w.say(epP, first, sent(r.raw))
				w.say(epP, opening(f.p.at(50001), withAddr(to, pick(six, remote4, remote6)), proto), handed().any())
				if proto != f.icmp {
					w.say(epP, opening(f.p.at(50001), to.at(444), proto), handed().any())
				}
				w.age(241)
				w.say(epP, opening(f.p.at(50002), to, proto), handed().any())
			})
		}
	})
}

// No quota left: what a flow must be remembered for is refused, what can be
// decided again is not.
func TestFromEndpointQuota(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		w.configure(func(c *loader.BPFConfig) { c.Quota = 0 })
		over := refused(loader.BPFReasonREASON_QUOTA)
		for _, proto := range []uint8{tcp, udp} {
			w.say(epP, opening(f.p, f.client.at(443).via(f.gw), proto), over)
			w.say(epP, opening(f.p, f.host.via(f.gw), proto), over)
			w.say(epS, opening(f.s.at(50000), f.host.via(f.gw), proto), over)
			p := opening(f.p, f.s, proto)
			w.say(epP, p, w.delivered(net1, p))
			p = opening(f.p, f.gw.at(22), proto)
			w.say(epP, p, w.toHost(net1, p))
		}
	})
}
