// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// passage is a way through a program: a datagram as it comes, and as it goes on.
type passage struct {
	name    string
	program *ebpf.Program
	ifindex int
	device  string
	in, out packet
	host    bool // what comes may be the host's
}

// passages opens a flow of every kind that has a payload to cut.
func (w *world) passages(six bool, proto uint8) (list []passage) {
	w.t.Helper()
	f := w.family(six)
	add := func(name string, slot uint32, in, out packet) {
		r := passage{name, w.objs.FromUplink, w.uplink, "uplink", in, out, slot == 0}
		if slot != 0 {
			r.program, r.ifindex, r.device = w.objs.FromEndpoint, w.containers[slot].ifindex, fmt.Sprint("veth", slot)
		}
		list = append(list, r)
	}
	beyond := f.client.at(443)
	if proto == f.icmp {
		beyond.port = 0
	}
	ask := opening(f.p, beyond.via(f.gw), proto)
	port := sourcePort(w.say(epP, ask, handed().any()).raw)
	asked := ask.with(func(p *packet) { p.from.addr, p.from.port, p.ttl = f.host.addr, port, 63 })
	add("masquerade, there", epP, ask, asked)
	add("masquerade, back", 0, asked.with(func(p *packet) { p.to.mac, p.from.mac, p.ttl = f.client.mac, f.host.mac, 64 }).answer(),
		ask.with(func(p *packet) { p.to.mac, p.ttl = f.gw.mac, 63 }).answer())
	peer := opening(f.p.at(50001), f.s.at(99), proto)
	add("peer", epP, peer, peer.with(func(p *packet) { p.from.mac = f.gw.mac }))
	service := opening(f.p.at(50002), f.gw.at(22), proto)
	add("a service of the host", epP, service, service)
	if proto == f.icmp {
		return list
	}
	in := opening(f.client, f.host, proto)
	add("published, there", 0, in, w.inside(in, f.s))
	reply := w.inside(in, f.s).with(func(p *packet) { p.ttl = 64 }).answer()
	w.arrive(in, handed().any())
	add("published, back", epS, reply, reply.with(func(p *packet) { p.from.addr, p.from.port, p.ttl = f.host.addr, f.host.port, 63 }))
	local := opening(f.p.at(50003), f.host.via(f.gw), proto)
	add("a neighbour's published port", epP, local, local.with(func(p *packet) { p.from.mac, p.to = f.gw.mac, f.s }))
	return list
}

// cut is the packet in fragments of 1,024 bytes, with 2,500 bytes of payload.
func (p packet) cut(id uint32) [][]byte {
	p.payload = bytes.Repeat([]byte("0123456789"), 250)
	return lab.Fragments(p.frame(), 1024, id)
}

// ear hears what a device takes in, from the wire or put back.
func (w *world) ear(device string) int {
	w.t.Helper()
	w.tap(device)
	l, err := netlink.LinkByName(device)
	require.NoError(w.t, err)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { unix.Close(fd) })
	require.NoError(w.t, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: be16(unix.ETH_P_ALL), Ifindex: l.Attrs().Index}))
	return fd
}

// underWay lists the datagrams that the programs know.
func (w *world) underWay() (list []loader.BPFDatagram) {
	w.t.Helper()
	var key loader.BPFDatagramKey
	var d loader.BPFDatagram
	it := w.objs.Datagrams.Iterate()
	for it.Next(&key, &d) {
		list = append(list, d)
	}
	require.NoError(w.t, it.Err())
	return list
}

