// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// slack is how many ticks of the clock a test may take.
const slack = 5

// dialog is a client that talks to the published port of s.
type dialog struct {
	*world
	f      family
	proto  uint8
	client side
	server side
}

func (w *world) dialog(six bool, proto uint8, port uint16) dialog {
	f := w.family(six)
	return dialog{w, f, proto, f.client.at(port), f.s}
}

func (d dialog) asks(flags string, seq, ack uint32) packet {
	return packet{from: d.client, to: d.f.host, proto: d.proto, flags: flags, seq: seq, ack: ack}
}

func (d dialog) answers(flags string, seq, ack uint32) packet {
	return packet{from: d.server, to: d.client.via(d.f.gw), proto: d.proto, flags: flags, seq: seq, ack: ack}
}

// in is a packet of the client's that reaches the server.
func (d dialog) in(flags string, seq, ack uint32) {
	d.t.Helper()
	p := d.asks(flags, seq, ack)
	d.arrive(p, sent(d.inside(p, d.server).frame()))
}

// out is a packet of the server's that leaves for the client.
func (d dialog) out(flags string, seq, ack uint32) {
	d.t.Helper()
	p := d.answers(flags, seq, ack)
	d.say(epS, p, sent(p.like(func(p *packet) { p.from.addr, p.from.port, p.ttl = d.f.host.addr, d.f.host.port, 63 })))
}

// open leaves an established flow.
func (d dialog) open() {
	d.t.Helper()
	d.in("S", 100, 0)
	d.out("SA", 500, 101)
	d.in("A", 101, 501)
	require.True(d.t, d.request().established)
	require.True(d.t, d.response().established)
}

func (d dialog) request() entry { d.t.Helper(); return d.entry(d.asks("", 0, 0), 0) }
func (d dialog) response() entry {
	d.t.Helper()
	return d.entry(d.answers("", 0, 0), d.containers[epS].ifindex)
}

// expect compares the numbers of entries and what counts them.
func (w *world) expect(established, half int, what string) {
	w.t.Helper()
	e, h := w.tables()
	require.Equal(w.t, []int{established, half}, []int{e, h}, "established and half-open entries: %s", what)
	require.EqualValues(w.t, established/2, w.quota(epS), "quota: %s", what)
	require.EqualValues(w.t, established/2, w.slots(), "slots: %s", what)
}

// An open port answers every SYN: only an acknowledgement of that very answer
// shows that the client exists.
func TestFlowTCPProof(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		type step struct {
			out      bool
			flags    string
			seq, ack uint32
		}
		syn, synAck := step{false, "S", 100, 0}, step{true, "SA", 500, 101}
		acks := func(acks ...uint32) (s []step) {
			for _, ack := range acks {
				s = append(s, step{false, "A", 101, ack}, step{false, "PA", 101, ack})
			}
			return s
		}
		port := uint16(41000)
		for name, steps := range map[string][]step{
			"SYN":                           {syn},
			"SYN twice":                     {syn, syn},
			"no answer":                     append([]step{syn}, acks(0, 1, 501)...),
			"answered":                      {syn, synAck},
			"answered twice, SYN again":     {syn, synAck, syn, synAck, syn},
			"wrong acknowledgement":         append([]step{syn, synAck}, acks(0, 499, 500, 501+100, 501+0xffff, 501+0x10000, 0x80000000, 0xffffffff)...),
			"answered, then reset":          {syn, synAck, {false, "R", 101, 0}},
			"reset, no answer":              append([]step{syn, {false, "R", 101, 0}}, acks(0, 1, 2, 0)...),
			"reset before the answer":       append([]step{syn, {false, "R", 101, 0}, synAck}, acks(0, 1, 2, 0)...),
			"reset after the answer":        append([]step{syn, synAck, {false, "R", 101, 0}}, acks(0, 1, 2, 0)...),
			"refused by the server":         append([]step{syn, {true, "RA", 0, 101}}, acks(0, 1, 2, 0)...),
			"finished before it began":      append([]step{syn, {false, "FA", 101, 1}}, acks(0, 1, 2, 0)...),
			"the server's data, no SYN-ACK": append([]step{syn, {true, "A", 500, 101}}, acks(0, 501)...),
			"acknowledged by the server":    {syn, synAck, {true, "A", 501, 101}, {true, "PA", 501, 101}},
		} {
			port++
			d := w.dialog(six, tcp, port)
			w.sub(name, func(w *world) {
				d.world = w
				before := w.quota(epS)
				for _, s := range steps {
					if s.out {
						d.out(s.flags, s.seq, s.ack)
					} else {
						d.in(s.flags, s.seq, s.ack)
					}
				}
				require.False(w.t, d.request().established, "request")
				require.False(w.t, d.response().established, "response")
				require.Equal(w.t, before, w.quota(epS))
			})
		}
		d := w.dialog(six, tcp, 40999)
		d.in("S", 100, 0)
		d.out("SA", 0xfffffffe, 101)
		d.in("A", 101, 0xffffffff)
		require.True(w.t, d.request().established, "the right acknowledgement")
		w.dialog(six, tcp, 40998).open()
		require.True(w.t, w.dialog(six, tcp, 40998).request().established)
	})
}

