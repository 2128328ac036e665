// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
)

const batch = 400 // packets between two looks at all flows, and two beginnings

// seed is that of this run: BPFNET_ORACLE_SEED, or always the same.
func seed() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("BPFNET_ORACLE_SEED"), 10, 64); err == nil {
		return n
	}
	return 20261125
}

// clean makes both ways to write zero one, where they mean the same.
func clean(b []byte, zeros []int) []byte {
	b = slices.Clone(b)
	for _, i := range zeros {
		if i+2 <= len(b) && b[i] == 0xff && b[i+1] == 0xff {
			b[i], b[i+1] = 0, 0
		}
	}
	return b
}

// differ gives a packet to both, and says in what they differ; "" is in nothing.
func (w *world) differ(a Arrival, complete, careful bool) (got Answer, what string) {
	got, err := w.run(a, complete)
	if errors.Is(err, errRefused) {
		return got, err.Error()
	}
	want := w.m.Run(a)
	if errors.Is(err, unix.EBADMSG) && (len(want.Reasons) > 0 || len(want.Sent) > 1) {
		// Cutting a packet makes the kernel forget that sum, but not the test run.
		w.reasons(0)
		return got, ""
	}
	if err != nil {
		return got, fmt.Sprintf("%v (EBADMSG: the sum of a device that has computed one); the model sends %v, out %x", err, want.Sent, want.Out)
	}
	w.note(a.Hook, want)
	var list []string
	add := func(what string, want, got any) {
		list = append(list, fmt.Sprintf("%s: the model says %v, the program %v", what, want, got))
	}
	if careful || want.Verdict == Drop || got.Verdict == Drop || len(want.Reasons) > 0 {
		got.Reasons = w.reasons(a.Ifindex)
		slices.Sort(want.Reasons)
		if !slices.Equal(want.Reasons, got.Reasons) {
			add("reasons", want.Reasons, got.Reasons)
		}
	}
	if want.Verdict != got.Verdict {
		add("verdict", want.Verdict, got.Verdict)
	}
	if !slices.Equal(want.Sent, got.Sent) {
		add("sent", want.Sent, got.Sent)
	}
	if want.Mark != got.Mark {
		add("mark", want.Mark, got.Mark)
	}
	if want.Verdict != Drop && !want.any && string(clean(want.Out, want.zeros)) != string(clean(got.Out, want.zeros)) {
		add("packet", fmt.Sprintf("\n%x", want.Out), fmt.Sprintf("\n%x", got.Out))
	}
	if w.m.wrong != "" {
		list = append(list, w.m.wrong)
	}
	return got, strings.Join(list, "\n")
}

// note counts what has been seen of each hook, so that a run can show what it has tried.
func (w *world) note(h Hook, a Answer) {
	if w.tried == nil {
		w.tried = map[string]int{}
	}
	what := fmt.Sprintf("%v", a.Verdict)
	if len(a.Sent) > 0 {
		what = a.Sent[0].way.String()
	}
	w.tried[h.String()+" "+what]++
	w.tried[a.rare]++
	for _, r := range a.Reasons {
		w.tried[fmt.Sprintf("%v reason %d", h, r)]++
	}
}

// triedAll requires that what the programs can do has been seen: a comparison in which nothing
// happens shows nothing.
func (w *world) triedAll() {
	w.t.Helper()
	for h, what := range map[Hook]struct {
		verdicts []string
		reasons  []loader.BPFReason
	}{
		FromUplink: {[]string{"-1", "2", "peer", "egress", "ingress"}, []loader.BPFReason{fragmentReason, directAccess, loopback, noEndpoint, noFlow, ttlExceeded, noRoute, martian, sourceDenied}},
		FromTunnel: {[]string{"-1", "2", "peer", "egress"}, []loader.BPFReason{directAccess, loopback, noEndpoint, ttlExceeded}},
		ToUplink:   {[]string{"-1", "2"}, []loader.BPFReason{bypass}},
		ToTunnel:   {[]string{"-1"}, nil},
		FromEndpoint: {[]string{"-1", "2", "peer", "neigh", "ingress", "copy to egress"}, []loader.BPFReason{malformed, unknownEndpoint, unsupported, fragmentReason, spoofedMAC,
			spoofedARP, spoofedIPv4, spoofedIPv6, spoofedND, spoofedRA, dhcpServer, iccDenied, isolated, internal, loopback, sourceDenied, noEndpoint, noRoute, noPort, quota,
			noFlow, ttlExceeded, tooBig}},
		ToEndpoint: {[]string{"-1", "2"}, []loader.BPFReason{directAccess}},
		ToBridge:   {[]string{"-1", "2", "egress", "ingress", "copy to egress"}, []loader.BPFReason{directAccess, noEndpoint, noFlow, tooBig}},
		ToParent:   {[]string{"-1", "2", "egress", "ingress"}, []loader.BPFReason{bypass, ttlExceeded}},
		FromLo:     {[]string{"-1", "2", "peer", "ingress"}, []loader.BPFReason{noEndpoint}},
	} {
		for _, v := range what.verdicts {
			require.Positive(w.t, w.tried[h.String()+" "+v], "%v: %s, of %v", h, v, w.tried)
		}
		for _, r := range what.reasons {
			require.Positive(w.t, w.tried[fmt.Sprintf("%v reason %d", h, r)], "%v: reason %d, of %v", h, r, w.tried)
		}
	}
	require.Positive(w.t, w.tried["established"])
	require.Positive(w.t, w.tried["an error that becomes one of IPv4"])
	require.Positive(w.t, w.tried["an error that becomes one of IPv6"])
}

