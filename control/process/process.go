// SPDX-License-Identifier: Apache-2.0

// Package process starts a container's command in namespaces of its own, joins
// a running one, and recognises a command again by its pid and start time.
//
// A command is started in two steps. Start runs this program again as an init
// stage, which enters the namespaces, arranges the mounts and then waits; once
// the caller has recorded the pid (Spec.Ready), the stage executes the command
// in its own place. So there is no moment at which a command runs that nobody
// has written down, and none at which a failure is mistaken for a start.
//
// Programs that call Start must call Init first thing in main (tests: in TestMain).
package process

import (
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Exit statuses of a command that did not start, as a shell and Docker use them.
const (
	CodeFailed        = 125 // our own failure
	CodeNotExecutable = 126
	CodeNotFound      = 127
)

// DefaultPath is searched when Env has no PATH.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Spec says what to start and where. The zero value of a field means: as the caller has it.
type Spec struct {
	Args []string // at least one; Args[0] without a slash is looked up in Env's PATH, inside the root
	Env  []string // all of the command's environment, "KEY=value"
	Dir  string   // working directory, inside the root; "/"

	// Netns is the path of the network namespace to join, NetnsID what must be
	// found there, "device:inode" in decimal ("" accepts any). NetnsFile, when
	// set, is taken instead of Netns.
	Netns     string
	NetnsID   string
	NetnsFile *os.File

	// Join is a process whose mount, UTS and (without Netns) network namespaces
	// the command enters; JoinStart is its start time, see StartTime. Nothing
	// is mounted then and NewMount, NewUTS, Hostname, Binds, Rootfs must be empty.
	Join      int
	JoinStart uint64

	NewMount bool
	NewUTS   bool
	Hostname string            // needs NewUTS
	Binds    map[string]string // file inside the root → file of the host that covers it; needs NewMount
	Rootfs   string            // directory that becomes the root; needs NewMount

	Stdin, Stdout, Stderr *os.File // nil: /dev/null

	// OpenStdin, with Stdin nil, gives the command an input that never ends
	// instead of /dev/null: a shell in the background stays alive.
	OpenStdin bool

	// Log is a file that the command's output is appended to through descriptors
	// of its own, in place of Stdout and Stderr: it goes on when every other process dies.
	// With TTY it gets what the terminal shows, from Process.Attach.
	Log string

	// TTY gives the command a new terminal, in place of Stdin, Stdout and Stderr,
	// which give it no more than the size of a window. It lives as long as the
	// Process that Start returns: see Process.Attach.
	TTY bool

	// Ready is called when nothing but the execution itself is left to do, with
	// the pid that the command will have. Its error cancels the start.
	Ready func(pid int) error
}

// StartError is a command that did not start.
type StartError struct {
	Code int // CodeFailed, CodeNotExecutable, CodeNotFound
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

func failed(err error) error { return &StartError{CodeFailed, err} }

// Process is a command that Start started and the caller waits for.
type Process struct {
	PID   int
	Start uint64 // start time, see StartTime

	cmd   *exec.Cmd
	mount *os.File      // mount namespace of its own, or nil
	tty   *os.File      // our end of its terminal, or nil
	log   *os.File      // what the terminal shows, for later, or nil
	drain chan struct{} // closed when the terminal has been read to its end; nil without Attach

	unfollow func() // ends Attach's following of the window's size, or nil
}

// Start starts a command and returns once it is being executed. Errors are
// *StartError. The command leads a session of its own and inherits no
// descriptors but its standard ones.
func Start(s Spec) (*Process, error) {
	if err := s.check(); err != nil {
		return nil, failed(err)
	}
	var open closers
	defer open.close()

	files, st, err := s.descriptors(&open)
	if err != nil {
		return nil, failed(err)
	}
	specR, specW, err := os.Pipe()
	if err != nil {
		return nil, failed(err)
	}
	open.add(specR, specW)
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return nil, failed(err)
	}
	open.add(reportR, reportW)

	p := &Process{}
	p.cmd = &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        []string{stageName},
		Env:         []string{},
		Dir:         "/",
		ExtraFiles:  append([]*os.File{specR, reportW}, files...),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := p.stdio(&s, &open); err != nil {
		return nil, failed(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.closeTTY()
		return nil, failed(fmt.Errorf("init stage: %w", err))
	}
	p.PID = p.cmd.Process.Pid
	// Only the stage may hold these now: its end must read as end of file here.
	specR.Close()
	reportW.Close()

	if err := p.handshake(&s, st, specW, reportR); err != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.closeTTY()
		p.closeMount()
		return nil, err
	}
	return p, nil
}

func (s *Spec) check() error {
	switch {
	case len(s.Args) == 0 || s.Args[0] == "":
		return errors.New("no command given")
	case s.Join != 0 && (s.NewMount || s.NewUTS || s.Rootfs != "" || len(s.Binds) > 0 || s.Hostname != ""):
		return errors.New("a joined namespace cannot be arranged anew")
	case !s.NewMount && (s.Rootfs != "" || len(s.Binds) > 0):
		return errors.New("a root directory and files of its own need a new mount namespace")
	case !s.NewUTS && s.Hostname != "":
		return errors.New("a hostname needs a new UTS namespace")
	}
	return nil
}

// descriptors opens what the stage is to enter.
func (s *Spec) descriptors(open *closers) ([]*os.File, *stage, error) {
	st := &stage{
		Args: s.Args, Env: s.Env, Dir: s.Dir, NewMount: s.NewMount, NewUTS: s.NewUTS,
		Hostname: s.Hostname, Binds: s.Binds,
	}
	if s.Rootfs != "" {
		root, err := filepath.Abs(s.Rootfs)
		if err == nil {
			root, err = filepath.EvalSymlinks(root)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("rootfs %s: %w", s.Rootfs, errno(err))
		}
		if root != "/" {
			st.Rootfs = root
		}
	}
	var files []*os.File
	pass := func(f *os.File) int {
		files = append(files, f)
		return firstFile + len(files) - 1
	}
	if s.NetnsFile != nil {
		st.Netns = pass(s.NetnsFile)
	} else if s.Netns != "" {
		f, err := openNetns(s.Netns, s.NetnsID)
		if err != nil {
			return nil, nil, err
		}
		open.add(f)
		st.Netns = pass(f)
	}
	if s.Join != 0 {
		ns, err := openNamespaces(s.Join, s.JoinStart)
		if err != nil {
			return nil, nil, err
		}
		open.add(ns.mnt, ns.uts, ns.net)
		st.Mount, st.UTS = pass(ns.mnt), pass(ns.uts)
		if st.Netns == 0 {
			st.Netns = pass(ns.net)
		}
	}
	return files, st, nil
}

func (p *Process) stdio(s *Spec, open *closers) error {
	if s.TTY {
		if s.Log != "" {
			log, err := openLog(s.Log)
			if err != nil {
				return err
			}
			p.log = log
		}
		master, slave, err := pty.Open()
		if err != nil {
			p.closeTTY()
			return fmt.Errorf("terminal: %w", err)
		}
		open.add(slave)
		p.tty = master
		for _, f := range []*os.File{s.Stdin, s.Stdout} {
			if f != nil && term.IsTerminal(int(f.Fd())) {
				pty.InheritSize(f, master)
				break
			}
		}
		p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
		p.cmd.SysProcAttr.Setctty = true
		return nil
	}
	// A nil *os.File in an interface would not be the nil that os/exec looks for.
	if s.Stdin != nil {
		p.cmd.Stdin = s.Stdin
	} else if s.OpenStdin {
		in, err := endlessInput()
		if err != nil {
			return err
		}
		open.add(in)
		p.cmd.Stdin = in
	}
	if s.Log != "" {
		log, err := openLog(s.Log)
		if err != nil {
			return err
		}
		open.add(log)
		p.cmd.Stdout, p.cmd.Stderr = log, log
		return nil
	}
	if s.Stdout != nil {
		p.cmd.Stdout = s.Stdout
	}
	if s.Stderr != nil {
		p.cmd.Stderr = s.Stderr
	}
	return nil
}

func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log: %w", err)
	}
	return f, nil
}

