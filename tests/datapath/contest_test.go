// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/needs"
)

// A port is its user's as long as either side uses it: who only sends keeps it, too.
func TestPortOfOneWayFlow(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		w.configure(func(c *loader.BPFConfig) { c.Pool[0].Last, c.PoolSize = c.Pool[0].First, 1 })
		syslog := f.client.at(514).via(f.gw)
		ours, rival := opening(f.p, syslog, udp), opening(w.end(epS, six, 50000), syslog, udp)
		w.say(epP, ours, handed().any())
		for range 3 { // 120 ticks without an answer end it
			w.age(100)
			w.say(epP, ours, handed().any())
		}
		w.say(epS, rival, refused(loader.BPFReasonREASON_NO_PORT))
		back := packet{from: f.client.at(514), to: f.host.at(20000), proto: udp}
		w.arrive(back, sent(w.inside(back, f.p).frame()))
		w.age(301)
		w.say(epS, rival, handed().any())
		w.arrive(back, sent(w.inside(back, w.end(epS, six, 50000)).frame()))
	})
}

// Where every port of the pool is taken, a flow that is no more than half-open gives its own up
// after some seconds of silence; one that is established does not.
func TestSparePorts(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		w.configure(func(c *loader.BPFConfig) { c.Pool[0].Last, c.PoolSize = c.Pool[0].First+1, 2 })
		resolver := f.client.at(53).via(f.gw)
		ask := func(port uint16) packet { return opening(f.p.at(port), resolver, udp) }
		answered := func(out result, q packet) {
			back := packet{from: f.client.at(53), to: f.host.at(sourcePort(out.raw)), proto: udp}
			w.arrive(back, sent(w.inside(back, q.from).frame()))
		}
		for port := range uint16(2) {
			answered(w.say(epP, ask(50000+port), handed().any()), ask(50000+port))
		}
		w.say(epP, ask(50000), handed().any()) // and its second question: established
		w.age(8)
		w.say(epP, ask(50002), refused(loader.BPFReasonREASON_NO_PORT))
		w.age(1)
		out := w.say(epP, ask(50003), handed().any())
		answered(out, ask(50003))
		w.say(epP, ask(50000), handed().any())
		w.say(epP, ask(50004), refused(loader.BPFReasonREASON_NO_PORT))
		w.say(epP, ask(50001), refused(loader.BPFReasonREASON_NO_PORT))
	})
}

// Two packets of a flow that prove its initiator, on two CPUs at the same time: it is listed once.
func TestPromotedOnce(t *testing.T) {
	const rounds = 2000
	two := needs.CPUs(t, 2)
	w := newWorld(t)
	ns, err := netns.Current()
	require.NoError(t, err)
	defer ns.Close()
	f := w.family(false)
	run := func(p *ebpf.Program, ifindex int, frame []byte) error {
		ctx := &skb{ifindex: uint32(ifindex)}
		_, err := p.Run(&ebpf.RunOptions{Data: frame, DataOut: make([]byte, 512), Context: ctx.bytes()})
		return err
	}
	var ready [2]atomic.Int32
	var workers sync.WaitGroup
	for i, cpu := range two {
		work := func() error {
			var one unix.CPUSet
			one.Set(cpu)
			if err := unix.SchedSetaffinity(0, &one); err != nil {
				return err
			}
			for n := range int32(rounds) {
				ask := opening(f.client.at(uint16(10000+n)), f.host, udp)
				if i == 0 {
					answer := w.inside(ask, f.s).answer()
					err := errors.Join(run(w.objs.FromUplink, w.uplink, ask.frame()),
						run(w.objs.FromEndpoint, w.containers[epS].ifindex, answer.frame()))
					if err != nil {
						return err
					}
				}
				frame := ask.frame()
				ready[i].Store(n + 1)
				for ready[1-i].Load() <= n {
				}
				if err := run(w.objs.FromUplink, w.uplink, frame); err != nil {
					return err
				}
			}
			return nil
		}
		workers.Go(func() {
			assert.NoError(t, ns.Do(work))
			ready[i].Store(rounds + 1)
		})
	}
	workers.Wait()
	established, half := w.tables()
	require.Equal(t, []int{2 * rounds, 0}, []int{established, half}, "established and half-open entries")
	require.EqualValues(t, rounds, w.slots())
	require.EqualValues(t, rounds, w.quota(epS))
}

// A container's connections to a published port count in its own quota, not in its server's.
func TestLocalClientPays(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		ask := opening(f.p.at(50003), f.host.via(f.gw), udp)
		served := ask.with(func(p *packet) { p.from.mac, p.to = f.gw.mac, f.s })
		w.say(epP, ask, sent(served.frame()))
		w.say(epS, served.answer(), sent(ask.answer().frame()))
		w.say(epP, ask, sent(served.frame()))
		require.True(w.t, w.entry(ask, w.containers[epP].ifindex).established)
		require.EqualValues(w.t, 1, w.quota(epP))
		require.EqualValues(w.t, 0, w.quota(epS))
	})
}

// SCTP keeps its ports: one that is published is its server's, for associations that go out, too.
func TestPublishedSCTPPort(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		f := w.family(six)
		w.put(w.objs.Rules, uint32(6200), loader.BPFRule{Gen: 1, Kind: uint8(loader.BPFRuleKindRULE_PUBLICATION), HostPort: 3868, Port: 3868, Endpoint4: epS, Endpoint6: epS})
		for _, ports := range []*ebpf.Map{w.objs.Ports4, w.objs.Ports6} {
			w.put(ports, uint32(2*65536+3868), uint32(6200))
		}
		associates := func(from side) []byte {
			p := opening(from, f.client.at(3868).via(f.gw), udp)
			return withProto(p.like(func(p *packet) { p.payload = append(make([]byte, 4), 1, 0, 0, 4) }), 132)
		}
		w.utter(epP, associates(f.p.at(3868)), refused(loader.BPFReasonREASON_NO_PORT))
		w.utter(epP, associates(f.p.at(3869)), handed().any())
		w.utter(epS, associates(f.s.at(3868)), handed().any())
	})
}
