// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
)

// tag is of the tests that need what only the lab's kernels have: nothing else builds them, so
// that none of them has to be skipped.
const tag = "kernellab"

// build makes the static binaries of suites, init and bpfnet in a directory.
func build(dir string, list []suite) error {
	var tests []string
	programs := []string{"./tests/kernellab/init"}
	for _, s := range list {
		switch {
		case s.Program:
			programs = append(programs, s.Package)
		default:
			tests = append(tests, s.Package)
		}
	}
	if slices.ContainsFunc(list, func(s suite) bool { return s.Binary }) {
		programs = append(programs, "./cmd/bpfnet")
	}
	if err := goTool(slices.Concat([]string{"build", "-trimpath", "-ldflags=-s -w", "-o", dir + "/"}, programs)...); err != nil {
		return err
	}
	if len(tests) == 0 {
		return nil
	}
	return goTool(slices.Concat([]string{"test", "-c", "-tags=" + tag, "-ldflags=-s -w", "-o", dir + "/"}, tests)...)
}

func goTool(args ...string) error {
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w: %s", args[0], err, out)
	}
	return nil
}
