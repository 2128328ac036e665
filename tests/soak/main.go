// SPDX-License-Identifier: Apache-2.0

// Command soak runs the conformance rows and bars, and the comparison with the model, with the counts that were
// promised (BPFNET_SOAK=1) and writes what came out as a table: row, result,
// time, and the figures that the test logged.
//
//	go run ./tests/soak [-run REGEXP] docs/soak.md
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// event is what go test -json prints, see go doc test2json.
type event struct {
	Action, Package, Test, Output string
	Elapsed                       float64
}

type row struct {
	name, result string
	elapsed      float64
	figures      []string
}

// logged is a line of t.Logf: "    file_test.go:12: the figure".
var logged = regexp.MustCompile(`^\s+\w+_test\.go:\d+: (.*)$`)

func main() {
	run := flag.String("run", ".", "which tests")
	flag.Parse()
	if flag.NArg() != 1 {
		fmt.Fprintln(os.Stderr, "soak: name the file to write: docs/soak.md")
		os.Exit(2)
	}
	failed, err := soak(*run, flag.Arg(0))
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
	if failed > 0 {
		fmt.Fprintf(os.Stderr, "soak: %d rows failed\n", failed)
		os.Exit(1)
	}
}

func soak(run, file string) (failed int, err error) {
	cmd := exec.Command("go", "test", "-json", "-count=1", "-p", "1", "-timeout", "75m", "-run", run, "./tests/conformance/...", "./tests/oracle")
	cmd.Env = append(os.Environ(), "BPFNET_SOAK=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	rows := map[string]*row{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil || e.Test == "" {
			continue
		}
		top, _, _ := strings.Cut(e.Test, "/")
		r := rows[top]
		if r == nil {
			r = &row{name: top}
			rows[top] = r
		}
		switch e.Action {
		case "output":
			if m := logged.FindStringSubmatch(strings.TrimRight(e.Output, "\n")); m != nil {
				r.figures = append(r.figures, strings.ReplaceAll(m[1], "|", "/"))
			}
		case "pass", "fail", "skip":
			if e.Test == top {
				r.result, r.elapsed = e.Action, e.Elapsed
				fmt.Printf("%-6s %8.1f s  %s\n", e.Action, e.Elapsed, top)
			}
		}
	}
	_ = cmd.Wait() // the rows say what failed
	return write(file, rows)
}

func write(file string, rows map[string]*row) (failed int, err error) {
	var names []string
	for name := range rows {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return 0, err
	}
	fmt.Fprintf(&b, "# The long counts\n\n`make soak` wrote this on %s, kernel %s. Rows as in the tests' names; figures as the tests logged them.\n\n",
		time.Now().Format(time.DateOnly), unix.ByteSliceToString(host.Release[:]))
	b.WriteString("| test | result | seconds | figures |\n|---|---|---|---|\n")
	for _, name := range names {
		r := rows[name]
		if r.result != "pass" {
			failed++
		}
		fmt.Fprintf(&b, "| %s | %s | %.1f | %s |\n", strings.TrimPrefix(r.name, "Test"), r.result, r.elapsed, strings.Join(r.figures, "<br>"))
	}
	return failed, os.WriteFile(file, []byte(b.String()), 0o644)
}