func TestFlowUDPProof(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		d := w.dialog(six, udp, 42000)
		for range 3 {
			d.in("", 0, 0)
		}
		w.expect(0, 2, "the client alone")
		require.EqualValues(w.t, 30, d.request().Timeout)
		for range 3 {
			d.out("", 0, 0)
		}
		w.expect(0, 2, "answered")
		require.EqualValues(w.t, 300, d.request().Timeout)
		require.EqualValues(w.t, 300, d.response().Timeout)
		d.in("", 0, 0)
		w.expect(2, 0, "spoken again")
		d.in("", 0, 0)
		d.out("", 0, 0)
		require.EqualValues(w.t, 5, d.request().Packets)
		require.EqualValues(w.t, 4, d.response().Packets)
		require.EqualValues(w.t, 5*len(d.asks("", 0, 0).frame()), d.request().Bytes)
		require.EqualValues(w.t, 1, w.counter(loader.BPFCounterCOUNTER_FLOW_NEW))
	})
}

// FIN both ways and the last ACK: the flow leaves the table of the established,
// its quota and its slot, and still carries what comes late.
func TestFlowClose(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		for i, first := range []string{"client", "server"} {
			w.sub(first+" first", func(w *world) {
				d := w.dialog(six, tcp, 43000+uint16(i))
				d.open()
				w.expect(2, 2*i, "open")
				if first == "client" {
					d.in("FA", 101, 501)
					w.expect(2, 2*i, "half closed")
					d.out("PA", 501, 102)
					d.in("A", 102, 502)
					w.expect(2, 2*i, "half closed, data the other way")
					d.out("FA", 502, 102)
					require.EqualValues(w.t, 240, d.request().Timeout)
					d.in("A", 102, 503)
				} else {
					d.out("FA", 501, 101)
					d.in("A", 101, 502)
					w.expect(2, 2*i, "half closed")
					d.in("FA", 101, 502)
					require.EqualValues(w.t, 240, d.response().Timeout)
					d.out("A", 502, 102)
				}
				w.expect(0, 2+2*i, "closed")
				require.EqualValues(w.t, loader.BPFFlowStateFLOW_CLOSING, d.request().State)
				require.EqualValues(w.t, loader.BPFFlowStateFLOW_CLOSING, d.response().State)
				require.EqualValues(w.t, i+1, w.counter(loader.BPFCounterCOUNTER_FLOW_CLOSED))
				d.out("FA", 502, 102)
				d.in("A", 102, 503)
				w.expect(0, 2+2*i, "late packets")
			})
		}
		w.sub("SYN on a closed tuple opens anew", func(w *world) {
			d := w.dialog(six, tcp, 43000)
			made := w.counter(loader.BPFCounterCOUNTER_FLOW_NEW)
			d.in("S", 90000, 0)
			require.EqualValues(w.t, made+1, w.counter(loader.BPFCounterCOUNTER_FLOW_NEW))
			require.EqualValues(w.t, loader.BPFFlowStateFLOW_NEW, d.request().State)
			require.Zero(w.t, d.request().Flags&uint8(loader.BPFFlowFlagsFLOW_FIN|loader.BPFFlowFlagsFLOW_FIN_TWIN))
			w.expect(0, 4, "new SYN")
			d.out("SA", 70000, 90001)
			d.in("A", 90001, 70001)
			w.expect(2, 2, "open again")
		})
		w.sub("closing ends by its timeout", func(w *world) {
			d := w.dialog(six, tcp, 43001)
			w.age(240 - slack)
			d.in("A", 102, 503)
			w.age(241)
			w.arrive(d.asks("A", 102, 503), passed())
		})
	})
}

