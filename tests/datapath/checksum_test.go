package datapath

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// complete runs a program on a packet whose device has summed it up
// (CHECKSUM_COMPLETE): the kernel refuses with EBADMSG when the program has not
// kept the sum right (net/bpf/test_run.c).
func (w *world) complete(p *ebpf.Program, ifindex int, frame []byte) {
	w.t.Helper()
	const testSkbChecksumComplete = 1 << 2
	ctx := &skb{ifindex: uint32(ifindex)}
	_, err := p.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, len(frame)+256), Context: ctx.bytes(), Flags: testSkbChecksumComplete})
	require.False(w.t, errors.Is(err, unix.EBADMSG), "the device's sum\n%s", dump(frame))
	require.NoError(w.t, err)
}

// 200 packets a family of random everything: what comes out has the checksums
// that somebody who computes them anew would give it, and the payload it had.
func TestChecksums(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		const seed = 20260101
		rnd := rand.New(rand.NewPCG(seed, 6))
		f := w.family(six)
		port := func() uint16 { return uint16(1024 + rnd.IntN(64000)) }
		somebody := func(s side) side {
			b := pick(six, remote4, remote6).AsSlice()
			b[len(b)-1], b[len(b)-2] = byte(1+rnd.IntN(250)), byte(rnd.IntN(256))
			s.addr, _ = netip.AddrFromSlice(b)
			return s.at(port())
		}
		for n := range 200 {
			proto := []uint8{tcp, udp, f.icmp}[rnd.IntN(3)]
			p := packet{proto: proto, flags: "S", seq: rnd.Uint32(), ttl: uint8(2 + rnd.IntN(253)), payload: make([]byte, rnd.IntN(1200))}
			for i := range p.payload {
				p.payload[i] = byte(rnd.Uint32() >> (8 * (n % 3))) // now and then all zero, or all ones
				switch n % 10 {
				case 8:
					p.payload[i] = 0
				case 9:
					p.payload[i] = 0xff
				}
			}
			program, ifindex, slot := w.objs.FromUplink, w.uplink, uint32(0)
			switch way := rnd.IntN(4); {
			case way == 0 && proto != f.icmp:
				p.from, p.to = somebody(f.client), f.host
			case way == 1:
				p.from, p.to, slot = f.p.at(port()), f.s.at(port()), epP
			case way == 2 && proto != f.icmp:
				p.from, p.to, slot = f.s.at(port()), f.host.via(f.gw), epS
			default:
				p.from, p.to, slot = f.p.at(port()), somebody(f.client).via(f.gw), epP
			}
			if slot != 0 {
				program, ifindex = w.objs.FromEndpoint, w.containers[slot].ifindex
			}
			if proto == f.icmp {
				p.to.port = 0
			}
			if proto == udp && p.to.port == 546 || p.to.port == 68 {
				p.to.port++
			}
			p.noSum = !six && rnd.IntN(4) == 0
			frame := p.frame()
			if rnd.IntN(3) == 0 {
				frame = extended(frame, 1+rnd.IntN(7))
			}
			valid(w.t, frame)
			r := w.check(program, ifindex, frame, handed().any())
			valid(w.t, r.raw)
			require.Equal(w.t, len(frame), len(r.raw))
			tail := min(len(p.payload), len(frame))
			require.Equal(w.t, frame[len(frame)-tail:], r.raw[len(r.raw)-tail:], "payload")
			if p.noSum && proto == udp {
				l4 := ethLen + int(r.raw[ethLen]&15)*4
				require.Zero(w.t, binary.BigEndian.Uint16(r.raw[l4+6:]), "no checksum stays none")
			}
			w.complete(program, ifindex, frame)
		}
	})
}

// The one sum that UDP has to write otherwise: zero means that there is none.
func TestChecksumZero(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		p := packet{from: f.client, to: f.host, proto: udp, payload: []byte{0, 0, 1}}
		inner := w.inside(p, f.s)
		l4 := ethLen + ip4Len
		if six {
			l4 = ethLen + ip6Len
		}
		sum := binary.BigEndian.Uint16(inner.frame()[l4+6:])
		p.payload[0], p.payload[1] = byte(sum>>8), byte(sum) // now the sum comes to nothing
		inner.payload = p.payload
		r := w.arrive(p, handed().any())
		require.EqualValues(w.t, 0xffff, binary.BigEndian.Uint16(r.raw[l4+6:]))
		valid(w.t, r.raw)
	})
}
