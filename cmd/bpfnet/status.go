// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control"
)

func statusCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "status",
		Short:   "Show how packets are handled: hooks, tables, counters, drops",
		Example: "  bpfnet status\n  bpfnet status -o json",
		Args:    wantsNothing,
		RunE: func(_ *cobra.Command, _ []string) error {
			return a.with(func(m *control.Manager) error {
				s, err := m.Status()
				if err != nil {
					return err
				}
				if a.json() {
					s.Hooks, s.Tables, s.Drops, s.Problems = list(s.Hooks), list(s.Tables), list(s.Drops), list(s.Problems)
					return a.printJSON([]*control.Status{s})
				}
				a.printStatus(s)
				return nil
			})
		},
	}
}

func (a *app) printStatus(s *control.Status) {
	path := ", slow path"
	switch {
	case s.FastPath:
		path = ", fast path"
	case s.Datapath == control.DatapathIPTables:
		path = ""
	}
	line := func(key, value string) { fmt.Fprintf(a.out, "%-10s %s\n", key+":", value) }
	line("Datapath", s.Datapath+path)
	line("Kernel", s.Kernel)
	line("Netns", s.Netns)
	line("Root", s.Root)
	line("BPF", s.BPFFS)
	line("Cgroup", s.Cgroup)
	var features []string
	for _, f := range slices.Sorted(maps.Keys(s.Features)) {
		yes := "no"
		if s.Features[f] {
			yes = "yes"
		}
		features = append(features, f+" "+yes)
	}
	line("Features", strings.Join(features, ", "))
	section := func(header []string, rows [][]string) {
		if len(rows) > 0 {
			fmt.Fprintln(a.out)
			a.table(header, rows)
		}
	}
	var rows [][]string
	for _, h := range s.Hooks {
		state := "ok"
		if !h.OK {
			state = "MISSING"
		}
		rows = append(rows, []string{h.Device, h.Program, cmp.Or(h.Kind, "-"), state})
	}
	section([]string{"DEVICE", "PROGRAM", "HOOK", "STATE"}, rows)
	rows = nil
	for _, t := range s.Tables {
		percent := 0.0
		if t.Size > 0 {
			percent = 100 * float64(t.Used) / float64(t.Size)
		}
		rows = append(rows, []string{t.Name, fmt.Sprint(t.Used), fmt.Sprint(t.Size), fmt.Sprintf("%.1f%%", percent), fmt.Sprint(t.Refused)})
	}
	section([]string{"TABLE", "USED", "SIZE", "FILL", "REFUSED"}, rows)
	rows = nil
	for _, name := range slices.Sorted(maps.Keys(s.Counters)) {
		rows = append(rows, []string{name, fmt.Sprint(s.Counters[name])})
	}
	section([]string{"COUNTER", "VALUE"}, rows)
	rows = nil
	for _, d := range s.Drops {
		rows = append(rows, []string{d.Device, d.Container, d.Reason, fmt.Sprint(d.Packets)})
	}
	section([]string{"DEVICE", "CONTAINER", "DROPPED FOR", "PACKETS"}, rows)
	if len(s.Problems) > 0 {
		fmt.Fprintln(a.out)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(a.out, "Problem: %s\n", oneLine(p))
	}
}