// endlessInput is a pipe whose one descriptor is both of its ends, so that no
// other process has to stay to keep it from ending.
func endlessInput() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	defer w.Close()
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", r.Fd()), os.O_RDWR, 0)
}

func (p *Process) handshake(s *Spec, st *stage, specW, reportR *os.File) error {
	enc, dec := gob.NewEncoder(specW), gob.NewDecoder(reportR)
	if err := enc.Encode(st); err != nil {
		return failed(fmt.Errorf("init stage: %w", err))
	}
	var r report
	if err := dec.Decode(&r); err != nil {
		return failed(fmt.Errorf("init stage ended early: %w", err))
	}
	if !r.Ready {
		return r.asError()
	}
	var err error
	if p.Start, err = StartTime(p.PID); err != nil {
		return failed(err)
	}
	if s.NewMount {
		if p.mount, err = os.Open(fmt.Sprintf("/proc/%d/task/%d/ns/mnt", p.PID, r.Thread)); err != nil {
			return failed(err)
		}
	}
	if s.Ready != nil {
		if err := s.Ready(p.PID); err != nil {
			return failed(err)
		}
	}
	if err := enc.Encode(true); err != nil {
		return failed(fmt.Errorf("init stage: %w", err))
	}
	r = report{}
	switch err := dec.Decode(&r); {
	case err == io.EOF: // closed by the execution
		return nil
	case err != nil:
		return failed(fmt.Errorf("init stage: %w", err))
	}
	return r.asError()
}

// Wait waits for the command to end and returns its exit status: the code, or
// 128 and the number of the signal that ended it. What it left behind in a
// mount namespace of its own is killed. Wait is called once.
func (p *Process) Wait() (int, error) {
	for {
		// Left unreaped until the rest is killed, so that its pid stays its own.
		err := unix.Waitid(unix.P_PID, p.PID, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	if p.mount != nil {
		killRest(p.mount)
		p.closeMount()
	}
	err := p.cmd.Wait()
	if p.drain != nil {
		select {
		case <-p.drain:
		case <-time.After(2 * time.Second):
		}
	}
	p.closeTTY()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	status, _ := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return status.ExitStatus(), nil
}

// Signal sends a signal to the command; os.ErrProcessDone when it has ended.
func (p *Process) Signal(sig os.Signal) error { return p.cmd.Process.Signal(sig) }

func (p *Process) closeTTY() {
	if p.unfollow != nil {
		p.unfollow()
	}
	if p.tty != nil {
		p.tty.Close()
	}
	if p.log != nil {
		p.log.Close()
	}
}

func (p *Process) closeMount() {
	if p.mount != nil {
		p.mount.Close()
		p.mount = nil
	}
}

type closers []*os.File

func (c *closers) add(files ...*os.File) { *c = append(*c, files...) }

// close closes all; those that were closed before are no harm.
func (c *closers) close() {
	for _, f := range *c {
		f.Close()
	}
}

// errno takes the operation and path off a path error whose path is said already.
func errno(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}
