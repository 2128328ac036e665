// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/process"
)

const logName = "log" // in a container's directory

func logsCommand(a *app) *cobra.Command {
	var (
		follow bool
		tail   string
	)
	cmd := &cobra.Command{
		Use:   "logs [-f] [--tail N] NAME",
		Short: "Print what a container's command wrote",
		Long: `Print what the command of a container has written that run -d or start started (it
writes to a file by itself: nothing is lost when bpfnet's processes die), or that run -t gave
a terminal. Without either its output goes straight to run's own, through no process of
bpfnet's, and is not kept.`,
		Example: "  bpfnet logs web\n  bpfnet logs -f --tail 10 web",
		Args:    wants(1, 1, "NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			lines := -1
			if tail != "all" {
				n, err := strconv.Atoi(tail)
				if err != nil {
					return fmt.Errorf("--tail %q: a number of lines, or all", tail)
				}
				lines = n
			}
			var c *control.Container
			var path string
			err := a.with(func(m *control.Manager) (err error) {
				if c, err = m.Container(args[0]); err == nil {
					path = filepath.Join(m.ContainerDir(c.ID), logName)
				}
				return err
			})
			if err != nil {
				return err
			}
			log, err := os.Open(path)
			if errors.Is(err, os.ErrNotExist) {
				return nil // has written nothing to a log yet
			}
			if err != nil {
				return err
			}
			defer log.Close()
			if err := seekTail(log, lines); err != nil {
				return err
			}
			if follow && c.State == control.StateRunning && !c.Attached {
				return followLog(a.out, log, c)
			}
			_, err = io.Copy(a.out, log)
			return err
		},
		ValidArgsFunction: containerNames,
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on until the command ends")
	cmd.Flags().StringVarP(&tail, "tail", "n", "all", "`N` lines from the end, or all")
	return cmd
}

// seekTail places a file's position before its last lines; negative: at its start.
func seekTail(f io.ReadSeeker, lines int) error {
	if lines < 0 {
		_, err := f.Seek(0, io.SeekStart)
		return err
	}
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil || lines == 0 {
		return err
	}
	const chunk = 64 << 10
	buf := make([]byte, chunk)
	for at := end; at > 0; {
		n := min(chunk, at)
		at -= n
		if _, err := f.Seek(at, io.SeekStart); err != nil {
			return err
		}
		if _, err := io.ReadFull(f, buf[:n]); err != nil {
			return err
		}
		for rest := buf[:n]; ; {
			i := bytes.LastIndexByte(rest, '\n')
			if i < 0 {
				break
			}
			// The newline at the end of the file ends the last line and begins none.
			if at+int64(i) != end-1 {
				if lines--; lines == 0 {
					_, err := f.Seek(at+int64(i)+1, io.SeekStart)
					return err
				}
			}
			rest = rest[:i]
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// followLog copies a log as it grows, until its command has ended.
func followLog(out io.Writer, log *os.File, c *control.Container) error {
	h, err := process.Open(c.PID, c.PIDStart)
	if errors.Is(err, os.ErrProcessDone) {
		_, err := io.Copy(out, log)
		return err
	}
	if err != nil {
		return err
	}
	defer h.Close()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, fmt.Sprintf("/proc/self/fd/%d", log.Fd()), unix.IN_MODIFY); err != nil {
		return fmt.Errorf("inotify: %w", err)
	}
	events := make([]byte, 4096)
	for {
		// Asked before the copy: what was written until the end is then copied too.
		ended, err := h.Wait(0)
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, log); err != nil || ended {
			return err
		}
		fds := []unix.PollFd{{Fd: int32(watch), Events: unix.POLLIN}, {Fd: int32(h.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return err
		}
		for {
			if n, err := unix.Read(watch, events); err != nil || n < len(events) {
				break
			}
		}
	}
}
