// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// alike are two senders, or two addresses of the host, of which the tuples have one digest:
// a sender of which a word makes zero with the seed takes the word beside it out of the sum.
func (w *world) alike(six bool) (a, b packet) {
	f := w.family(six)
	if six {
		sender := func(last byte) side {
			raw := client6.As16()
			binary.NativeEndian.PutUint32(raw[:], -loader.ObjectSeed[6])
			raw[7] = last
			return side{f.client.mac, netip.AddrFrom16(raw), 40000}
		}
		a, b = opening(sender(1), f.host, tcp), opening(sender(2), f.host, tcp)
	} else {
		var raw [4]byte
		binary.NativeEndian.PutUint32(raw[:], -loader.ObjectSeed[2])
		from, second := side{f.client.mac, netip.AddrFrom4(raw), 40000}, f.host
		second.addr = netip.MustParseAddr("192.0.2.77")
		w.put(w.objs.HostAddrs, addr(second.addr), uint32(1))
		a, b = opening(from, f.host, tcp), opening(from, second, tcp)
	}
	require.Equal(w.t, digestOf(a), digestOf(b))
	return a, b
}

func digestOf(p packet) uint64 {
	t := loader.BPFTuple{Saddr: addr(p.from.addr), Daddr: addr(p.to.addr), Sport: be16(p.from.port), Dport: be16(p.to.port), Proto: p.proto, Family: 4}
	if p.from.addr.Is6() {
		t.Family = 6
	}
	return loader.ObjectSeed.Digest(t)
}

// Tuples of one digest keep each other out, and are never taken for each other.
func TestEqualDigests(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		a, b := w.alike(six)
		f := w.family(six)
		// The server sees one of them by another port, where it would see both as one.
		ports := map[netip.AddrPort]uint16{}
		seen := func(p packet) side {
			from := side{f.gw.mac, p.from.addr, p.from.port}
			if port, ok := ports[netip.AddrPortFrom(p.to.addr, p.to.port)]; ok && !six {
				from.port = port
			}
			return from
		}
		opens := func(p packet) {
			t.Helper()
			r := w.arrive(p, handed().any())
			ports[netip.AddrPortFrom(p.to.addr, p.to.port)] = sourcePort(r.raw)
			require.Equal(t, p.like(func(q *packet) { q.from, q.to, q.ttl = seen(p), f.s, 63 }), r.raw)
		}
		arrives := func(p packet, flags string, seq, ack uint32) {
			t.Helper()
			p.flags, p.seq, p.ack = flags, seq, ack
			w.arrive(p, sent(p.like(func(q *packet) { q.from, q.to, q.ttl = seen(p), f.s, 63 })))
		}
		answered := func(p packet) {
			t.Helper()
			in := packet{from: f.s, to: seen(p), proto: tcp, flags: "SA", seq: 500, ack: p.seq + 1}
			w.say(epS, in, sent(in.like(func(q *packet) { q.from.addr, q.from.port, q.to.port, q.ttl = p.to.addr, p.to.port, p.from.port, 63 })))
		}
		half := func(n int) {
			t.Helper()
			established, open := w.tables()
			require.Equal(t, []int{2, n}, []int{established, open}, "established, half-open")
		}

		opens(a)
		w.arrive(b, refused(loader.BPFReasonREASON_TABLE_FULL))
		answered(a)
		arrives(a, "A", 101, 501)
		half(0)

		// Not taken for the other's next packet.
		stray := b
		stray.flags, stray.seq, stray.ack = "A", 101, 501
		w.arrive(stray, passed())
		packets := w.entry(a, 0).Packets
		opens(b)
		answered(b)
		arrives(b, "A", 101, 501)
		arrives(b, "A", 102, 501)
		half(2)
		require.Equal(t, packets, w.entry(a, 0).Packets)
		arrives(a, "A", 102, 501)
		require.Equal(t, packets+1, w.entry(a, 0).Packets)

		// The place is free when the first is gone.
		w.age(1 << 17)
		stray.from, stray.to = a.from, a.to
		w.arrive(stray, passed())
		opens(b)
		answered(b)
		arrives(b, "A", 101, 501)
		half(0)
	})
}
