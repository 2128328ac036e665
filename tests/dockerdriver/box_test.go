// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// box is a running container with servers in its namespace: each answers with its name,
// and whom it sees.
type box struct {
	e      *engine
	name   string
	ns     *netns.NS
	v4, v6 string // on one of its networks
}

// run starts a container of docker run's flags, with servers on TCP and UDP ports 80 and 81.
func (e *engine) run(name string, flags ...string) *box {
	e.t.Helper()
	require.NoError(e.t, e.tryRun(name, flags...))
	return e.find(name)
}

func (e *engine) tryRun(name string, flags ...string) error {
	_, err := e.tryDocker(append(append([]string{"run", "-d", "--name", name, "--stop-timeout", "0"}, flags...), "box", "sleep", "100000")...)
	return err
}

// runAll starts containers at once; each is a name and its flags.
func (e *engine) runAll(list ...string) map[string]*box {
	e.t.Helper()
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for i, line := range list {
		wg.Go(func() { f := strings.Fields(line); errs[i] = e.tryRun(f[0], f[1:]...) })
	}
	wg.Wait()
	require.NoError(e.t, errors.Join(errs...))
	boxes := make(map[string]*box)
	for _, line := range list {
		name := strings.Fields(line)[0]
		boxes[name] = e.find(name)
	}
	return boxes
}

// gateway is the first address of the box's /16.
func (b *box) gateway() string {
	parts := strings.Split(b.v4, ".")
	return parts[0] + "." + parts[1] + ".0.1"
}

func (e *engine) find(name string) *box {
	e.t.Helper()
	b := &box{e: e, name: name}
	out := e.docker("inspect", "-f", "{{.State.Pid}} {{range .NetworkSettings.Networks}}{{.IPAddress}},{{.GlobalIPv6Address}} {{end}}", name)
	fields := strings.Fields(out)
	pid, err := strconv.Atoi(fields[0])
	require.NoError(e.t, err)
	b.v4, b.v6, _ = strings.Cut(fields[1], ",")
	b.ns, err = netns.OfPID(pid)
	require.NoError(e.t, err)
	e.t.Cleanup(func() { b.ns.Close() })
	for _, addr := range []string{":80", ":81"} {
		lab.ServeTCP(e.t, b.ns, name, addr)
		lab.ServeUDP(e.t, b.ns, name, addr)
	}
	return b
}

var asks = map[string]func(*netns.NS, string, string, string, time.Duration) (string, error){"tcp": lab.AskTCP, "udp": lab.AskUDP}

// answers requires that a server answers by TCP and UDP, and sees the client as src.
func (e *engine) answers(from *netns.NS, to, server, src string) {
	e.t.Helper()
	for network, ask := range asks {
		line, err := ask(from, "", to, "hello", soon)
		require.NoError(e.t, err, "%s %s", network, to)
		r, err := lab.ParseReply(line)
		require.NoError(e.t, err)
		require.Equal(e.t, server, r.Server, "%s %s", network, to)
		require.Equal(e.t, "hello", r.Payload)
		if src != "" {
			require.Equal(e.t, src, r.Remote.Addr().String(), "%s %s", network, to)
		}
	}
}

// silent requires that nothing gets through, while control does.
func (e *engine) silent(from *netns.NS, to string, fromControl *netns.NS, toControl string) {
	e.t.Helper()
	for network, ask := range asks {
		lab.Unreachable(e.t, network+" "+to,
			func() error { _, err := ask(from, "", to, "hello", 300*time.Millisecond); return err },
			func() error { _, err := ask(fromControl, "", toControl, "hello", soon); return err })
	}
}
