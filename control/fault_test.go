// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
)

const childEnv = "BPFNET_TEST_CHILD" // Options of the host that a child works on

func TestMain(m *testing.M) {
	if raw := os.Getenv(childEnv); raw != "" {
		child(raw)
		return
	}
	os.Exit(m.Run())
}

// child works until it is killed.
func child(raw string) {
	var o Options
	if err := json.Unmarshal([]byte(raw), &o); err != nil {
		panic(err)
	}
	if told := os.Getenv(adoptEnv); told != "" {
		if err := adoptRounds(o, told); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	for i := 0; ; i++ {
		if err := oneRound(o, i); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func oneRound(o Options, i int) error {
	m, err := Open(o)
	if err != nil {
		return err
	}
	dir := filepath.Dir(o.Netns)
	a, b, n := fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i), fmt.Sprintf("n%d", i)
	steps := []func() error{
		func() error { _, err := m.CreateNetwork(NetworkOptions{Name: n, IPv6: true}); return err },
		func() error {
			_, err := m.CreateContainer(ContainerOptions{Name: a, Attach: "netns:" + filepath.Join(dir, "a"), Publish: []string{"8080:80", "81"}, Expose: []string{"90"}})
			return err
		},
		func() error {
			_, err := m.CreateContainer(ContainerOptions{Name: b, Args: []string{"x"}, Links: []string{a}})
			return err
		},
		func() error { return m.Connect(n, a, EndpointOptions{}) },
		func() error { _, err := m.Publish(a, "7000-7100:7000-7100", "127.0.0.1:99:99"); return err },
		func() error { return m.Disconnect("bridge", a) },
		func() error { return m.Unpublish(a, "8080:80") },
		func() error { return m.RemoveContainer(a) },
		func() error {
			c, err := m.Container(b)
			if err != nil {
				return err
			}
			if err := m.Finished(c.ID, 0, 0); err != nil {
				return err
			}
			return m.RemoveContainer(b)
		},
		func() error { return m.RemoveNetwork(n) },
	}
	for k, step := range steps {
		fmt.Println(k) // whoever kills us counts them
		if err := step(); err != nil {
			return fmt.Errorf("step %d: %w", k, err)
		}
	}
	return nil
}

// G3: a command is killed at any step; the next one finds and leaves everything right.
func TestKilled(t *testing.T) {
	l := newLab(t)
	l.keep(newNetns(t), "a")
	raw, err := json.Marshal(childOptions(l.o))
	require.NoError(t, err)
	rounds := 12
	if n, err := strconv.Atoi(os.Getenv("BPFNET_KILLS")); err == nil {
		rounds = n // by hand
	}
	for i := range rounds {
		var stderr strings.Builder
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), childEnv+"="+string(raw))
		cmd.Stderr = &stderr
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		// After so many steps, and a part of the time that the last one took.
		steps, begun, took := bufio.NewScanner(stdout), time.Now(), time.Duration(0)
		for range 1 + i*5%13 {
			require.True(t, steps.Scan(), "round %d: %s", i, &stderr)
			begun, took = time.Now(), time.Since(begun)
		}
		<-time.After(took * time.Duration(i%4) / 4)
		require.NoError(t, cmd.Process.Kill())
		err = cmd.Wait()
		var exit *exec.ExitError
		require.True(t, errors.As(err, &exit) && !exit.Exited(), "round %d: %v %s", i, err, &stderr)

		_, dirtyErr := os.Stat(l.m.dirtyPath())
		lines, err := l.m.Reconcile()
		require.NoError(t, err, "round %d", i)
		t.Logf("round %d: half way: %v, %q", i, dirtyErr == nil, lines)
		again, err := l.m.Reconcile()
		require.NoError(t, err)
		require.Empty(t, again, "round %d", i)
		st, err := l.m.Status()
		require.NoError(t, err)
		require.Empty(t, st.Problems, "round %d", i)
		require.NoError(t, l.m.empty())
		require.Equal(t, []string{"lo", "eth0"}, ours(links(t, l.host)), "round %d", i)
		require.NotContains(t, l.state(), "netns ", "round %d", i)
		require.NotContains(t, l.state(), "containers ", "round %d", i)
	}
}

// childOptions are what JSON carries.
func childOptions(o Options) any {
	return struct{ Root, BPFFS, Netns, Cgroup, Config string }{o.Root, o.BPFFS, o.Netns, o.Cgroup, o.Config}
}

func ours(names []string) []string {
	var out []string
	for _, n := range names {
		if n != defaultBridge { // the default network stays
			out = append(out, n)
		}
	}
	return out
}

// empty removes all containers and networks.
func (m *Manager) empty() error {
	list, err := m.Containers()
	if err != nil {
		return err
	}
	for _, c := range list {
		if err := m.Finished(c.ID, 0, 0); err != nil {
			return err
		}
		if err := m.RemoveContainer(c.ID); err != nil {
			return err
		}
	}
	_, err = m.PruneNetworks()
	return err
}

