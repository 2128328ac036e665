// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

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
	return failed.orNil()
}

func (s several) orNil() error {
	if len(s) == 0 {
		return nil
	}
	return s
}

// report prints an error, or that output was lost, and returns the exit status.
func (a *app) report(cmd *cobra.Command, err error) int {
	if err == nil {
		err = a.out.lost
	}
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
	failed := several{err}
	errors.As(err, &failed)
	var lines []string
	for _, e := range failed {
		if !errors.Is(e, a.out.lost) {
			lines = append(lines, oneLine(e.Error()))
		}
	}
	if a.out.lost != nil && !a.out.readerGone() {
		lines = append(lines, oneLine(a.out.lost.Error()))
	}
	for _, line := range slices.Compact(lines) { // without root several have the same
		fmt.Fprintf(a.err, "bpfnet: %s\n", line)
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

// flagError is a flag that cannot be understood.
func flagError(cmd *cobra.Command, err error) error {
	var bad *pflag.InvalidValueError
	if errors.As(err, &bad) {
		return usageError(cmd, "--%s %q: %s", bad.GetFlag().Name, bad.GetValue(), expected(bad.GetFlag(), bad.Unwrap()))
	}
	return usageError(cmd, "%v", err)
}

// expected says what a flag's value should have been.
func expected(f *pflag.Flag, err error) string {
	switch f.Value.Type() {
	case "bool":
		return "not true or false"
	case "int":
		if errors.Is(err, strconv.ErrRange) {
			return "too large"
		}
		return "not a number"
	case "uint16": // all of them
		return "not a port, 1-65535"
	case "duration":
		return "not a time such as 250ms"
	}
	return err.Error()
}

// nameWord is an argument of a usage line that is a name.
var nameWord = regexp.MustCompile(`^(NAME|NETWORK|CONTAINER|TARGET)\b`)

// wants checks the number of arguments, most < 0 is any, and that no name is empty. The
// names are those in the usage line.
func wants(least, most int, names string) cobra.PositionalArgs {
	words := strings.Fields(names)
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least || most >= 0 && len(args) > most {
			return usageError(cmd, "wants %s", names)
		}
		for i, arg := range args {
			if arg == "" && nameWord.MatchString(words[min(i, len(words)-1)]) { // the last is "..."
				return usageError(cmd, "wants %s, got an empty name", names)
			}
		}
		return nil
	}
}

func wantsNothing(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError(cmd, "wants no arguments, got %q", args[0])
	}
	return nil
}

// noCommand is a name below a command that there is not.
func noCommand(cmd *cobra.Command, name string) error {
	if near := cmd.SuggestionsFor(name); len(near) > 0 && name != "" {
		return usageError(cmd, "no command %q, perhaps %q", name, near[0])
	}
	return usageError(cmd, "no command %q", name)
}

// group makes a command that is nothing without one of those below it.
func group(c *cobra.Command) *cobra.Command {
	c.Args = func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return nil
		case cmd.ArgsLenAtDash() == 0:
			return usageError(cmd, "no command before --")
		}
		return noCommand(cmd, args[0])
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	c.SuggestionsMinimumDistance = 2
	return c
}
