// SPDX-License-Identifier: Apache-2.0

// Package insns is the committed table of how many instructions each kernel's verifier
// goes through for each program (insns.tsv), and what of that is allowed.
package insns

import (
	_ "embed" // the table travels with who asks it
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

const (
	Limit = 100_000 // instructions of a program, on every kernel
	Slack = 10      // percent that a program may be above the table
)

//go:embed insns.tsv
var committed string

// Path of the table in the repository.
const Path = "tests/verifier/insns/insns.tsv"

const head = "# Verified instructions by program and kernel. Written by make insns."

// Table has the counts by kernel series ("6.1") and program.
type Table map[string]map[string]int

// Committed is the table as it was when this program was built.
func Committed() (Table, error) { return Parse(committed) }

// Parse reads what String wrote.
func Parse(text string) (Table, error) {
	t := make(Table)
	var kernels []string
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		fields := strings.Split(line, "\t")
		if kernels == nil {
			kernels = fields[1:]
			for _, k := range kernels {
				t[k] = make(map[string]int)
			}
			continue
		}
		if len(fields) != len(kernels)+1 {
			return nil, fmt.Errorf("%s: %q has %d fields, not %d", Path, line, len(fields), len(kernels)+1)
		}
		for i, k := range kernels {
			if fields[i+1] == "" {
				continue
			}
			n, err := strconv.Atoi(fields[i+1])
			if err != nil {
				return nil, fmt.Errorf("%s: program %s: %w", Path, fields[0], err)
			}
			t[k][fields[0]] = n
		}
	}
	return t, nil
}

func (t Table) String() string {
	kernels := slices.SortedFunc(maps.Keys(t), older)
	programs := make(map[string]bool)
	for _, column := range t {
		for p := range column {
			programs[p] = true
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nprogram\t%s\n", head, strings.Join(kernels, "\t"))
	for _, p := range slices.Sorted(maps.Keys(programs)) {
		b.WriteString(p)
		for _, k := range kernels {
			b.WriteByte('\t')
			if n, ok := t[k][p]; ok {
				b.WriteString(strconv.Itoa(n))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// older orders series as numbers: 6.2 comes before 6.12.
func older(a, b string) int {
	number := func(s string) (n []int) {
		for part := range strings.SplitSeq(s, ".") {
			i, _ := strconv.Atoi(part)
			n = append(n, i)
		}
		return n
	}
	return slices.Compare(number(a), number(b))
}

// Check says what is wrong with the counts of a kernel. A series that is not in the table
// is held to Limit only.
func (t Table) Check(kernel string, counts map[string]int) error {
	var errs []error
	column, known := t[kernel]
	for _, p := range slices.Sorted(maps.Keys(counts)) {
		n := counts[p]
		was, listed := column[p]
		switch {
		case n > Limit:
			errs = append(errs, fmt.Errorf("program %s: %d instructions verified on %s, more than %d", p, n, kernel, Limit))
		case known && !listed:
			errs = append(errs, fmt.Errorf("program %s: not in %s for %s: make insns", p, Path, kernel))
		case known && n*100 > was*(100+Slack):
			errs = append(errs, fmt.Errorf("program %s: %d instructions verified on %s, more than %d and %d %%: make insns, if that is right", p, n, kernel, was, Slack))
		}
	}
	for _, p := range slices.Sorted(maps.Keys(column)) {
		if _, ok := counts[p]; !ok {
			errs = append(errs, fmt.Errorf("program %s: in %s, but not loaded on %s", p, Path, kernel))
		}
	}
	return errors.Join(errs...)
}

const verified = "instructions verified"

// Line is how a program's count is printed; size is of the translated program, in bytes.
func Line(program string, n uint64, size int) string {
	return fmt.Sprintf("%-16s %7d %s, %6d bytes", program, n, verified, size)
}

// Counts finds the Lines in a text.
func Counts(text string) map[string]int {
	counts := make(map[string]int)
	for line := range strings.Lines(text) {
		var program string
		var n int
		if _, err := fmt.Sscanf(line, "%s %d "+verified, &program, &n); err == nil {
			counts[program] = n
		}
	}
	return counts
}
