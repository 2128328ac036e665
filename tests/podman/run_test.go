// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
	"github.com/bpfnet/bpfnet/tests/needs"
)

// run -p in its forms, port, stop, start, rm: the container answers, not podman's sockets, and
// sees who asks.
func TestPublished(t *testing.T) {
	e := newEngine(t)
	e.web("web", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "9000-9009:80-89", "-p", "80/tcp")
	e.web("peer")
	e.answers(e.Client, lab.HostIPv4+":8080", "web saw "+lab.ClientIPv4)
	e.answers(e.Host, "127.0.0.1:8080", "web saw 10.88.0.1")
	e.answers(e.Host, lab.HostIPv4+":8080", "web saw 10.88.0.1")
	e.answers(e.Host, "127.0.0.1:8081", "web saw 10.88.0.1")
	e.silent(e.Client, lab.HostIPv4+":8081")
	e.answers(e.Client, lab.HostIPv4+":9000", "web saw "+lab.ClientIPv4)
	for _, to := range []string{lab.HostIPv4 + ":8080", e.address("web", "podman")} {
		require.Equal(t, "web saw "+e.address("peer", "podman"), e.must("exec", "peer", "wget", "-qO-", "http://"+to+"/cgi-bin/who"))
	}

	// podman chose a port itself, and shows all of them.
	ports := e.must("port", "web")
	require.Contains(t, ports, "80/tcp -> 0.0.0.0:8080")
	require.Contains(t, ports, "89/tcp -> 0.0.0.0:9009")
	c, err := e.m.Container("web")
	require.NoError(t, err)
	require.Equal(t, e.must("inspect", "-f", "{{.Id}}", "web"), c.ID, "one ID for podman and bpfnet")
	list, err := e.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, list, 4, "the range is one again")
	for _, p := range list {
		if p.Count == 1 && p.HostPort != 8080 && p.HostPort != 8081 {
			e.answers(e.Client, fmt.Sprintf("%s:%d", lab.HostIPv4, p.HostPort), "web saw "+lab.ClientIPv4)
		}
	}

	// The world is reached, under the host's address.
	lab.ServeTCP(t, e.Client, "world", lab.ClientIPv4+":80")
	reply := e.must("exec", "web", "sh", "-c", "echo hello | busybox nc "+lab.ClientIPv4+" 80")
	require.Contains(t, reply, "world remote="+lab.HostIPv4)

	// A port that is taken: podman's error says so, and nothing is left of the container. podman 5
	// binds the ports before it calls the plugin, and is refused by us then.
	taken := "port is already allocated"
	if needs.Next() {
		taken = "bind: address already in use"
	}
	_, err = e.podman("run", "--rm", "--name", "late", "--cgroup-parent", e.parent, "-p", "8080:80", "web", "true")
	require.ErrorContains(t, err, taken)
	_, err = e.m.Container("late")
	require.Error(t, err)

	e.must("stop", "-t", "0", "web")
	e.silent(e.Client, lab.HostIPv4+":8080")
	e.eventually("bpfnet knows that it is stopped", func() bool { _, err := e.m.Container("web"); return err != nil })
	e.must("start", "web")
	pid := e.must("inspect", "-f", "{{.State.Pid}}", "web")
	e.eventually("web serves", func() bool { return listens(pid, 80) })
	e.answers(e.Client, lab.HostIPv4+":8080", "web saw "+lab.ClientIPv4)
	e.must("restart", "-t", "0", "web")
	pid = e.must("inspect", "-f", "{{.State.Pid}}", "web")
	e.eventually("web serves", func() bool { return listens(pid, 80) })
	e.answers(e.Client, lab.HostIPv4+":8080", "web saw "+lab.ClientIPv4)
	e.must("network", "reload", "web")
	e.answers(e.Client, lab.HostIPv4+":8080", "web saw "+lab.ClientIPv4)
	e.must("rm", "-f", "-t", "0", "web", "peer")
	e.empty()
}

