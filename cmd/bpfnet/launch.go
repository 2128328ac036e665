// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/process"
)

const defaultPath = process.DefaultPath

// launchSpec is how a container's command starts.
func launchSpec(m *control.Manager, c *control.Container) process.Spec {
	dir := m.ContainerDir(c.ID)
	s := process.Spec{
		Args: c.Args, Env: commandEnv(c), Rootfs: c.Rootfs, TTY: c.TTY,
		Netns: c.Netns, NetnsID: c.NetnsID,
		NewMount: true, NewUTS: true, Hostname: c.Hostname,
		Binds: map[string]string{},
	}
	s.Dir, _ = getenv(c.Env, "PWD")
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		if file := filepath.Join(dir, name); exists(file) {
			s.Binds["/etc/"+name] = file
		}
	}
	return s
}

// commandEnv is what a command in a container finds in its environment.
func commandEnv(c *control.Container) []string {
	env := slices.Clone(c.Env)
	if _, ok := getenv(env, "HOSTNAME"); !ok && c.Hostname != "" {
		env = append(env, "HOSTNAME="+c.Hostname)
	}
	if _, ok := getenv(env, "TERM"); !ok && c.TTY {
		term := os.Getenv("TERM")
		if term == "" {
			term = "xterm"
		}
		env = append(env, "TERM="+term)
	}
	return env
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// launched is what supervise says to the one who started it.
type launched struct {
	OK    bool
	Code  int
	Error string
}

// launch starts a process that starts the container's command, waits for it and
// records its end, and returns when the command runs or has failed to
// (*process.StartError). Killing that process does not touch the command.
func (a *app) launch(id string, openStdin bool) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	// What this process inherited is not passed on: a pipe that the caller waits
	// on would stay open as long as the container.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close-on-exec: %w", err)
	}
	args := append([]string{"bpfnet"}, a.globalArgs()...)
	args = append(args, "supervise")
	if openStdin {
		args = append(args, "--interactive")
	}
	cmd := &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        append(args, id),
		ExtraFiles:  []*os.File{w},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("supervisor: %w", err)
	}
	var result launched
	if err := json.NewDecoder(r).Decode(&result); err != nil {
		cmd.Process.Kill()
		state, _ := cmd.Process.Wait()
		return fmt.Errorf("supervisor ended early: %v", state)
	}
	if !result.OK {
		cmd.Wait()
		return &process.StartError{Code: result.Code, Err: errors.New(result.Error)}
	}
	return cmd.Process.Release()
}

// launchedFile is the descriptor on which supervise answers.
const launchedFile = 3

func superviseCommand(a *app) *cobra.Command {
	var openStdin bool
	cmd := &cobra.Command{
		Use:    "supervise ID",
		Hidden: true,
		Short:  "Start a container's command and wait for its end (run -d and start do this)",
		Args:   wants(1, 1, "an ID"),
		RunE: func(_ *cobra.Command, args []string) error {
			kind, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", launchedFile))
			if err != nil || !strings.HasPrefix(kind, "pipe:") {
				return errors.New("supervise: is for bpfnet itself; use start")
			}
			unix.CloseOnExec(launchedFile)
			answer := os.NewFile(launchedFile, "launched")
			p, err := a.superviseStart(args[0], openStdin)
			if err != nil {
				failure := launched{Code: process.CodeFailed, Error: err.Error()}
				var s *process.StartError
				if errors.As(err, &s) {
					failure.Code = s.Code
				}
				return json.NewEncoder(answer).Encode(failure)
			}
			json.NewEncoder(answer).Encode(launched{OK: true})
			answer.Close()
			os.Chdir("/") // keeps no file system busy
			code, err := p.Wait()
			if err != nil {
				code = process.CodeFailed
			}
			return a.with(func(m *control.Manager) error { return finish(m, args[0], p.PID, code) })
		},
	}
	cmd.Flags().BoolVar(&openStdin, "interactive", false, "keep standard input open")
	return cmd
}

func (a *app) superviseStart(id string, openStdin bool) (*process.Process, error) {
	m, err := a.open()
	if err != nil {
		return nil, err
	}
	defer m.Close()
	c, err := m.Container(id)
	if err != nil {
		return nil, err
	}
	spec := launchSpec(m, c)
	spec.TTY, spec.OpenStdin = false, openStdin
	spec.Log = filepath.Join(m.ContainerDir(c.ID), logName)
	spec.Ready = func(pid int) error { return m.Started(c.ID, pid, os.Getpid()) }
	return process.Start(spec)
}
