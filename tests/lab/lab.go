// SPDX-License-Identifier: Apache-2.0

// Package lab builds what the tests run in: a host, and another host beside it,
// in network namespaces of their own. Nothing outside of them is changed.
//
//	   X, "another host"                        H, the host                     made by what is tested
//	┌──────────────────────┐          ┌───────────────────────────────┐         ┌──────────────────┐
//	│  203.0.113.2/24      │  uplink  │  203.0.113.1/24               │  veth   │ container        │
//	│  2001:db8:113::2/64  ├──────────┤  2001:db8:113::1/64           ├─────────┤                  │
//	│                 eth0 │          │ eth0                  bridges │         │ eth0             │
//	└──────────────────────┘          │                               │         └──────────────────┘
//	┌──────────────────────┐  uplink  │                               │
//	│ AddClient        eth0 ├─────────┤ eth1, eth2, …                 │
//	└──────────────────────┘          └───────────────────────────────┘
//
// X has no route to what is behind H unless RouteToHost is asked for; H has none
// beyond its uplinks unless HostDefault is. bridge-nf and forwarding are as the kernel
// makes them in a new namespace.
//
// H has what a second bpfnet on one machine needs: a root directory, a bpffs and a
// cgroup of its own. A test drives the product in H by l.Env or by l.Root and its
// fellows, and the world with the helpers of this package: ServeTCP and AskTCP and their
// like, Ping, Inject and Capture, and Unreachable for what must not get through.
package lab

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
)

// The addresses of the drawing.
const (
	HostIPv4   = "203.0.113.1"
	HostIPv6   = "2001:db8:113::1"
	ClientIPv4 = "203.0.113.2"
	ClientIPv6 = "2001:db8:113::2"
)

// Lab is one drawing, built. Its fields are not changed.
type Lab struct {
	Host   *netns.NS
	Client *netns.NS // X
	X      *Client   // X again, with its cable

	Dir       string // everything that the lab keeps on disk
	Root      string // for --root: empty at first
	BPFFS     string // for --bpffs: an empty directory of a bpffs of the lab's own
	Cgroup    string // for --cgroup: processes of Command, Run and Start are in it
	NetnsPath string // for --netns: H, as long as this process lives

	name      string // bpfnet-lab-PID-RANDOM: of the cgroup, and the source of the bpffs mount
	bpffsRoot string
	o         options
	patience  time.Duration // with what has been let go but is still there

	mu         sync.Mutex
	namespaces []*netns.NS // all that the lab made
	clients    []*Client
	processes  []*Process
	traces     []*trace
	closed     bool
}

type options struct {
	routeToHost bool
	hostDefault bool
	trace       bool
}

// Option changes the drawing.
type Option func(*options)

// RouteToHost gives X a default route to H: X can try to reach what is behind it.
func RouteToHost() Option { return func(o *options) { o.routeToHost = true } }

// HostDefault gives H a default route to X, which then plays the world.
func HostDefault() Option { return func(o *options) { o.hostDefault = true } }

// Trace keeps the last packets of every device of H and X, and writes them to a
// file if the test fails. It is on for all labs if the environment has
// BPFNET_PCAP_DIR, which says where to. Not for tests that measure time.
func Trace() Option { return func(o *options) { o.trace = true } }

// New builds a lab that is taken down when the test ends; the test fails if
// something of it is left then.
func New(t testing.TB, opts ...Option) *Lab {
	t.Helper()
	l, err := Open(t.TempDir(), opts...)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.writeTraces(t)
		}
		if err := l.Close(); err != nil {
			t.Errorf("lab: %v", err)
		}
	})
	return l
}

// Open is New for programs that are no tests. It keeps its files in dir, which has to exist.
func Open(dir string, opts ...Option) (l *Lab, err error) {
	l = &Lab{Dir: dir, Root: filepath.Join(dir, "root"), patience: 5 * time.Second,
		name: fmt.Sprintf("%s%d-%06x", namePrefix, os.Getpid(), rand.IntN(1<<24))}
	for _, opt := range opts {
		opt(&l.o)
	}
	if os.Getenv(pcapDirVar) != "" {
		l.o.trace = true
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("root is needed")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	sweep()
	if err := os.Mkdir(l.Root, 0o700); err != nil {
		return nil, err
	}
	if err := l.mountBPFFS(); err != nil {
		return nil, err
	}
	if err := l.makeCgroup(); err != nil {
		return nil, err
	}
	if l.Host, err = l.newNS("H"); err != nil {
		return nil, err
	}
	l.NetnsPath = procPath(l.Host)
	if l.X, err = l.addClient("X", HostIPv4+"/24", HostIPv6+"/64"); err != nil {
		return nil, err
	}
	l.Client = l.X.NS
	if l.o.routeToHost {
		if err := addDefaults(l.Client, HostIPv4, HostIPv6); err != nil {
			return nil, err
		}
	}
	if l.o.hostDefault {
		if err := addDefaults(l.Host, ClientIPv4, ClientIPv6); err != nil {
			return nil, err
		}
	}
	return l, nil
}

func addDefaults(ns *netns.NS, v4, v6 string) error {
	return errors.Join(addRoute(ns, netip.MustParsePrefix("0.0.0.0/0"), netip.MustParseAddr(v4)),
		addRoute(ns, netip.MustParsePrefix("::/0"), netip.MustParseAddr(v6)))
}

// procPath names a namespace for other processes. Unlike a bind mount it goes with
// this process, however that ends.
func procPath(ns *netns.NS) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()) }

// Env is the environment by which the product works on H.
func (l *Lab) Env() []string {
	return []string{
		"BPFNET_NETNS=" + l.NetnsPath,
		"BPFNET_ROOT=" + l.Root,
		"BPFNET_BPFFS=" + l.BPFFS,
		"BPFNET_CGROUP=" + l.Cgroup,
	}
}

// Close ends every process that the lab started and what they left running in its
// cgroup, takes everything down, and says what could not be.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	processes, traces, namespaces := l.processes, l.traces, l.namespaces
	l.mu.Unlock()

	var errs []error
	for _, p := range processes {
		p.Kill()
		p.close()
	}
	errs = append(errs, l.emptyCgroup())
	for _, tr := range traces {
		tr.stop(false)
	}
	errs = append(errs, l.unmountAll(), l.removeCgroup(), l.checkGone(namespaces))
	for _, ns := range namespaces {
		errs = append(errs, ns.Close())
	}
	return errors.Join(errs...)
}

// eventually waits until done says so, for at most the limit.
func eventually(limit time.Duration, done func() bool) bool {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return done()
		case <-tick.C:
		}
	}
	return true
}
