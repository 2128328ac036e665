// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
)

// G9: what cannot be attached is an error, and nothing is left of the attempt.
func TestAttachRefusals(t *testing.T) {
	l := newLab(t)
	l.container("first", ContainerOptions{})
	dir := filepath.Dir(l.o.Netns)
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	before := l.state()
	for spec, want := range map[string]string{
		"netns:" + filepath.Join(dir, "nothing"): "no such file or directory",
		"netns:" + file:                          "not a network namespace",
		"netns:/proc/self/ns/mnt":                "not a network namespace",
		"netns:" + l.o.Netns:                     "is the host's own network namespace",
		"netns:/proc/self/ns/net":                "is the host's own network namespace",
		"netns:" + filepath.Join(dir, "first"):   "container first is attached to it already",
		"pid:0":                                  "not a process number",
		"pid:x":                                  "not a process number",
		"pid:4194305":                            "no such process",
		"what":                                   "not pid:N, netns:PATH or docker:NAME",
		"netns:":                                 "not pid:N, netns:PATH or docker:NAME",
	} {
		_, err := l.m.CreateContainer(ContainerOptions{Name: "second", Attach: spec})
		require.ErrorContains(t, err, want, spec)
		require.NotContains(t, err.Error(), "\n")
		require.Equal(t, before, l.state(), spec)
	}
}

// With --netns and the command elsewhere too, the machine's own namespace is no container's.
func TestNotTheMachine(t *testing.T) {
	l := newLab(t)
	machine, err := netns.Current() // of the test, which the machine's first process shares
	require.NoError(t, err)
	defer machine.Close()
	shared, err := machine.Holds(1)
	require.NoError(t, err)
	require.True(t, shared, "the test runs beside process 1")
	judge := func(ns *netns.NS) error {
		return l.world.Do(func() error {
			return l.m.update(func(o *op) error { return o.notTheHost(ns, "this") })
		})
	}
	require.NoError(t, judge(newNetns(t)))
	require.ErrorContains(t, judge(machine), "this: is the machine's own network namespace")
	require.ErrorIs(t, judge(machine), ErrInvalid)
	require.ErrorContains(t, judge(l.host), "is the host's own network namespace")
	require.ErrorContains(t, judge(l.world), "is the host's own network namespace")
}

// The path leads to another namespace by the time that the work is done.
func TestAttachSwapped(t *testing.T) {
	l := newLab(t)
	l.container("first", ContainerOptions{})
	a, b := newNetns(t), newNetns(t)
	pathA, pathB := l.keep(a, "a"), l.keep(b, "b")
	link := filepath.Join(filepath.Dir(l.o.Netns), "link")
	require.NoError(t, os.Symlink(pathA, link))
	before := l.state()

	opts := ContainerOptions{Name: "second", Attach: "netns:" + link}
	ns, path, err := openAttach(opts.Attach)
	require.NoError(t, err)
	defer ns.Close()
	require.NoError(t, os.Remove(link))
	require.NoError(t, os.Symlink(pathB, link))
	err = l.m.update(func(o *op) error {
		_, err := o.createContainer(&opts, ns, path)
		return err
	})
	require.ErrorContains(t, err, "changed while it was attached")
	require.Equal(t, before, l.state())
	require.Equal(t, []string{"lo"}, links(t, a))
	require.Equal(t, []string{"lo"}, links(t, b))
}

// A namespace is gone though another one has its inode, and its path, by now.
func TestAttachInodeAgain(t *testing.T) {
	l := newLab(t)
	c, ns := l.container("lab", ContainerOptions{Publish: []string{"8080:80"}})
	require.NoError(t, netns.Unpersist(c.Netns))
	require.NoError(t, ns.Close())
	same := newNetns(t)
	l.keep(same, "lab")
	// The kernel gives the inode to whoever comes next, which may be another program's.
	require.NoError(t, l.m.change(ErrNotSetUp, func(o *op) error {
		c.NetnsID = same.ID()
		return o.putContainer(c)
	}))
	got, err := l.m.Container("lab")
	require.NoError(t, err)
	require.Equal(t, StateExited, got.State)
	_, err = l.m.Publish("lab", "8081:80")
	require.ErrorContains(t, err, "is not running")
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Contains(t, strings.Join(lines, "\n"), "container lab: exited, its namespace is gone")
	require.Equal(t, []string{"lo"}, links(t, same))
}