// A reset only shortens the timer, and data from either side restores it: it may
// be forged, or outside the window (RFC 5961 section 3).
func TestFlowReset(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		for i, c := range []struct {
			name       string
			reset, say func(dialog)
		}{
			{"client resets, client goes on", func(d dialog) { d.in("R", 101, 0) }, func(d dialog) { d.in("PA", 101, 501) }},
			{"client resets, server goes on", func(d dialog) { d.in("R", 101, 0) }, func(d dialog) { d.out("PA", 501, 101) }},
			{"server resets, client goes on", func(d dialog) { d.out("RA", 501, 101) }, func(d dialog) { d.in("PA", 101, 501) }},
			{"server resets, server goes on", func(d dialog) { d.out("RA", 501, 101) }, func(d dialog) { d.out("PA", 501, 101) }},
		} {
			w.sub(c.name, func(w *world) {
				d := w.dialog(six, tcp, 44000+uint16(i))
				d.open()
				c.reset(d)
				require.True(w.t, d.request().established)
				require.EqualValues(w.t, 240, d.request().Timeout)
				require.EqualValues(w.t, 240, d.response().Timeout)
				c.say(d)
				w.age(300)
				d.in("PA", 101, 501)
				d.out("PA", 501, 101)
				w.age(7000)
				d.in("PA", 101, 501)
				d.out("PA", 501, 101)
				require.EqualValues(w.t, 7440, d.request().Timeout)
				require.EqualValues(w.t, 7440, d.response().Timeout)
				require.EqualValues(w.t, loader.BPFFlowStateFLOW_ESTABLISHED, d.request().State)
				c.reset(d)
				w.age(241)
				w.arrive(d.asks("A", 101, 501), passed())
			})
		}
		w.sub("SYN after a reset goes the way of the flow", func(w *world) {
			d := w.dialog(six, tcp, 44100)
			d.open()
			d.out("RA", 501, 101)
			d.in("S", 90000, 0)
			d.out("SA", 700, 90001)
			d.in("A", 90001, 701)
			require.True(w.t, d.request().established)
			require.EqualValues(w.t, loader.BPFFlowStateFLOW_ESTABLISHED, d.request().State)
			require.EqualValues(w.t, loader.BPFFlowStateFLOW_ESTABLISHED, d.response().State)
			require.EqualValues(w.t, 7440, d.response().Timeout)
		})
		w.sub("SYN after a refusal opens anew", func(w *world) {
			d := w.dialog(six, tcp, 44102)
			d.in("S", 100, 0)
			d.out("RA", 0, 101)
			d.in("S", 90000, 0)
			require.EqualValues(w.t, loader.BPFFlowStateFLOW_NEW, d.request().State)
			require.EqualValues(w.t, loader.BPFFlowStateFLOW_NEW, d.response().State)
		})
		w.sub("a forged reset and a SYN end nothing", func(w *world) {
			d := w.dialog(six, tcp, 44103)
			d.open()
			d.in("R", 77, 0)
			d.in("S", 99, 0)
			require.True(w.t, d.request().established)
			d.out("PA", 501, 101)
			d.in("PA", 101, 501)
			w.age(300)
			d.in("PA", 101, 501)
			require.True(w.t, d.response().established)
		})
		w.sub("SYN on a live connection changes nothing", func(w *world) {
			d := w.dialog(six, tcp, 44101)
			d.open()
			d.in("S", 90000, 0)
			require.True(w.t, d.request().established)
			d.in("PA", 101, 501)
			d.out("PA", 501, 101)
		})
	})
}

