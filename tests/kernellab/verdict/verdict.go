// SPDX-License-Identifier: Apache-2.0

// Package verdict reads the console of a machine of the kernel lab: how did it end?
package verdict

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What begins the line by which init says how it ended.
const (
	Mark    = "KERNELLAB exit="  // the job's exit code
	Trouble = "KERNELLAB init: " // why there was no job
)

// NotApplicable begins the message of a test that skips itself because its subject
// does not exist in this kernel. Any other skip is a failure.
const NotApplicable = "not applicable: "

// Verdict is what a console says. The zero value is of a machine that said nothing.
type Verdict struct {
	Problem       string   // in a few words; empty: everything passed
	Passed        int      // tests without subtests
	NotApplicable []string // tests, subtests included
}

// complaints of the kernel (kernel/panic.c, lib/bug.c, arch/x86/kernel/dumpstack.c).
var complaints = []string{"Kernel panic - not syncing", "WARNING: CPU:", "WARNING: possible", "BUG: ", "kernel BUG at", "Oops: ", "general protection fault"}

// Of reads a console. expired says that the machine had to be stopped.
func Of(console string, expired bool) Verdict {
	var v Verdict
	var current, complaint, trouble string
	var skips []string
	excused := make(map[string]bool)
	code, ended := 0, false
	for line := range strings.Lines(console) {
		line = strings.TrimRight(line, "\r\n")
		if complaint == "" {
			complaint = complains(line)
		}
		if number, ok := strings.CutPrefix(line, Mark); ok {
			if n, err := strconv.Atoi(number); err == nil {
				code, ended = n, true
			}
			continue
		}
		if text, ok := strings.CutPrefix(line, Trouble); ok {
			trouble = text
			continue
		}
		indented := line
		line = strings.TrimLeft(line, " ")
		if name, ok := cutAny(line, "=== RUN ", "=== NAME ", "=== CONT "); ok {
			current = strings.TrimSpace(name)
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(line, "--- SKIP: "), " (")
		switch {
		case strings.HasPrefix(line, "--- SKIP: "):
			skips = append(skips, name)
		case strings.HasPrefix(indented, "--- PASS: "):
			v.Passed++
		case strings.Contains(line, ": "+NotApplicable):
			excused[current] = true
		}
	}
	var unexcused []string
	for _, name := range skips {
		if excused[name] {
			v.NotApplicable = append(v.NotApplicable, name)
		} else {
			unexcused = append(unexcused, name)
		}
	}
	switch {
	case complaint != "":
		v.Problem = "the kernel complained: " + complaint
	case !ended && trouble != "":
		v.Problem = "no test: " + trouble
	case !ended && expired:
		v.Problem = "hung: stopped when its time was over" + during(current)
	case !ended:
		v.Problem = "ended without a verdict" + during(current)
	case code != 0:
		v.Problem = fmt.Sprintf("exit code %d", code)
	case len(unexcused) > 0:
		v.Problem = "skipped: " + strings.Join(unexcused, ", ")
	}
	return v
}

func during(test string) string {
	if test == "" {
		return ""
	}
	return ", in " + test
}

// complains finds a complaint in a line that the kernel wrote: those begin with a time.
func complains(line string) string {
	stamp, text, ok := strings.Cut(line, "] ")
	if !ok || !strings.HasPrefix(stamp, "[") {
		return ""
	}
	if _, err := strconv.ParseFloat(strings.TrimSpace(stamp[1:]), 64); err != nil {
		return ""
	}
	for _, c := range complaints {
		if strings.Contains(text, c) {
			return text
		}
	}
	return ""
}

func cutAny(line string, prefixes ...string) (rest string, ok bool) {
	for _, p := range prefixes {
		if rest, ok = strings.CutPrefix(line, p); ok {
			return rest, true
		}
	}
	return line, false
}

// Worth is what of a console a reader of a failure wants: what tests that passed said is
// left out, and of the rest no more than the first and the last lines, so many together, are kept.
func Worth(console string, lines int) []string {
	var kept []string
	for line := range strings.Lines(console) {
		line = strings.TrimRight(line, "\r\n")
		if text := strings.TrimLeft(line, " "); text == "" || strings.HasPrefix(text, "=== ") || strings.HasPrefix(text, "--- PASS") || strings.HasPrefix(text, "--- SKIP") {
			continue
		}
		kept = append(kept, line)
	}
	over := len(kept) - lines
	if over <= 0 {
		return kept
	}
	plural := "s"
	if over == 1 {
		plural = ""
	}
	gap := fmt.Sprintf("… %d line%s …", over, plural)
	return slices.Concat(kept[:lines/2], []string{gap}, kept[len(kept)-(lines-lines/2):])
}
