// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// BenchmarkPublish: every batch of ports on a host that has published 10,000 already.
func BenchmarkPublish(b *testing.B) {
	l := newLab(b)
	l.container("web", ContainerOptions{})
	l.container("other", ContainerOptions{})
	singles := func(first, n int) (specs []string) {
		for i := range n {
			specs = append(specs, fmt.Sprintf("%d:%d", first+i, i+1))
		}
		return specs
	}
	_, err := l.m.Publish("other", singles(50000, 10000)...)
	require.NoError(b, err)
	for name, specs := range map[string][]string{
		"1":     singles(2000, 1),
		"1000":  singles(2000, 1000),
		"10000": singles(2000, 10000),
		"range": {"2000-49999:2000-49999"},
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				_, err := l.m.Publish("web", specs...)
				require.NoError(b, err)
				b.StopTimer()
				require.NoError(b, l.m.Unpublish("web", specs...))
				b.StartTimer()
			}
		})
	}
}

// BenchmarkAttach attaches 1,000 containers and compares the last ten with the first.
func BenchmarkAttach(b *testing.B) {
	l := newLab(b)
	var took []time.Duration
	for i := range 1000 {
		name := fmt.Sprintf("c%d", i)
		path := l.keep(newNetns(b), name)
		start := time.Now()
		_, err := l.m.CreateContainer(ContainerOptions{Name: name, Attach: "netns:" + path})
		require.NoError(b, err)
		took = append(took, time.Since(start))
	}
	median := func(list []time.Duration) float64 {
		list = slices.Clone(list)
		slices.Sort(list)
		return list[len(list)/2].Seconds() * 1000
	}
	b.ReportMetric(median(took[1:11]), "ms-first")
	b.ReportMetric(median(took[990:]), "ms-last")
	b.ReportMetric(median(took[990:])/median(took[1:11]), "ratio")
}