// Fragments follow their first one, translated to the letter, in whatever order they come: early ones are
// kept, and put back into their device behind it, as they came.
func TestFragmentOrders(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		ears := map[string]int{}
		for _, device := range []string{"uplink", "veth1", "veth2"} {
			ears[device] = w.ear(device)
		}
		id := uint32(0x10000)
		for _, proto := range []uint8{udp, w.family(six).icmp, tcp} {
			for _, r := range w.passages(six, proto) {
				for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
					w.sub(fmt.Sprint(protoNames[proto], " ", r.name, " ", order), func(w *world) {
						id++
						in, out := r.in.cut(id), r.out.cut(id)
						require.Len(w.t, in, 3)
						first := slices.Index(order, 0)
						early := parked()
						if r.host {
							early = passed().keeping()
						}
						for _, i := range order[:first] {
							w.check(r.program, r.ifindex, in[i], early)
						}
						w.check(r.program, r.ifindex, in[0], sent(out[0]))
						for _, i := range order[:first] {
							require.Eventually(w.t, func() bool { return heard(ears[r.device], in[i]) }, 5*time.Second, time.Millisecond, "fragment %d is put back", i)
							w.check(r.program, r.ifindex, in[i], sent(out[i]))
						}
						for _, i := range order[first+1:] {
							w.check(r.program, r.ifindex, in[i], sent(out[i]))
						}
						require.Empty(w.t, w.underWay(), "the datagram is complete")
						w.complete(r.program, r.ifindex, in[0])
						w.complete(r.program, r.ifindex, in[1])
						w.complete(r.program, r.ifindex, in[2])
						require.Empty(w.t, w.underWay())
					})
				}
			}
		}
	})
}

// The host's own pass in all orders, however many they are, and leave nothing behind: the same
// identification may be used again at once, by a flow, too.
func TestFragmentHost(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		own := opening(f.client, f.host.at(9), udp)
		check := func(frame []byte, kept uint64) {
			w.t.Helper()
			w.check(w.objs.FromUplink, w.uplink, frame, want{verdict: pass, parked: kept})
		}
		for range 2 {
			for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
				in := own.cut(7)
				for n, i := range order {
					kept := uint64(0)
					if n < slices.Index(order, 0) {
						kept = 1
					}
					check(in[i], kept)
				}
				require.Empty(w.t, w.underWay(), "%v", order)
			}
			published := opening(f.client, f.host, udp)
			for i, in := range published.cut(7) {
				w.check(w.objs.FromUplink, w.uplink, in, sent(w.inside(published, f.s).cut(7)[i]))
			}
		}
		own.payload = make([]byte, 1000)
		in := lab.Fragments(own.frame(), 8, 8)
		require.Greater(w.t, len(in), 64+2)
		for n := range len(in) {
			kept := uint64(0)
			if n < 64 {
				kept = 1
			}
			check(in[len(in)-1-n], kept)
		}
		check(in[0], 0) // twice
		for _, in := range own.cut(8) {
			check(in, 0)
		}
	})
}

