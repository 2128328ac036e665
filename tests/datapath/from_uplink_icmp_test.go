// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
)

// expired is what the sender of an old frame gets back from speaker.
func expired(in []byte, speaker side) want {
	kind := uint8(11)
	if isSix(in) {
		kind = 3
	}
	return sent(icmpError(in, speaker.addr, kind, 0, 0)).because(loader.BPFReasonREASON_TTL_EXCEEDED)
}

// tooBig is what the sender of a long frame gets back from speaker.
func tooBig(in []byte, speaker side, mtu uint16) want {
	kind, code := uint8(3), uint8(4)
	if isSix(in) {
		kind, code = 2, 0
	}
	return sent(icmpError(in, speaker.addr, kind, code, mtu)).because(loader.BPFReasonREASON_TOO_BIG)
}

// withTTL sets the TTL or hop limit, zero included.
func withTTL(frame []byte, ttl byte) []byte {
	return edited(frame, func(b []byte) {
		if isSix(b) {
			b[21] = ttl
		} else {
			b[22] = ttl
		}
	})
}

func TestFromUplinkExpired(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		client := f.client
		for _, proto := range []uint8{tcp, udp} {
			for name, payload := range map[string][]byte{"short": {}, "odd": make([]byte, 3), "long": make([]byte, 1001)} {
				for _, ttl := range []byte{0, 1} {
					w.sub(protoNames[proto]+" first, "+name, func(w *world) {
						client.port++
						in := withTTL(packet{from: client, to: f.host, proto: proto, flags: "S", payload: payload}.frame(), ttl)
						w.check(w.objs.FromUplink, w.uplink, in, expired(in, f.host))
					})
				}
			}
			w.sub(protoNames[proto]+" established", func(w *world) {
				d := w.dialog(six, proto, 49000)
				d.open()
				in := withTTL(d.asks("A", 101, 501).frame(), 1)
				w.check(w.objs.FromUplink, w.uplink, in, expired(in, f.host))
				d.in("A", 101, 501)
				p := d.asks("A", 101, 501)
				p.ttl = 2
				w.arrive(p, sent(w.inside(p, f.s).like(func(p *packet) { p.ttl = 1 })))
			})
		}
		w.sub("answer to a masqueraded flow", func(w *world) {
			out := opening(f.p, f.client.at(443).via(f.gw), udp)
			r := w.say(epP, out, handed().any())
			in := withTTL(packet{from: f.client.at(443), to: f.host.at(sourcePort(r.raw)), proto: udp}.frame(), 1)
			w.check(w.objs.FromUplink, w.uplink, in, expired(in, f.host))
		})
		require.EqualValues(t, w.counter(loader.BPFCounterCOUNTER_ICMP_SENT), w.dropped(loader.BPFReasonREASON_TTL_EXCEEDED))
		require.Zero(t, w.counter(loader.BPFCounterCOUNTER_ICMP_LIMITED))
	})
}

// The quotation holds the header with its options and the ports, or the sender
// cannot tell which socket is meant (RFC 792; net/ipv4/icmp.c icmp_socket_deliver).
func TestFromUplinkExpiredOptions(t *testing.T) {
	w := newWorld(t)
	f := w.family(false)
	for n := range 11 {
		for _, length := range []int{0, 100} {
			in := withTTL(extended(packet{from: f.client.at(uint16(50000 + n)), to: f.host, proto: udp, payload: make([]byte, length)}.frame(), n), 1)
			r := w.check(w.objs.FromUplink, w.uplink, in, want{verdict: redirect, reason: loader.BPFReasonREASON_TTL_EXCEEDED, anyOut: true})
			valid(t, r.raw)
			quote := r.raw[ethLen+ip4Len+8:]
			require.GreaterOrEqual(t, len(quote), ip4Len+4*n+8, "%d words of options, payload %d: quoted bytes", n, length)
			require.Equal(t, in[ethLen:ethLen+len(quote)], quote)
		}
	}
}