// G4: pins, devices and namespaces are gone, the store is left.
func TestReboot(t *testing.T) {
	l := newLab(t)
	_, err := l.m.CreateNetwork(NetworkOptions{Name: "n1", IPv6: true})
	require.NoError(t, err)
	l.container("web", ContainerOptions{Network: "n1", Publish: []string{"8080:80", "81"}})
	_, err = l.m.CreateContainer(ContainerOptions{Name: "job", Publish: []string{"8081:80"}, Links: nil, Args: []string{"x"}})
	require.NoError(t, err)

	boot(l)
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	text := strings.Join(lines, "\n")
	require.Contains(t, text, "container web: exited")
	require.Contains(t, text, "container job: exited")
	require.Contains(t, text, "network n1: bridge")
	lines, err = l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)
	c, err := l.m.PrepareStart("job")
	require.NoError(t, err)
	require.Equal(t, StateCreated, c.State)
	pubs, err := l.m.Publications("job")
	require.NoError(t, err)
	require.Len(t, pubs, 1)
	require.NoError(t, l.m.Finished(c.ID, 0, 0))

	// The next command is enough, too.
	boot(l)
	l.container("next", ContainerOptions{Network: "n1", Publish: []string{"8080:80"}})
	st, err := l.m.Status()
	require.NoError(t, err)
	require.Empty(t, st.Problems)
}

// boot makes the host's namespace and all pins anew.
func boot(l *lab) {
	l.t.Helper()
	require.NoError(l.t, netns.Unpersist(l.o.Netns))
	_ = l.host.Close()
	l.host = newNetns(l.t)
	require.NoError(l.t, loUp(l.host))
	require.NoError(l.t, netns.Persist(l.host, l.o.Netns))
	for _, kind := range []string{"links", "programs", "maps"} {
		require.NoError(l.t, os.RemoveAll(filepath.Join(l.o.BPFFS, kind)))
	}
	entries, _ := os.ReadDir(filepath.Join(l.o.Root, "netns"))
	for _, e := range entries {
		path := filepath.Join(l.o.Root, "netns", e.Name())
		require.NoError(l.t, netns.Unpersist(path))
	}
}

// B11: many at once.
func TestAtOnce(t *testing.T) {
	l := newLab(t)
	const n = 16
	require.NoError(t, l.m.Init(nil))
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		name := fmt.Sprintf("c%d", i)
		path := l.keep(newNetns(t), name)
		wg.Go(func() {
			m, err := Open(l.o)
			if err == nil {
				_, err = m.CreateContainer(ContainerOptions{Name: name, Attach: "netns:" + path, Publish: []string{"80", "81/udp"}})
			}
			errs[i] = err
		})
	}
	wg.Wait()
	require.NoError(t, errors.Join(errs...))
	ports, addrs := map[string]bool{}, map[string]bool{}
	for i := range n {
		pubs, err := l.m.Publications(fmt.Sprintf("c%d", i))
		require.NoError(t, err)
		for _, p := range pubs {
			ports[fmt.Sprint(p.Proto, p.HostPort)] = true
		}
		c, err := l.m.Container(fmt.Sprintf("c%d", i))
		require.NoError(t, err)
		for _, ep := range c.Endpoints {
			addrs[ep.IPv4.String()] = true
		}
	}
	require.Len(t, ports, 2*n)
	require.Len(t, addrs, n)
}

// What somebody took away by hand comes back.
func TestRepair(t *testing.T) {
	l := newLab(t)
	c, ns := l.container("web", ContainerOptions{Publish: []string{"8080:80"}})
	h, err := l.host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	var ep *Endpoint
	for _, ep = range c.Endpoints {
	}
	dev, err := h.LinkByName(ep.HostIf)
	require.NoError(t, err)
	require.NoError(t, h.LinkDel(dev))
	br, err := h.LinkByName("bpfnet0")
	require.NoError(t, err)
	require.NoError(t, h.LinkDel(br))
	st, err := l.m.Status()
	require.NoError(t, err)
	require.NotEmpty(t, st.Problems)

	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.NotEmpty(t, lines)
	require.Equal(t, []string{"lo", "eth0"}, links(t, ns))
	require.Equal(t, []string{"eth0 172.17.0.1"}, gateways(t, ns))
	st, err = l.m.Status()
	require.NoError(t, err)
	require.Empty(t, st.Problems)
	lines, err = l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)
}

// A second bpfnet in one namespace is refused, and nothing of it is left.
func TestSecondHost(t *testing.T) {
	l := newLab(t)
	require.NoError(t, l.m.Init(nil))
	o := l.o
	o.Root, o.BPFFS = l.o.Root+"2", l.o.BPFFS+"2"
	m, err := Open(o)
	require.NoError(t, err)
	require.ErrorContains(t, m.Init(nil), "another bpfnet runs in this network namespace")
	require.NoDirExists(t, o.Root)
	require.NoDirExists(t, o.BPFFS)
	st, err := l.m.Status()
	require.NoError(t, err)
	require.Empty(t, st.Problems)
}