func TestAttachProcess(t *testing.T) {
	l := newLab(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	require.NoError(t, cmd.Start())
	kill := func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(kill)
	c, err := l.m.CreateContainer(ContainerOptions{Name: "proc", Attach: fmt.Sprintf("pid:%d", cmd.Process.Pid), Publish: []string{"8080:80"}})
	require.NoError(t, err)
	require.Equal(t, StateRunning, c.State)
	kill()

	got, err := l.m.Container("proc")
	require.NoError(t, err)
	require.Equal(t, StateExited, got.State)
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Contains(t, strings.Join(lines, "\n"), "container proc: exited, its namespace is gone")
	pubs, err := l.m.Publications("proc")
	require.NoError(t, err)
	require.Empty(t, pubs)
	l.container("next", ContainerOptions{Publish: []string{"8080:80"}})
}

// state is everything that a failed command must leave alone.
func (l *lab) state() string {
	l.t.Helper()
	var b strings.Builder
	fmt.Fprintln(&b, links(l.t, l.host))
	for _, dir := range []string{"netns", "containers"} {
		entries, _ := os.ReadDir(filepath.Join(l.o.Root, dir))
		for _, e := range entries {
			fmt.Fprintln(&b, dir, e.Name())
		}
	}
	pins, _ := filepath.Glob(filepath.Join(l.o.BPFFS, "links", "*"))
	fmt.Fprintln(&b, pins)
	_, err := os.Stat(l.m.dirtyPath())
	fmt.Fprintln(&b, "dirty:", err == nil)
	_, err = l.m.view(func(o *op) error {
		src, err := loader.OpenMaps(loader.Options{BPFFS: l.o.BPFFS})
		if err != nil {
			return err
		}
		defer src.Close()
		t := maps.New(src)
		eps, err := t.Endpoints.List()
		if err != nil {
			return err
		}
		nets, err := t.Networks.List()
		if err != nil {
			return err
		}
		ports, err := t.Ports.List()
		if err != nil {
			return err
		}
		pubs, lks, err := t.Rules.List()
		if err != nil {
			return err
		}
		ll, err := t.Links.List()
		if err != nil {
			return err
		}
		addrs, err := t.HostAddresses.List()
		fmt.Fprintln(&b, len(eps), nets, ports, pubs, lks, ll, addrs)
		return err
	})
	require.NoError(l.t, err)
	reserved := ""
	require.NoError(l.t, l.host.Do(func() error {
		raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
		reserved = string(raw)
		return err
	}))
	fmt.Fprint(&b, "reserved: ", reserved)
	return b.String()
}

func TestAttachDocker(t *testing.T) {
	l := newLab(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// What docker inspect prints, for a container that runs, for one that does not, and for none.
	dir := t.TempDir()
	script := fmt.Sprintf(`#!/bin/sh
for name; do :; done
case $name in
web) echo %d ;;
dead) echo 0 ;;
*) echo "Error: No such container: $name" >&2; exit 1 ;;
esac
`, cmd.Process.Pid)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o700))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))

	c, err := l.m.CreateContainer(ContainerOptions{Name: "web", Attach: "docker:web"})
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid), c.Netns)
	for name, want := range map[string]string{"dead": "not running", "gone": "No such container: gone", "--help": "not a name"} {
		_, err := l.m.CreateContainer(ContainerOptions{Name: "x1", Attach: "docker:" + name})
		require.ErrorContains(t, err, want)
	}
}
