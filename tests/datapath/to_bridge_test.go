package datapath

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// forwardedBy makes a packet look as if the kernel had got it on a device.
func forwardedBy(ifindex int) func(*skb) {
	return func(s *skb) { s.ingressIfindex = uint32(ifindex) }
}

func TestToBridge(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		for _, from := range map[string]side{"gateway": f.gw.at(33000), "another address": f.host.at(33000).via(f.gw)} {
			for _, port := range []uint16{80, 99} {
				for _, proto := range []uint8{tcp, udp, f.icmp} {
					ask := opening(from.at(33000+port), f.s.at(port), proto)
					w.sub(protoNames[proto], func(w *world) {
						w.emit(net1, ask, w.delivered(net1, ask))
						w.say(epS, ask.answer(), w.toHost(net1, ask.answer()))
						ask.flags, ask.seq, ask.ack = "A", 101, 501
						for range 2 {
							w.emit(net1, ask, w.delivered(net1, ask))
							w.say(epS, ask.answer(), w.toHost(net1, ask.answer()))
						}
						e := w.entry(ask, w.bridges[net1])
						require.EqualValues(w.t, loader.BPFVerdictVERDICT_EGRESS, e.Verdict)
						require.EqualValues(w.t, w.containers[epS].ifindex, e.Ifindex)
					})
				}
			}
		}
		w.sub("icc off, isolated, internal: the host still may", func(w *world) {
			w.flags(net2, internal, 0)
			p := opening(w.gate(net2, six, 33000), w.end(epO, six, 80), tcp)
			w.emit(net2, p, w.delivered(net2, p))
			w.say(epO, p.answer(), w.toHost(net2, p.answer()))
		})
		w.sub("in the middle of a connection", func(w *world) {
			p := packet{from: f.gw.at(33001), to: f.s, proto: tcp}
			w.emit(net1, p, w.delivered(net1, p))
		})
		datagram := opening(f.gw.at(33002), f.s, udp)
		for name, frame := range map[string][]byte{
			"fragment":         fragment(datagram.frame(), 0, true),
			"later fragment":   fragment(datagram.frame(), 64, false),
			"another protocol": withProto(datagram.frame(), 47),
			"ICMP error":       icmpError(opening(f.s, f.gw, udp).frame(), f.gw.addr, 3, 3, 0),
		} {
			w.sub(name, func(w *world) { w.check(w.objs.ToBridge, w.bridges[net1], frame, handed()) })
		}
		for name, frame := range map[string][]byte{
			"nobody":          opening(f.gw.at(1), withAddr(f.s, pick(six, netip.MustParseAddr("10.1.7.7"), netip.MustParseAddr("fd00:1::7777"))), udp).frame(),
			"another network": opening(f.gw.at(1), w.end(epO, six, 80), udp).frame(),
		} {
			w.sub(name, func(w *world) {
				w.check(w.objs.ToBridge, w.bridges[net1], frame, refused(loader.BPFReasonREASON_NO_ENDPOINT))
			})
		}
		gw4 := side{w.bridgeMAC[net1], gateway(net1, 4), 0}
		if six {
			ask := nd(f.gw, solicited(f.s.addr), 135, about(f.s.addr), linkOption(1, f.gw.mac))
			w.check(w.objs.ToBridge, w.bridges[net1], ask, handed())
			ask = nd(f.gw, solicited(f.client.addr), 135, about(f.client.addr), linkOption(1, f.gw.mac))
			w.check(w.objs.ToBridge, w.bridges[net1], ask, refused(loader.BPFReasonREASON_NO_ENDPOINT))
		} else {
			w.check(w.objs.ToBridge, w.bridges[net1], arp(1, gw4, f.s), handed())
			w.check(w.objs.ToBridge, w.bridges[net1], arp(2, gw4, f.s), handed())
			w.check(w.objs.ToBridge, w.bridges[net1], arp(1, gw4, f.client), refused(loader.BPFReasonREASON_NO_ENDPOINT))
		}
		w.sub("too big", func(w *world) {
			w.change(epS, func(e *loader.BPFEndpoint) { e.Mtu = 1400 })
			p := opening(f.gw.at(33003), f.s, udp)
			p.payload = make([]byte, 1400)
			in := p.frame()
			w.check(w.objs.ToBridge, w.bridges[net1], in, tooBig(in, f.s, 1400))
		})
	})
}

// The kernel forwards for others when it is told to: nobody reaches a container
// so, not even in the tuple of a flow of the host's.
func TestToBridgeForwarded(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		direct := refused(loader.BPFReasonREASON_DIRECT_ACCESS)
		flow := opening(f.gw.at(33000), f.s, udp)
		w.emit(net1, flow, w.delivered(net1, flow))
		w.say(epS, flow.answer(), w.toHost(net1, flow.answer()))
		w.emit(net1, flow, w.delivered(net1, flow))
		require.True(w.t, w.entry(flow, w.bridges[net1]).established)
		seen := w.entry(flow, w.bridges[net1]).Packets
		for _, device := range []int{w.uplink, 1, w.bridges[net2], w.containers[epO].ifindex} {
			w.emit(net1, flow, direct, forwardedBy(device))
			for _, proto := range []uint8{tcp, udp, f.icmp} {
				w.emit(net1, opening(f.client.via(f.gw), f.s, proto), direct, forwardedBy(device))
			}
			w.check(w.objs.ToBridge, w.bridges[net1], fragment(flow.frame(), 64, false), direct, forwardedBy(device))
			w.check(w.objs.ToBridge, w.bridges[net1], withProto(flow.frame(), 47), direct, forwardedBy(device))
			w.emit(net1, packet{from: f.client.via(f.gw), to: group(pick(six, group4, group6).String(), 9), proto: udp}, direct, forwardedBy(device))
		}
		require.Equal(w.t, seen, w.entry(flow, w.bridges[net1]).Packets)
		w.emit(net1, flow, w.delivered(net1, flow))
	})
}
