// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// sweep arms the timer, as the loader does.
func (w *world) sweep() {
	w.t.Helper()
	w.configure(func(c *loader.BPFConfig) { c.SweepMs = 2 })
	ret, err := w.objs.Sweep.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	require.NoError(w.t, err)
	require.Zero(w.t, ret)
}

// ticks waits for n rounds that began after the call.
func (w *world) ticks(n uint64) {
	w.t.Helper()
	start := w.counter(loader.BPFCounterCOUNTER_SWEEP_TICKS)
	w.until("sweep ticks", func() bool { return w.counter(loader.BPFCounterCOUNTER_SWEEP_TICKS) > start+n })
}

// until waits for a condition that the kernel brings about, 5 s at most.
func (w *world) until(what string, condition func() bool) {
	w.t.Helper()
	require.Eventually(w.t, condition, 5*time.Second, 2*time.Millisecond, what)
}

func TestSweep(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		expired := func() uint64 { return w.counter(loader.BPFCounterCOUNTER_FLOW_EXPIRED) }
		stream, conn := w.dialog(six, udp, 48000), w.dialog(six, tcp, 48000)
		stream.open()
		conn.open()
		w.sweep()
		w.ticks(2)
		w.expect(4, 0, "both live")
		w.age(301)
		w.until("the UDP flow expired", func() bool { return expired() == 1 })
		w.expect(2, 0, "the TCP flow lives")
		conn.in("A", 101, 501)
		w.age(7440 - slack)
		w.ticks(2)
		w.expect(2, 0, "not yet")
		w.age(slack + 1)
		w.until("the TCP flow expired", func() bool { return expired() == 2 })
		w.expect(0, 0, "nothing left")
		stream.open()
		require.Less(w.t, stream.request().Slot, uint32(2), "a slot that was given back")
		conn.open()
		w.expect(4, 0, "begun again")
	})
}

// One side that speaks keeps a flow.
func TestSweepOneSided(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		w.sweep()
		a, b := w.dialog(six, udp, 48000), w.dialog(six, udp, 48001)
		a.open()
		b.open()
		w.age(200)
		a.in("", 0, 0)
		b.out("", 0, 0)
		w.age(200)
		w.ticks(2)
		w.expect(4, 0, "both live")
	})
}

// A timeout of nothing ends with the tick of the clock.
func TestSweepClock(t *testing.T) {
	w := newWorld(t)
	var dialogs []dialog
	for port := range uint16(8) {
		d := w.dialog(port%2 == 0, udp, 48000+port)
		d.in("", 0, 0)
		d.out("", 0, 0)
		dialogs = append(dialogs, d)
	}
	// The packet that establishes a flow gives it its timeout. (Before it a tick would end it.)
	w.configure(func(c *loader.BPFConfig) { c.Timeouts = [6]uint16{} })
	for _, d := range dialogs {
		d.in("", 0, 0)
	}
	require.Equal(t, w.quota(epS), w.slots())
	w.sweep()
	w.until("all flows expired", func() bool {
		established, _ := w.tables()
		return established == 0
	})
	require.Zero(t, w.slots())
	require.Zero(t, w.quota(epS))
}

// More flows than one round looks at.
func TestSweepMany(t *testing.T) {
	w := newWorld(t)
	const n = 2500
	for port := range uint16(n) {
		d := w.dialog(port%2 == 0, udp, 10000+port)
		for _, p := range []packet{d.asks("", 0, 0), d.answers("", 0, 0), d.asks("", 0, 0)} {
			if p.from.port == 80 {
				w.run(w.objs.FromEndpoint, w.containers[epS].ifindex, p.frame())
			} else {
				w.run(w.objs.FromUplink, w.uplink, p.frame())
			}
		}
	}
	w.expect(2*n, 0, "all established")
	w.age(301)
	w.sweep()
	w.until("all flows expired", func() bool { return w.counter(loader.BPFCounterCOUNTER_FLOW_EXPIRED) == n })
	w.expect(0, 0, "nothing left")
}

// What ended otherwise than by time gives back its slot and its quota as well.
func TestSweepChanged(t *testing.T) {
	bothFamilies(t, func(w *world, six bool) {
		w.sweep()
		w.sub("policy changed", func(w *world) {
			w.dialog(six, udp, 48000).open()
			w.bump(rulePublished, loader.BPFRuleKindRULE_PUBLICATION)
			w.until("expired", func() bool { return w.slots() == 0 })
			w.expect(0, 0, "nothing left")
		})
		// The control plane changes an endpoint: next generation, count from zero.
		w.sub("endpoint changed", func(w *world) {
			for port := range uint16(3) {
				w.dialog(six, udp, 48000+port).open()
			}
			w.change(epS, func(e *loader.BPFEndpoint) { e.Gen++; e.Flows = 0 })
			w.until("expired", func() bool { return w.slots() == 0 })
			w.expect(0, 0, "nothing left")
			w.dialog(six, udp, 48000).open()
			w.expect(2, 0, "a new flow")
			w.age(301)
			w.until("expired", func() bool { return w.slots() == 0 })
		})
		w.sub("flushed by the control plane", func(w *world) {
			w.dialog(six, udp, 48000).open()
			w.dialog(six, udp, 48001).open()
			for _, e := range w.entries() {
				require.NoError(w.t, e.table.Delete(e.key))
			}
			w.until("slots given back", func() bool { return w.slots() == 0 })
			w.expect(0, 0, "nothing left")
		})
	})
}

// A full table costs nobody a flow: the new one stays half-open, works on, is counted, and
// moves when there is room.
func TestTableFull(t *testing.T) {
	for name, full := range map[string]loader.BPFCounter{"IPv4": loader.BPFCounterCOUNTER_FULL_FLOWS4, "IPv6": loader.BPFCounterCOUNTER_FULL_FLOWS6} {
		t.Run(name, func(t *testing.T) {
			w, six := newWorld(t), name == "IPv6"
			w.configure(func(c *loader.BPFConfig) { c.Slots = 1 })
			first, second := w.dialog(six, tcp, 48000), w.dialog(six, tcp, 48001)
			first.open()
			second.in("S", 100, 0)
			second.out("SA", 500, 101)
			second.in("A", 101, 501)
			second.in("A", 101, 501)
			second.out("A", 501, 101)
			w.expect(2, 2, "one established, one half-open")
			require.EqualValues(t, 2, w.counter(full))
			first.in("A", 101, 501)
			w.configure(func(c *loader.BPFConfig) { c.Slots = 2 })
			second.in("A", 101, 501)
			w.expect(4, 0, "both established")
			require.EqualValues(t, 2, w.counter(full))
		})
	}
}
