// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Signals are those that came to this process since Catch and are meant for the
// command that it runs.
type Signals struct {
	c chan os.Signal
}

// Catch begins to collect the signals of this process in place of dying of
// them. Not caught: those that the runtime lives on, those that stop a job, and
// those that the caller's parent had ignored (nohup).
func Catch() *Signals {
	var list []os.Signal
	for n := unix.Signal(1); n <= 64; n++ {
		switch n {
		case unix.SIGKILL, unix.SIGSTOP, unix.SIGTSTP, unix.SIGTTIN, unix.SIGTTOU,
			unix.SIGCHLD, unix.SIGURG, unix.SIGPIPE, unix.SIGPROF, unix.SIGWINCH,
			unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSYS, 32, 33, 34:
			continue
		}
		if !signal.Ignored(n) {
			list = append(list, n)
		}
	}
	s := &Signals{make(chan os.Signal, 64)}
	signal.Notify(s.c, list...)
	return s
}

// Forward hands them on to a command, those from before it was started first.
func (s *Signals) Forward(p *Process) {
	go func() {
		for sig := range s.c {
			p.Signal(sig)
		}
	}()
}

// Stop gives the signals their former meaning.
func (s *Signals) Stop() {
	signal.Stop(s.c)
	close(s.c)
}
