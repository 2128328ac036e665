package datapath

import (
	"testing"

	"github.com/bpfnet/bpfnet/loader"
)

// markPassed is MARK_PASSED of deliver.h.
const markPassed = 0x62706e66

func marked(mark uint32) func(*skb) { return func(s *skb) { s.mark = mark } }

func TestToEndpoint(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		direct := refused(loader.BPFReasonREASON_DIRECT_ACCESS)
		from := forwardedBy(w.uplink)
		for name, frame := range map[string][]byte{
			"TCP": opening(f.client.via(f.gw), f.s, tcp).frame(), "UDP": opening(f.client.via(f.gw), f.s, udp).frame(),
			"ping": opening(f.client.via(f.gw), f.s, f.icmp).frame(), "fragment": fragment(opening(f.client.via(f.gw), f.s, udp).frame(), 64, false),
			"broadcast": opening(f.p, group(pick(six, group4, group6).String(), 9), udp).frame(),
			"ARP":       arp(1, w.gate(net1, false, 0), w.end(epS, false, 0)), "unknown ethertype": ether(f.s.mac, f.gw.mac, 0x88b5),
		} {
			w.sub(name, func(w *world) {
				check := func(want want, edit ...func(*skb)) {
					w.t.Helper()
					w.check(w.objs.ToEndpoint, w.containers[epS].ifindex, frame, want, edit...)
				}
				check(passed())
				check(passed(), marked(markPassed))
				check(direct, from)
				check(direct, forwardedBy(w.containers[epP].ifindex))
				check(direct, from, marked(1))
				check(direct, from, marked(markPassed+1))
				check(passed(), from, marked(markPassed))
			})
		}
	})
}
