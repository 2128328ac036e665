// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// probeArg makes this test binary a process in a lab's cgroup that does with sockets
// what it is told, a line each, and answers with a line.
const probeArg = "bpfnet-probe"

func init() {
	if len(os.Args) < 2 || os.Args[1] != probeArg {
		return
	}
	p := &probeProcess{sockets: make(map[string]int)}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if answer, err := p.do(strings.Fields(in.Text())); err == nil {
			fmt.Println("ok", answer)
		} else {
			var errno unix.Errno
			errors.As(err, &errno)
			fmt.Println("error", int(errno), err)
		}
	}
	os.Exit(0)
}

type probeProcess struct {
	idle    []*lab.Conn
	sockets map[string]int
	calm    chan struct{}
	report  chan string
}

func (p *probeProcess) do(args []string) (string, error) {
	switch {
	case args[0] == "bind" && len(args) == 3:
		fd, port, err := openSocket(args[1], args[2])
		if err == nil {
			p.sockets[args[1]+" "+args[2]] = fd
		}
		return strconv.Itoa(port), err
	case args[0] == "close" && len(args) == 3:
		key := args[1] + " " + args[2]
		fd, ok := p.sockets[key]
		if !ok {
			return "", errors.New("no such socket")
		}
		delete(p.sockets, key)
		return "", unix.Close(fd)
	case args[0] == "hangup" && len(args) == 3: // NETWORK ADDR: takes a connection, and ends it
		conn, _, err := unix.Accept(p.sockets[args[1]+" "+args[2]])
		if err != nil {
			return "", err
		}
		return "", unix.Close(conn)
	case args[0] == "churn" && len(args) == 3: // NETWORK N: binds any port N times
		n, _ := strconv.Atoi(args[2])
		for range n {
			fd, _, err := openSocket(args[1], anyAddress(args[1]))
			if err != nil {
				return "", err
			}
			unix.Close(fd)
		}
		return "", nil
	case args[0] == "connect" && len(args) == 4: // NETWORK ADDR N: asks N times, from any port
		n, _ := strconv.Atoi(args[3])
		here, err := netns.Current()
		if err != nil {
			return "", err
		}
		defer here.Close()
		for range n {
			if _, err := ask(here, args[1], "", args[2], wait); err != nil {
				return "", err
			}
		}
		return "", nil
	case args[0] == "idle" && len(args) == 4: // PROTO ADDR N: opens up to N more, and says how many
		n, _ := strconv.Atoi(args[3])
		here, err := netns.Current()
		if err != nil {
			return "", err
		}
		defer here.Close()
		conns, err := openIdle(args[1], here, args[2], n)
		conns = slices.DeleteFunc(conns, func(c *lab.Conn) bool { return c == nil })
		p.idle = append(p.idle, conns...)
		return fmt.Sprintf("%d %v", len(conns), err), nil
	case args[0] == "alive" && len(args) == 1: // how many of those are answered
		return strconv.Itoa(alive(p.idle)), nil
	case args[0] == "drop" && len(args) == 1: // closes those
		closeAll(p.idle)
		p.idle = nil
		return "", nil
	case args[0] == "storm" && len(args) == 3: // FIRST LAST: see storm
		first, _ := strconv.Atoi(args[1])
		last, _ := strconv.Atoi(args[2])
		p.calm, p.report = make(chan struct{}), make(chan string)
		go func() { p.report <- storm(first, last, p.calm) }()
		return "", nil
	case args[0] == "calm":
		close(p.calm)
		return <-p.report, nil
	}
	return "", fmt.Errorf("unknown: %q", args)
}

func anyAddress(network string) string {
	if strings.HasSuffix(network, "4") {
		return "0.0.0.0:0"
	}
	return "[::]:0"
}

// openSocket binds, and by TCP listens. The network is tcp or udp; with 6 behind it :: is
// for IPv6 only; with +reuse the socket has SO_REUSEADDR, as servers have.
func openSocket(network, address string) (fd, port int, err error) {
	network, reuse := strings.CutSuffix(network, "+reuse")
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0, 0, err
	}
	kind, family := unix.SOCK_STREAM, unix.AF_INET
	if strings.HasPrefix(network, "udp") {
		kind = unix.SOCK_DGRAM
	}
	if at.Addr().Is6() {
		family = unix.AF_INET6
	}
	if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0); err != nil {
		return 0, 0, err
	}
	if port, err = bindSocket(fd, at, kind, reuse, strings.HasSuffix(network, "6")); err != nil {
		unix.Close(fd)
	}
	return fd, port, err
}

