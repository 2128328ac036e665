// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// family is one IP version's cast.
type family struct {
	client, host, s, p, gw side
	icmp                   uint8
}

func (w *world) family(six bool) family {
	s, p := w.containers[epS], w.containers[epP]
	f := family{
		client: side{w.clientMAC, client4, 40000}, host: side{w.hostMAC, host4, 8080},
		s: side{s.mac, s.ip4, 80}, p: side{p.mac, p.ip4, 50000}, gw: side{w.bridgeMAC[net1], gateway(net1, 4), 0}, icmp: icmp,
	}
	if six {
		f.client.addr, f.host.addr, f.s.addr, f.p.addr, f.gw.addr, f.icmp = client6, host6, s.ip6, p.ip6, gateway(net1, 6), icmp6
	}
	return f
}

// establish opens a connection from the client to the published port by the
// three packets of a handshake (or two datagrams and an answer).
func (w *world) establish(f family, proto uint8) {
	t := w.t
	t.Helper()
	toServer := func(flags string, seq, ack uint32) {
		in := packet{from: f.client, to: f.host, proto: proto, flags: flags, seq: seq, ack: ack}
		r := w.run(w.objs.FromUplink, w.uplink, in.frame())
		require.Equal(t, redirect, r.verdict, w.reasons())
		require.Equal(t, in.like(func(p *packet) { p.from.mac, p.to, p.ttl = f.gw.mac, f.s, 63 }), r.raw)
	}
	toClient := func(flags string, seq, ack uint32) {
		in := packet{from: f.s, to: f.client, proto: proto, flags: flags, seq: seq, ack: ack}
		in.to.mac = f.gw.mac
		r := w.run(w.objs.FromEndpoint, w.containers[epS].ifindex, in.frame())
		require.Equal(t, redirect, r.verdict, w.reasons())
		require.Equal(t, in.like(func(p *packet) { p.from.addr, p.from.port, p.ttl = f.host.addr, f.host.port, 63 }), r.raw)
	}
	toServer("S", 100, 0)
	toClient("SA", 500, 101)
	toServer("A", 101, 501)
}

func count[K any](t testing.TB, m interface {
	NextKey(any, any) error
}) int {
	n := 0
	var key K
	var last any
	for m.NextKey(last, &key) == nil {
		n++
		k := key
		last = &k
	}
	return n
}

// Both directions, both families: rewritten to the letter, and remembered as
// half-open until the client has proved itself.
func TestPublished(t *testing.T) {
	for _, six := range []bool{false, true} {
		for _, proto := range []uint8{tcp, udp} {
			t.Run(fmt.Sprintf("six=%v/proto=%d", six, proto), func(t *testing.T) {
				w := newWorld(t)
				f := w.family(six)
				flows, half := w.objs.Flows4, w.objs.Half4
				n := count[uint64]
				if six {
					flows, half = w.objs.Flows6, w.objs.Half6
				}
				w.establish(f, proto)
				require.Equal(t, 2, n(t, flows), "established entries")
				require.Equal(t, 0, n(t, half), "half-open entries")
				w.establish(f, udp)
			})
		}
	}
}
