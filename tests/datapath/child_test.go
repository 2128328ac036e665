// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

const (
	netChild  = 3
	epChild   = 6
	ruleChild = 5010 // 0.0.0.0:8093, [::]:8093 -> the child's 80
)

// child makes a macvlan of the uplink, which the host reaches as itself.
func (w *world) child(six bool) side {
	w.t.Helper()
	c := container{slot: epChild, network: netChild, mac: mac(netChild, 50), ip4: netip.MustParseAddr("203.0.113.50"), ip6: netip.MustParseAddr("2001:db8:113::50")}
	e := loader.BPFEndpoint{Gen: 1, Ifindex: uint32(w.uplink), Network: netChild, Flags: uint32(loader.BPFEndpointFlagsENDPOINT_CHILD), Mtu: 1500, Ip4: addr(c.ip4), Ip6: addr(c.ip6)}
	copy(e.Mac[:], c.mac)
	w.put(w.objs.Endpoints, uint32(epChild), e)
	n := loader.BPFNetwork{Mtu: 1500, Gateway4: addr(host4), Gateway6: addr(host6)}
	copy(n.Mac[:], w.hostMAC)
	w.put(w.objs.Networks, uint32(netChild), n)
	w.bump(netChild, loader.BPFRuleKindRULE_NETWORK)
	w.containers[epChild] = c
	w.publish(ruleChild, epChild, 8093, 80, 0)
	return w.end(epChild, six, 80)
}

// leave gives the packet to to_parent of the uplink.
func (w *world) leave(p packet, want want, edit ...func(*skb)) result {
	w.t.Helper()
	return w.check(w.objs.ToParent, w.uplink, p.frame(), want, edit...)
}

// as is the packet as it goes on.
func as(p packet) want { return want{verdict: pass, out: p.frame()} }

// A published port of a macvlan: in by the parent, for the child's MAC, and out of it again.
func TestChild(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f, c := w.family(six), w.child(six)
		host := f.host.at(8093)
		for _, proto := range []uint8{tcp, udp} {
			client := f.client.at(41000 + uint16(proto))
			ask := opening(client, host, proto)
			in := func(p packet) packet { return p.with(func(p *packet) { p.from.mac, p.to, p.ttl = w.hostMAC, c, 63 }) }
			out := func(p packet) packet {
				return p.with(func(p *packet) { p.from.addr, p.from.port, p.ttl = host.addr, 8093, 63 })
			}
			w.arrive(ask, sent(in(ask).frame()))
			reply := packet{from: c, to: client, proto: proto, flags: "SA", seq: 500, ack: 101}
			w.leave(reply, as(out(reply)))
			ask.flags, ask.seq, ask.ack = "A", 101, 501
			reply.flags = "A"
			for range 2 {
				w.arrive(ask, sent(in(ask).frame()))
				w.leave(reply, as(out(reply)))
			}
			entry := w.entry(ask, int(loader.BPFZoneZONE_WORLD))
			require.True(w.t, entry.established)
			require.EqualValues(w.t, loader.BPFVerdictVERDICT_HOST, entry.Verdict)
			require.EqualValues(w.t, w.uplink, entry.Ifindex)
			require.EqualValues(w.t, loader.BPFVerdictVERDICT_ONWARD, w.entry(reply, w.uplink).Verdict)
			w.sub("another's MAC", func(w *world) {
				forged := reply
				forged.from.mac = mac(9, 9)
				w.leave(forged, passed())
			})
			w.sub("the host's own", func(w *world) { w.leave(packet{from: f.host.at(443), to: client, proto: proto}, passed()) })
			w.sub("the child's own", func(w *world) { w.leave(packet{from: c.at(443), to: client, proto: proto}, passed()) })
		}
		w.sub("in pieces", func(w *world) {
			whole := packet{from: c, to: f.client.at(41000 + udp), proto: udp}.frame()
			first := fragment(whole, 0, true)
			fragments-- // of the same datagram
			for _, piece := range [][]byte{first, fragment(whole, 64, false)} {
				r := w.check(w.objs.ToParent, w.uplink, piece, passed().any())
				from := pick(six, r.raw[26:30], r.raw[22:38])
				require.Equal(w.t, f.host.addr.AsSlice(), from, "of the host's")
			}
			w.check(w.objs.ToParent, w.uplink, fragment(whole, 64, false), passed())
		})
		w.sub("by lo", func(w *world) {
			lo := side{addr: pick(six, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()), port: 8093}
			ask := opening(lo.at(45100), lo, tcp)
			r := w.call(ask, handed().any())
			seen := ask.with(func(p *packet) { p.from, p.to = side{w.hostMAC, f.host.addr, sourcePort(r.raw)}, c })
			require.Equal(w.t, dump(seen.frame()), dump(r.raw))
			reply := seen.answer()
			w.leave(reply, sent(reply.like(func(p *packet) { p.from, p.to = side{loMAC, lo.addr, 8093}, side{zeroMAC, lo.addr, 45100} })))
		})
		w.sub("from a container", func(w *world) {
			ask := opening(f.p, host.via(f.gw), tcp)
			r := w.say(epP, ask, handed().any())
			seen := ask.with(func(p *packet) { p.from, p.to, p.ttl = side{w.hostMAC, f.host.addr, sourcePort(r.raw)}, c, 63 })
			require.Equal(w.t, dump(seen.frame()), dump(r.raw))
			reply := seen.answer().with(func(p *packet) { p.ttl = 0 })
			w.leave(reply, sent(reply.like(func(p *packet) { p.from, p.to, p.ttl = side{f.gw.mac, host.addr, 8093}, f.p, 63 })))
		})
		w.sub("a container that is forwarded still cannot get by", func(w *world) {
			w.leave(packet{from: f.s, to: f.client, proto: udp}, refused(loader.BPFReasonREASON_BYPASS), forwardedBy(w.containers[epS].ifindex))
		})
		// Nobody on the link has the host's address.
		var n loader.BPFNetwork
		require.NoError(w.t, w.objs.Networks.Lookup(uint32(netChild), &n))
		n.Gateway4, n.Gateway6 = loader.BPFAddr{}, loader.BPFAddr{}
		w.put(w.objs.Networks, uint32(netChild), n)
		w.bump(netChild, loader.BPFRuleKindRULE_NETWORK)
		w.call(opening(f.host.at(45200), host, tcp), passed())
		w.say(epP, opening(f.p.at(50200), host.via(f.gw), tcp), refused(loader.BPFReasonREASON_NO_ROUTE))
	})
}
