// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/bpfnet/bpfnet/control/process"
)

// exitStatus ends bpfnet with a status; without an error nothing is printed.
type exitStatus struct {
	code int
	err  error
}

func (e *exitStatus) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitStatus) Unwrap() error { return e.err }

// startFailure gives a command that did not start its exit status.
func startFailure(err error) error {
	var s *process.StartError
	if errors.As(err, &s) {
		return &exitStatus{s.Code, err}
	}
	return &exitStatus{process.CodeFailed, err}
}

// several are the errors of a command with several objects: a line each.
type several []error

func (s several) Error() string { return errors.Join(s...).Error() }

// each does something to all names and returns what went wrong.
func each(names []string, fn func(name string) error) error {
	var failed several
	for _, name := range names {
		if err := fn(name); err != nil {
			failed = append(failed, err)
		}
	}
	if failed == nil {
		return nil
	}
	return failed
}

// report prints an error and returns the exit status.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	code := 1
	if cmd != nil && cmd.Name() == "run" {
		code = process.CodeFailed // as Docker: 1 would be the command's own
	}
	var status *exitStatus
	if errors.As(err, &status) {
		if status.err == nil {
			return status.code
		}
		code = status.code
	}
	lines := several{err}
	errors.As(err, &lines)
	for _, e := range lines {
		fmt.Fprintf(a.err, "bpfnet: %s\n", oneLine(e.Error()))
	}
	return code
}

// oneLine makes a text one line that does nothing to a terminal.
func oneLine(text string) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, text)
}

// usageError is a command line that cannot be understood.
func usageError(cmd *cobra.Command, format string, args ...any) error {
	what := ""
	if cmd.HasParent() {
		what = strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ") + ": "
	}
	return fmt.Errorf("%s%s; see %s --help", what, fmt.Sprintf(format, args...), cmd.CommandPath())
}

// wants checks the number of arguments; max < 0 is any. The names are those in the usage line.
func wants(min, max int, names string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < min || max >= 0 && len(args) > max {
			if names == "" {
				return usageError(cmd, "wants no arguments, got %q", args[0])
			}
			return usageError(cmd, "wants %s", names)
		}
		return nil
	}
}

var wantsNothing = wants(0, 0, "")

// group makes a command that is nothing without one of those below it.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			return usageError(cmd, "no command %q, perhaps %q", args[0], near[0])
		}
		return usageError(cmd, "no command %q", args[0])
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	c.SuggestionsMinimumDistance = 2
	return c
}
