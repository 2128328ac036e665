// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
)

// selfArg makes a test binary that imports this package another program: see Self.
const selfArg = "bpfnet-lab"

// Self is a command line that makes this test binary a small program of its own,
// for what has to be a process: the command of a container, a socket in the lab's
// cgroup. It needs nothing on the machine.
//
//	serve NAME ADDR      serves ADDR by TCP and UDP, as ServeTCP does, for ever
//	bind NETWORK ADDR    binds (and listens, by tcp) and keeps the socket until stdin ends
//	hold                 does nothing, for ever
func Self(args ...string) []string {
	return append([]string{"/proc/" + strconv.Itoa(os.Getpid()) + "/exe", selfArg}, args...)
}

func init() {
	if len(os.Args) > 1 && os.Args[1] == selfArg {
		if err := self(os.Args[2:]); err != nil {
			var errno syscall.Errno
			errors.As(err, &errno)
			fmt.Printf("error %d %v\n", errno, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

func self(args []string) error {
	here, err := netns.Current()
	if err != nil {
		return err
	}
	switch {
	case len(args) == 3 && args[0] == "serve":
		for _, serve := range []func(*netns.NS, string, string) (*Server, error){NewTCPServer, NewUDPServer} {
			if _, err := serve(here, args[1], args[2]); err != nil {
				return err
			}
		}
		fmt.Println("serving")
		select {}
	case len(args) == 3 && args[0] == "bind":
		addr, err := bind(here, args[1], args[2])
		if err != nil {
			return err
		}
		fmt.Println("bound", addr)
		_, err = io.Copy(io.Discard, os.Stdin)
		return err
	case len(args) == 1 && args[0] == "hold":
		fmt.Println("holding")
		for { // the runtime would take select {} for a deadlock
			time.Sleep(time.Hour)
		}
	}
	return fmt.Errorf("unknown: %q", args)
}

func bind(ns *netns.NS, network, addr string) (string, error) {
	serve := NewTCPServer
	if strings.HasPrefix(network, "udp") {
		serve = NewUDPServer
	}
	s, err := serve(ns, "bound", addr)
	if err != nil {
		return "", err
	}
	return s.Addr.String(), nil
}

// Bound is a socket that a process in the lab's cgroup holds, as a service of the host.
type Bound struct {
	Addr  string
	p     *Process
	stdin io.Closer
}

// Bind binds addr ("0.0.0.0:8080", ":0" for both families and any port) by "tcp" or
// "udp" in the namespace, by a process in the lab's cgroup, which answers as ServeTCP
// does. The error wraps the errno that the process got.
func (l *Lab) Bind(ns *netns.NS, network, addr string) (*Bound, error) {
	line := Self("bind", network, addr)
	cmd := l.Command(line[0], line[1:]...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	p, err := l.StartCommand(ns, cmd)
	if err != nil {
		return nil, err
	}
	eventually(10*time.Second, func() bool {
		select {
		case <-p.done:
			return true
		default:
			return strings.Contains(p.Stdout(), "\n")
		}
	})
	first, _ := bufio.NewReader(strings.NewReader(p.Stdout())).ReadString('\n')
	if got, ok := strings.CutPrefix(first, "bound "); ok {
		return &Bound{Addr: strings.TrimSpace(got), p: p, stdin: stdin}, nil
	}
	stdin.Close()
	p.Kill()
	if rest, ok := strings.CutPrefix(first, "error "); ok {
		number, text, _ := strings.Cut(strings.TrimSpace(rest), " ")
		if errno, err := strconv.Atoi(number); err == nil && errno > 0 {
			return nil, fmt.Errorf("%s %s: %w", network, addr, syscall.Errno(errno))
		}
		return nil, errors.New(text)
	}
	return nil, fmt.Errorf("%s %s: no answer: %q %q", network, addr, first, p.Stderr())
}

// Close gives the address back, before it returns.
func (b *Bound) Close() {
	b.stdin.Close()
	b.p.Kill()
	b.p.close()
}

// MustBind is Bind until the test ends.
func (l *Lab) MustBind(t testing.TB, ns *netns.NS, network, addr string) *Bound {
	t.Helper()
	b, err := l.Bind(ns, network, addr)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(b.Close)
	return b
}
