// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// ways are what a route may lead to beside the world's own uplink.
type ways struct {
	*world
	f                       family
	all                     string // the default route's prefix
	second                  int    // another uplink
	own, other, third, gate netip.Addr
}

func (w *world) ways(six bool) ways {
	w.t.Helper()
	return ways{w, w.family(six), pick(six, "0.0.0.0/0", "::/0"), w.device("uplink2", mac(0xee, 9)), pick(six, host4, host6),
		netipAddr(pick(six, "198.51.100.1", "2001:db8:51::1")), netipAddr(pick(six, "198.51.100.9", "2001:db8:51::9")), netipAddr(pick(six, "198.51.100.254", "2001:db8:51::fe"))}
}

// in is the same on a subtest's thread.
func (x ways) in(w *world) ways { x.world = w; return x }

// route sets the default route of a table and lets the flows see it.
func (x ways) route(table uint32, r loader.BPFRoute) {
	x.t.Helper()
	x.put(x.objs.Routes, way(table, x.all), r)
	x.advance()
}

// owns gives the host an address, or takes it away.
func (x ways) owns(a netip.Addr, yes bool) {
	x.t.Helper()
	if yes {
		x.put(x.objs.HostAddrs, addr(a), uint32(x.second))
	} else {
		require.NoError(x.t, x.objs.HostAddrs.Delete(addr(a)))
	}
	x.advance()
}

// usual is how the world begins.
func (x ways) usual() loader.BPFRoute {
	return route(x.uplink, netipAddr(pick(x.own.Is6(), "203.0.113.254", "2001:db8:113::fe")), x.own)
}

func (x ways) stale() uint64 { return x.counter(loader.BPFCounterCOUNTER_FLOW_STALE) }

// call opens an established masqueraded flow from a container to somebody beyond the
// router, and gives its next packet and who the world sees.
func (x ways) call(slot uint32, proto uint8, port uint16) (next packet, seen side) {
	x.t.Helper()
	to := side{x.f.gw.mac, pick(x.own.Is6(), remote4, remote6), 443}
	if slot != epS && slot != epP {
		to.mac = x.bridgeMAC[net2]
	}
	ask := opening(x.end(slot, x.own.Is6(), port), to, proto)
	out := x.say(slot, ask, handed().any())
	seen = side{x.f.host.mac, sourceAddr(out.raw), sourcePort(out.raw)}
	back := packet{from: to, to: seen, proto: proto, flags: "SA", seq: 500, ack: 101, reply: true}
	back.from.mac = x.f.client.mac
	if proto == icmp || proto == icmp6 {
		back.from.port = 0
	}
	x.arrive(back, handed().any())
	next = ask.with(func(p *packet) { p.flags, p.seq, p.ack = "A", 101, 501 })
	x.say(slot, next, handed().any())
	return next, seen
}

func sourceAddr(frame []byte) netip.Addr {
	if isSix(frame) {
		return netip.AddrFrom16([16]byte(frame[ethLen+8:]))
	}
	return netip.AddrFrom4([4]byte(frame[ethLen+12:]))
}

// continues requires that the flow goes on as what it was.
func (x ways) continues(slot uint32, next packet, seen side) {
	x.t.Helper()
	before := x.stale()
	out := x.say(slot, next, handed().any())
	require.Equal(x.t, []any{seen.addr, seen.port}, []any{sourceAddr(out.raw), sourcePort(out.raw)})
	require.Equal(x.t, before, x.stale())
}

// begins requires that the next packet opens a new flow with another source, and that
// a connection ends.
func (x ways) begins(slot uint32, next packet, source netip.Addr) {
	x.t.Helper()
	before := x.stale()
	if next.proto == tcp {
		x.say(slot, next, refused(loader.BPFReasonREASON_NO_FLOW))
		next.flags = "S"
	}
	out := x.say(slot, next, handed().any())
	require.Equal(x.t, source, sourceAddr(out.raw))
	require.Equal(x.t, before+1, x.stale())
}

func (x ways) protos() []uint8 { return []uint8{tcp, udp, x.f.icmp} }

