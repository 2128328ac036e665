// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// sample is a report of everything, with made-up rates.
func sample() *Report {
	r := &Report{Version: "v1", Rounds: 6, Time: 0.25, LoadBefore: "0.10 0.20 0.30", LoadAfter: "0.40 0.50 0.60",
		Machine: Machine{Kernel: "6.18.0", CPU: "Example CPU", CPUs: 2, Memory: 8 << 30}}
	random := rand.New(rand.NewPCG(1, 2))
	entry := func(c *Case, name string, s Scale, rate float64) {
		e := &Entry{Contender: name, Scale: s}
		for round := range r.Rounds {
			v := rate * (1 + 0.04*(random.Float64()-0.5))
			e.Measurements = append(e.Measurements, Measurement{Round: round + 1, Begun: time.Unix(int64(round), 0), Rate: v, CPU: 1e6 / v})
		}
		c.Entries = append(c.Entries, e)
	}
	part := map[string]float64{BPF: 0.97, IPTables: 0.68, DockerProxy: 0.35, HostLimit: 1, Routing: 0.83, Bridging: 0.9, Loopback: 1}
	takes := map[string][]string{
		FlowPublished: {BPF, IPTables, HostLimit, Routing}, FlowWorld: {BPF, IPTables, HostLimit, Routing},
		FlowPeer: {BPF, IPTables, Bridging}, FlowLocal: {BPF, IPTables, DockerProxy, Loopback},
	}
	for i, w := range workloads {
		if w.tool == toolCommand {
			continue
		}
		for _, flow := range Flows {
			c := &Case{Workload: w.name, Flow: flow, Title: w.title, Unit: w.unit, CPUs: "1"}
			for _, name := range takes[flow] {
				entry(c, name, One, 60000/float64(1+i)*part[name])
			}
			if w.curve && flow == FlowPublished {
				for _, s := range WholeScales[1:] {
					entry(c, BPF, s, 60000/float64(1+i)*0.97)
					entry(c, IPTables, s, 60000/float64(1+i)*0.68/(1+float64(s.Ports)/2000))
				}
			}
			r.Cases = append(r.Cases, c)
		}
	}
	for _, title := range []string{"publish 1", "unpublish 1", "publish 10000", "unpublish 10000", "container up", "container down"} {
		c := &Case{Workload: workPublish, Title: title, Unit: unitCommands}
		for _, s := range WholeScales {
			entry(c, BPF, s, 100)
			entry(c, IPTables, s, 10/(1+float64(s.Ports)/2000))
		}
		r.Cases = append(r.Cases, c)
	}
	for _, c := range r.Cases {
		c.sum()
	}
	return r
}

// The picture is well-formed, and says who, what, how much and at which scale.
func TestSVG(t *testing.T) {
	r := sample()
	picture, err := r.SVG()
	require.NoError(t, err)
	if name := os.Getenv("BENCH_SVG"); name != "" {
		require.NoError(t, os.WriteFile(name, picture, 0o644))
	}
	var words strings.Builder
	d := xml.NewDecoder(strings.NewReader(string(picture)))
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		if text, ok := token.(xml.CharData); ok {
			words.Write(text)
			words.WriteByte('\n')
		}
	}
	for _, want := range append(Contenders, "Linux 6.18.0", "Load before 0.10 0.20 0.30", "60,000", "1,000", "http-short", "publish 10000", "container → world") {
		require.Contains(t, words.String(), want)
	}
	require.NotContains(t, words.String(), "NaN")
	want := make(map[string]int)
	for _, c := range r.Cases {
		for _, e := range c.at(One) {
			if bound := c.entry(limits[c.Flow], One); bound != nil {
				_, label := rateLabel(e, bound)
				want[label]++
			}
		}
	}
	require.Greater(t, len(want), 100)
	for label, n := range want {
		require.Equal(t, n, strings.Count(words.String(), label+"\n"), label)
	}
	require.Equal(t, strings.Count(string(picture), "font-family"), strings.Count(string(picture), fontTaken))
}

// A bar's label stands in the bar's row, and the row where its name is.
func TestSVGRows(t *testing.T) {
	r := sample()
	r.Cases = r.Cases[:8:8] // two workloads
	picture, err := r.SVG()
	require.NoError(t, err)
	height := func(text string) int {
		m := regexp.MustCompile(`<text x="[0-9]+" y="([0-9]+)"[^>]*>` + regexp.QuoteMeta(text) + `</text>`).FindSubmatch(picture)
		require.NotNil(t, m, text)
		y, err := strconv.Atoi(string(m[1]))
		require.NoError(t, err)
		return y
	}
	for _, workload := range []string{"tcp-rr", "tcp-crr"} {
		i := slices.IndexFunc(r.Cases, func(c *Case) bool { return c.Workload == workload && c.Flow == FlowPublished })
		c := r.Cases[i]
		last := 0
		for k, e := range c.at(One) {
			_, label := rateLabel(e, c.entry(HostLimit, One))
			y := height(label)
			require.InDelta(t, height(workload), y, 2*slotHeight, "%s %s", workload, e.Contender)
			if k > 0 {
				require.Greater(t, y, last, "in the legend's order, from the top")
			}
			last = y
		}
	}
}
