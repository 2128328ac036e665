// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	table "github.com/bpfnet/bpfnet/tests/conformance/rows"
	"github.com/bpfnet/bpfnet/tests/kernellab/verdict"
)

// suite is what one machine runs: the tests of a package, or a program.
type suite struct {
	Package string   // ./loader
	Tests   []string // each has to run; empty: all of them
	Run     string   // or: as for go test -run
	Program bool     // not tests: the package's own program
	Args    []string // of the program
	Modules []string // beyond base
	Files   []string // of the repository, that the tests read; beside their package, as here
	Binary  bool     // the real bpfnet, for BPFNET_BINARY
	Oldest  bool     // -brief runs it on the oldest kernel alone: what newer ones are, this machine's own shows
}

// rows of the conformance table: one of every way that a packet can take, those about what
// kernels differ in, and those that only the lab can run. Modules that a row needs are in kernels.go.
var rows = slices.Concat([]string{
	"TestA1", "TestA2", "TestA3", "TestA3a", "TestA4", "TestA5", // published: from the world and from the host
	"TestA9", "TestA10", // published: from a peer, hairpin
	"TestB9",           // binds of published ports
	"TestC1", "TestC5", // peers, isolation
	"TestD1", "TestD10", // masquerade, and its mapping
	"TestE1Kinds", "TestE1Refused", "TestE2Beyond", "TestE2Network", // ICMP errors, and what is too large
	"TestE3", "TestE3Hostile", // fragments (TestE3AtOnce is of several CPUs, and a machine has one)
	"TestE4Sums", // checksums made before and after us
}, table.InLab)

// suites are in the order of how long they take, the longest first.
var suites = []suite{
	{Package: "./tests/conformance", Tests: rows, Binary: true, Modules: devices, Oldest: true},
	{Package: "./tests/datapath", Oldest: true},
	{Package: "./tests/oracle", Tests: []string{"TestPrograms", "TestSequences"}, Oldest: true},
	{Package: "./loader"},
	{Package: "./maps", Files: []string{"loader/bpf_bpfel.go"}, Oldest: true},
	{Package: "./tests/verifier", Program: true},
}

// counting is the suite that only counts verified instructions.
var counting = suite{Package: "./tests/verifier", Program: true, Args: []string{"-record"}}

// chosen are the suites of a package, all without one. A package that is not among
// them gets a suite of its own. run narrows the tests of a package.
func chosen(pkg, run string) []suite {
	list := slices.Clone(suites)
	if pkg != "" {
		pkg = "./" + path.Clean(strings.TrimSuffix(filepath.ToSlash(pkg), "/"))
		list = slices.DeleteFunc(list, func(s suite) bool { return s.Package != pkg })
		if len(list) == 0 {
			list = []suite{{Package: pkg, Binary: true, Modules: devices}}
		}
	}
	if run != "" {
		for i := range list {
			list[i].Tests, list[i].Run = nil, run
		}
	}
	return list
}

// name of a suite's binary.
func (s suite) name() string {
	if s.Program {
		return path.Base(s.Package)
	}
	return path.Base(s.Package) + ".test"
}

const source = "/src" // the repository, in a machine

// command runs a suite in a machine.
func (s suite) command(limit string) []string {
	line := []string{"/bin/" + s.name()}
	if s.Program {
		return append(line, s.Args...)
	}
	line = append(line, "-test.v", "-test.short", "-test.timeout="+limit)
	if len(s.Tests) > 0 {
		return append(line, "-test.run=^("+strings.Join(s.Tests, "|")+")$")
	}
	if s.Run != "" {
		line = append(line, "-test.run="+s.Run)
	}
	return line
}

// ran says what is wrong with the tests that a suite ran: one that was renamed would be
// missed by nobody.
func (s suite) ran(v verdict.Verdict) string {
	n := v.Passed
	for _, name := range v.NotApplicable {
		if !strings.Contains(name, "/") {
			n++
		}
	}
	if n < len(s.Tests) {
		return fmt.Sprintf("%d tests ran, not %d", n, len(s.Tests))
	}
	if n == 0 && !s.Program {
		return "no test ran"
	}
	return ""
}
