// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/process"
)

func runCommand(a *app) *cobra.Command {
	var (
		net                      networkFlags
		detach, interactive, tty bool
		remove                   bool
		name, rootfs, workdir    string
		env                      []string
	)
	cmd := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARG...]",
		Short: "Run a command in a container of its own",
		Long: `Run a command with a network, files of /etc and a host name of its own. It sees
the host's files, or those of --rootfs. bpfnet ends with the command's exit status;
125 is a failure of its own, 126 a command that cannot be executed, 127 one that is not found.`,
		Example: `  bpfnet run --rm -- ip addr
  bpfnet run -d --name web -p 8080:80 -- python3 -m http.server 80
  bpfnet run -it --rm --rootfs /srv/alpine -- sh
  bpfnet run -d -p 127.0.0.1:8081:80 -p 8080:80,from=203.0.113.0/24 -- ./server
  bpfnet run --rm --net container:web -- ss -lnt`,
		Args: wants(1, -1, "a command"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "" {
				return usageError(cmd, "wants a command")
			}
			o, err := net.options()
			if err != nil {
				return err
			}
			if rootfs != "" && !path.IsAbs(rootfs) {
				dir, err := os.Getwd()
				if err != nil {
					return err
				}
				rootfs = path.Join(dir, rootfs)
			}
			if o.Env, err = environment(env, rootfs, workdir); err != nil {
				return err
			}
			if workdir != "" && !path.IsAbs(workdir) {
				return fmt.Errorf("--workdir %q: not an absolute path", workdir)
			}
			if tty && interactive && !detach && !term.IsTerminal(int(a.in.Fd())) {
				return errors.New("-it: the input is no terminal; leave -t away")
			}
			o.Name, o.Rootfs, o.AutoRemove, o.Args = name, rootfs, remove, args
			o.TTY = tty && !detach
			if detach {
				return a.runDetached(o, interactive)
			}
			return a.runForeground(o, interactive)
		},
		ValidArgsFunction: anyFile,
	}
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&detach, "detach", "d", false, "run in the background and print the container's ID")
	f.BoolVarP(&interactive, "interactive", "i", false, "pass standard input on (with -d: keep it open)")
	f.BoolVarP(&tty, "tty", "t", false, "give the command a terminal (without -d)")
	f.BoolVar(&remove, "rm", false, "remove the container when the command ends")
	f.StringVar(&name, "name", "", "the container's `name`")
	f.StringArrayVarP(&env, "env", "e", nil, "environment: `KEY=VALUE`, or KEY as it is here")
	f.StringVar(&rootfs, "rootfs", "", "`directory` that is the command's root (default the host's)")
	f.StringVarP(&workdir, "workdir", "w", "", "working `directory` of the command (default this one, / with --rootfs)")
	net.add(cmd)
	complete(cmd, "rootfs", directories)
	complete(cmd, "workdir", directories)
	return cmd
}

// runForeground stays with the command until it ends.
func (a *app) runForeground(o control.ContainerOptions, interactive bool) error {
	m, err := a.open()
	if err != nil {
		return err
	}
	defer m.Close()
	signals := process.Catch() // from here on they are the command's
	defer signals.Stop()
	c, err := m.CreateContainer(o)
	if err != nil {
		return err
	}
	spec := launchSpec(m, c)
	spec.Stdout, spec.Stderr = a.out.file, a.err
	if interactive {
		spec.Stdin = a.in
	}
	if spec.TTY {
		spec.Log = filepath.Join(m.ContainerDir(c.ID), logName)
	}
	spec.Ready = func(pid int) error { return m.Started(c.ID, pid, os.Getpid()) }
	p, err := process.Start(spec)
	if err != nil {
		failure := startFailure(err)
		return a.discard(m, c.ID, failure)
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
		code = process.CodeFailed
	}
	if ended := finish(m, c.ID, p.PID, code); ended != nil {
		err = errors.Join(err, ended)
	}
	if err != nil || code != 0 {
		return &exitStatus{code, err}
	}
	return nil
}

// runDetached leaves the command to a process that waits for it.
func (a *app) runDetached(o control.ContainerOptions, interactive bool) error {
	m, err := a.open()
	if err != nil {
		return err
	}
	defer m.Close()
	c, err := m.CreateContainer(o)
	if err != nil {
		return err
	}
	if err := a.launch(c.ID, interactive); err != nil {
		return a.discard(m, c.ID, startFailure(err))
	}
	if a.json() {
		return a.printJSON([]map[string]string{{"Id": c.ID}})
	}
	fmt.Fprintln(a.out, c.ID)
	return nil
}

// discard removes a container whose command did not start, and says why.
func (a *app) discard(m *control.Manager, id string, why error) error {
	code := process.CodeFailed
	var status *exitStatus
	if errors.As(why, &status) {
		code = status.code
	}
	for _, err := range []error{m.Finished(id, 0, code), m.RemoveContainer(id)} {
		if err != nil && !errors.Is(err, control.ErrNotFound) {
			return &exitStatus{code, fmt.Errorf("%w; and its container: %w", why, err)}
		}
	}
	return why
}
