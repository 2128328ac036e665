package datapath

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// markAfter is the mark that to_uplink or to_tunnel leaves on a packet.
func (w *world) markAfter(program *ebpf.Program, frame []byte, edit ...func(*skb)) uint32 {
	w.t.Helper()
	ctx := &skb{ifindex: uint32(w.uplink)}
	for _, e := range edit {
		e(ctx)
	}
	out := make([]byte, 192)
	_, err := program.Run(&ebpf.RunOptions{Data: frame, Context: ctx.bytes(), ContextOut: out})
	require.NoError(w.t, err)
	return binary.NativeEndian.Uint32(out[8:])
}

// A container's packet that from_endpoint did not pass ends here.
func TestToUplinkBypass(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		bypass := refused(loader.BPFReasonREASON_BYPASS)
		from := forwardedBy(w.containers[epP].ifindex)
		p, to := f.p, f.client
		p.mac = f.host.mac
		cut := opening(p, to, tcp).frame()
		if six {
			cut = edited(cut[:ethLen+ip6Len+12], func(b []byte) { b[18], b[19] = 0, 12 })
		} else {
			cut = edited(cut[:ethLen+ip4Len+12], func(b []byte) { b[16], b[17] = 0, 32 })
		}
		for name, frame := range map[string][]byte{
			"TCP": opening(p, to, tcp).frame(), "UDP": opening(p, to, udp).frame(), "ping": opening(p, to, f.icmp).frame(),
			"TCP header cut": cut, "fragment": fragment(opening(p, to, udp).frame(), 64, false), "another protocol": withProto(opening(p, to, udp).frame(), 47),
			"options": extended(opening(p, to, tcp).frame(), 5), "another network": opening(w.end(epO, six, 9).via(f.host), to, tcp).frame(),
			"nobody's address": opening(withAddr(p, pick(six, netipAddr("10.1.7.7"), netipAddr("fd00:1::7777"))), to, udp).frame(),
		} {
			w.sub(name, func(w *world) {
				check := func(want want, edit ...func(*skb)) {
					w.t.Helper()
					w.check(w.objs.ToUplink, w.uplink, frame, want, edit...)
				}
				check(bypass, from)
				check(bypass, forwardedBy(w.bridges[net1]))
				check(bypass, from, marked(1))
				check(passed(), from, marked(markPassed))
				require.EqualValues(w.t, markPassed, w.markAfter(w.objs.ToUplink, frame, from, marked(markPassed)), "another uplink may be below")
				require.Zero(w.t, w.markAfter(w.objs.ToTunnel, frame[ethLen:], from, marked(markPassed)), "none is below a tunnel")
			})
		}
		for name, frame := range map[string][]byte{
			"forwarded for others": opening(withAddr(p, pick(six, remote4, remote6)), to, udp).frame(),
			"from a gateway":       opening(f.gw.via(f.host), to, udp).frame(),
			"ARP":                  arp(1, side{f.host.mac, host4, 0}, side{f.client.mac, client4, 0}),
		} {
			w.sub(name, func(w *world) { w.check(w.objs.ToUplink, w.uplink, frame, passed(), from) })
		}
		require.EqualValues(w.t, 7, w.markAfter(w.objs.ToUplink, opening(f.host, to, tcp).frame(), marked(7)), "the host's own marks stay")
		established, half := w.tables()
		require.Zero(w.t, established+half, "flows made")
	})
}

// Answers to what the host sent by UDP from a published port, and to its pings,
// are the host's.
func TestToUplinkRemembers(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		leave := func(p packet, edit ...func(*skb)) {
			w.t.Helper()
			w.check(w.objs.ToUplink, w.uplink, p.frame(), passed(), edit...)
		}
		out := packet{from: f.host, to: f.client.at(53), proto: udp}
		back := out.answer()
		beside := back.with(func(p *packet) { p.from.port = 54 })
		w.sub("UDP", func(w *world) {
			leave(out)
			w.arrive(back, passed())
			w.check(w.objs.FromUplink, w.uplink, extended(back.frame(), 2), passed())
			w.arrive(beside, sent(w.inside(beside, f.s).frame()))
			w.age(300 - slack)
			w.arrive(back, passed())
			w.age(300 - slack)
			w.arrive(back, passed())
			w.age(301)
			w.arrive(back, sent(w.inside(back, f.s).frame()))
		})
		w.sub("not what others send", func(w *world) {
			for i, c := range []struct {
				p    packet
				edit []func(*skb)
			}{
				{out, []func(*skb){forwardedBy(w.containers[epS].ifindex), marked(markPassed)}},
				{out.with(func(p *packet) { p.proto, p.flags = tcp, "S" }), nil},
				{out.with(func(p *packet) { p.proto, p.flags = tcp, "SA" }), nil},
			} {
				c.p.to.port = 60 + uint16(i)
				leave(c.p, c.edit...)
				in := opening(c.p.to, c.p.from, c.p.proto)
				w.arrive(in, sent(w.inside(in, f.s).frame()))
			}
		})
		// Another's container behind the host's address: what comes back is not ours.
		w.sub("what the kernel masquerades", func(w *world) {
			for _, proto := range []uint8{udp, f.icmp} {
				p := out.with(func(p *packet) { p.to.port, p.proto = 70, proto })
				if proto != udp {
					p.to.port = 0
				}
				leave(p, forwardedBy(w.bridges[net1]))
				w.arrive(p.answer(), passed())
			}
		})
		w.sub("not from an unpublished port", func(w *world) {
			before := len(w.entries())
			leave(packet{from: f.host.at(9), to: f.client.at(53), proto: udp})
			leave(packet{from: f.host.at(8080), to: f.client.at(53), proto: tcp})
			require.Len(w.t, w.entries(), before)
		})
		// The host's identifier is one that masquerade has given away.
		w.sub("ping", func(w *world) {
			to := f.client.at(0)
			r := w.say(epP, opening(f.p.at(7), to.via(f.gw), f.icmp), handed().any())
			id := sourcePort(r.raw)
			ping := opening(f.host.at(id), to, f.icmp)
			leave(ping)
			w.arrive(ping.answer(), passed())
			again := w.say(epP, opening(f.p.at(7), to.via(f.gw), f.icmp), handed().any())
			require.NotEqual(w.t, id, sourcePort(again.raw), "the container gets another")
			w.arrive(ping.answer(), passed())
		})
	})
}
