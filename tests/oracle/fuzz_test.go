// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// A target for each program: two packets, on one of its devices, after a few flows have begun.
// The Go fuzzer sees which ways through the model an input takes, and the programs have to agree:
//
//	go test -run '^$' -fuzz 'FuzzFromUplink$' -fuzztime 1m ./tests/oracle

func FuzzFromUplink(f *testing.F)   { fuzz(f, FromUplink) }
func FuzzFromTunnel(f *testing.F)   { fuzz(f, FromTunnel) }
func FuzzToUplink(f *testing.F)     { fuzz(f, ToUplink) }
func FuzzToTunnel(f *testing.F)     { fuzz(f, ToTunnel) }
func FuzzFromEndpoint(f *testing.F) { fuzz(f, FromEndpoint) }
func FuzzToEndpoint(f *testing.F)   { fuzz(f, ToEndpoint) }
func FuzzToBridge(f *testing.F)     { fuzz(f, ToBridge) }
func FuzzToParent(f *testing.F)     { fuzz(f, ToParent) }
func FuzzFromLo(f *testing.F)       { fuzz(f, FromLo) }

func fuzz(f *testing.F, h Hook) {
	w := newWorld(f)
	devices := map[Hook][]string{FromUplink: {"up0", "up1"}, ToUplink: {"up0", "up1"}, FromTunnel: {"tun"}, ToTunnel: {"tun"}, FromLo: {"lo"},
		ToBridge: {"br1", "br2", "br3", "br4", "br5", "br6"}, FromEndpoint: endpoints(), ToEndpoint: endpoints(), ToParent: {"up0", "up1"}}[h]
	w.begin(0)
	prologue := w.prologue()
	f.Add(byte(0), make([]byte, 14), make([]byte, 60))
	for _, a := range prologue {
		if i := slices.IndexFunc(devices, func(name string) bool { return w.devices[name] == a.Ifindex }); a.Hook == h && i >= 0 {
			f.Add(byte(i), a.Frame, a.Frame)
		}
	}
	g := &maker{world: w, Rand: rand.New(rand.NewPCG(2, 2)), going: prologue}
	for range 60 {
		first, second := g.next(h), g.next(h)
		f.Add(byte(g.IntN(256)), first.Frame, second.Frame)
	}
	f.Fuzz(func(t *testing.T, context byte, first, second []byte) {
		w := w.of(t)
		w.again()
		g := &maker{world: w}
		for _, a := range prologue {
			_, what := w.differ(a, false, false)
			require.Empty(t, what)
		}
		for _, frame := range [][]byte{first, second} {
			if len(frame) == 0 {
				continue
			}
			a := Arrival{Hook: h, Ifindex: w.devices[devices[int(context&15)%len(devices)]], Frame: slices.Clone(frame), Forwarded: context&16 != 0}
			if context&32 != 0 {
				a.Mark = passed
			}
			g.settle(&a)
			_, what := w.differ(a, false, true)
			if what != "" && what != errRefused.Error() {
				t.Fatalf("%s\n%s", describe(a), what)
			}
		}
		require.Empty(t, w.flowsDiffer())
	})
}

func endpoints() (names []string) {
	for slot := byte(1); slot <= 13; slot++ {
		names = append(names, "veth"+string('a'+slot))
	}
	return names
}

// again begins anew, with the tables as they are.
func (w *world) again() {
	w.forget()
	w.m.Forget()
	w.m.Now += 10000
	w.m.cursor = 0
	w.reasons(0)
	for slot := range w.m.Endpoints {
		var e loader.BPFEndpoint
		require.NoError(w.t, w.objs.Endpoints.Lookup(slot, &e))
		if e.Flows != 0 {
			e.Flows = 0
			require.NoError(w.t, w.objs.Endpoints.Put(slot, e))
		}
	}
	w.at(w.m.Now, w.m.Epoch)
	w.dice(1)
}

// prologue are packets of each kind of flow, as the programs answer them: the first, the answer and
// one more.
func (w *world) prologue() (all []Arrival) {
	g := &maker{world: w, Rand: rand.New(rand.NewPCG(1, 1))}
	for h := FromUplink; h <= ToParent; h++ {
		for range 400 {
			a := g.next(h)
			got, what := w.differ(a, false, false)
			if what == "" && got.Verdict == Redirect && len(got.Reasons) == 0 && a.Segment == 0 && len(all) < 3*int(h+1) {
				all = append(all, a)
			}
			g.lead(a, got)
		}
	}
	return all
}
