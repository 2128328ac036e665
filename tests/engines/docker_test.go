// SPDX-License-Identifier: Apache-2.0

// Package engines runs other container engines, unmodified, on bpfnet's packet path: the
// real programs, in a lab's host of their own.
//
//	X 203.0.113.2 ─── H: dockerd, bpfnet daemon --docker ─┬─ docker0 ─── containers
//	                                                      └─ br-…    ─── containers
//
// make test-engines installs them and runs the tests; without it they are skipped.
package engines

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// wait is for what has to come, however busy the machine is; soon for an answer.
const (
	wait = 30 * time.Second
	soon = 2 * time.Second
)

// programs finds the real ones: a docker of another origin may come first in PATH.
func programs(t testing.TB) {
	t.Helper()
	if os.Getenv("BPFNET_ENGINES") == "" {
		t.Skip("make test-engines runs it")
	}
	for _, p := range []string{dockerd, dockerCLI, busybox} {
		_, err := os.Stat(p)
		require.NoError(t, err)
	}
}

const (
	dockerd   = "/usr/sbin/dockerd"
	dockerCLI = "/usr/bin/docker"
	busybox   = "/bin/busybox"
)

func TestMain(m *testing.M) {
	code := m.Run()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

var built struct {
	once sync.Once
	dir  string
	err  error
}

// binary is the real program, built once.
func binary(t testing.TB) string {
	t.Helper()
	built.once.Do(func() {
		if built.dir, built.err = os.MkdirTemp("", "bpfnet-engines"); built.err != nil {
			return
		}
		cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(built.dir, "bpfnet"), "github.com/bpfnet/bpfnet/cmd/bpfnet")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			built.err = errors.New(err.Error() + ": " + string(out))
		}
	})
	require.NoError(t, built.err)
	return filepath.Join(built.dir, "bpfnet")
}

// engine is a Docker Engine in a lab, and bpfnet beside it.
type engine struct {
	*lab.Lab
	t       testing.TB
	dir     string // of the Engine's, with a short name: sockets are in it
	flags   []string
	process *lab.Process
	daemon  *lab.Process
	api     *client.Client
}

// newEngine starts both; flags are dockerd's.
func newEngine(t testing.TB, flags ...string) *engine {
	t.Helper()
	e := newEngineAlone(t, flags...)
	e.startDaemon()
	return e
}

// newEngineAlone is an Engine without bpfnet.
func newEngineAlone(t testing.TB, flags ...string) *engine {
	t.Helper()
	programs(t)
	dir, err := os.MkdirTemp("", "bne")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	e := &engine{Lab: lab.New(t, lab.HostDefault(), lab.RouteToHost()), t: t, dir: dir, flags: flags}
	e.startEngine()
	t.Cleanup(e.end)
	e.importImage()
	return e
}

func (e *engine) socket() string { return "unix://" + filepath.Join(e.dir, "s") }

// cgroup is the parent of the containers' in the hierarchies of cgroup v1.
func (e *engine) cgroup() string { return "bpfnet-" + filepath.Base(e.dir) }

func (e *engine) startEngine() {
	e.t.Helper()
	config := filepath.Join(e.dir, "daemon.json")
	require.NoError(e.t, os.WriteFile(config, []byte("{}"), 0o600))
	args := append([]string{
		"--config-file", config, "--data-root", filepath.Join(e.dir, "d"), "--exec-root", filepath.Join(e.dir, "x"),
		"--host", e.socket(), "--pidfile", filepath.Join(e.dir, "pid"), "--cgroup-parent", "/" + e.cgroup(),
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2",
		"--log-level", "warn", "--iptables=false", "--ip6tables=false", "--userland-proxy=false",
	}, e.flags...)
	e.process = e.Start(e.t, e.Host, dockerd, args...)
	api, err := client.New(client.WithHost(e.socket()))
	require.NoError(e.t, err)
	e.api = api
	e.eventually("the Engine answers", func() bool {
		select {
		case <-e.process.Done():
			e.t.Fatalf("dockerd: %v: %s", e.process.Err(), e.process.Stderr())
		default:
		}
		_, err := api.Ping(context.Background(), client.PingOptions{NegotiateAPIVersion: true})
		return err == nil
	})
}

