// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/process"
)

func execCommand(a *app) *cobra.Command {
	var (
		interactive, tty bool
		env              []string
		workdir          string
	)
	cmd := &cobra.Command{
		Use:   "exec [flags] NAME [--] COMMAND [ARG...]",
		Short: "Run a command in a running container",
		Long: `Run a command where a container's own runs: in its network, with its files of
/etc and its host name. In an attached container it is the network alone.`,
		Example: `  bpfnet exec web -- ip addr
  bpfnet exec -it web -- sh`,
		Args: wants(2, -1, "NAME COMMAND"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, command := args[0], args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 || command[0] == "" {
				return usageError(cmd, "wants a command")
			}
			if tty && interactive && !term.IsTerminal(int(a.in.Fd())) {
				return errors.New("-it: the input is no terminal; leave -t away")
			}
			var c *control.Container
			err := a.with(func(m *control.Manager) (err error) {
				c, err = m.Container(name)
				return err
			})
			if err != nil {
				return err
			}
			spec, err := joinSpec(c, tty)
			if err != nil {
				return err
			}
			spec.Args, spec.Stdout, spec.Stderr = command, a.out.file, a.err
			if interactive {
				spec.Stdin = a.in
			}
			if spec.Env, err = mergeEnv(spec.Env, env); err != nil {
				return err
			}
			if workdir != "" {
				spec.Dir = workdir
			}
			return a.execWait(spec)
		},
		ValidArgsFunction: func(cmd *cobra.Command, args []string, to string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return anyFile(cmd, args, to)
			}
			return containerNames(cmd, args, to)
		},
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&interactive, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	f.StringArrayVarP(&env, "env", "e", nil, "environment: `KEY=VALUE`, or KEY as it is here")
	f.StringVarP(&workdir, "workdir", "w", "", "working `directory` of the command")
	return cmd
}

// joinSpec is how another command enters a container.
func joinSpec(c *control.Container, tty bool) (process.Spec, error) {
	if c.Attached {
		s := process.Spec{Netns: c.Netns, NetnsID: c.NetnsID, Env: os.Environ(), TTY: tty}
		s.Dir, _ = os.Getwd()
		return s, nil
	}
	if c.State != control.StateRunning || c.PID == 0 {
		return process.Spec{}, fmt.Errorf("container %s is not running; start it first", c.Name)
	}
	s := process.Spec{Join: c.PID, JoinStart: c.PIDStart, TTY: tty}
	own := *c
	own.TTY = tty
	s.Env = commandEnv(&own)
	s.Dir, _ = getenv(c.Env, "PWD")
	return s, nil
}

func (a *app) execWait(spec process.Spec) error {
	signals := process.Catch()
	defer signals.Stop()
	p, err := process.Start(spec)
	if err != nil {
		return startFailure(err)
	}
	signals.Forward(p)
	restore := func() {}
	if spec.TTY {
		if restore, err = p.Attach(spec.Stdin, a.out.file); err != nil {
			restore = func() {}
			fmt.Fprintf(a.err, "bpfnet: terminal: %s\n", oneLine(err.Error()))
		}
	}
	code, err := p.Wait()
	restore()
	if err != nil {
		return startFailure(err)
	}
	if code != 0 {
		return &exitStatus{code: code}
	}
	return nil
}
