// SPDX-License-Identifier: Apache-2.0

package rows

import (
	"cmp"
	"fmt"
	"strings"
)

// Outcome is what became of a test.
type Outcome struct {
	Result  string // "pass", "fail", "skip"
	Seconds float64
	Figures []string // that it logged
}

// Table is the rows with what became of their tests. A row of which none ran keeps its
// line of the table before, if it has one. figures adds a column of those.
func Table(outcomes map[Test]Outcome, before string, figures bool) string {
	sums := make(map[string]Outcome)
	here, lab := make(map[string]bool), make(map[string]bool)
	for t, o := range outcomes {
		id := Of(t)
		if t.Dir == Lab {
			lab[id] = true
		} else {
			here[id] = true
		}
		s := sums[id]
		if s.Result == "" || s.Result == "pass" {
			s.Result = o.Result
		}
		s.Seconds += o.Seconds
		s.Figures = append(s.Figures, o.Figures...)
		sums[id] = s
	}
	var b strings.Builder
	b.WriteString("| row | promise | IP | protocols | result | seconds |")
	rule := "|---|---|---|---|---|---|"
	if figures {
		b.WriteString(" figures |")
		rule += "---|"
	}
	b.WriteString("\n" + rule + "\n")
	for _, r := range All {
		begin := fmt.Sprintf("| %s | %s | %s | %s | ", r.ID, cell(r.Promise), cell(r.Families), cell(r.Protos))
		o, ran := sums[r.ID]
		_, rest, had := strings.Cut(before, begin)
		switch {
		case r.Missing != "":
			b.WriteString(begin + cell(r.Missing) + " | |")
			if figures {
				b.WriteString(" |")
			}
		case !ran && had:
			line, _, _ := strings.Cut(rest, "\n")
			b.WriteString(begin + line)
		default:
			where := ""
			if lab[r.ID] && here[r.ID] {
				where = " (in part in the kernel lab)"
			} else if lab[r.ID] {
				where = " (kernel lab)"
			}
			fmt.Fprintf(&b, "%s%s%s | %.1f |", begin, cmp.Or(o.Result, "not run"), where, o.Seconds)
			if figures {
				b.WriteString(" " + cell(strings.Join(o.Figures, "<br>")) + " |")
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

func cell(text string) string { return strings.ReplaceAll(text, "|", "/") }

// WithoutTimes takes the seconds out of a table, which differ from run to run.
func WithoutTimes(table string) string {
	var b strings.Builder
	for line := range strings.Lines(table) {
		cells := strings.Split(strings.TrimSuffix(line, "\n"), "|")
		if len(cells) == 8 {
			cells[6] = ""
		}
		b.WriteString(strings.Join(cells, "|") + "\n")
	}
	return b.String()
}