// Two fragments that overlap are the end of a datagram, and so is a second first one that is not the first
// again; the same one again is not.
func TestFragmentOverlap(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		bad := refused(loader.BPFReasonREASON_FRAGMENT)
		in := opening(f.client, f.host, udp)
		in.payload = bytes.Repeat([]byte("0123456789"), 250)
		out := w.inside(in, f.s)
		w.arrive(opening(f.client, f.host, udp), handed().any())
		head := ethLen + pick(six, ip4Len, ip6Len)
		id := uint32(1)
		piece := func(p packet, from, to int, more bool) []byte {
			frame := p.frame()
			return lab.Fragment(frame[:head], frame[head+from:head+to], from, more, id)
		}
		check := func(from, to int, more bool, want want) {
			w.t.Helper()
			if want.verdict == redirect {
				want = sent(piece(out, from, to, more))
			}
			w.check(w.objs.FromUplink, w.uplink, piece(in, from, to, more), want)
		}
		good := handed()
		whole := head + 2508 - head
		for name, steps := range map[string]func(){
			"the same again": func() {
				before := len(w.underWay())
				for range 2 {
					check(0, 1024, true, good)
					check(1024, 2048, true, good)
				}
				check(2048, whole, false, good)
				require.Len(w.t, w.underWay(), before)
			},
			"before":            func() { check(0, 1024, true, good); check(1016, 2048, true, bad) },
			"behind":            func() { check(0, 1024, true, good); check(2048, whole, false, good); check(1024, 2056, true, bad) },
			"within":            func() { check(0, 1024, true, good); check(1024, 2048, true, good); check(1200, 1208, true, bad) },
			"around":            func() { check(0, 1024, true, good); check(1200, 1208, true, good); check(1024, 2048, true, bad) },
			"longer":            func() { check(0, 1024, true, good); check(1024, 2048, true, good); check(1024, 2056, true, bad) },
			"past the last one": func() { check(0, 1024, true, good); check(2048, whole, false, good); check(2512, 2512-8, true, bad) },
			"a second last one": func() { check(0, 1024, true, good); check(2048, whole, false, good); check(1024, 1100, false, bad) },
			"first, shorter":    func() { check(0, 1024, true, good); check(0, 512, true, bad) },
			"first, longer":     func() { check(0, 1024, true, good); check(0, 1032, true, bad) },
			"first, other ports": func() {
				check(0, 1024, true, good)
				w.check(w.objs.FromUplink, w.uplink, piece(in.with(func(p *packet) { p.from.port++ }), 0, 1024, true), bad)
			},
			"first, another container's port": func() {
				w.publish(ruleAgain, epP, 8083, 80, 0)
				check(0, 1024, true, good)
				w.check(w.objs.FromUplink, w.uplink, piece(in.with(func(p *packet) { p.to.port = 8083 }), 0, 1024, true), bad)
			},
			"early ones": func() {
				check(1024, 2048, true, passed().keeping())
				check(1016, 1104, true, passed())
				check(0, 1016, true, bad)
			},
			"early ones, the first": func() {
				check(1024, 2048, true, passed().keeping())
				check(0, 1032, true, good)
				check(1024, 2048, true, bad) // put back
			},
		} {
			id++
			w.sub(name, func(outer *world) {
				inner := w.t
				w.t = outer.t
				defer func() { w.t = inner }()
				if name == "past the last one" {
					check(0, 1024, true, good)
					check(2048, whole-4, false, good)
					frame := in.frame()
					w.check(w.objs.FromUplink, w.uplink, lab.Fragment(frame[:head], frame[head:head+8], 2504, true, id), bad)
				} else {
					steps()
				}
				if name == "the same again" {
					return
				}
				// It stays dead, and nothing of it is put together by its end.
				check(2048, whole, false, bad)
				check(1024, 2048, true, bad)
				check(0, 1024, true, bad)
			})
		}
		w.sub("the host's port", func(w *world) {
			// The first is the container's; what comes after the second is the host's.
			id++
			check(0, 1024, true, good)
			w.check(w.objs.FromUplink, w.uplink, piece(in.with(func(p *packet) { p.to.port = 9 }), 0, 1024, true), passed())
			check(1024, 2048, true, passed())
			check(2048, whole, false, passed())
		})
	})
}

