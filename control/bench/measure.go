// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/bpfnet/bpfnet/control"
)

// warmUp is what a client does before it is measured: neighbours are found, the flow is known.
const warmUp = 20 * time.Millisecond

// measure runs one load on one contender and proves that it took the path that it claims.
func (b *bench) measure(ctx context.Context, c *contender, w workload, flow string, round int) (m Measurement, err error) {
	p := &place{site: c.site, path: c.paths[flow], w: w, meter: b.meter, time: b.o.Time, warm: warmUp, brief: b.o.brief}
	p.client, p.server = w.cpus(b.cpus)
	if p.begin != nil {
		end, err := p.begin(ctx, slices.Compact([]int{p.client, p.server}), w.udp)
		if err != nil {
			return m, err
		}
		defer end()
	}
	if w.small {
		back, err := c.smallPackets(w.gro)
		if err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, back()) }()
	}
	before, err := counted(p.at, p.device)
	if err != nil {
		return m, err
	}
	m.Begun = time.Now()
	o, err := p.load(ctx)
	if err != nil {
		return m, err
	}
	m.Ended = time.Now()
	after, err := counted(p.at, p.device)
	if err != nil {
		return m, err
	}
	passed := after.minus(before)
	m.Round, m.Seconds, m.Ops, m.Lost, m.Seen = round, o.elapsed.Seconds(), o.ops, o.lost, o.seen
	m.Bytes, m.Frame = passed.rxBytes+passed.txBytes, passed.frame()
	m.ClientCPUs, m.ServerCPUs = o.pinned[0], o.pinned[1]
	if p.w.tool == toolWorker {
		m.ClientCPU, m.ServerCPU = &o.ran[0], &o.ran[1]
	}
	if m.Seconds <= 0 || m.Ops <= 0 {
		return m, errors.New("nothing moved")
	}
	m.Rate = m.Ops / m.Seconds
	m.CPU, m.Others = o.cost()
	if err := p.prove(&m, o, w); err != nil {
		return m, err
	}
	if round == 1 && p.kind != "" {
		if err := p.proveFlows(&m, o); err != nil {
			return m, err
		}
	}
	return m, nil
}

// packets is how many there must have been, however they were joined.
func (o outcome) packets(w workload) uint64 {
	if w.unit == unitMegabytes {
		return o.payload >> 16
	}
	return uint64(o.ops)
}

// cost is the CPU time an operation, in µs, and how many CPUs had something else to do.
func (o outcome) cost() (cpu, others float64) {
	ours, wall := o.after.ours-o.before.ours, o.after.at.Sub(o.before.at)
	others = max(0, (o.after.all-o.before.all-ours).Seconds()/wall.Seconds())
	if o.before.missed || o.after.missed {
		return 0, others
	}
	return float64(ours.Microseconds()) / o.ops, others
}

// prove checks that who was measured is who was meant.
func (p *place) prove(m *Measurement, o outcome, w workload) error {
	if m.Seen != p.seen {
		return fmt.Errorf("the server saw %s, not %s", m.Seen, p.seen)
	}
	if m.Bytes < o.payload {
		return fmt.Errorf("%d bytes were exchanged, %s saw %d", o.payload, p.device, m.Bytes)
	}
	if w.small && !w.gro && m.Frame > smallFrame {
		return fmt.Errorf("packets of %.0f bytes on %s: it joins them", m.Frame, p.device)
	}
	for i, want := range []int{p.client, p.server} {
		if o.pinned[i] != strconv.Itoa(want) {
			return fmt.Errorf("allowed on CPUs %s, not on %d", o.pinned[i], want)
		}
		if o.ran[i] >= 0 && o.ran[i] != want {
			return fmt.Errorf("ran on CPU %d, not on %d", o.ran[i], want)
		}
	}
	return nil
}

// proveFlows asks the datapath for the flows on the path. Conntrack counts no packets
// unless it is told to, which would cost it.
func (p *place) proveFlows(m *Measurement, o outcome) error {
	f := control.FlowFilter{Proto: "tcp", Port: port}
	if p.w.udp {
		f.Proto = "udp"
	}
	flows, err := p.m.Flows(f)
	if err != nil {
		return err
	}
	for _, info := range flows {
		if info.Kind == p.kind && info.Destination == p.connect {
			m.Flows++
			m.FlowPackets += info.Packets
		}
	}
	if m.Flows == 0 {
		return fmt.Errorf("no flow to %s of kind %s is known", p.connect, p.kind)
	}
	// A connection's flow is forgotten when its tuple is used again.
	if least := min(o.packets(p.w), 1000); p.datapath == BPF && m.FlowPackets < least {
		return fmt.Errorf("flows to %s of kind %s had %d packets, not %d", p.connect, p.kind, m.FlowPackets, least)
	}
	return nil
}