// Two networks, by run and by network connect: addresses, aliases, isolation, the ports' way.
func TestNetworks(t *testing.T) {
	e := newEngine(t)
	e.web("web", "-p", "8080:80", "--network", "podman:ip=10.88.0.77,mac=02:11:22:33:44:55")
	e.web("inner", "--network", "back:alias=db", "--network-alias", "store")
	c, err := e.m.Container("web")
	require.NoError(t, err)
	for _, ep := range c.Endpoints {
		require.Equal(t, "10.88.0.77/16", ep.IPv4.String())
		require.Equal(t, "02:11:22:33:44:55", ep.MAC)
	}
	e.answers(e.Client, lab.HostIPv4+":8080", "web saw "+lab.ClientIPv4)

	// Networks do not reach each other, until the container is on both.
	inner := []string{"exec", "web", "busybox", "timeout", "2", "wget", "-qO-", "http://" + e.address("inner", "back") + "/cgi-bin/who"}
	_, err = e.podman(inner...)
	require.ErrorContains(t, err, "exit status 143")
	e.must("network", "connect", "--alias", "front", "back", "web")
	back := e.address("web", "back")
	require.Equal(t, "inner saw "+back, e.must(inner...))
	c, err = e.m.Container("web")
	require.NoError(t, err)
	require.Len(t, c.Endpoints, 2)
	aliases := 0
	for _, ep := range c.Endpoints {
		for _, a := range ep.Aliases {
			if a == "front" {
				aliases++
				require.Equal(t, "eth1", ep.IfName)
			}
		}
	}
	require.Equal(t, 1, aliases)
	e.answers(e.Client, lab.HostIPv4+":8080", "web saw "+lab.ClientIPv4)

	// The ports go the other way when the first network goes, though podman still has sockets on them.
	e.must("network", "disconnect", "podman", "web")
	e.answers(e.Client, lab.HostIPv4+":8080", "web saw "+lab.ClientIPv4)
	networks := e.inspect("web")["NetworkSettings"].(map[string]any)["Networks"].(map[string]any)
	require.Len(t, networks, 1)
	require.Equal(t, back, networks["back"].(map[string]any)["IPAddress"])

	// Both from the start: podman sends the ports with each.
	e.web("both", "-p", "8082:80", "--network", "podman", "--network", "back")
	e.answers(e.Client, lab.HostIPv4+":8082", "both saw "+lab.ClientIPv4)
	require.NoError(t, e.m.Disconnect("podman", "both"))
	e.answers(e.Client, lab.HostIPv4+":8082", "both saw "+lab.ClientIPv4)
	e.must("rm", "-f", "-t", "0", "-a")
	e.empty()
}

// Some at once, some times: the ports are right, and nothing is left. BPFNET_SOAK=1 has the
// counts that are promised.
func TestAtOnce(t *testing.T) {
	e := newEngine(t)
	n, rounds := 4, 2
	if os.Getenv("BPFNET_SOAK") != "" {
		n, rounds = 20, 50
	}
	for range rounds {
		each(n, func(i int) {
			_, err := e.podman("run", "-d", "--name", name(i), "--hostname", name(i), "--cgroup-parent", e.parent,
				"-p", fmt.Sprintf("%d:80", 8000+i), "web", "httpd", "-f", "-p", "0.0.0.0:80", "-h", "/www")
			if err != nil {
				t.Error(err)
			}
		})
		for i := range n {
			to := fmt.Sprintf("%s:%d", lab.HostIPv4, 8000+i)
			e.eventually(name(i)+" serves", func() bool {
				got, err := who(e.Client, to, silence)
				return err == nil && strings.HasPrefix(got, name(i)+" ")
			})
		}
		each(n, func(i int) {
			if _, err := e.podman("rm", "-f", "-t", "0", name(i)); err != nil {
				t.Error(err)
			}
		})
		e.empty()
	}
}

func name(i int) string { return fmt.Sprintf("web%d", i) }

func each(n int, fn func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { fn(i) })
	}
	all.Wait()
}

// 206 ports: what they cost podman. Logged, for docs/podman.md.
func TestManyPorts(t *testing.T) {
	e := newEngine(t)
	took := func(args ...string) time.Duration {
		start := time.Now()
		e.must(append(append([]string{"run", "-d", "--name", "many", "--cgroup-parent", e.parent}, args...), "web", "sleep", "1000")...)
		up := time.Since(start)
		e.must("rm", "-f", "-t", "0", "many")
		return up
	}
	took()
	none := took()
	many := took("-p", "9000-9205:9000-9205")
	t.Logf("podman run without ports %v, with 206 %v", none.Round(time.Millisecond), many.Round(time.Millisecond))
	e.empty()
}
