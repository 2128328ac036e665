// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"golang.org/x/sys/unix"
)

// Process is a program in one of the lab's namespaces and in its cgroup.
type Process struct {
	cmd            *exec.Cmd
	stdout, stderr *os.File // without a name
	done           chan struct{}
	err            error
}

// Command prepares a program that will run in the namespace and in the lab's
// cgroup, with l.Env in its environment. Give it to StartCommand; its own Start would
// run it in the caller's namespace.
func (l *Lab) Command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), l.Env()...)
	return cmd
}

// StartCommand starts a program of Command's in the namespace. It is killed, by its
// pid, and waited for when the lab ends.
func (l *Lab) StartCommand(ns *netns.NS, cmd *exec.Cmd) (*Process, error) {
	cgroup, err := unix.Open(l.Cgroup, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", l.Cgroup, err)
	}
	defer unix.Close(cgroup)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, cgroup

	// Files, not pipes: what a program leaves running keeps nobody waiting.
	p := &Process{cmd: cmd, done: make(chan struct{})}
	if p.stdout, err = l.outputFile(); err != nil {
		return nil, err
	}
	if p.stderr, err = l.outputFile(); err != nil {
		return nil, err
	}
	if cmd.Stdout == nil {
		cmd.Stdout = p.stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = p.stderr
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("%s: the lab is closed", cmd.Path)
	}
	// A child inherits the namespace of the thread that forks it.
	if err := ns.Do(cmd.Start); err != nil {
		return nil, err
	}
	l.processes = append(l.processes, p)
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// Start starts a program in the namespace.
func (l *Lab) Start(t testing.TB, ns *netns.NS, name string, args ...string) *Process {
	t.Helper()
	p, err := l.StartCommand(ns, l.Command(name, args...))
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	return p
}

func (l *Lab) outputFile() (*os.File, error) {
	f, err := os.CreateTemp(l.Dir, "output")
	if err == nil {
		err = os.Remove(f.Name())
	}
	return f, err
}

// Run runs a program in the namespace to its end, for at most a minute, and gives what
// it wrote to stdout. The error wraps *exec.ExitError if its status is not 0, and has
// in its text what it wrote to stderr.
func (l *Lab) Run(ns *netns.NS, name string, args ...string) (string, error) {
	p, err := l.StartCommand(ns, l.Command(name, args...))
	if err != nil {
		return "", err
	}
	defer p.close()
	if err := p.Wait(time.Minute); err != nil {
		return p.Stdout(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(p.Stderr()))
	}
	return p.Stdout(), nil
}

// Pid is the process's number.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Stdout is what it wrote so far, unless the caller directed it elsewhere.
func (p *Process) Stdout() string { return contents(p.stdout) }

// Stderr is what it wrote so far, unless the caller directed it elsewhere.
func (p *Process) Stderr() string { return contents(p.stderr) }

func contents(f *os.File) string {
	data, _ := io.ReadAll(io.NewSectionReader(f, 0, 1<<30))
	return string(data)
}

func (p *Process) close() {
	p.stdout.Close()
	p.stderr.Close()
}

// Done is closed when it has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err is how it ended, once Done is closed: nil or an *exec.ExitError.
func (p *Process) Err() error { return p.err }

// Wait waits for its end, and kills it when the limit is over.
func (p *Process) Wait(limit time.Duration) error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(limit):
		p.Kill()
		return fmt.Errorf("does not end within %v", limit)
	}
}

// WaitOutput waits until it has written text to stdout, and says whether it did in time.
func (p *Process) WaitOutput(text string, limit time.Duration) bool {
	return eventually(limit, func() bool { return strings.Contains(p.Stdout(), text) })
}

// Signal sends it a signal.
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill ends it with SIGKILL and waits for that. Ended already is no error.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.done
}