// flowsDiffer compares all flows, and what counts them.
func (w *world) flowsDiffer() string {
	established, half := w.flows()
	var list []string
	for name, both := range map[string][2]table{"established": {w.m.established, established}, "half-open": {w.m.half, half}} {
		for t, f := range both[0] {
			if g := both[1][t]; g == nil {
				list = append(list, fmt.Sprintf("%s %v: the programs have none\nmodel    %+v", name, t, *f))
			} else if *f != *g {
				list = append(list, fmt.Sprintf("%s %v:\nmodel    %+v\nprograms %+v", name, t, *f, *g))
			}
		}
		for t, g := range both[1] {
			if both[0][t] == nil {
				list = append(list, fmt.Sprintf("%s %v: the model has none\nprograms %+v", name, t, *g))
			}
		}
	}
	if what := w.quotasDiffer(); what != "" {
		list = append(list, what)
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

// quotasDiffer compares what counts the established flows of each endpoint.
func (w *world) quotasDiffer() string {
	var list []string
	for slot, e := range w.m.Endpoints {
		var k loader.BPFEndpoint
		require.NoError(w.t, w.objs.Endpoints.Lookup(slot, &k))
		if int(k.Flows) != e.Flows {
			list = append(list, fmt.Sprintf("quota of %d: the model counts %d, the programs %d", slot, e.Flows, k.Flows))
		}
	}
	return strings.Join(list, "\n")
}

// describe is a packet as a report of it needs it.
func describe(a Arrival) string {
	return fmt.Sprintf("%v on %d, forwarded %v, mark %#x, segments of %d\n%x", a.Hook, a.Ifindex, a.Forwarded, a.Mark, a.Segment, a.Frame)
}

// begin forgets all flows, at another time.
func (w *world) begin(n uint64) {
	w.forget()
	w.draw()
	w.m.Forget()
	w.m.Now += 100000
	w.m.cursor = 0
	w.reasons(0)
	w.fill(&w.m.Tables)
	w.at(w.m.Now, w.m.Epoch)
	w.dice(uint32(n))
}

// packets runs a batch for one hook. careful: with a look at all flows after each packet.
func (w *world) packets(h Hook, seed, n uint64, careful bool) (counted int, failure string) {
	w.begin(n)
	g := &maker{world: w, Rand: rand.New(rand.NewPCG(seed, n))}
	for i := range batch {
		at := h
		if g.chance(4) {
			at = Hook(g.IntN(8))
		}
		if g.chance(40) {
			w.m.Now += uint32(one(g.Rand, 1, 5, 29, 31, 61, 121, 241, 301))
			w.at(w.m.Now, w.m.Epoch)
		}
		a := g.next(at)
		got, what := w.differ(a, at == FromUplink && g.chance(3) && a.Segment == 0, careful)
		if what == errRefused.Error() {
			continue
		}
		if at == h {
			counted++
		}
		if what == "" && careful {
			what = w.flowsDiffer()
		}
		if what != "" {
			return counted, fmt.Sprintf("packet %d of batch %d: %s\n%s\nrepeat: BPFNET_ORACLE_SEED=%d BPFNET_ORACLE_BATCH=%d go test -count=1 -run 'TestPrograms/%v$' ./tests/oracle",
				i, n, describe(a), what, seed, n, h)
		}
		g.lead(a, got)
	}
	if what := w.flowsDiffer(); what != "" {
		return counted, "flows\n" + what
	}
	return counted, ""
}

// count is how many packets each program gets.
func count() int {
	switch {
	case os.Getenv("BPFNET_SOAK") != "":
		return 1_000_000
	case testing.Short():
		return 3_000
	}
	return 40_000
}

// E6: malformed, truncated and tampered packets of every kind, and valid ones, by every program.
func TestPrograms(t *testing.T) {
	loaded := newWorld(t)
	for h := FromUplink; h <= FromLo; h++ {
		t.Run(h.String(), func(t *testing.T) {
			w := loaded.of(t)
			if n, err := strconv.ParseUint(os.Getenv("BPFNET_ORACLE_BATCH"), 10, 64); err == nil {
				_, failure := w.packets(h, seed(), n, true)
				require.Empty(t, failure)
				return
			}
			total := 0
			for n := uint64(0); total < count(); n++ {
				counted, failure := w.packets(h, seed(), n, false)
				if failure != "" {
					_, exact := w.packets(h, seed(), n, true)
					if exact == "" {
						exact = failure
					}
					require.Empty(t, exact)
				}
				total += counted
			}
			t.Logf("%d packets, 0 differences", total)
		})
	}
}
