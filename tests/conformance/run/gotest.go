// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
)

// event is what go test -json prints, see go doc test2json.
type event struct {
	Action, Test, Output string
	Elapsed              float64
}

// ends says whether it is the result of a test, or of the package (an empty Test).
func (e event) ends() bool { return e.Action == "pass" || e.Action == "fail" || e.Action == "skip" }

// goTest runs tests of a directory and hands on what go test says. That some fail is no
// error; that there is no result is one.
func goTest(dir, run, limit string, env []string, each func(event), args ...string) error {
	cmd := exec.Command("go", append(append([]string{"test", "-json", "-count=1", "-timeout", limit, "-run", run}, args...), "./"+dir)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	over := false
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		over = over || e.Test == "" && e.ends()
		each(e)
	}
	if err := cmd.Wait(); err != nil && !over {
		return fmt.Errorf("%s: %w", dir, err)
	}
	return nil
}
