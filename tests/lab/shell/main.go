// SPDX-License-Identifier: Apache-2.0

// Command shell builds a lab (see package lab for the drawing) and starts $SHELL in
// its host H; when the shell ends, nothing is left. It is make lab-shell.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/bpfnet/bpfnet/tests/lab"
)

func main() {
	status, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab-shell:", err)
		status = 1
	}
	os.Exit(status)
}

// run starts the command, or a shell without one, and gives its exit status.
func run(command []string) (status int, err error) {
	if len(command) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		command = []string{shell}
	}
	// The shell has the terminal: an interrupt is its own business.
	signal.Ignore(syscall.SIGINT, syscall.SIGQUIT)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	dir, err := os.MkdirTemp("", "bpfnet-lab")
	if err != nil {
		return 0, err
	}
	l, err := lab.Open(dir, lab.HostDefault())
	if err != nil {
		return 0, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() { err = errors.Join(err, l.Close(), os.RemoveAll(dir)) }()

	cmd := l.Command(command[0], command[1:]...)
	client := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), l.Client.FD())
	cmd.Env = append(cmd.Env, "BPFNET_LAB_CLIENT="+client)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	fmt.Fprintf(os.Stderr, `
  X, another host                 H, this shell
  %s, %s ── eth0 ──  %s, %s

  bpfnet works here by itself (BPFNET_NETNS, BPFNET_ROOT, BPFNET_BPFFS, BPFNET_CGROUP).
  In X:  nsenter --net=$BPFNET_LAB_CLIENT COMMAND
  The end of the shell takes everything down.

`, lab.ClientIPv4, lab.ClientIPv6, lab.HostIPv4, lab.HostIPv6)

	p, err := l.StartCommand(l.Host, cmd)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.Done():
	case <-ctx.Done():
		p.Kill()
	}
	var exit *exec.ExitError
	if err := p.Err(); err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return max(cmd.ProcessState.ExitCode(), 0), nil
}