// Fragments that no honest sender makes. From a container they are dropped; the host judges its own.
func TestFragmentUnfit(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		bad := refused(loader.BPFReasonREASON_FRAGMENT)
		head := ethLen + pick(six, ip4Len, ip6Len)
		for name, c := range map[string]struct {
			proto    uint8
			off, len int
			more     bool
		}{
			"tiny TCP":                {tcp, 0, 16, true},
			"TCP, 8 bytes":            {tcp, 0, 8, true},
			"TCP at 8":                {tcp, 8, 64, true},
			"TCP at 16":               {tcp, 16, 64, false},
			"no multiple of 8":        {udp, 0, 20, true},
			"no multiple of 8, later": {udp, 64, 9, true},
			"no payload":              {udp, 64, 0, false},
			"no payload, first":       {udp, 0, 0, true},
			"past the largest":        {udp, 65528, 16, true},
			"past it by one":          {udp, 65528, 8, true},
			"the last one past it":    {udp, 65528, 9, false},
		} {
			w.sub(name, func(w *world) {
				frame := packet{from: f.p, to: f.client.at(443).via(f.gw), proto: c.proto, flags: "S", payload: make([]byte, 200)}.frame()
				w.utter(epP, lab.Fragment(frame[:head], frame[head:head+c.len], c.off, c.more, 1), bad)
				frame = packet{from: f.client, to: f.host, proto: c.proto, flags: "S", payload: make([]byte, 200)}.frame()
				w.check(w.objs.FromUplink, w.uplink, lab.Fragment(frame[:head], frame[head:head+c.len], c.off, c.more, 1), passed())
			})
		}
		require.Empty(w.t, w.underWay())
		established, half := w.tables()
		require.Zero(w.t, established+half, "flows made")
		// The controls: the smallest that are.
		for name, c := range map[string]struct {
			proto    uint8
			off, len int
			more     bool
			want     want
		}{
			"UDP header":   {udp, 0, 8, true, handed().any()},
			"TCP header":   {tcp, 0, 24, true, handed().any()},
			"TCP at 24":    {tcp, 24, 8, true, parked()},
			"UDP at 8":     {udp, 8, 8, true, parked()},
			"odd last":     {udp, 64, 9, false, parked()},
			"the very end": {udp, 65528, 7, false, parked()},
		} {
			w.sub(name, func(w *world) {
				frame := packet{from: f.p, to: f.client.at(443).via(f.gw), proto: c.proto, flags: "S", payload: make([]byte, 200)}.frame()
				id := 100 + uint32(c.off)*8 + uint32(c.proto)
				w.utter(epP, lab.Fragment(frame[:head], frame[head:head+c.len], c.off, c.more, id), c.want)
			})
		}
	})
}

