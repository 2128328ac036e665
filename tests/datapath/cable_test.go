// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// unbridged takes a network's bridge away: each endpoint's cable ends at the host.
func (w *world) unbridged(number uint32) {
	w.t.Helper()
	var n loader.BPFNetwork
	require.NoError(w.t, w.objs.Networks.Lookup(number, &n))
	n.Bridge = 0
	w.put(w.objs.Networks, number, n)
	w.bump(number, loader.BPFRuleKindRULE_NETWORK)
}

// What is for the host goes up its stack where it is, and is not remembered; all else is as
// it is behind a bridge.
func TestFromEndpointCable(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		w.unbridged(net1)
		f := w.family(six)
		_, before := w.tables()
		for _, port := range []uint16{22, 8079} {
			for _, proto := range []uint8{tcp, udp, f.icmp} {
				for _, to := range []side{f.gw.at(port), f.host.at(port).via(f.gw)} {
					ask := opening(f.p, to, proto)
					w.say(epP, ask, passed())
				}
			}
		}
		datagram := opening(f.p, f.gw.at(53), udp).frame()
		for name, frame := range map[string][]byte{
			"first fragment":   fragment(datagram, 0, true),
			"another protocol": withProto(datagram, 47),
			"ICMP error":       icmpError(opening(f.gw, f.p, udp).frame(), f.p.addr, 3, 3, 0),
			"multicast":        packet{from: f.p, to: group(pick(six, group4, group6).String(), 5353), proto: udp}.frame(),
		} {
			w.sub(name, func(w *world) { w.utter(epP, frame, passed()) })
		}
		early := fragment(opening(f.p, f.gw.at(54), udp).frame(), 128, false)
		w.utter(epP, early, passed().keeping())
		_, half := w.tables()
		require.Equal(w.t, before, half, "nothing is remembered of it")

		peer := opening(f.p, f.s.at(99), tcp)
		w.say(epP, peer, w.delivered(net1, peer))
		w.say(epP, opening(f.p, f.client.at(443).via(f.gw), tcp), want{verdict: redirect, anyOut: true})
		published := opening(f.p, f.host.via(f.gw), tcp)
		w.say(epP, published, want{verdict: redirect, anyOut: true})
		entry := w.entry(published, w.containers[epP].ifindex)
		require.EqualValues(w.t, loader.BPFFlowKindFLOW_PUBLISHED, entry.Kind)
		require.EqualValues(w.t, w.containers[epS].ifindex, entry.Ifindex)
		w.say(epP, opening(withAddr(f.p, f.s.addr), f.gw.at(22), udp), want{verdict: drop, anyReason: true})
		w.flags(net1, 0, icc)
		w.say(epP, opening(f.p.at(50100), f.s.at(99), tcp), refused(loader.BPFReasonREASON_ICC_DENIED))
		if six {
			w.sub("link-local is the host", func(w *world) {
				host := side{mac: f.gw.mac, addr: netip.MustParseAddr("fe80::77"), port: 22}
				w.say(epP, opening(w.ll(epP, 50000), host, udp), passed())
				w.utter(epP, nd(w.ll(epP, 0), solicited(host.addr), 135, about(host.addr), linkOption(1, f.p.mac)), passed())
				w.utter(epP, nd(f.p, host, 136, about(f.p.addr), linkOption(2, f.p.mac)), passed())
			})
			return
		}
		w.utter(epP, arp(1, f.p, f.gw), passed())
		w.utter(epP, arp(2, f.p, f.gw), passed())
		w.utter(epP, arp(2, withAddr(f.p, f.s.addr), f.gw), refused(loader.BPFReasonREASON_SPOOFED_ARP))
	})
}