func (e *engine) stopEngine() {
	e.t.Helper()
	e.api.Close()
	require.NoError(e.t, e.process.Signal(unix.SIGTERM))
	require.NoError(e.t, e.process.Wait(wait), e.process.Stderr())
}

// end takes the Engine and its containers away; the lab looks for what is left.
func (e *engine) end() {
	list, err := e.api.ContainerList(context.Background(), client.ContainerListOptions{All: true})
	if err == nil {
		_ = many(len(list.Items), func(i int) error {
			_, err := e.api.ContainerRemove(context.Background(), list.Items[i].ID, client.ContainerRemoveOptions{Force: true})
			return err
		})
	}
	if e.t.Failed() {
		e.t.Logf("dockerd: %s", tail(e.process.Stderr()))
		if e.daemon != nil {
			e.t.Logf("bpfnet: %s", tail(e.daemon.Stderr()))
		}
	}
	e.stopEngine()
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + e.cgroup())
	// dockerd leaves some: the host's namespace, and with live-restore its root.
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(e.dir))
	require.NoError(e.t, err)
	for i := len(mounts) - 1; i >= 0; i-- {
		require.NoError(e.t, unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH))
	}
	for _, d := range dirs {
		if err := unix.Rmdir(d); err != nil {
			e.t.Errorf("cgroup %s: %v", d, err)
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-20000):] }

func (e *engine) startDaemon() {
	e.t.Helper()
	e.daemon = e.Start(e.t, e.Host, binary(e.t), "daemon", "--docker", "--docker-host", e.socket())
	e.says("following docker ")
	e.says("following " + e.Root)
}

func (e *engine) stopDaemon() {
	e.t.Helper()
	require.NoError(e.t, e.daemon.Signal(unix.SIGTERM))
	require.NoError(e.t, e.daemon.Wait(wait))
}

func (e *engine) says(words string) {
	e.t.Helper()
	e.eventually("bpfnet says: "+words, func() bool { return strings.Contains(e.daemon.Stderr(), words) })
}

func (e *engine) eventually(what string, cond func() bool) {
	e.t.Helper()
	require.Eventually(e.t, cond, wait, 5*time.Millisecond, what)
}

// bpfnet runs the real program to its end.
func (e *engine) bpfnet(args ...string) string {
	e.t.Helper()
	out, err := e.Run(e.Host, binary(e.t), args...)
	require.NoError(e.t, err)
	return strings.TrimSpace(out)
}

// docker runs the Engine's own client to its end.
func (e *engine) docker(args ...string) string {
	e.t.Helper()
	out, err := e.Run(e.Host, dockerCLI, append([]string{"--host", e.socket()}, args...)...)
	require.NoError(e.t, err)
	return strings.TrimSpace(out)
}

// importImage makes the image box of busybox alone.
func (e *engine) importImage() {
	e.t.Helper()
	content, err := os.ReadFile(busybox)
	require.NoError(e.t, err)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	require.NoError(e.t, w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}))
	_, err = w.Write(content)
	require.NoError(e.t, err)
	for _, name := range strings.Fields("sh sleep httpd ping nc wget cat ip nslookup") {
		require.NoError(e.t, w.WriteHeader(&tar.Header{Name: "bin/" + name, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink}))
	}
	script := "#!/bin/sh\necho\necho $(cat /etc/hostname) $REMOTE_ADDR\n"
	require.NoError(e.t, w.WriteHeader(&tar.Header{Name: "www/cgi-bin/who", Mode: 0o755, Size: int64(len(script)), Typeflag: tar.TypeReg}))
	_, err = w.Write([]byte(script))
	require.NoError(e.t, err)
	require.NoError(e.t, w.Close())
	file := filepath.Join(e.dir, "box.tar")
	require.NoError(e.t, os.WriteFile(file, buf.Bytes(), 0o600))
	e.docker("import", "--change", `ENV PATH=/bin`, file, "box")
}

// box is a running container with servers in its namespace: each answers with its name,
// and whom it sees.
type box struct {
	e        *engine
	id, name string
	ns       *netns.NS
	v4, v6   string // on the first of its networks
}

