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
	"github.com/bpfnet/bpfnet/tests/dockerd"
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
	e.T.Helper()
	tr := &traffic{e: e, stop: make(chan struct{}), asked: make([]atomic.Int64, n*len(kinds))}
	for i := range tr.asked {
		k := kinds[i%len(kinds)]
		c, err := lab.Dial(k.from, "tcp", "", k.to, dockerd.Soon)
		require.NoError(e.T, err)
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
	tr.e.T.Helper()
	for i := range tr.asked {
		was := tr.asked[i].Load()
		tr.e.Eventually("a connection goes on after "+after, func() bool { return tr.asked[i].Load() > was || tr.failed.Load() != nil })
	}
	if text := tr.failed.Load(); text != nil {
		tr.e.T.Fatalf("after %s: %s", after, *text)
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
	e.Docker("network", "create", "-d", "bpfnet", "n1")
	web := e.RunBox("web", "--net", "n1", "-p", "8080:80", "-p", "8080:80/udp")
	peer := e.RunBox("peer", "--net", "n1")
	lab.ServeTCP(t, e.Client, "world", ":9000")
	published := lab.HostIPv4 + ":8080"
	tr := e.talking(10, talk{e.Client, published}, talk{e.Host, "127.0.0.1:8080"}, talk{peer.NS, web.V4 + ":80"}, talk{peer.NS, lab.ClientIPv4 + ":9000"})
	tr.lives("the start")

	works := func(after string) {
		t.Helper()
		tr.lives(after)
		e.Answers(e.Client, published, "web", lab.ClientIPv4)
	}
	e.StopDaemon()
	works("bpfnet's end")
	e.startDaemon()
	works("bpfnet's start")
	require.NoError(t, e.Daemon.Signal(unix.SIGKILL))
	require.Error(t, e.Daemon.Wait(dockerd.Wait))
	works("bpfnet's kill")
	e.startDaemon() // its socket is still there
	works("bpfnet's start after a kill")
	e.StopEngine()
	works("the Engine's end")
	for _, args := range [][]string{{"nft", "flush", "ruleset"}, {"iptables", "-P", "FORWARD", "DROP"}, {"sysctl", "-qw", "net.ipv4.ip_forward=0"}} {
		_, err := e.Run(e.Host, args[0], args[1:]...)
		require.NoError(t, err)
	}
	works("a flush of the firewall")
	e.StartEngine()
	works("the Engine's start")
	e.KillEngine()
	e.StopDaemon()
	works("both ends")
	e.startDaemon()
	e.StartEngine()
	works("both starts")
	t.Logf("%d connections, %d answers, 0 lost", len(tr.asked), tr.end())

	// The network goes on for containers to come, and those that go.
	third := e.RunBox("third", "--net", "n1", "-p", "8082:80", "-p", "8082:80/udp")
	e.Answers(third.NS, web.V4+":80", "web", third.V4)
	e.Answers(e.Client, lab.HostIPv4+":8082", "third", lab.ClientIPv4)
	e.Docker("rm", "-f", "third", "peer")
	e.Docker("stop", "web")
	require.Empty(t, e.Bpfnet("ps", "-aq"))
	require.NoError(t, e.bind("8080"))
	e.Docker("update", "--restart", "always", "web")
	e.Docker("start", "web")
	e.Find("web")
	e.Answers(e.Client, published, "web", lab.ClientIPv4)

	// Without --live-restore its containers end with an Engine, and come back with it; one
	// that is killed cleans up when it starts.
	e.Flags = nil
	e.StopEngine()
	e.StartEngine()
	e.comesBack("web", published)
	before := e.sandbox("web")
	e.KillEngine()
	e.StartEngine()
	e.Eventually("web has another sandbox", func() bool { return e.sandbox("web") != before })
	e.comesBack("web", published)
	require.Equal(t, e.sandbox("web"), e.Bpfnet("ps", "-aq"))
	e.Docker("rm", "-f", "web")
	e.Docker("network", "rm", "n1")
	require.Empty(t, e.Bpfnet("network", "ls", "-q"))
	devices, err := e.Run(e.Host, "ip", "-br", "link")
	require.NoError(t, err)
	require.NotContains(t, devices, "bpf")
}

func (e *engine) comesBack(name, published string) {
	e.T.Helper()
	e.Eventually(name+" runs", func() bool {
		out, err := e.TryDocker("inspect", "-f", "{{.State.Running}} {{.State.Pid}}", name)
		return err == nil && strings.HasPrefix(out, "true") && !strings.HasSuffix(out, " 0")
	})
	e.Find(name)
	e.Answers(e.Client, published, name, lab.ClientIPv4)
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
	e.Docker("network", "create", "-d", "bpfnet", "n1")
	for i := range rounds {
		t.Run(fmt.Sprint("round ", i+1), func(t *testing.T) { e.in(t).atOnce(20) })
	}
	e.Docker("network", "rm", "n1")
	devices, err := e.Run(e.Host, "ip", "-br", "link")
	require.NoError(t, err)
	require.NotContains(t, devices, "bpf")
}

func (e *engine) atOnce(n int) {
	t := e.T
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
		_, err := e.TryDocker("run", "-d", "--name", name, "--stop-timeout", "0", "--net", "n1", "-p", fmt.Sprintf("%d:80", 8000+i), "box", "sleep", "100000")
		return err
	})
	up := time.Since(start)
	for i := range n {
		b := e.Find(fmt.Sprintf("box%d", i))
		line, err := lab.AskTCP(e.Client, "", fmt.Sprintf("%s:%d", lab.HostIPv4, 8000+i), "hello", dockerd.Soon)
		require.NoError(t, err)
		r, err := lab.ParseReply(line)
		require.NoError(t, err)
		require.Equal(t, b.Name, r.Server)
	}
	start = time.Now()
	all(func(name string, _ int) error { _, err := e.TryDocker("rm", "-f", name); return err })
	t.Logf("%d at once: up in %v, gone in %v", n, up, time.Since(start))
	require.Empty(t, e.Bpfnet("ps", "-aq"))
}
