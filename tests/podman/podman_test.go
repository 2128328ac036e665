// SPDX-License-Identifier: Apache-2.0

// Package podman runs Debian's podman with bpfnet as the plugin of its networks, in a lab's
// host: storage, state, cgroups and configuration of its own. Debian 12's is on its CNI
// backend, Debian 13's, by make test-engines-next, on netavark.
//
//	X 203.0.113.2 ──── 203.0.113.1 H ─┬─ podman 10.88.0.0/16 ─── containers of an image
//	                                  └─ back   10.89.0.0/16     with busybox in it
package podman

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
	"github.com/bpfnet/bpfnet/tests/needs"
)

const (
	wait    = 5 * time.Second
	silence = 300 * time.Millisecond
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// engine is a podman on a lab's host.
type engine struct {
	*lab.Lab
	t       testing.TB
	m       *control.Manager
	dir     string
	globals []string
	parent  string // cgroup of the containers
}

// installed makes sure of the real programs.
func installed(t testing.TB) {
	t.Helper()
	needs.Engines(t)
	for _, name := range []string{"podman", "conmon", "runc", "busybox"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatal(err)
		}
	}
}

func newEngine(t testing.TB) *engine {
	t.Helper()
	installed(t)
	e := &engine{Lab: lab.New(t), t: t}
	e.dir = filepath.Join(e.Dir, "podman")
	require.NoError(t, os.Mkdir(e.dir, 0o755))
	m, err := control.Open(control.Options{Root: e.Root, BPFFS: e.BPFFS, Netns: e.NetnsPath, Cgroup: e.Cgroup})
	require.NoError(t, err)
	e.m = m
	require.NoError(t, m.Init(nil))
	e.parent = filepath.Base(e.Cgroup) + "-podman"
	for _, dir := range []string{"root", "runroot", "tmpdir"} {
		e.globals = append(e.globals, "--"+dir, filepath.Join(e.dir, dir))
	}
	e.globals = append(e.globals, "--storage-driver=vfs")
	e.setUp()
	e.image()
	t.Cleanup(func() {
		e.podman("rm", "-f", "-t", "0", "-a")
		require.NoError(t, m.Uninstall())
		require.NoError(t, m.Close())
		e.dropCgroups()
	})
	return e
}

func (e *engine) write(path, text string) {
	e.t.Helper()
	require.NoError(e.t, os.WriteFile(path, []byte(text), 0o644))
}

// image makes one of busybox: a web server that says whom it sees.
func (e *engine) image() {
	e.t.Helper()
	root := filepath.Join(e.dir, "image")
	require.NoError(e.t, os.MkdirAll(filepath.Join(root, "bin"), 0o755))
	require.NoError(e.t, os.MkdirAll(filepath.Join(root, "www", "cgi-bin"), 0o755))
	path, err := exec.LookPath("busybox")
	require.NoError(e.t, err)
	program, err := os.ReadFile(path)
	require.NoError(e.t, err)
	require.NoError(e.t, os.WriteFile(filepath.Join(root, "bin", "busybox"), program, 0o755))
	for _, applet := range []string{"sh", "httpd", "sleep", "wget", "hostname", "true"} {
		require.NoError(e.t, os.Symlink("busybox", filepath.Join(root, "bin", applet)))
	}
	script := "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n%s saw %s\\n' \"$(hostname)\" \"$REMOTE_ADDR\"\n"
	require.NoError(e.t, os.WriteFile(filepath.Join(root, "www", "cgi-bin", "who"), []byte(script), 0o755))
	tar := filepath.Join(e.dir, "image.tar")
	out, err := exec.Command("tar", "-C", root, "-cf", tar, ".").CombinedOutput()
	require.NoError(e.t, err, "%s", out)
	e.must("import", tar, "web")
}