// Later fragments share the fate of their flow, and are forwarded by a router's rules.
func TestFragmentFollows(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		in := opening(f.client, f.host, udp)
		out := w.inside(in, f.s)
		first := func(id uint32) [][]byte {
			w.t.Helper()
			list := in.cut(id)
			w.check(w.objs.FromUplink, w.uplink, list[0], sent(out.cut(id)[0]))
			return list
		}
		w.sub("TTL", func(w *world) {
			list := first(1)
			for ttl := range byte(2) {
				w.check(w.objs.FromUplink, w.uplink, withTTL(list[1], ttl), refused(loader.BPFReasonREASON_TTL_EXCEEDED))
			}
			w.check(w.objs.FromUplink, w.uplink, withTTL(list[2], 2), sent(withTTL(out.cut(1)[2], 1)))
		})
		w.sub("MTU", func(w *world) {
			w.change(epS, func(e *loader.BPFEndpoint) { e.Mtu = 1000 })
			defer w.change(epS, func(e *loader.BPFEndpoint) { e.Mtu = 1500 })
			short := in.with(func(p *packet) { p.from.port++; p.payload = make([]byte, 1600) })
			list := lab.Fragments(short.frame(), 800, 2)
			w.check(w.objs.FromUplink, w.uplink, list[0], handed().any())
			long := lab.Fragment(short.frame()[:ethLen+pick(six, ip4Len, ip6Len)], make([]byte, 1000), 800, true, 2)
			w.check(w.objs.FromUplink, w.uplink, long, refused(loader.BPFReasonREASON_TOO_BIG))
			// A first one that an error was sent about: nothing is put back, and the others are of no use.
			long = lab.Fragment(short.frame()[:ethLen+pick(six, ip4Len, ip6Len)], short.frame()[ethLen+pick(six, ip4Len, ip6Len):][:1600], 0, true, 20)
			w.check(w.objs.FromUplink, w.uplink, lab.Fragments(short.frame(), 800, 20)[2], passed().keeping())
			put := w.ear("uplink")
			w.check(w.objs.FromUplink, w.uplink, long, tooBig(long, f.host, 1000).any())
			w.check(w.objs.FromUplink, w.uplink, lab.Fragments(short.frame(), 800, 20)[2], refused(loader.BPFReasonREASON_FRAGMENT))
			w.arrive(in, handed().any())
			require.False(w.t, heard(put, lab.Fragments(short.frame(), 800, 20)[2]))
		})
		w.sub("the flow ends", func(w *world) {
			list := first(3)
			w.check(w.objs.FromUplink, w.uplink, list[1], handed().any())
			w.bump(rulePublished, loader.BPFRuleKindRULE_PUBLICATION)
			w.check(w.objs.FromUplink, w.uplink, list[2], refused(loader.BPFReasonREASON_NO_FLOW))
		})
		w.sub("the first is refused", func(w *world) {
			denied := opening(withAddr(f.client.at(41000), pick(six, remote4, remote6)), f.host.at(8082), udp)
			list := denied.cut(4)
			w.check(w.objs.FromUplink, w.uplink, list[2], passed().keeping())
			w.check(w.objs.FromUplink, w.uplink, list[0], refused(loader.BPFReasonREASON_SOURCE_DENIED))
			w.check(w.objs.FromUplink, w.uplink, list[1], refused(loader.BPFReasonREASON_FRAGMENT))
			w.check(w.objs.FromUplink, w.uplink, list[2], refused(loader.BPFReasonREASON_FRAGMENT))
		})
		w.sub("another container's identification", func(w *world) {
			ask := opening(f.p, f.client.at(53).via(f.gw), udp)
			w.utter(epP, ask.cut(5)[0], handed().any())
			w.utter(epS, ask.with(func(p *packet) { p.from = f.s }).cut(5)[1], parked())
			w.utter(epP, ask.cut(5)[1], handed().any())
		})
		w.sub("another sender's identification", func(w *world) {
			list := first(6)
			stranger := in.with(func(p *packet) { p.from.addr = pick(six, remote4, remote6) }).cut(6)
			w.check(w.objs.FromUplink, w.uplink, stranger[1], passed().keeping())
			w.check(w.objs.FromUplink, w.uplink, list[1], handed().any())
		})
		w.sub("the time is over", func(w *world) {
			list := first(7)
			var key loader.BPFDatagramKey
			var d loader.BPFDatagram
			aged := 0
			for it := w.objs.Datagrams.Iterate(); it.Next(&key, &d); aged++ {
				d.Tick -= 31
				require.NoError(w.t, w.objs.Datagrams.Put(key, d))
			}
			require.NotZero(w.t, aged)
			w.check(w.objs.FromUplink, w.uplink, list[1], passed().keeping())
			other := in.with(func(p *packet) { p.from.port += 5 })
			for i, frame := range other.cut(7) {
				w.check(w.objs.FromUplink, w.uplink, frame, sent(w.inside(other, f.s).cut(7)[i]))
			}
		})
	})
}

// A flood of fragments touches no flow, and stops no datagram that comes in order.
func TestFragmentFlood(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		in := opening(f.client, f.host, udp)
		out := w.inside(in, f.s)
		w.arrive(in, handed().any())
		before := w.flows()
		stray := in.with(func(p *packet) { p.from.addr = pick(six, remote4, remote6) }).cut(0)
		for i := range 6000 { // more than there is room for
			frame := stray[1]
			if six {
				frame = slices.Clone(frame)
				frame[ethLen+ip6Len+5], frame[ethLen+ip6Len+6] = byte(i>>8), byte(i)
			} else {
				frame = edited(frame, func(b []byte) { b[18], b[19] = byte(i>>8), byte(i) })
			}
			w.run(w.objs.FromUplink, w.uplink, frame)
			if i == 5000 {
				require.Equal(w.t, before, w.flows())
			}
			if i%500 == 0 {
				for j, frame := range in.cut(uint32(i + 1)) {
					w.check(w.objs.FromUplink, w.uplink, frame, sent(out.cut(uint32(i + 1))[j]))
				}
				before = w.flows()
			}
		}
		require.Len(w.t, w.entries(), 2)
	})
}