// A masqueraded flow ends with its address, or when its route leaves the uplink; it
// follows its route to another router.
func TestWayOfMasquerade(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		x := w.ways(six)
		w.owns2(x)
		for i, c := range []struct {
			name   string
			change func(x ways)
			source netip.Addr // zero: the flow goes on
			mend   func(x ways)
		}{
			{name: "nothing", change: func(x ways) { x.advance() }},
			{name: "another router", change: func(x ways) { x.route(0, route(x.uplink, x.gate, x.own)) }},
			{name: "another source on the same uplink", change: func(x ways) { x.route(0, route(x.uplink, x.gate, x.other)) }},
			{name: "another uplink with the same source", change: func(x ways) { x.route(0, route(x.second, x.gate, x.own)) }},
			{name: "another uplink", change: func(x ways) { x.route(0, route(x.second, x.gate, x.other)) }, source: x.other},
			{name: "the address is lost", change: func(x ways) { x.owns(x.own, false); x.route(0, route(x.uplink, x.gate, x.other)) }, source: x.other,
				mend: func(x ways) { x.owns(x.own, true) }},
			{name: "one of several hops, still there", change: func(x ways) { x.hops(5, x.usual(), route(x.second, x.gate, x.other)) }},
			{name: "one of several hops, gone", change: func(x ways) { x.hops(6, route(x.second, x.gate, x.other), route(x.second, x.third, x.other)) }, source: x.other},
			{name: "another container's table", change: func(x ways) {
				x.put(x.objs.RouteTables, uint32(epP), uint32(7))
				x.route(7, route(x.second, x.gate, x.other))
			}},
			{name: "its table", change: func(x ways) {
				x.put(x.objs.RouteTables, uint32(epS), uint32(8))
				x.route(8, route(x.second, x.gate, x.other))
			}, source: x.other},
		} {
			for j, proto := range x.protos() {
				w.sub(fmt.Sprintf("%s, %s", c.name, protoNames[proto]), func(w *world) {
					x := x.in(w)
					next, seen := x.call(epS, proto, uint16(48000+10*i+j))
					require.Equal(w.t, x.own, seen.addr)
					c.change(x)
					if c.source.IsValid() {
						x.begins(epS, next, c.source)
					} else {
						x.continues(epS, next, seen)
					}
					if c.mend != nil {
						c.mend(x)
					}
					x.put(x.objs.RouteTables, uint32(epS), uint32(0))
					x.put(x.objs.RouteTables, uint32(epP), uint32(0))
					x.route(0, x.usual())
				})
			}
		}
		w.sub("where it goes", func(w *world) {
			x := x.in(w)
			next, _ := x.call(epS, udp, 48500)
			x.route(0, route(x.uplink, x.gate, x.own))
			x.say(epS, next, handed().any())
			e := x.entry(next, x.containers[epS].ifindex)
			require.Equal(w.t, []any{uint32(x.uplink), x.gate}, []any{e.Ifindex, addrOf(e.Nexthop)})
			x.route(0, x.usual())
		})
		w.sub("the address is now the host's", func(w *world) {
			x := x.in(w)
			next, _ := x.call(epS, udp, 48501)
			x.owns(next.to.addr, true)
			before := x.stale()
			out := x.say(epS, next, handed().any())
			require.Equal(w.t, next.from.addr, sourceAddr(out.raw), "to the host, untranslated")
			require.Equal(w.t, before+1, x.stale())
			// And lost again.
			x.owns(next.to.addr, false)
			x.begins(epS, next, x.own)
		})
	})
}

// owns2 gives the host a second address.
func (w *world) owns2(x ways) { x.in(w).owns(x.other, true) }

// hops makes the default route one of several hops.
func (x ways) hops(table uint32, hops ...loader.BPFRoute) {
	x.t.Helper()
	table |= 1 << 31
	for i, h := range hops {
		k := loader.BPFRouteKey{Prefixlen: 32 + 128, Table: table}
		k.Addr.W[3] = uint32(i)
		x.put(x.objs.Routes, k, h)
	}
	x.route(0, loader.BPFRoute{Ifindex: table, Hops: uint16(len(hops))})
}

// Without a way a flow waits, and without its address as long as its route has no other;
// a prefix that leads nowhere hides shorter ones.
func TestWayMissing(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		x := w.ways(six)
		hole := way(0, netip.PrefixFrom(pick(six, remote4, remote6), pick(six, 24, 48)).Masked().String())
		for i, proto := range x.protos() {
			w.sub(protoNames[proto], func(w *world) {
				x := x.in(w)
				next, seen := x.call(epS, proto, uint16(49000+i))
				back := func() { x.owns(x.own, true); x.route(0, x.usual()) }
				noRoute := func() {
					// Package maps keeps IPv6's default route out of IPv4; this world's does not.
					for _, all := range []string{"0.0.0.0/0", "::/0"} {
						if err := x.objs.Routes.Delete(way(0, all)); !errors.Is(err, ebpf.ErrKeyNotExist) {
							require.NoError(w.t, err)
						}
					}
					x.advance()
				}
				for name, c := range map[string]struct{ away, back func() }{
					"no route": {noRoute, func() { x.route(0, x.usual()) }},
					"unreachable": {func() { x.put(x.objs.Routes, hole, loader.BPFRoute{}); x.advance() },
						func() { require.NoError(w.t, x.objs.Routes.Delete(hole)); x.advance() }},
					"neither route nor address": {func() { x.owns(x.own, false); noRoute() }, back},
					"a route without a source":  {func() { x.owns(x.own, false); x.route(0, route(x.second, x.gate, netip.Addr{})) }, back},
				} {
					c.away()
					x.say(epS, next, refused(loader.BPFReasonREASON_NO_ROUTE))
					x.say(epP, opening(x.f.p.at(uint16(49100+i)), next.to, proto), refused(loader.BPFReasonREASON_NO_ROUTE))
					x.say(epS, next, refused(loader.BPFReasonREASON_NO_ROUTE))
					c.back()
					x.continues(epS, next, seen)
					require.Zero(w.t, x.stale(), name)
				}
				// Its route is to be looked at yet.
				x.owns(x.own, false)
				x.say(epS, next, refused(loader.BPFReasonREASON_NO_ROUTE))
				x.owns(x.own, true)
				x.continues(epS, next, seen)
			})
		}
	})
}

