// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Slowness is how many times as long a system call takes as the 300 ns for which the tests' bars
// in milliseconds are meant; never less than 1. With page-table isolation it is more than three
// on the same kind of machine, and system calls are what commands consist of. The figure is
// logged: what is promised for a machine as it comes, make soak asks for.
func Slowness(t testing.TB) float64 {
	t.Helper()
	const calls, meant = 100_000, 300 * time.Nanosecond
	var best time.Duration
	for range 5 {
		start := time.Now()
		for range calls {
			unix.Getppid()
		}
		if took := time.Since(start) / calls; best == 0 || took < best {
			best = took
		}
	}
	t.Logf("a system call takes %v", best)
	return max(1, float64(best)/float64(meant))
}
