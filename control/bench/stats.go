// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"math"
	"slices"
)

// Median is the middle one, or the mean of the middle two; NaN of none.
func Median(list []float64) float64 {
	n := len(list)
	if n == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(list))
	return (s[(n-1)/2] + s[n/2]) / 2
}

// level is the coverage that Interval aims at.
const level = 0.95

// Interval is the narrowest distribution-free interval for the median of what the list
// is a sample of, from its order statistics (the sign test: binomial, p = 1/2). Its
// coverage is at least 95 %, if the sample is large enough for that (six); of a
// smaller one it is from the least to the greatest, and covered says how little
// that is: 0.9375 of five.
func Interval(list []float64) (low, high, covered float64) {
	n := len(list)
	if n == 0 {
		return math.NaN(), math.NaN(), 0
	}
	s := slices.Sorted(slices.Values(list))
	// outside is the probability that the median is below the k-th least: P(X < k),
	// X the number of values below it.
	k, outside, term := 0, 0.0, math.Pow(0.5, float64(n))
	for next := term; 1-2*next >= level && k+1 <= (n-1)/2; {
		k++
		outside = next
		term = term * float64(n-k+1) / float64(k)
		next += term
	}
	if k == 0 {
		return s[0], s[n-1], 1 - 2*math.Pow(0.5, float64(n))
	}
	return s[k-1], s[n-k], 1 - 2*outside
}
