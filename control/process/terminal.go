// SPDX-License-Identifier: Apache-2.0

package process

import (
	"io"
	"os"
	"os/signal"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Attach joins the terminal of a command that was started with TTY to the
// caller's: what comes from in (nil: nothing) is typed there, what the command
// writes goes to out and to Spec.Log. If in is a terminal it is put into raw mode, and its
// window's size followed; restore undoes that and must be called before the caller ends.
func (p *Process) Attach(in, out *os.File) (restore func(), err error) {
	restore = func() {}
	sized := out
	if in != nil && term.IsTerminal(int(in.Fd())) {
		sized = in
		old, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, err
		}
		restore = func() { term.Restore(int(in.Fd()), old) }
	}
	if term.IsTerminal(int(sized.Fd())) {
		pty.InheritSize(sized, p.tty)
		p.follow(sized)
	}
	if in != nil {
		go io.Copy(p.tty, in)
	}
	p.drain = make(chan struct{})
	go func() {
		io.Copy(&shown{p, out, p.log}, p.tty)
		close(p.drain)
	}()
	return restore, nil
}

// shown is where a terminal's output goes. A log that cannot be written any more
// keeps nothing from the user; a user who is gone has closed the terminal (SIGHUP).
type shown struct {
	p        *Process
	out, log *os.File
}

func (s *shown) Write(b []byte) (int, error) {
	if s.log != nil {
		if _, err := s.log.Write(b); err != nil {
			s.log = nil
		}
	}
	if s.out != nil {
		if _, err := s.out.Write(b); err != nil {
			s.out = nil
			s.p.Signal(unix.SIGHUP)
		}
	}
	return len(b), nil
}

// follow gives the command's terminal the size of another until unfollow.
func (p *Process) follow(sized *os.File) {
	resized, done := make(chan os.Signal, 1), make(chan struct{})
	signal.Notify(resized, unix.SIGWINCH)
	go func() {
		defer close(done)
		for range resized {
			pty.InheritSize(sized, p.tty)
		}
	}()
	p.unfollow = func() {
		signal.Stop(resized)
		close(resized)
		<-done
	}
}
