// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/process"
)

func startCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "start NAME...",
		Short:   "Start the commands of stopped containers again",
		Example: "  bpfnet start web",
		Args:    wants(1, -1, "NAME..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				if err := a.start(name); err != nil {
					return err
				}
				fmt.Fprintln(a.out, name)
				return nil
			})
		},
		ValidArgsFunction: containerNames,
	}
}

func stopCommand(a *app) *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:   "stop [-t SECONDS] NAME...",
		Short: "Stop the commands of running containers",
		Long: `Stop containers: SIGTERM to the command, SIGKILL if it has not ended in time (a
negative time waits for ever). The container stays, start starts it again.`,
		Example: "  bpfnet stop web\n  bpfnet stop -t 0 web db",
		Args:    wants(1, -1, "NAME..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return a.stopAll(args, grace(seconds), func(name string, err error) error {
				if err == nil {
					fmt.Fprintln(a.out, name)
				}
				return err
			})
		},
		ValidArgsFunction: containerNames,
	}
	timeFlag(cmd, &seconds)
	return cmd
}

func restartCommand(a *app) *cobra.Command {
	var seconds int
	cmd := &cobra.Command{
		Use:     "restart [-t SECONDS] NAME...",
		Short:   "Stop containers and start them again",
		Example: "  bpfnet restart web",
		Args:    wants(1, -1, "NAME..."),
		RunE: func(_ *cobra.Command, args []string) error {
			return each(args, func(name string) error {
				if err := a.restart(name, grace(seconds)); err != nil {
					return err
				}
				fmt.Fprintln(a.out, name)
				return nil
			})
		},
		ValidArgsFunction: containerNames,
	}
	timeFlag(cmd, &seconds)
	return cmd
}

func timeFlag(cmd *cobra.Command, seconds *int) {
	cmd.Flags().IntVarP(seconds, "time", "t", 10, "`seconds` to wait before SIGKILL (also --timeout)")
	cmd.Flags().IntVar(seconds, "timeout", 10, "")
	cmd.Flags().MarkHidden("timeout")
}

func grace(seconds int) time.Duration { return time.Duration(seconds) * time.Second }

func (a *app) start(name string) error {
	return a.with(func(m *control.Manager) error {
		c, err := m.Container(name)
		if err != nil {
			return err
		}
		switch {
		case c.Attached:
			return notOurs(name)
		case c.State == control.StateRunning:
			return nil
		}
		if c, err = m.PrepareStart(c.ID); err != nil {
			return err
		}
		err = a.launch(c.ID, false)
		if err == nil {
			return nil
		}
		code := process.CodeFailed
		var s *process.StartError
		if errors.As(err, &s) {
			code = s.Code
		}
		if ended := m.Finished(c.ID, 0, code); ended != nil && !errors.Is(ended, control.ErrNotFound) {
			err = fmt.Errorf("%w; and its network: %w", err, ended)
		}
		return fmt.Errorf("%s: %w", name, err)
	})
}

func (a *app) restart(name string, grace time.Duration) error {
	m, err := a.open()
	if err != nil {
		return err
	}
	defer m.Close()
	c, err := m.Container(name)
	switch {
	case err != nil:
		return err
	case c.Attached:
		return notOurs(name)
	case c.AutoRemove && c.State == control.StateRunning:
		return fmt.Errorf("%s: was started with --rm: when it stops it is gone", name)
	}
	if err := stop(m, c, grace); err != nil {
		return err
	}
	return a.start(c.ID)
}

func notOurs(name string) error {
	return fmt.Errorf("%s: is attached: its processes are not bpfnet's; rm detaches it", name)
}

// stopAll stops containers side by side: one that takes its time holds up no other. What came
// of each is for each, in their order; its errors are stopAll's.
func (a *app) stopAll(names []string, grace time.Duration, each func(name string, err error) error) error {
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			errs[i] = a.with(func(m *control.Manager) error { // a Manager is for one goroutine
				c, err := m.Container(name)
				if err != nil {
					return err
				}
				return stop(m, c, grace)
			})
		})
	}
	all.Wait()
	var failed several
	for i, err := range errs {
		if err := each(names[i], err); err != nil {
			failed = append(failed, err)
		}
	}
	return failed.orNil()
}

// supervisorLimit bounds the wait for the process that records a command's end.
const supervisorLimit = 5 * time.Second

// stop ends a container's command, in Docker's way, and records it. One that
// does not run is no error.
func stop(m *control.Manager, c *control.Container, grace time.Duration) error {
	if c.Attached {
		return notOurs(c.Name)
	}
	if c.State != control.StateRunning {
		return m.Settle(c.ID)
	}
	h, err := process.Open(c.PID, c.PIDStart)
	over := errors.Is(err, os.ErrProcessDone)
	if err != nil && !over {
		return fmt.Errorf("%s: %w", c.Name, err)
	}
	// Its own record has the real exit code: it goes first, if it is still there.
	supervisor, err := process.Open(c.Supervisor, c.SupStart)
	if err == nil {
		defer supervisor.Close()
	}
	var sent unix.Signal
	if !over {
		defer h.Close()
		if sent, err = h.Stop(grace); err != nil {
			return fmt.Errorf("%s: %w", c.Name, err)
		}
	}
	if supervisor != nil {
		if _, err := supervisor.Wait(supervisorLimit); err != nil {
			return err
		}
	}
	if over {
		return m.Settle(c.ID)
	}
	return finish(m, c.ID, c.PID, 128+int(sent))
}

// finish records the end of a command. It may be gone with --rm.
func finish(m *control.Manager, id string, pid, code int) error {
	if err := m.Finished(id, pid, code); err != nil && !errors.Is(err, control.ErrNotFound) {
		return err
	}
	return nil
}
