// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// traffic is connections that ask again and again; each of them has to live.
type traffic struct {
	t     testing.TB
	stop  atomic.Bool
	asked atomic.Int64
	wg    sync.WaitGroup
	mu    sync.Mutex
	lost  []string
}

func (e *engine) traffic(from *netns.NS, to string, n int) *traffic {
	e.T.Helper()
	tr := &traffic{t: e.T}
	for i := range n {
		for _, network := range []string{"tcp", "udp"} {
			c, err := lab.Dial(from, network, "", to, dockerd.Soon)
			require.NoError(e.T, err)
			tr.wg.Go(func() {
				defer c.Close()
				for !tr.stop.Load() {
					if _, err := c.Ask(fmt.Sprint(i), dockerd.Wait); err != nil {
						tr.mu.Lock()
						tr.lost = append(tr.lost, network+": "+err.Error())
						tr.mu.Unlock()
						return
					}
					tr.asked.Add(1)
					time.Sleep(time.Millisecond) // a pace, not a dockerd.Wait
				}
			})
		}
	}
	return tr
}

// goesOn waits until everybody may have asked again, and says what was lost so far.
func (tr *traffic) goesOn() {
	tr.t.Helper()
	before := tr.asked.Load()
	require.Eventually(tr.t, func() bool { return tr.asked.Load() > before+200 }, dockerd.Wait, time.Millisecond)
	tr.mu.Lock()
	defer tr.mu.Unlock()
	require.Empty(tr.t, tr.lost)
}

func (tr *traffic) end() {
	tr.t.Helper()
	tr.goesOn()
	tr.stop.Store(true)
	tr.wg.Wait()
	require.Empty(tr.t, tr.lost)
}

// The Engine restarted, the daemon restarted, the firewall flushed, in any order, under
// traffic: no connection is lost where the container lives on.
func TestRestarts(t *testing.T) {
	e := newEngine(t, "--live-restore")
	web := e.RunBox("web", "-p", "8080:80", "-p", "8080:80/udp")
	e.RunBox("peer")
	e.adopted("web", "peer")
	to := lab.HostIPv4 + ":8080"
	outside, inside := e.traffic(e.Client, to, 5), e.traffic(e.Host, "127.0.0.1:8080", 5)
	check := func(what string) {
		t.Helper()
		outside.goesOn()
		inside.goesOn()
		e.Answers(e.Client, to, "web", lab.ClientIPv4)
		e.Answers(e.Host, web.V4+":81", "web", "")
		t.Log(what)
	}
	engine := func() {
		e.StopEngine()
		check("without the Engine")
		e.StartEngine()
		e.Eventually("the Engine knows web", func() bool { return e.Docker("port", "web") != "" })
		check("with the Engine again")
	}
	daemon := func() {
		e.StopDaemon()
		check("without the daemon")
		e.startDaemon()
		check("with the daemon again")
	}
	flush := func() {
		lab.Sysctl(t, e.Host, "ipv4/ip_forward", "0")
		for _, line := range []string{"flush ruleset", "add table inet theirs",
			"add chain inet theirs f { type filter hook forward priority 0; policy drop; }"} {
			_, err := e.Run(e.Host, "nft", line)
			require.NoError(t, err)
		}
		check("a firewall that forwards nothing")
		_, err := e.Run(e.Host, "nft", "flush ruleset")
		require.NoError(t, err)
		check("the firewall flushed")
	}
	engine()
	daemon()
	flush()
	e.StopDaemon()
	engine()
	flush()
	e.startDaemon()
	check("the daemon back after the Engine")
	e.Bpfnet("reconcile")
	check("reconciled")
	outside.end()
	inside.end()
	require.Zero(t, e.counter("bind_refused"), "the Engine binds its ports again")
	require.Contains(t, e.Bpfnet("port", "web"), "0.0.0.0:8080")
}

// What ran before the daemon came is taken over; what ended while it was away is let go.
func TestTakeOver(t *testing.T) {
	e := newEngineAlone(t)
	e.Docker("network", "create", "n1")
	e.RunBox("web", "-p", "8080:80", "-p", "8080:80/udp")
	e.RunBox("own", "--net", "n1", "-p", "8081:80", "-p", "8081:80/udp")
	e.startDaemon()
	e.Answers(e.Client, lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	e.Answers(e.Client, lab.HostIPv4+":8081", "own", lab.ClientIPv4)

	e.StopDaemon()
	e.Docker("rm", "-f", "own")
	e.Docker("network", "rm", "n1")
	e.RunBox("late", "-p", "8082:80", "-p", "8082:80/udp")
	e.startDaemon()
	e.Answers(e.Client, lab.HostIPv4+":8082", "late", lab.ClientIPv4)
	require.NotContains(t, e.Bpfnet("network", "ls"), "docker/n1")
	require.NotContains(t, e.Bpfnet("ps"), "docker/own")

	// Without live-restore the Engine ends its containers, and starts none.
	e.StopEngine()
	e.StartEngine()
	e.Eventually("all let go", func() bool { return e.Bpfnet("ps", "-q") == "" })
	e.Docker("rm", "-f", "web")
	e.Docker("rm", "-f", "late")
	e.Docker("run", "-d", "--name", "last", "-p", "8083:80", "box", "sleep", "1000")
	e.adopted("last")

	// Uninstalled, the daemon ends, and what is the Engine's is as it was.
	e.Bpfnet("uninstall")
	require.NoError(t, e.Daemon.Wait(dockerd.Wait))
	require.NotNil(t, lab.Link(t, e.Host, "docker0"))
	_, err := e.Run(e.Host, "ls", e.Root)
	require.Error(t, err)
}