func TestFromUplinkTooBig(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		const mtu = 1400
		w.change(epS, func(e *loader.BPFEndpoint) { e.Mtu = mtu })
		header := ip4Len
		if six {
			header = ip6Len
		}
		for _, proto := range []uint8{tcp, udp} {
			l4 := 20
			if proto == udp {
				l4 = 8
			}
			fits := make([]byte, mtu-header-l4)
			d := w.dialog(six, proto, 49100)
			first := d.asks("S", 100, 0)
			w.sub(protoNames[proto]+" fits", func(w *world) {
				p := first.with(func(p *packet) { p.payload = fits; p.from.port++ })
				w.arrive(p, sent(w.inside(p, f.s).frame()))
			})
			w.sub(protoNames[proto]+" one byte more", func(w *world) {
				in := first.like(func(p *packet) { p.payload = append(fits, 1); p.from.port += 2 })
				w.check(w.objs.FromUplink, w.uplink, in, tooBig(in, f.host, mtu))
			})
			w.sub(protoNames[proto]+" established", func(w *world) {
				d.open()
				p := d.asks("A", 101, 501)
				p.payload = fits
				w.arrive(p, sent(w.inside(p, f.s).frame()))
				p.payload = append(fits, 1)
				in := p.frame()
				w.check(w.objs.FromUplink, w.uplink, in, tooBig(in, f.host, mtu))
				d.in("A", 101, 501)
			})
			w.sub(protoNames[proto]+" segments that fit", func(w *world) {
				p := d.asks("A", 101, 501)
				p.payload = make([]byte, 2*len(fits)) // what a test run takes
				size := func(n int) func(*skb) {
					return func(s *skb) { s.gsoSize, s.gsoSegs = uint32(n), 2 }
				}
				w.arrive(p, sent(w.inside(p, f.s).frame()), size(len(fits)))
				in := p.frame()
				w.check(w.objs.FromUplink, w.uplink, in, tooBig(in, f.host, mtu).any(), size(len(fits)+1))
				if proto != tcp {
					return
				}
				for options := 1; options <= 10; options++ { // each segment has them
					p.options = options
					w.arrive(p, sent(w.inside(p, f.s).frame()), size(len(fits)-4*options))
					in := p.frame()
					w.check(w.objs.FromUplink, w.uplink, in, tooBig(in, f.host, mtu).any(), size(len(fits)-4*options+1))
				}
			})
		}
	})
}

// tick is the clock of the programs.
func tick(w *world) int64 {
	var ts unix.Timespec
	require.NoError(w.t, unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts))
	return ts.Nano() >> 30
}

// So many errors a second, and the rest only counted.
func TestFromUplinkErrorLimit(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		const rate = 3
		f := w.family(six)
		w.configure(func(c *loader.BPFConfig) { c.IcmpRate = rate })
		var cpu unix.CPUSet
		require.NoError(w.t, unix.SchedGetaffinity(0, &cpu))
		for n := range 1024 { // the limit is per CPU
			if cpu.IsSet(n) {
				cpu.Zero()
				cpu.Set(n)
				break
			}
		}
		require.NoError(w.t, unix.SchedSetaffinity(0, &cpu))
		in := withTTL(opening(f.client, f.host, udp).frame(), 1)
		w.check(w.objs.FromUplink, w.uplink, in, expired(in, f.host))
		for range 5 { // until all of it falls into one tick
			start := tick(w)
			for now := start; now == start; {
				now = tick(w)
			}
			start = tick(w)
			limited := w.counter(loader.BPFCounterCOUNTER_ICMP_LIMITED)
			verdicts := []int{}
			for range rate + 2 {
				verdicts = append(verdicts, w.run(w.objs.FromUplink, w.uplink, in).verdict)
			}
			if tick(w) == start {
				require.Equal(w.t, []int{redirect, redirect, redirect, drop, drop}, verdicts)
				require.EqualValues(w.t, limited+2, w.counter(loader.BPFCounterCOUNTER_ICMP_LIMITED))
				// Without these a transfer stalls, whoever has asked for the others.
				p := opening(f.client, f.host, udp)
				p.payload = make([]byte, 1600)
				for range rate + 2 {
					w.check(w.objs.FromUplink, w.uplink, p.frame(), tooBig(p.frame(), f.host, 1500))
				}
				return
			}
		}
		require.Fail(w.t, "no quiet second")
	})
}

// valid recomputes the checksums of a frame.
func valid(t testing.TB, frame []byte) {
	t.Helper()
	var pseudo []byte
	var l4, end int
	var proto byte
	if isSix(frame) {
		l4, proto = ethLen+ip6Len, frame[20]
		end = l4 + int(binary.BigEndian.Uint16(frame[18:]))
		pseudo = append(pseudo, frame[22:54]...)
		for proto == 60 || proto == 0 || proto == 43 {
			proto, l4 = frame[l4], l4+8*(1+int(frame[l4+1]))
		}
	} else {
		l4, proto = ethLen+int(frame[ethLen]&15)*4, frame[23]
		end = ethLen + int(binary.BigEndian.Uint16(frame[16:]))
		require.Zero(t, checksum(frame[ethLen:l4]), "IPv4 header checksum\n%s", dump(frame))
		pseudo = append(pseudo, frame[26:34]...)
	}
	require.LessOrEqual(t, end, len(frame), "length\n%s", dump(frame))
	pseudo = append(pseudo, 0, proto)
	pseudo = binary.BigEndian.AppendUint16(pseudo, uint16(end-l4))
	if proto == udp {
		require.EqualValues(t, end-l4, binary.BigEndian.Uint16(frame[l4+4:]), "UDP length")
		if !isSix(frame) && frame[l4+6] == 0 && frame[l4+7] == 0 {
			return
		}
		require.NotZero(t, binary.BigEndian.Uint16(frame[l4+6:]), "UDP checksum that says: none\n%s", dump(frame))
	}
	if proto == icmp {
		pseudo = nil
	}
	require.Zero(t, checksum(append(pseudo, frame[l4:end]...)), "transport checksum\n%s", dump(frame))
}
