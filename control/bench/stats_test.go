// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestMedian(t *testing.T) {
	require.True(t, math.IsNaN(Median(nil)))
	require.Equal(t, 3.0, Median([]float64{3}))
	require.Equal(t, 2.5, Median([]float64{4, 1, 3, 2}))
	list := []float64{9, 1, 5}
	require.Equal(t, 5.0, Median(list))
	require.Equal(t, []float64{9, 1, 5}, list, "not sorted in place")
}

// The ranks and coverages are those of tables of the sign test.
func TestInterval(t *testing.T) {
	for _, c := range []struct {
		n, low, high int // ranks, from 1
		covered      float64
	}{
		{1, 1, 1, 0}, {2, 1, 2, 0.5}, {5, 1, 5, 0.9375}, {6, 1, 6, 0.96875}, {7, 1, 7, 0.984375}, {8, 1, 8, 0.9921875},
		{9, 2, 8, 0.9609375}, {12, 3, 10, 0.96142578125}, {15, 4, 12, 0.96484375}, {20, 6, 15, 0.958610},
	} {
		list := make([]float64, c.n)
		for i, v := range rand.New(rand.NewPCG(uint64(c.n), 1)).Perm(c.n) {
			list[i] = float64(v + 1)
		}
		low, high, covered := Interval(list)
		require.Equal(t, [2]float64{float64(c.low), float64(c.high)}, [2]float64{low, high}, "%d", c.n)
		require.InDelta(t, c.covered, covered, 1e-6, "%d", c.n)
	}
	low, high, covered := Interval(nil)
	require.True(t, math.IsNaN(low) && math.IsNaN(high))
	require.Zero(t, covered)
}

// The interval holds the true median as often as it says, of a lopsided distribution too.
func TestIntervalCovers(t *testing.T) {
	const runs, n = 20000, 12
	random := rand.New(rand.NewPCG(7, 7))
	held, says := 0, 0.0
	for range runs {
		list := make([]float64, n)
		for i := range list {
			list[i] = random.ExpFloat64()
		}
		low, high, covered := Interval(list)
		says = covered
		if low <= math.Ln2 && math.Ln2 <= high {
			held++
		}
	}
	require.InDelta(t, says, float64(held)/runs, 0.006)
}

func series(contender string, s Scale, rates ...float64) *Entry {
	e := &Entry{Contender: contender, Scale: s}
	for i, r := range rates {
		e.Measurements = append(e.Measurements, Measurement{Round: i + 1, Rate: r, CPU: 2e6 / r})
	}
	return e
}

// Ratios are of medians, their interval of what was measured in the same round: a machine
// that became twice as slow half-way leaves it narrow.
func TestSum(t *testing.T) {
	big := Scale{1000, 1}
	c := &Case{Entries: []*Entry{
		series(BPF, One, 100, 100, 102, 50, 50, 51), series(HostLimit, One, 110, 110, 110, 55, 55, 55), series(BPF, big, 99, 99, 99, 49, 49, 49),
	}}
	c.sum()
	first, host, large := c.Entries[0], c.Entries[1], c.Entries[2]
	require.Nil(t, first.Against)
	require.Nil(t, first.AgainstOne)
	require.Equal(t, 75.5, first.Rate)
	require.Equal(t, [2]float64{50, 102}, [2]float64{first.Least, first.Most})
	require.InDelta(t, (2e4+2e6/51)/2, first.CPU, 1)
	r := host.Against
	require.Equal(t, BPF, r.Of)
	require.InDelta(t, 75.5/82.5, r.Value, 1e-9)
	require.InDelta(t, 100.0/110, r.Low, 1e-9)
	require.InDelta(t, 102.0/110, r.High, 1e-9)
	require.InDelta(t, 0.96875, r.Level, 1e-9)
	require.InDelta(t, r.Low, host.AgainstCPU.Low, 1e-9, "CPU time an operation is inverse to the rate here")
	require.Nil(t, large.Against, "alone at its scale")
	require.Equal(t, "1x1", large.AgainstOne.Of)
	require.InDelta(t, 0.98, large.AgainstOne.High, 0.02)
	require.Less(t, large.AgainstOne.High, 1.0)
}
