// SPDX-License-Identifier: Apache-2.0

// Package needs is for tests whose subject came with a later kernel than the oldest that
// bpfnet runs on, or takes more than a machine may have.
package needs

import (
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/kernellab/verdict"
)

// Linux ends a test, as not applicable, on a kernel older than major.minor, with which
// what came. On all others it does nothing: there the test fails if the kernel lacks it.
func Linux(t testing.TB, major, minor int, what string) {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatalf("uname: %v", err)
	}
	release := unix.ByteSliceToString(name.Release[:])
	older, err := isOlder(release, major, minor)
	if err != nil {
		t.Fatal(err)
	}
	if older {
		t.Skipf("%s%s came with Linux %d.%d, this is %s", verdict.NotApplicable, what, major, minor, release)
	}
}

// CPUs ends a test of what happens on several processors at once, as not applicable, on a
// machine that has fewer (an emulated one has one). Else it says which it may use.
func CPUs(t testing.TB, n int) (list []int) {
	t.Helper()
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatalf("sched_getaffinity: %v", err)
	}
	for i := 0; len(list) < min(n, set.Count()); i++ {
		if set.IsSet(i) {
			list = append(list, i)
		}
	}
	if len(list) < n {
		t.Skipf("%sit takes %d processors, here are %d", verdict.NotApplicable, n, len(list))
	}
	return list
}

func isOlder(release string, major, minor int) (bool, error) {
	var a, b int
	if _, err := fmt.Sscanf(release, "%d.%d", &a, &b); err != nil {
		return false, fmt.Errorf("kernel release %q: %w", release, err)
	}
	return a < major || a == major && b < minor, nil
}
