// SPDX-License-Identifier: Apache-2.0

package main

import (
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// suite is what one machine runs: the tests of a package, or a program.
type suite struct {
	Package string   // ./loader
	Run     string   // the tests, as for go test -run; empty: all
	Program bool     // not tests: the package's own program
	Args    []string // of the program
	Modules []string // beyond base
	Files   []string // of the repository, that the tests read; beside their package, as here
	Binary  bool     // the real bpfnet, for BPFNET_BINARY
}

// rows of the conformance table: one of every kind of way that a packet can take. A
// row that needs a device or protocol that not every kernel has goes here too, and its
// module into Modules; kernels that have it as a module or built in are in series.
var rows = []string{
	"TestA1", "TestA2", "TestA3", "TestA3a", "TestA4", "TestA5", // published: from the world and from the host
	"TestA9", "TestA10", // published: from a peer, hairpin
	"TestC1", "TestC5", // peers, isolation
	"TestD1", // masquerade
}

// suites are in the order of how long they take, the longest first.
var suites = []suite{
	{Package: "./tests/datapath"},
	{Package: "./tests/conformance", Run: "^(" + strings.Join(rows, "|") + ")$", Binary: true, Modules: []string{"inet_diag", "tcp_diag", "udp_diag"}},
	{Package: "./loader"},
	{Package: "./maps", Files: []string{"loader/bpf_bpfel.go"}},
	{Package: "./tests/verifier", Program: true},
}

// counting is the suite that only counts verified instructions.
var counting = suite{Package: "./tests/verifier", Program: true, Args: []string{"-record"}}

// chosen are the suites of a package, all without one. A package that is not among
// them gets a suite of its own.
func chosen(pkg, run string) []suite {
	list := slices.Clone(suites)
	if pkg != "" {
		pkg = "./" + path.Clean(strings.TrimSuffix(filepath.ToSlash(pkg), "/"))
		list = slices.DeleteFunc(list, func(s suite) bool { return s.Package != pkg })
		if len(list) == 0 {
			list = []suite{{Package: pkg, Binary: true}}
		}
	}
	if run != "" {
		list = slices.DeleteFunc(list, func(s suite) bool { return s.Program })
		for i := range list {
			list[i].Run = run
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
	if s.Run != "" {
		line = append(line, "-test.run="+s.Run)
	}
	return line
}