// podman runs a command of podman's in the host.
func (e *engine) podman(args ...string) (out string, err error) {
	e.t.Helper()
	cmd := exec.Command("podman", append(append([]string{}, e.globals...), args...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "BPFNET_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "CONTAINERS_CONF="+filepath.Join(e.dir, "containers.conf"), "PODMAN_IGNORE_CGROUPSV1_WARNING=1")
	p, err := e.StartCommand(e.Host, cmd)
	require.NoError(e.t, err)
	err = p.Wait(time.Minute)
	if err != nil {
		err = fmt.Errorf("podman %s: %w: %s", strings.Join(args, " "), err, p.Stderr())
	}
	return strings.TrimSpace(p.Stdout()), err
}

func (e *engine) must(args ...string) string {
	e.t.Helper()
	out, err := e.podman(args...)
	require.NoError(e.t, err)
	return out
}

// web starts a container with the web server on port 80.
func (e *engine) web(name string, more ...string) {
	e.t.Helper()
	args := append([]string{"run", "-d", "--name", name, "--hostname", name, "--cgroup-parent", e.parent}, more...)
	e.must(append(args, "web", "httpd", "-f", "-p", "0.0.0.0:80", "-h", "/www")...)
	pid := e.must("inspect", "-f", "{{.State.Pid}}", name)
	e.eventually(name+" serves", func() bool { return listens(pid, 80) })
}

// listens says whether a process's namespace has a listener on a port (proc_pid_net_tcp).
func listens(pid string, port int) bool {
	for _, file := range []string{"tcp", "tcp6"} {
		f, err := os.Open("/proc/" + pid + "/net/" + file)
		if err != nil {
			continue
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			if strings.Contains(s.Text(), fmt.Sprintf(":%04X ", port)) && strings.Contains(s.Text(), " 0A ") {
				return true
			}
		}
	}
	return false
}

func (e *engine) eventually(what string, cond func() bool) {
	e.t.Helper()
	require.Eventually(e.t, cond, 10*time.Second, 10*time.Millisecond, what)
}

// who asks the web server at an address: who it is, and whom it saw.
func who(ns *netns.NS, addr string, limit time.Duration) (string, error) {
	client := http.Client{Timeout: limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, addr string) (net.Conn, error) {
			c, err := lab.Dial(ns, network, "", addr, limit)
			if err != nil {
				return nil, err
			}
			return c.Conn, nil
		},
	}}
	answer, err := client.Get("http://" + addr + "/cgi-bin/who")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	line, err := bufio.NewReader(answer.Body).ReadString('\n')
	return strings.TrimSpace(line), err
}

func (e *engine) answers(from *netns.NS, addr, want string) {
	e.t.Helper()
	got, err := who(from, addr, wait)
	require.NoError(e.t, err, addr)
	require.Equal(e.t, want, got, addr)
}

// silent requires that nothing of a container answers: podman's own sockets may take a connection.
func (e *engine) silent(from *netns.NS, addr string) {
	e.t.Helper()
	got, err := who(from, addr, silence)
	require.Error(e.t, err, "%s answered %q", addr, got)
}

// empty requires that nothing of a container is left, of ours or of podman's.
func (e *engine) empty() {
	e.t.Helper()
	list, err := e.m.Containers()
	require.NoError(e.t, err)
	require.Empty(e.t, list)
	h, err := e.Host.Netlink()
	require.NoError(e.t, err)
	defer h.Close()
	links, err := h.LinkList()
	require.NoError(e.t, err)
	for _, l := range links {
		require.False(e.t, strings.HasPrefix(l.Attrs().Name, "bpfv"), "device %s is left", l.Attrs().Name)
	}
	status, err := e.m.Status()
	require.NoError(e.t, err)
	for _, table := range status.Tables {
		if strings.HasPrefix(table.Name, "ports") || table.Name == "rules" {
			require.Zero(e.t, table.Used, table.Name)
		}
	}
}

// dropCgroups removes the containers' cgroups from all hierarchies.
func (e *engine) dropCgroups() {
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && d.Name() == e.parent {
			removeTree(path)
			return fs.SkipDir
		}
		return nil
	})
}

func removeTree(path string) {
	list, _ := os.ReadDir(path)
	for _, d := range list {
		if d.IsDir() {
			removeTree(filepath.Join(path, d.Name()))
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		fmt.Fprintln(os.Stderr, err)
	}
}

func (e *engine) inspect(name string) map[string]any {
	e.t.Helper()
	var list []map[string]any
	require.NoError(e.t, json.Unmarshal([]byte(e.must("inspect", name)), &list))
	require.Len(e.t, list, 1)
	return list[0]
}

// address is a container's IPv4 address on a network, as podman has it.
func (e *engine) address(name, network string) string {
	e.t.Helper()
	return e.must("inspect", "-f", fmt.Sprintf("{{(index .NetworkSettings.Networks %q).IPAddress}}", network), name)
}