func bindSocket(fd int, at netip.AddrPort, kind int, reuse, only6 bool) (port int, err error) {
	flag := map[bool]int{true: 1}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, flag[reuse]); err != nil {
		return 0, err
	}
	var sa unix.Sockaddr
	if at.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(at.Port()), Addr: at.Addr().As4()}
	} else {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, flag[only6]); err != nil {
			return 0, err
		}
		sa = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return 0, err
	}
	if kind == unix.SOCK_STREAM {
		if err := unix.Listen(fd, 16); err != nil {
			return 0, err
		}
	}
	got, err := unix.Getsockname(fd)
	switch a := got.(type) {
	case *unix.SockaddrInet4:
		port = a.Port
	case *unix.SockaddrInet6:
		port = a.Port
	}
	return port, err
}

// held is a port that a process of the host has; times are nanoseconds of CLOCK_MONOTONIC.
type held struct {
	network    string
	port       int
	from, took int64 // since when, and how long the bind took
}

// storm binds ports of a range at random, by TCP and UDP, in both families, up to a hundred at a
// time, keeps each for ten milliseconds, and tells at the end which it had when:
// "tcp6:40001:FROM:TOOK:END ...". FROM is read after the bind, which took TOOK, END before the close.
func storm(first, last int, calm chan struct{}) string {
	var told strings.Builder
	type open struct {
		held
		fd int
	}
	end := func(o open) {
		fmt.Fprintf(&told, "%s:%d:%d:%d:%d ", o.network, o.port, o.from, o.took, monotonic())
		unix.Close(o.fd)
	}
	var list []open // the oldest first
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-calm:
			for _, o := range list {
				end(o)
			}
			return told.String()
		case <-tick.C:
		}
		for len(list) > 0 && monotonic()-list[0].from > 10e6 {
			end(list[0])
			list = list[1:]
		}
		for tries := 0; len(list) < 100 && tries < 100; tries++ {
			network := []string{"tcp4", "tcp6", "tcp", "udp4", "udp6", "udp"}[rand.IntN(6)]
			port := first + rand.IntN(last-first+1)
			address := fmt.Sprintf("[::]:%d", port)
			if strings.HasSuffix(network, "4") {
				address = fmt.Sprintf("0.0.0.0:%d", port)
			}
			start := monotonic()
			fd, _, err := openSocket(network, address)
			if err == nil {
				now := monotonic()
				list = append(list, open{held{network, port, now, now - start}, fd})
			}
		}
	}
}

func monotonic() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Nano()
}

// probe is a probeProcess as the test has it.
type probe struct {
	t   testing.TB
	in  io.Writer
	out *bufio.Reader
}

// probe starts one in a namespace and in the lab's cgroup.
func (c *cast) probe(ns *netns.NS) *probe {
	c.t.Helper()
	self := "/proc/" + strconv.Itoa(os.Getpid()) + "/exe"
	cmd := c.Command(self, probeArg)
	in, err := cmd.StdinPipe()
	require.NoError(c.t, err)
	r, w, err := os.Pipe()
	require.NoError(c.t, err)
	cmd.Stdout = w
	_, err = c.StartCommand(ns, cmd)
	w.Close()
	require.NoError(c.t, err)
	c.t.Cleanup(func() { in.Close(); r.Close() })
	return &probe{c.t, in, bufio.NewReaderSize(r, 1<<20)}
}

// do gives an order. The error is the errno that the process got.
func (p *probe) do(format string, args ...any) (string, error) {
	p.t.Helper()
	_, err := fmt.Fprintf(p.in, format+"\n", args...)
	require.NoError(p.t, err)
	line, err := p.out.ReadString('\n')
	require.NoError(p.t, err)
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	if word == "ok" {
		return rest, nil
	}
	number, text, _ := strings.Cut(rest, " ")
	if errno, _ := strconv.Atoi(number); errno != 0 {
		return "", unix.Errno(errno)
	}
	return "", errors.New(text)
}

// holds binds and keeps what it got until closes.
func (p *probe) holds(network, address string) {
	p.t.Helper()
	_, err := p.do("bind %s %s", network, address)
	require.NoError(p.t, err, "%s %s", network, address)
}

func (p *probe) closes(network, address string) {
	p.t.Helper()
	_, err := p.do("close %s %s", network, address)
	require.NoError(p.t, err)
}

// hangsUp has it take a connection to a socket that it holds, and end it.
func (p *probe) hangsUp(network, address string) {
	p.t.Helper()
	_, err := p.do("hangup %s %s", network, address)
	require.NoError(p.t, err)
}

// free requires that a port can be bound, and gives it back.
func (p *probe) free(network, address string) {
	p.t.Helper()
	p.holds(network, address)
	p.closes(network, address)
}

// taken requires that a bind is refused with EADDRINUSE.
func (p *probe) taken(network, address string) {
	p.t.Helper()
	_, err := p.do("bind %s %s", network, address)
	if err == nil {
		p.closes(network, address)
	}
	require.ErrorIs(p.t, err, unix.EADDRINUSE, "%s %s", network, address)
}
