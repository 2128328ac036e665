// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// manager is bpfnet on the engine's host, for what no command shows.
func (e *engine) manager() *control.Manager {
	e.T.Helper()
	m, err := control.Open(control.Options{Root: e.Root, BPFFS: e.BPFFS, Netns: e.NetnsPath, Cgroup: e.Cgroup})
	require.NoError(e.T, err)
	return m
}

// has is everything that bpfnet has on the host.
func (e *engine) has() (list []string) {
	e.T.Helper()
	s, err := e.manager().Status()
	require.NoError(e.T, err)
	for _, h := range s.Hooks {
		list = append(list, h.Device+" "+h.Program)
	}
	for _, t := range s.Tables {
		switch t.Name {
		case "endpoint_addrs", "ports_addr", "links", "sources":
			list = append(list, fmt.Sprint(t.Name, " ", t.Used))
		}
	}
	list = append(list, s.Problems...)
	err = filepath.WalkDir(e.BPFFS, func(path string, _ os.DirEntry, err error) error {
		list = append(list, path)
		return err
	})
	require.NoError(e.T, err)
	return append(list, e.Bpfnet("ps", "-a", "-q"), e.Bpfnet("network", "ls", "-q"))
}

// goneAll waits until there is no more than there was before.
func (e *engine) goneAll(round int, before []string) {
	e.T.Helper()
	var now []string
	for end := time.Now().Add(dockerd.Wait); time.Now().Before(end); {
		if now = e.has(); slices.Equal(before, now) {
			return
		}
	}
	require.Equal(e.T, before, now, "round %d: left over", round)
}

// Twenty containers started at once and ended at once, again and again: the ports are right
// each time, and nothing is left over.
func TestTwentyAtOnce(t *testing.T) {
	const n = 20
	rounds := 1
	if os.Getenv("BPFNET_SOAK") != "" {
		rounds = 50
	}
	e := newEngine(t)
	e.Docker("network", "create", "n1")
	e.Says("network docker/n1: adopted")
	before := e.has()
	ids := make([]string, n)
	for round := range rounds {
		for i := range n {
			ids[i] = e.create(fmt.Sprintf("c%02d", i), portMap(8000+i, 80))
			if i%2 == 1 { // on two networks
				_, err := e.api.NetworkConnect(context.Background(), "n1", client.NetworkConnectOptions{Container: ids[i]})
				require.NoError(t, err)
			}
		}
		require.NoError(t, dockerd.Many(n, func(i int) error {
			_, err := e.api.ContainerStart(context.Background(), ids[i], client.ContainerStartOptions{})
			return err
		}))
		for i := range n {
			e.firstAnswer(8000+i, fmt.Sprintf("c%02d [::ffff:%s]", i, lab.ClientIPv4))
		}
		list, err := e.manager().Containers()
		require.NoError(t, err)
		require.Len(t, list, n)
		require.NoError(t, dockerd.Many(n, func(i int) error {
			_, err := e.api.ContainerRemove(context.Background(), ids[i], client.ContainerRemoveOptions{Force: true})
			return err
		}))
		e.goneAll(round, before)
	}
}

// The first packet that a container sends finds its way, though nobody waits for us: a
// second one comes a second later (RFC 6298), and nc does not wait so long. On a machine
// that has other things to do it may be late; that is not the rule.
func TestFirstPacket(t *testing.T) {
	e := newEngine(t)
	lab.ServeTCP(t, e.Client, "world", ":9000")
	const n = 7
	arrived := 0
	for i := range n {
		out, err := e.Run(e.Host, "/usr/bin/docker", "--host", e.Socket(), "run", "--name", fmt.Sprint("once", i), "box",
			"sh", "-c", "echo hello | nc -w 1 "+lab.ClientIPv4+" 9000")
		if err != nil {
			t.Log(err)
			continue
		}
		r, err := lab.ParseReply(strings.TrimSpace(out))
		require.NoError(t, err)
		require.Equal(t, lab.HostIPv4, r.Remote.Addr().String())
		arrived++
	}
	t.Logf("%d of %d first packets arrived", arrived, n)
	require.Greater(t, arrived, n/2)
}
