// SPDX-License-Identifier: Apache-2.0

// Command run runs the conformance tests and writes what came of them as a table: what is
// promised, and whether it holds. With BPFNET_SOAK=1 they have the counts that were
// promised, and the table has the figures that they logged.
//
//	go run ./tests/conformance/run [-run REGEXP] docs/conformance.md
//
// With -run the lines of the rows that did not run stay as they are. With -datapath iptables, or -cast
// docker, it runs them there, and holds them to the list of known differences; then no file need be written.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/conformance/rows"
)

func main() {
	run := flag.String("run", ".", "which tests")
	path := flag.String("datapath", "bpf", "bpf; iptables: compares with the list of differences")
	cast := flag.String("cast", "", "docker: Docker's containers; compares with the list of differences")
	flag.Parse()
	var there *elsewhere
	switch {
	case *path == "iptables":
		there = &onIPTables
	case *cast == "docker":
		there = &onDocker
	}
	if flag.NArg() != 1 && (there == nil || flag.NArg() != 0) {
		fmt.Fprintln(os.Stderr, "conformance: name the file to write: docs/conformance.md")
		os.Exit(2)
	}
	if there != nil {
		if err := differences(there, flag.Arg(0), *run); err != nil {
			fmt.Fprintln(os.Stderr, "conformance:", err)
			os.Exit(1)
		}
		return
	}
	soak, file := os.Getenv("BPFNET_SOAK") != "", flag.Arg(0)
	outcomes, err := tests(*run, soak)
	if err == nil {
		err = write(file, outcomes, soak)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "conformance:", err)
		os.Exit(1)
	}
	failed := 0
	for _, o := range outcomes {
		if o.Result != "pass" {
			failed++
		}
	}
	if failed > 0 {
		fmt.Fprintf(os.Stderr, "conformance: %d tests failed\n", failed)
		os.Exit(1)
	}
}

// tests runs the tests of package conformance, and those that rows have elsewhere, the
// kernel lab's included.
func tests(run string, soak bool) (map[rows.Test]rows.Outcome, error) {
	outcomes := make(map[rows.Test]rows.Outcome)
	if err := test(rows.Dir, run, soak, outcomes); err != nil {
		return nil, err
	}
	names := make(map[string][]string) // by directory
	for _, list := range rows.Elsewhere {
		for _, t := range list {
			if regexp.MustCompile(run).MatchString(t.Name) {
				names[t.Dir] = append(names[t.Dir], t.Name)
			}
		}
	}
	for dir, list := range names {
		if err := test(dir, "^("+strings.Join(list, "|")+")$", soak, outcomes); err != nil {
			return nil, err
		}
	}
	return outcomes, inLab(run, outcomes)
}

// ended is what go test -v prints of a test, on a console.
var ended = regexp.MustCompile(`(?m)^--- PASS: (\w+) \(([0-9.]+)s\)\r?$`)

// inLab runs those that only the kernel lab has. They pass where all of its kernels pass.
func inLab(run string, outcomes map[rows.Test]rows.Outcome) error {
	names := slices.DeleteFunc(slices.Clone(rows.InLab), func(name string) bool { return !regexp.MustCompile(run).MatchString(name) })
	if len(names) == 0 {
		return nil
	}
	cmd := exec.Command("go", "run", "./"+rows.Lab, "-v", "-pkg", "./"+rows.Dir, "-run", "^("+strings.Join(names, "|")+")$")
	out, err := cmd.CombinedOutput()
	var failed *exec.ExitError
	if err != nil && !errors.As(err, &failed) {
		return fmt.Errorf("%s: %w", rows.Lab, err)
	}
	result := "pass"
	if err != nil {
		result = "fail"
		os.Stdout.Write(out)
	}
	for _, name := range names {
		o := rows.Outcome{Result: result}
		for _, m := range ended.FindAllSubmatch(out, -1) {
			if string(m[1]) == name {
				seconds, _ := strconv.ParseFloat(string(m[2]), 64)
				o.Seconds += seconds
			}
		}
		outcomes[rows.Test{Dir: rows.Lab, Name: name}] = o
		fmt.Printf("%-6s %8.1f s  %s, in the kernel lab\n", o.Result, o.Seconds, name)
	}
	return nil
}

// logged is a line of t.Logf: "    file_test.go:12: the figure".
var logged = regexp.MustCompile(`^\s+\w+_test\.go:\d+: (.*)$`)

// test runs those of one directory and notes what became of each, subtests within it.
func test(dir, run string, soak bool, outcomes map[rows.Test]rows.Outcome) error {
	limit := "20m"
	if soak {
		limit = "120m"
	}
	var said []string
	err := goTest(dir, run, limit, nil, func(e event) {
		top, _, _ := strings.Cut(e.Test, "/")
		key := rows.Test{Dir: dir, Name: top}
		o := outcomes[key]
		if e.Action == "output" {
			said = append(said, e.Output)
			if m := logged.FindStringSubmatch(strings.TrimRight(e.Output, "\n")); m != nil && top != "" {
				o.Figures = append(o.Figures, m[1])
				outcomes[key] = o
			}
		}
		if e.Test != top || !e.ends() {
			return
		}
		if top != "" {
			o.Result, o.Seconds = e.Action, e.Elapsed
			outcomes[key] = o
			fmt.Printf("%-6s %8.1f s  %s\n", e.Action, e.Elapsed, top)
		}
		if e.Action == "fail" {
			fmt.Print(strings.Join(said, ""))
		}
		said = nil
	})
	if err != nil {
		return err
	}
	// A test that took the process down with it has no end of its own.
	for key, o := range outcomes {
		if key.Dir == dir && o.Result == "" {
			o.Result = "fail"
			outcomes[key] = o
		}
	}
	return nil
}

const beside = "\nBeside the rows:\n\n| test | result | seconds |\n|---|---|---|\n"

func write(file string, outcomes map[rows.Test]rows.Outcome, soak bool) error {
	before, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var host unix.Utsname
	if err := unix.Uname(&host); err != nil {
		return err
	}
	var b strings.Builder
	title, by, note := "What holds", "make conformance", "The counts are reduced: `make soak` has those that are promised, and writes docs/soak.md."
	if soak {
		title, by, note = "The long counts", "make soak", "The counts are those that are promised; the figures are what the tests logged."
	}
	fmt.Fprintf(&b, "# %s\n\n`%s` wrote this on %s, kernel %s. %s\nX is another host, H the host, s and p are containers of one network, o is one of another. A row is tested by the functions of\ntests/conformance that are named after it, or by those that tests/conformance/rows names. The kernel lab's kernels are Linux 6.1 and 6.12\n(`make vm`): what ran there needs what other kernels may lack.\n\n",
		title, by, time.Now().Format(time.DateOnly), unix.ByteSliceToString(host.Release[:]), note)
	b.WriteString(rows.Table(outcomes, string(before), soak))
	var others []string
	for t := range outcomes {
		if rows.Of(t) == "" {
			others = append(others, t.Name)
		}
	}
	slices.Sort(others)
	if _, tail, ok := strings.Cut(string(before), beside); ok && len(others) == 0 {
		b.WriteString(beside + tail)
	}
	if len(others) > 0 {
		b.WriteString(beside)
	}
	for _, name := range others {
		o := outcomes[rows.Test{Dir: rows.Dir, Name: name}]
		fmt.Fprintf(&b, "| %s | %s | %.1f |\n", strings.TrimPrefix(name, "Test"), o.Result, o.Seconds)
	}
	return os.WriteFile(file, []byte(b.String()), 0o644)
}
