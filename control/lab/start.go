// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
)

// Start starts a command inside ns, in the lab's cgroup, on these CPUs only (none: on any).
// It is in a process group of its own, so that a terminal's Ctrl-C is for the caller alone,
// and is killed with this process, however that ends.
func (l *Lab) Start(ns *netns.NS, cpus []int, cmd *exec.Cmd) error {
	cgroup, err := unix.Open(l.Cgroup, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(cgroup)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL, UseCgroupFD: true, CgroupFD: cgroup}
	st, failed := l.seat(ns), make(chan error, 1)
	select {
	case st.jobs <- func() { failed <- startOn(cpus, cmd) }:
		return <-failed
	case err := <-st.done:
		st.done <- err // for Close
		return err
	}
}

// seat is a thread that stays inside a namespace until the lab is closed: the death
// signal of a child comes when the thread that started it ends.
type seat struct {
	jobs chan func()
	done chan error
}

func (l *Lab) seat(ns *netns.NS) seat {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s, ok := l.seats[ns]; ok {
		return s
	}
	s := seat{make(chan func()), make(chan error, 1)}
	go func() {
		s.done <- ns.Do(func() error {
			for job := range s.jobs {
				job()
			}
			return nil
		})
	}()
	l.seats[ns] = s
	l.OnClose(func() error {
		close(s.jobs)
		return <-s.done
	})
	return s
}

// startOn is called on a locked thread: a child has the CPUs of the thread that starts it.
func startOn(cpus []int, cmd *exec.Cmd) error {
	if len(cpus) == 0 {
		return cmd.Start()
	}
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	for _, c := range cpus {
		set.Set(c)
	}
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	defer func() { _ = unix.SchedSetaffinity(0, &before) }()
	return cmd.Start()
}