// Timeouts are looked at when a packet comes, whatever the sweep does.
func TestFlowTimeouts(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		made := func() uint64 { return w.counter(loader.BPFCounterCOUNTER_FLOW_NEW) }
		inbound := w.dialog(six, udp, 45000)
		inbound.in("", 0, 0)
		w.age(30 - slack)
		inbound.in("", 0, 0)
		require.EqualValues(w.t, 1, made(), "before 30 ticks")
		w.age(31)
		inbound.in("", 0, 0)
		require.EqualValues(w.t, 2, made(), "31 ticks")

		stream := w.dialog(six, udp, 45001)
		stream.open()
		w.age(300 - slack)
		stream.out("", 0, 0)
		w.age(300 - slack)
		stream.in("", 0, 0)
		require.EqualValues(w.t, 3, made(), "either side keeps it")
		w.age(301)
		stream.in("", 0, 0)
		require.EqualValues(w.t, 4, made())
		require.False(w.t, stream.request().established)

		conn := w.dialog(six, tcp, 45002)
		conn.open()
		w.age(7440 - slack)
		conn.in("A", 101, 501)
		w.age(7441)
		w.arrive(conn.asks("A", 101, 501), passed())

		half := w.dialog(six, tcp, 45003)
		half.in("S", 100, 0)
		w.age(240 - slack)
		half.out("SA", 500, 101)
		w.age(241)
		w.say(epS, half.answers("SA", 500, 101), refused(loader.BPFReasonREASON_NO_FLOW))

		f := w.family(six)
		out := func(proto uint8, port uint16) packet { return opening(f.p.at(port), f.client.at(53).via(f.gw), proto) }
		for proto, timeout := range map[uint8]uint32{udp: 120, f.icmp: 60} {
			before := made()
			w.say(epP, out(proto, 45004), handed().any())
			w.age(timeout - slack)
			w.say(epP, out(proto, 45004), handed().any())
			require.EqualValues(w.t, before+1, made(), protoNames[proto])
			w.age(timeout + 1)
			w.say(epP, out(proto, 45004), handed().any())
			require.EqualValues(w.t, before+2, made(), protoNames[proto])
		}
	})
}

