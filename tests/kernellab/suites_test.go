// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/kernellab/verdict"
)

func TestChosen(t *testing.T) {
	require.Equal(t, suites, chosen("", ""))
	for _, pkg := range []string{"./loader", "loader", "loader/", "./loader/"} {
		list := chosen(pkg, "")
		require.Len(t, list, 1, pkg)
		require.Equal(t, "./loader", list[0].Package)
		require.Equal(t, []string{"/bin/loader.test", "-test.v", "-test.short", "-test.timeout=3m"}, list[0].command("3m"))
	}
	require.Contains(t, chosen("tests/conformance", "TestA2")[0].command("3m"), "-test.run=TestA2", "instead of the rows")
	list := chosen("./control/link", "TestVeth")
	require.Len(t, list, 1)
	require.Equal(t, []string{"/bin/link.test", "-test.v", "-test.short", "-test.timeout=3m", "-test.run=TestVeth"}, list[0].command("3m"))

	require.Equal(t, []string{"/bin/verifier", "-record"}, counting.command("3m"))
	require.Equal(t, rows, suites[0].Tests, "changed by a choice")
}

func TestRan(t *testing.T) {
	require.Empty(t, suite{}.ran(verdict.Verdict{Passed: 1}))
	require.Equal(t, "no test ran", suite{}.ran(verdict.Verdict{}))
	require.Empty(t, suite{Program: true}.ran(verdict.Verdict{}))
	some := suite{Package: "./tests/conformance", Tests: []string{"TestA1", "TestA2"}}
	require.Equal(t, "-test.run=^(TestA1|TestA2)$", some.command("3m")[4])
	require.Empty(t, some.ran(verdict.Verdict{Passed: 2}))
	require.Empty(t, some.ran(verdict.Verdict{Passed: 1, NotApplicable: []string{"TestA2"}}))
	require.Equal(t, "1 tests ran, not 2", some.ran(verdict.Verdict{Passed: 1, NotApplicable: []string{"TestA1/tcx"}}))
}

// A suite is one binary in one directory.
func TestSuiteNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, s := range suites {
		require.False(t, seen[s.name()], s.name())
		seen[s.name()] = true
	}
}
