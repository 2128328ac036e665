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

// elsewhere is where the rows are held to a list of differences.
type elsewhere struct {
	rows  string // the tests that are named after rows; the others measure the programs
	env   []string
	args  []string // of go test
	list  []rows.Difference
	where string
	page  string // begins the page: date, kernel, how many functions hold
}

var onIPTables = elsewhere{
	rows: "^Test[A-G][0-9]", env: []string{"BPFNET_DATAPATH=iptables"}, list: rows.Differences, where: "on iptables",
	page: "# What the iptables datapath does otherwise\n\n`make differences` runs the tests of all rows (docs/conformance.md) with BPFNET_DATAPATH=iptables, and wrote this on %s, kernel %s: %d of\n" +
		"their functions hold there, and what fails is this and nothing else. A row that is not here is kept by both datapaths.\n\n",
}

// onDocker has tests wait for each other: so many may.
var onDocker = elsewhere{
	rows: "^Test[A-D][0-9]", env: []string{"BPFNET_CAST=docker"}, args: []string{"-parallel", "64"}, list: rows.OnDocker, where: "with Docker's containers",
	page: "# The rows with Docker's containers\n\n`make docker-rows` runs the tests of the rows A to D (docs/conformance.md) with BPFNET_CAST=docker: their networks are made by `docker network create`, their\n" +
		"containers by `docker run`, by Debian's Engine 20.10, unmodified, with `bpfnet daemon --docker` beside it (docker.md). What is published, linked or taken back later\n" +
		"is so in a container that is made anew, as with Docker. It wrote this on %s, kernel %s: %d of their functions hold, and what fails is this and nothing else.\n" +
		"Where no test is named the tests ask for what the Engine has instead.\n\n",
}

// differences runs the rows elsewhere, and requires that those fail, and only those, that
// the list has. It writes that list to file, unless that is "".
func differences(e *elsewhere, file, run string) error {
	if run == "." {
		run = e.rows
	}
	results, said := make(map[string]string), make(map[string][]string)
	err := goTest(rows.Dir, run, "30m", e.env, func(v event) {
		switch {
		case v.Test == "":
		case v.Action == "output":
			said[v.Test] = append(said[v.Test], v.Output)
		case v.ends():
			results[v.Test] = v.Action
			if !strings.Contains(v.Test, "/") {
				fmt.Printf("%-6s %8.1f s  %s\n", v.Action, v.Elapsed, v.Test)
			}
		}
	}, e.args...)
	if err != nil {
		return err
	}
	if len(results) == 0 {
		return fmt.Errorf("%s: no test ran", rows.Dir)
	}
	wrong := rows.Unexpected(e.list, results)
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
	if len(wrong) > 0 {
		return fmt.Errorf("not as listed: %s", strings.Join(wrong, "; "))
	}
	if run != e.rows || file == "" {
		return nil
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return err
	}
	text := fmt.Sprintf(e.page, time.Now().Format(time.DateOnly), unix.ByteSliceToString(host.Release[:]), held) + rows.DifferencesTable(e.list, e.where)
	return os.WriteFile(file, []byte(text), 0o644)
}
