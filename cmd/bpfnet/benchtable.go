// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/bpfnet/bpfnet/control/bench"
)

// printBench prints a report as tables: one a workload.
func (a *app) printBench(r *bench.Report) {
	m := r.Machine
	virtual := ""
	if m.Virtual {
		virtual = ", virtual"
	}
	fmt.Fprintf(a.out, "bpfnet %s on Linux %s, %d CPUs (%s%s), %s\n", r.Version, m.Kernel, m.CPUs, m.CPU, virtual, humanize.IBytes(m.Memory))
	rounds := "1 round"
	if r.Rounds != 1 {
		rounds = fmt.Sprintf("%d rounds", r.Rounds)
	}
	fmt.Fprintf(a.out, "%s of all contenders in turn, %s a measurement, %.0f s in all. Load before %s, after %s.\n",
		rounds, duration(r.Time), r.Seconds, r.LoadBefore, r.LoadAfter)
	if median, most := r.Others(); most > 0.1 {
		fmt.Fprintf(a.out, "Something else kept %.1f CPUs busy meanwhile (median; %.1f at most): only BY CPU can be relied upon.\n", median, most)
	}
	title := ""
	var rows [][]string
	var columns benchColumns
	flush := func() {
		if len(rows) > 0 {
			fmt.Fprintf(a.out, "\n%s\n", title)
			a.table(told(columns.header(), rows))
		}
		rows, columns = nil, benchColumns{}
	}
	for _, c := range r.Cases {
		if next := benchTitle(c); next != title {
			flush()
			title = next
		}
		columns.see(c)
		for _, e := range c.Entries {
			rows = append(rows, benchRow(c, e))
		}
	}
	flush()
	rows = nil
	for _, m := range r.Memory {
		rows = append(rows, []string{m.Contender, m.Scale.String(), humanize.IBytes(m.Maps), fmt.Sprint(m.Processes),
			humanize.IBytes(m.ProcessBytes), humanize.IBytes(uint64(max(0, m.Kernel)))})
	}
	if len(rows) > 0 {
		fmt.Fprintf(a.out, "\nMemory; the kernel's is what it had more of afterwards, the maps included\n")
		a.table([]string{"CONTENDER", scaleColumn, "MAPS", "PROCESSES", "RESIDENT", "KERNEL"}, rows)
	}
	a.printSkips("Skipped", r.Skipped)
	a.printSkips("Went wrong", r.Failed)
}

func (a *app) printSkips(what string, list []bench.Skip) {
	if len(list) > 0 {
		fmt.Fprintln(a.out)
	}
	for _, s := range list {
		words := strings.Join(strings.Fields(strings.Join([]string{s.Contender, s.Scale, s.Workload, s.Flow}, " ")), " ")
		fmt.Fprintf(a.out, "%s: %s: %s\n", what, words, oneLine(s.Reason))
	}
}

func duration(seconds float64) string { return fmt.Sprintf("%g ms", seconds*1000) }

func benchTitle(c *bench.Case) string {
	switch {
	case c.Flow == "":
		return "Control plane, milliseconds a command"
	case strings.Contains(c.CPUs, ","):
		return fmt.Sprintf("%s (%s), %s a second, client and server on CPUs %s", c.Workload, c.Title, c.Unit, c.CPUs)
	}
	return fmt.Sprintf("%s (%s), %s a second, client and server on CPU %s", c.Workload, c.Title, c.Unit, c.CPUs)
}

const scaleColumn = "PORTSxCONTAINERS"

// benchColumns is what a table's header depends on.
type benchColumns struct {
	first   string
	command bool
}

func (b *benchColumns) see(c *bench.Case) {
	b.command = c.Flow == ""
	for _, e := range c.Entries {
		if e.Against != nil {
			b.first = e.Against.Of
		}
	}
}

func (b benchColumns) header() []string {
	is := "FASTER"
	if b.first != "" {
		is = strings.ToUpper(b.first) + " IS"
	}
	what := "FLOW"
	if b.command {
		what = "COMMAND"
	}
	return []string{what, scaleColumn, "CONTENDER", "MEDIAN", "LEAST", "MOST", "CPU/OP", is, "BY CPU", "TO 1x1"}
}

func benchRow(c *bench.Case, e *bench.Entry) []string {
	row := []string{c.Flow, e.Scale.String(), e.Contender, humanize.Comma(int64(e.Rate)), humanize.Comma(int64(e.Least)), humanize.Comma(int64(e.Most)), microseconds(e.CPU)}
	if c.Flow == "" {
		ms := func(rate float64) string { return fmt.Sprintf("%.1f", 1000/rate) }
		row = []string{c.Title, e.Scale.String(), e.Contender, ms(e.Rate), ms(e.Most), ms(e.Least), microseconds(e.CPU)}
	}
	return append(row, ratio(e.Against), ratio(e.AgainstCPU), ratio(e.AgainstOne))
}

// ratio has its interval, and how far that can be relied upon if that is too little.
func ratio(r *bench.Ratio) string {
	if r == nil {
		return ""
	}
	text := fmt.Sprintf("%.2fx (%.2f-%.2f)", r.Value, r.Low, r.High)
	if r.Level < 0.95 {
		text += fmt.Sprintf(" %.0f%%", 100*r.Level)
	}
	return text
}

// told leaves out the columns that say nothing.
func told(header []string, rows [][]string) ([]string, [][]string) {
	for i := len(header) - 1; i >= 0; i-- {
		silent := func(row []string) bool {
			return row[i] == "" || header[i] == scaleColumn && row[i] == bench.One.String()
		}
		if !slices.ContainsFunc(rows, func(row []string) bool { return !silent(row) }) {
			header = slices.Delete(header, i, i+1)
			for k := range rows {
				rows[k] = slices.Delete(rows[k], i, i+1)
			}
		}
	}
	return header, rows
}

func microseconds(us float64) string {
	switch {
	case us == 0:
		return "-"
	case us >= 1000:
		return fmt.Sprintf("%.1f ms", us/1000)
	case us >= 100:
		return fmt.Sprintf("%.0f µs", us)
	}
	return fmt.Sprintf("%.2f µs", us)
}
