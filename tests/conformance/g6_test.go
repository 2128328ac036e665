// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// flood is a sender of frames that goes on until it is stopped.
type flood struct {
	name string
	from station
	// frames makes those of the i-th attempt.
	frames func(i int) [][]byte
}

// spoofed is the i-th source of X's that nobody has.
func spoofed(family, i int) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte{198, 18 + byte(i>>16)&1, byte(i >> 8), byte(i)})
	}
	return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 12: byte(i >> 24), 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
}

// floods are what fills tables: by X with spoofed sources, and by a container.
func (c *cast) floods(guest *actor) (list []flood) {
	x, h := c.world(), c.uplink()
	spoof := func(family, i int) (lab.Packet, uint16) {
		p := x.to(h, family)
		p.Src = spoofed(family, i)
		return p, uint16(1024 + i%60000)
	}
	for _, family := range ipVersions {
		list = append(list,
			flood{fmt.Sprintf("SYN IPv%d", family), x, func(i int) [][]byte {
				p, port := spoof(family, i)
				return [][]byte{p.TCP(port, 8080, "S", uint32(i), 0, nil)}
			}},
			flood{fmt.Sprintf("SYN and blind ACK IPv%d", family), x, func(i int) [][]byte {
				p, port := spoof(family, i)
				return [][]byte{p.TCP(port, 8080, "S", uint32(i), 0, nil), p.TCP(port, 8080, "A", uint32(i)+1, rand.Uint32(), []byte("x"))}
			}},
			flood{fmt.Sprintf("UDP IPv%d", family), x, func(i int) [][]byte {
				p, port := spoof(family, i)
				return [][]byte{p.UDP(port, 8080, []byte("x"))}
			}})
	}
	from, gw := c.station(guest, "n1"), c.gateway("n1")
	out := from.by(gw, x, 4)
	return append(list,
		flood{"echo requests of a container", from, func(i int) [][]byte {
			p := out
			p.Dst = spoofed(4, i)
			return [][]byte{p.Echo(false, uint16(i), 1, nil)}
		}},
		flood{"UDP of a container", from, func(i int) [][]byte {
			p := out
			p.Dst = spoofed(4, i)
			return [][]byte{p.UDP(uint16(1024+i%60000), 9, []byte("x"))}
		}})
}

// G6: a flood of what opens flows, ten times the size of the half-open table: every idle
// flow lives and carries payload, new connections get in meanwhile, the flood is counted.
//
//	X, as anybody ── SYN, SYN + guessed ACK, UDP ──► H:8080 ──► srv
//	X, as itself  ── idle, and new connections ────► H:8080 ──► srv, and srv ──► X
//	guest         ── ICMP, UDP ──► everywhere
func TestG6(t *testing.T) {
	const legitimate = 200
	half := times(32768, 1024)
	c := newCast(t, lab.HostDefault())
	c.must("init", "--half-open-table-size", strconv.Itoa(half))
	c.network("n1", 1, true)
	s, guest := c.container("srv", "n1", publish("8080:80", "8080:80/udp")), c.container("guest", "n1")
	c.serve(s, 80)
	lab.ServeTCP(t, c.Client, "X", ":9000")
	n := times(1000, 200)
	var idle []*lab.Conn
	for _, f := range ipVersions {
		idle = append(idle, c.idle("tcp", c.Client, at(c.uplink().addr(f), 8080), n/4)...)
		idle = append(idle, c.idle("udp", c.Client, at(c.uplink().addr(f), 8080), n/8)...)
		idle = append(idle, c.idle("tcp", s.ns, at(c.world().addr(f), 9000), n/8)...)
	}
	require.Len(t, idle, n)
	for _, f := range c.floods(guest) {
		t.Run(f.name, func(t *testing.T) {
			c := c.in(t)
			before, established := c.counter("flow_new"), c.counter("flow_established")
			var sent, stopped atomic.Int64
			done := make(chan error, 1)
			go func() {
				var err error
				for err == nil && stopped.Load() == 0 {
					var batch [][]byte
					for i := range 1024 {
						batch = append(batch, f.frames(int(sent.Load())+i)...)
					}
					sent.Add(1024)
					err = lab.InjectEach(f.from.ns, f.from.dev, len(batch), func(i int) []byte { return batch[i] })
				}
				done <- err
			}()
			stop := sync.OnceValue(func() error { stopped.Store(1); return <-done })
			defer stop()
			// Entries; a flow has two, but who counts those of a flood?
			size := uint64(2 * half)
			made := func() uint64 { return c.counter("flow_new") - before }
			reach := func(n uint64) {
				t.Helper()
				for limit := time.Now().Add(5 * time.Minute); made() < n && time.Now().Before(limit); <-time.After(10 * time.Millisecond) {
				}
				require.GreaterOrEqual(t, made(), n, "%d attempts", sent.Load())
			}
			reach(size)
			var slowest, inTime atomic.Int64
			atOnce(legitimate, func(i int) {
				start := time.Now()
				_, err := ask(c.Client, "tcp", "", at(c.uplink().addr(ipVersions[i%2]), 8080), wait)
				if err == nil {
					inTime.Add(1)
				}
				slowest.Store(max(slowest.Load(), int64(time.Since(start))))
			})
			reach(10 * size)
			proved := c.counter("flow_established") - established
			t.Logf("%d half-open flows made, %d proved, %d of %d new connections within %v, the slowest %v",
				made(), proved, inTime.Load(), legitimate, wait, time.Duration(slowest.Load()).Round(time.Millisecond))
			require.GreaterOrEqual(t, inTime.Load(), int64(legitimate*99/100))
			require.LessOrEqual(t, proved, uint64(legitimate), "somebody was taken for proved who was not")
			require.NoError(t, stop())
			// The server's socket has taken what the flood left in it.
			eventually(t, "the server answers by UDP", func() bool {
				_, err := ask(c.Client, "udp", "", at(lab.HostIPv4, 8080), silence)
				return err == nil
			})
			require.Equal(t, n, alive(idle))
		})
	}
	for _, table := range []string{"half4", "half6"} {
		fill := c.table(table)
		require.Greater(t, fill.Used, fill.Size*8/10, table)
	}
}
