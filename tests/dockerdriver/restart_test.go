// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// traffic is connections that talk all the time.
type traffic struct {
	e      *engine
	stop   chan struct{}
	done   sync.WaitGroup
	asked  []atomic.Int64
	failed atomic.Pointer[string]
}

type talk struct {
	from *netns.NS
	to   string
}

// talking opens n connections of each kind.
func (e *engine) talking(n int, kinds ...talk) *traffic {
	e.t.Helper()
	tr := &traffic{e: e, stop: make(chan struct{}), asked: make([]atomic.Int64, n*len(kinds))}
	for i := range tr.asked {
		k := kinds[i%len(kinds)]
		c, err := lab.Dial(k.from, "tcp", "", k.to, soon)
		require.NoError(e.t, err)
		tr.done.Go(func() {
			defer c.Close()
			for {
				select {
				case <-tr.stop:
					return
				default:
				}
				if _, err := c.Ask("hello", 10*time.Second); err != nil {
					text := fmt.Sprintf("connection %d to %s: %v", i, k.to, err)
					tr.failed.Store(&text)
					return
				}
				tr.asked[i].Add(1)
				time.Sleep(time.Millisecond) // a pace
			}
		})
	}
	return tr
}

// lives requires that every connection has had answers since the last look, and none failed.
func (tr *traffic) lives(after string) {
	tr.e.t.Helper()
	for i := range tr.asked {
		was := tr.asked[i].Load()
		tr.e.eventually("a connection goes on after "+after, func() bool { return tr.asked[i].Load() > was || tr.failed.Load() != nil })
	}
	if text := tr.failed.Load(); text != nil {
		tr.e.t.Fatalf("after %s: %s", after, *text)
	}
}

func (tr *traffic) end() (answers int64) {
	close(tr.stop)
	tr.done.Wait()
	for i := range tr.asked {
		answers += tr.asked[i].Load()
	}
	return answers
}

// Whatever is restarted, in any order: no connection is lost where the container lives on,
// and the network goes on with the same ports.
func TestRestarts(t *testing.T) {
	t.Parallel()
	e := newEngine(t, "--live-restore")
	e.docker("network", "create", "-d", "bpfnet", "n1")
	web := e.run("web", "--net", "n1", "-p", "8080:80", "-p", "8080:80/udp")
	peer := e.run("peer", "--net", "n1")
	lab.ServeTCP(t, e.Client, "world", ":9000")
	published := lab.HostIPv4 + ":8080"
	tr := e.talking(10, talk{e.Client, published}, talk{e.Host, "127.0.0.1:8080"}, talk{peer.ns, web.v4 + ":80"}, talk{peer.ns, lab.ClientIPv4 + ":9000"})
	tr.lives("the start")

	works := func(after string) {
		t.Helper()
		tr.lives(after)
		e.answers(e.Client, published, "web", lab.ClientIPv4)
	}
	e.stopDaemon()
	works("bpfnet's end")
	e.startDaemon()
	works("bpfnet's start")
	require.NoError(t, e.daemon.Signal(unix.SIGKILL))
	require.Error(t, e.daemon.Wait(wait))
	works("bpfnet's kill")
	e.startDaemon() // its socket is still there
	works("bpfnet's start after a kill")
	e.stopEngine()
	works("the Engine's end")
	for _, args := range [][]string{{"nft", "flush", "ruleset"}, {"iptables", "-P", "FORWARD", "DROP"}, {"sysctl", "-qw", "net.ipv4.ip_forward=0"}} {
		_, err := e.Run(e.Host, args[0], args[1:]...)
		require.NoError(t, err)
	}
	works("a flush of the firewall")
	e.startEngine()
	works("the Engine's start")
	e.killEngine()
	e.stopDaemon()
	works("both ends")
	e.startDaemon()
	e.startEngine()
	works("both starts")
	t.Logf("%d connections, %d answers, 0 lost", len(tr.asked), tr.end())

	// The network goes on for containers to come, and those that go.
	third := e.run("third", "--net", "n1", "-p", "8082:80", "-p", "8082:80/udp")
	e.answers(third.ns, web.v4+":80", "web", third.v4)
	e.answers(e.Client, lab.HostIPv4+":8082", "third", lab.ClientIPv4)
	e.docker("rm", "-f", "third", "peer")
	e.docker("stop", "web")
	require.Empty(t, e.bpfnet("ps", "-aq"))
	require.NoError(t, e.bind("8080"))
	e.docker("update", "--restart", "always", "web")
	e.docker("start", "web")
	e.find("web")
	e.answers(e.Client, published, "web", lab.ClientIPv4)

	// Without --live-restore its containers end with an Engine, and come back with it; one
	// that is killed cleans up when it starts.
	e.flags = nil
	e.stopEngine()
	e.startEngine()
	e.comesBack("web", published)
	before := e.sandbox("web")
	e.killEngine()
	e.startEngine()
	e.eventually("web has another sandbox", func() bool { return e.sandbox("web") != before })
	e.comesBack("web", published)
	require.Equal(t, e.sandbox("web"), e.bpfnet("ps", "-aq"))
	e.docker("rm", "-f", "web")
	e.docker("network", "rm", "n1")
	require.Empty(t, e.bpfnet("network", "ls", "-q"))
	devices, err := e.Run(e.Host, "ip", "-br", "link")
	require.NoError(t, err)
	require.NotContains(t, devices, "bpf")
}

