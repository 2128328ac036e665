// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/conformance/rows"
)

// allRows are the tests that are named after rows; the others measure the programs.
const allRows = "^Test[A-G][0-9]"

// differences runs the rows on iptables, and requires that those fail, and only those, that
// rows.Differences has. It writes that list to file.
func differences(file, run string) error {
	if run == "." {
		run = allRows
	}
	results, said := make(map[string]string), make(map[string][]string)
	err := goTest(rows.Dir, run, "30m", []string{"BPFNET_DATAPATH=iptables"}, func(e event) {
		switch {
		case e.Test == "":
		case e.Action == "output":
			said[e.Test] = append(said[e.Test], e.Output)
		case e.ends():
			results[e.Test] = e.Action
			if !strings.Contains(e.Test, "/") {
				fmt.Printf("%-6s %8.1f s  %s\n", e.Action, e.Elapsed, e.Test)
			}
		}
	})
	if err != nil {
		return err
	}
	if len(results) == 0 {
		return fmt.Errorf("%s: no test ran", rows.Dir)
	}
	wrong := rows.Unexpected(results)
	for name := range said {
		if results[name] == "" {
			wrong = append(wrong, name+" did not come to an end")
		}
	}
	slices.Sort(wrong)
	for _, line := range wrong {
		name, _, _ := strings.Cut(line, " ")
		fmt.Print(strings.Join(said[name], ""))
	}
	held := 0
	for name, result := range results {
		if result == "pass" && !strings.Contains(name, "/") {
			held++
		}
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return err
	}
	if len(wrong) > 0 {
		return fmt.Errorf("not as listed: %s", strings.Join(wrong, "; "))
	}
	if run != allRows {
		return nil
	}
	text := fmt.Sprintf("# What the iptables datapath does otherwise\n\n`make differences` runs the tests of all rows (docs/conformance.md) with BPFNET_DATAPATH=iptables, and wrote this on %s, kernel %s: %d of\n"+
		"their functions hold there, and what fails is this and nothing else. A row that is not here is kept by both datapaths.\n\n%s",
		time.Now().Format(time.DateOnly), unix.ByteSliceToString(host.Release[:]), held, rows.DifferencesTable())
	return os.WriteFile(file, []byte(text), 0o644)
}