// What a flow was based on has changed: its next packet is judged anew.
func TestFlowGenerations(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		stale := func() uint64 { return w.counter(loader.BPFCounterCOUNTER_FLOW_STALE) }
		w.sub("endpoint", func(w *world) {
			conn, stream := w.dialog(six, tcp, 46000), w.dialog(six, udp, 46000)
			conn.open()
			stream.open()
			w.change(epS, func(e *loader.BPFEndpoint) { e.Gen++; e.Flows = 0 })
			w.arrive(conn.asks("A", 101, 501), passed())
			w.say(epS, conn.answers("A", 501, 101), refused(loader.BPFReasonREASON_NO_FLOW))
			require.EqualValues(w.t, 1, stale())
			stream.in("", 0, 0)
			require.EqualValues(w.t, 2, stale())
			w.expect(0, 2, "both ended, one begun again")
		})
		w.sub("another server behind the port", func(w *world) {
			stream := w.dialog(six, udp, 46001)
			stream.open()
			w.publish(rulePublished, epP, 8080, 80, 0)
			p := stream.asks("", 0, 0)
			w.arrive(p, sent(w.inside(p, f.p.at(80)).frame()))
			w.publish(rulePublished, epS, 8080, 80, 0)
		})
		w.sub("unpublished", func(w *world) {
			conn, stream := w.dialog(six, tcp, 46002), w.dialog(six, udp, 46002)
			conn.open()
			stream.open()
			w.bump(rulePublished, loader.BPFRuleKindRULE_FREE)
			ports := w.objs.Ports4
			if six {
				ports = w.objs.Ports6
			}
			for proto := range uint32(2) {
				w.put(ports, proto*65536+8080, uint32(0))
			}
			w.arrive(conn.asks("A", 101, 501), passed())
			w.arrive(stream.asks("", 0, 0), passed())
			w.publish(rulePublished, epS, 8080, 80, 0)
		})
		w.sub("icc off", func(w *world) {
			for _, p := range []packet{opening(f.p, f.s, tcp), opening(f.p, f.s, udp), opening(f.p, f.s, f.icmp)} {
				w.say(epP, p, sent(p.like(func(p *packet) { p.from.mac = f.gw.mac })))
				w.flags(net1, 0, loader.BPFNetworkFlagsNETWORK_ICC)
				w.say(epP, p, refused(loader.BPFReasonREASON_ICC_DENIED))
				w.flags(net1, loader.BPFNetworkFlagsNETWORK_ICC, 0)
			}
		})
		w.sub("masquerade off", func(w *world) {
			p := opening(f.p.at(46004), f.client.at(53).via(f.gw), udp)
			w.say(epP, p, handed().any())
			w.flags(net1, 0, loader.BPFNetworkFlagsNETWORK_MASQUERADE)
			w.say(epP, p, sent(p.like(func(p *packet) { p.ttl = 63 })))
		})
		w.sub("nobody else's flows", func(w *world) {
			stream := w.dialog(six, udp, 46005)
			stream.open()
			before := stale()
			w.change(epP, func(e *loader.BPFEndpoint) { e.Gen++ })
			w.bump(ruleFrom, loader.BPFRuleKindRULE_PUBLICATION)
			w.bump(net2, loader.BPFRuleKindRULE_NETWORK)
			stream.in("", 0, 0)
			stream.out("", 0, 0)
			require.Equal(w.t, before, stale())
			require.True(w.t, stream.request().established)
		})
	})
}

// A container's quota holds established flows; beyond it new ones of its own are refused, and
// the live ones go on. Who reaches its published ports is served all the same, by flows that stay
// half-open, and has no more than seven eighths of it.
func TestFlowQuota(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		w.configure(func(c *loader.BPFConfig) { c.Quota = 8 })
		var open []dialog
		for i := range uint16(7) {
			d := w.dialog(six, []uint8{tcp, udp}[i%2], 47000+i)
			d.open()
			open = append(open, d)
		}
		over := w.dialog(six, tcp, 47100)
		serve := func() {
			over.in("S", 100, 0)
			over.out("SA", 500, 101)
			over.in("A", 101, 501)
			over.in("PA", 101, 501)
			over.out("A", 501, 102)
			require.False(t, over.request().established)
		}
		serve()
		x := w.ways(six)
		x.call(epS, tcp, 47200)
		serve()
		out := opening(w.end(epS, six, 47201), over.f.client.at(443).via(over.f.gw), tcp)
		w.say(epS, out, refused(loader.BPFReasonREASON_QUOTA))
		w.say(epP, out.with(func(p *packet) { p.from = w.end(epP, six, 47201) }), handed().any())
		open[0].in("A", 101, 501)
		open[1].out("", 0, 0)
		for _, d := range []dialog{open[0], open[2]} {
			d.in("FA", 101, 501)
			d.out("FA", 501, 102)
			d.in("A", 102, 502)
		}
		over.in("A", 102, 502)
		require.True(t, over.request().established)
		w.say(epS, out, handed().any())
		// None at all: what an upgrade sets while it moves the tables.
		w.configure(func(c *loader.BPFConfig) { c.Quota = 0 })
		w.arrive(w.dialog(six, tcp, 47300).asks("S", 100, 0), refused(loader.BPFReasonREASON_QUOTA))
		over.in("A", 102, 502)
	})
}

// Somebody's reset between a client's SYN and its answer ends nothing: the connection opens as ever.
func TestResetBeforeAnswer(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		d := w.dialog(six, tcp, 47300)
		d.in("S", 100, 0)
		d.in("R", 101, 0)
		d.out("SA", 500, 101)
		d.in("A", 101, 501)
		require.True(t, d.request().established)
	})
}