func (e *engine) comesBack(name, published string) {
	e.t.Helper()
	e.eventually(name+" runs", func() bool {
		out, err := e.tryDocker("inspect", "-f", "{{.State.Running}} {{.State.Pid}}", name)
		return err == nil && strings.HasPrefix(out, "true") && !strings.HasSuffix(out, " 0")
	})
	e.find(name)
	e.answers(e.Client, published, name, lab.ClientIPv4)
}

// Twenty containers at once, started and stopped: every port leads to its own container, and
// nothing is left over. BPFNET_SOAK=1: fifty times.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	rounds := 1
	if os.Getenv("BPFNET_SOAK") != "" {
		rounds = 50
	}
	e.docker("network", "create", "-d", "bpfnet", "n1")
	for i := range rounds {
		t.Run(fmt.Sprint("round ", i+1), func(t *testing.T) { e.in(t).atOnce(20) })
	}
	e.docker("network", "rm", "n1")
	devices, err := e.Run(e.Host, "ip", "-br", "link")
	require.NoError(t, err)
	require.NotContains(t, devices, "bpf")
}

func (e *engine) atOnce(n int) {
	t := e.t
	all := func(do func(name string, i int) error) {
		t.Helper()
		var wg sync.WaitGroup
		errs := make([]error, n)
		for i := range n {
			wg.Go(func() { errs[i] = do(fmt.Sprintf("box%d", i), i) })
		}
		wg.Wait()
		for _, err := range errs {
			require.NoError(t, err)
		}
	}
	start := time.Now()
	all(func(name string, i int) error {
		_, err := e.tryDocker("run", "-d", "--name", name, "--stop-timeout", "0", "--net", "n1", "-p", fmt.Sprintf("%d:80", 8000+i), "box", "sleep", "100000")
		return err
	})
	up := time.Since(start)
	for i := range n {
		b := e.find(fmt.Sprintf("box%d", i))
		line, err := lab.AskTCP(e.Client, "", fmt.Sprintf("%s:%d", lab.HostIPv4, 8000+i), "hello", soon)
		require.NoError(t, err)
		r, err := lab.ParseReply(line)
		require.NoError(t, err)
		require.Equal(t, b.name, r.Server)
	}
	start = time.Now()
	all(func(name string, _ int) error { _, err := e.tryDocker("rm", "-f", name); return err })
	t.Logf("%d at once: up in %v, gone in %v", n, up, time.Since(start))
	require.Empty(t, e.bpfnet("ps", "-aq"))
}