// run starts a container of docker run's flags, and a server of lab's in it on TCP and UDP
// port 80 and 81.
func (e *engine) run(name string, flags ...string) *box {
	e.t.Helper()
	e.docker(append(append([]string{"run", "-d", "--name", name, "--stop-timeout", "0"}, flags...), "box", "sleep", "100000")...)
	return e.find(name)
}

// runAll is run for several at once, by name; each line is a name and flags.
func (e *engine) runAll(lines ...string) map[string]*box {
	e.t.Helper()
	require.NoError(e.t, many(len(lines), func(i int) error {
		f := strings.Fields(lines[i])
		args := append(append([]string{"--host", e.socket(), "run", "-d", "--stop-timeout", "0", "--name"}, f...), "box", "sleep", "100000")
		_, err := e.Run(e.Host, dockerCLI, args...)
		return err
	}))
	boxes := make(map[string]*box)
	for _, l := range lines {
		name := strings.Fields(l)[0]
		boxes[name] = e.find(name)
	}
	return boxes
}

func (e *engine) find(name string) *box {
	e.t.Helper()
	c := e.inspect(name)
	b := &box{e: e, id: c.ID, name: name}
	var err error
	b.ns, err = netns.OfPID(c.State.Pid)
	require.NoError(e.t, err)
	e.t.Cleanup(func() { b.ns.Close() })
	for _, s := range c.NetworkSettings.Networks {
		if s.IPAddress.IsValid() && b.v4 == "" {
			b.v4 = s.IPAddress.String()
		}
		if s.GlobalIPv6Address.IsValid() && b.v6 == "" {
			b.v6 = s.GlobalIPv6Address.String()
		}
	}
	b.serve(":80")
	b.serve(":81")
	if b.v6 != "" {
		// The Engine leaves duplicate address detection on, in the container and on the bridge.
		e.eventually(name+" and its gateway have their IPv6 addresses", func() bool {
			_, err := lab.AskTCP(e.Host, "", "["+b.v6+"]:80", "", soon/4)
			return err == nil
		})
	}
	return b
}

func (b *box) serve(addr string) {
	b.e.t.Helper()
	lab.ServeTCP(b.e.t, b.ns, b.name, addr)
	lab.ServeUDP(b.e.t, b.ns, b.name, addr)
}

func (e *engine) inspect(name string) container.InspectResponse {
	e.t.Helper()
	r, err := e.api.ContainerInspect(context.Background(), name, client.ContainerInspectOptions{})
	require.NoError(e.t, err)
	return r.Container
}

// adopted waits until bpfnet carries the container.
func (e *engine) adopted(names ...string) {
	e.t.Helper()
	e.eventually(fmt.Sprint("adopted: ", names), func() bool {
		var rows []struct {
			Names string
			Pid   int
		}
		if json.Unmarshal([]byte(e.bpfnet("ps", "-o", "json")), &rows) != nil {
			return false
		}
		have := make(map[string]bool)
		for _, r := range rows {
			have[r.Names] = r.Pid != 0 // known before, but with its ports since it has started
		}
		for _, n := range names {
			if !have["docker/"+n] {
				return false
			}
		}
		return true
	})
}

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

var asks = map[string]func(*netns.NS, string, string, string, time.Duration) (string, error){"tcp": lab.AskTCP, "udp": lab.AskUDP}

// silent requires that nothing gets through, while control does.
func (e *engine) silent(from *netns.NS, to string, fromControl *netns.NS, toControl string) {
	e.t.Helper()
	for network, ask := range asks {
		lab.Unreachable(e.t, network+" "+to,
			func() error { _, err := ask(from, "", to, "hello", 300*time.Millisecond); return err },
			func() error { _, err := ask(fromControl, "", toControl, "hello", soon); return err })
	}
}

// counter is one of bpfnet status.
func (e *engine) counter(name string) uint64 {
	e.t.Helper()
	var list []struct{ Counters map[string]uint64 }
	require.NoError(e.t, json.Unmarshal([]byte(e.bpfnet("status", "-o", "json")), &list))
	return list[0].Counters[name]
}
