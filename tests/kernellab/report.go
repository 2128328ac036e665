// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/bpfnet/bpfnet/tests/kernellab/verdict"
)

// shown is how many lines of a console a failure shows.
const shown = 200

// report prints the line of a suite and kernel, and what a failure's reader needs.
func report(w io.Writer, r outcome, verbose bool) {
	word, rest := "ok  ", ""
	switch {
	case r.err != nil:
		word, rest = "FAIL", r.err.Error()
	case r.verdict.Problem != "":
		word, rest = "FAIL", r.verdict.Problem
	case !r.suite.Program:
		rest = fmt.Sprintf("%d tests", r.verdict.Passed)
		if n := len(r.verdict.NotApplicable); n > 0 {
			rest += fmt.Sprintf("; not applicable: %s", strings.Join(r.verdict.NotApplicable, ", "))
		}
	}
	fmt.Fprintf(w, "%s  %-5s %-20s %6.1fs  %s\n", word, r.kernel.Series, r.suite.Package, r.took.Round(100*time.Millisecond).Seconds(), rest)
	if verbose {
		io.WriteString(w, r.console)
		return
	}
	if word == "FAIL" {
		for _, line := range verdict.Worth(r.console, shown) {
			fmt.Fprintf(w, "      %s\n", line)
		}
	}
}
