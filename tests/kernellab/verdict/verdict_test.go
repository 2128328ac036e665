// SPDX-License-Identifier: Apache-2.0

package verdict

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// console joins lines as a serial line does.
func console(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n" }

func TestOf(t *testing.T) {
	panics := "[    3.141593] Kernel panic - not syncing: Fatal exception in interrupt"
	for name, c := range map[string]struct {
		console string
		expired bool
		want    Verdict
	}{
		"passed": {console("=== RUN   TestA", "=== RUN   TestA/one", "--- PASS: TestA (0.10s)", "    --- PASS: TestA/one (0.01s)", "--- PASS: TestB (0.00s)", "PASS", "", "KERNELLAB exit=0", "[    2.1] reboot: Restarting system"),
			false, Verdict{Passed: 2}},
		"failed":                        {console("--- FAIL: TestA (0.10s)", "FAIL", "KERNELLAB exit=1"), false, Verdict{Problem: "exit code 1"}},
		"killed":                        {console("KERNELLAB exit=137"), false, Verdict{Problem: "exit code 137"}},
		"passed when its time was over": {console("--- PASS: TestA (0.10s)", "KERNELLAB exit=0"), true, Verdict{Passed: 1}},
		"hung":                          {console("=== RUN   TestA"), true, Verdict{Problem: "hung: stopped when its time was over, in TestA"}},
		"nothing":                       {"", false, Verdict{Problem: "ended without a verdict"}},
		"hung at boot":                  {"", true, Verdict{Problem: "hung: stopped when its time was over"}},
		"init failed":                   {console("KERNELLAB init: module /lib/modules/veth.ko: exec format error"), false, Verdict{Problem: "no test: module /lib/modules/veth.ko: exec format error"}},
		"killed from outside":           {console("=== RUN   TestA", "=== RUN   TestA/one"), false, Verdict{Problem: "ended without a verdict, in TestA/one"}},
		"panic":                         {console("=== RUN   TestA", panics), false, Verdict{Problem: "the kernel complained: Kernel panic - not syncing: Fatal exception in interrupt"}},
		"panic after the end":           {console("KERNELLAB exit=0", panics), false, Verdict{Problem: "the kernel complained: Kernel panic - not syncing: Fatal exception in interrupt"}},
		"panic and hung":                {console(panics), true, Verdict{Problem: "the kernel complained: Kernel panic - not syncing: Fatal exception in interrupt"}},
		"a warning, and it went on":     {console("[   12.5] WARNING: CPU: 0 PID: 77 at net/core/dev.c:1", "KERNELLAB exit=0"), false, Verdict{Problem: "the kernel complained: WARNING: CPU: 0 PID: 77 at net/core/dev.c:1"}},
		"a test that speaks of one":     {console("    x_test.go:1: WARNING: CPU: 0", "[not a time] BUG: no", "KERNELLAB exit=0"), false, Verdict{}},
		"half a verdict":                {console("KERNELLAB exit="), false, Verdict{Problem: "ended without a verdict"}},
		"not applicable": {console("=== RUN   TestA", "=== RUN   TestA/tcx", "    a_test.go:9: not applicable: TCX came with Linux 6.6, this is 6.1.0", "=== RUN   TestA/clsact", "--- PASS: TestA (0.10s)", "    --- SKIP: TestA/tcx (0.00s)", "    --- PASS: TestA/clsact (0.00s)",
			"=== RUN   TestB", "    a_test.go:19: not applicable: TCX came with Linux 6.6, this is 6.1.0", "--- SKIP: TestB (0.00s)", "KERNELLAB exit=0"),
			false, Verdict{Passed: 1, NotApplicable: []string{"TestA/tcx", "TestB"}}},
		"skipped without a reason": {console("=== RUN   TestA", "    a_test.go:9: no dummy devices here", "--- SKIP: TestA (0.00s)", "KERNELLAB exit=0"), false, Verdict{Problem: "skipped: TestA"}},
		"a reason of another test's": {console("=== RUN   TestA", "    a_test.go:9: not applicable: no TCX", "--- SKIP: TestA (0.00s)", "=== RUN   TestB", "--- SKIP: TestB (0.00s)", "KERNELLAB exit=0"),
			false, Verdict{Problem: "skipped: TestB", NotApplicable: []string{"TestA"}}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, Of(c.console, c.expired)) })
	}
}

func TestWorth(t *testing.T) {
	text := console("=== RUN   TestA", "    a_test.go:1: first", "--- FAIL: TestA (0.10s)", "    --- PASS: TestA/one (0.00s)", "", "second", "third", "fourth")
	require.Equal(t, []string{"    a_test.go:1: first", "--- FAIL: TestA (0.10s)", "second", "third", "fourth"}, Worth(text, 5))
	require.Equal(t, []string{"    a_test.go:1: first", "--- FAIL: TestA (0.10s)", "… 1 line …", "third", "fourth"}, Worth(text, 4))
}