// The answers of a published port follow the route, by whatever uplink; the flow waits
// for the address that was asked, if the host has lost it.
func TestWayOfPublished(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		x := w.ways(six)
		w.put(w.objs.Routes, way(0, netip.PrefixFrom(x.f.client.addr, pick(six, 24, 64)).Masked().String()), route(x.second, x.gate, x.other))
		for i, proto := range []uint8{tcp, udp} {
			d := w.dialog(six, proto, uint16(50000+i))
			d.open()
			require.Equal(t, []any{uint32(x.second), x.gate}, []any{d.response().Ifindex, addrOf(d.response().Nexthop)})
			for _, r := range []loader.BPFRoute{route(x.uplink, netip.Addr{}, x.own), route(x.uplink, x.third, x.other), route(x.second, x.gate, x.other)} {
				w.put(w.objs.Routes, way(0, netip.PrefixFrom(x.f.client.addr, pick(six, 24, 64)).Masked().String()), r)
				w.advance()
				d.out("A", 501, 101)
				d.in("A", 101, 501)
				hop := addrOf(d.response().Nexthop)
				if r.Nexthop == (loader.BPFAddr{}) {
					require.Equal(t, x.f.client.addr, hop)
				} else {
					require.Equal(t, addrOf(r.Nexthop), hop)
				}
				require.Equal(t, r.Ifindex, d.response().Ifindex)
				require.True(t, d.response().established)
			}
			x.put(x.objs.RouteTables, uint32(epS), uint32(9))
			x.route(9, route(x.uplink, x.third, x.own))
			d.out("A", 501, 101)
			require.Equal(t, []any{uint32(x.uplink), x.third}, []any{d.response().Ifindex, addrOf(d.response().Nexthop)})
			x.put(x.objs.RouteTables, uint32(epS), uint32(0))
			before := x.stale()
			x.owns(x.own, false)
			w.say(epS, d.answers("A", 501, 101), refused(loader.BPFReasonREASON_NO_ROUTE))
			d.in("A", 101, 501)
			w.say(epS, d.answers("A", 501, 101), refused(loader.BPFReasonREASON_NO_ROUTE))
			x.owns(x.own, true)
			d.out("A", 501, 101)
			d.in("A", 101, 501)
			require.Equal(t, before, x.stale())
			// And not for ever.
			x.owns(x.own, false)
			w.age(7441)
			w.say(epS, d.answers("A", 501, 101), handed().any().unless(proto == tcp, refused(loader.BPFReasonREASON_NO_FLOW)))
			require.Equal(t, before+1, x.stale())
			x.owns(x.own, true)
		}
	})
}

// unless gives another expectation where a condition holds.
func (w want) unless(cond bool, other want) want {
	if cond {
		return other
	}
	return w
}

// A route of several hops spreads the flows, as their receivers differ in any byte; each
// keeps its hop.
func TestWayOfSeveral(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		x := w.ways(six)
		w.owns2(x)
		for n, hops := range [][]loader.BPFRoute{
			{x.usual(), route(x.second, x.gate, x.other)},
			{x.usual(), route(x.second, x.gate, x.other), route(x.second, x.gate, x.other)},
		} {
			x.hops(uint32(1+n), hops...)
			for _, differ := range pick(six, []int{1, 2, 3}, []int{4, 7, 8, 15}) {
				used := make(map[netip.Addr]int)
				for i := range 60 {
					raw := pick(six, netipAddr("8.0.0.9"), netipAddr("2600::9")).AsSlice()
					raw[differ] = byte(i)
					to := side{x.f.gw.mac, netip.Addr{}, uint16(443 + n)}
					to.addr, _ = netip.AddrFromSlice(raw)
					ask := opening(x.f.p.at(51000), to, udp)
					out := w.say(epP, ask, handed().any())
					used[sourceAddr(out.raw)]++
					for range 2 {
						w.advance()
						again := w.say(epP, ask, handed().any())
						require.Equal(t, sourceAddr(out.raw), sourceAddr(again.raw))
					}
				}
				want := 60 / len(hops)
				require.InDelta(t, want, used[x.own], 16, "%v", used)
				require.InDelta(t, 60-want, used[x.other], 16, "%v", used)
			}
		}
		require.Zero(t, x.stale())
	})
}
