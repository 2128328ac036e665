// SPDX-License-Identifier: Apache-2.0

// Package dockerdriver runs a Docker Engine, unmodified and with its own rules in iptables,
// that has bpfnet as a network driver: the real programs, in a lab's host of their own.
//
//	X 203.0.113.2 ─── H: dockerd, bpfnet daemon --docker-driver ─── bpfn-… ─── containers
//
// They run if the environment has BPFNET_ENGINES=1.
package dockerdriver

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// wait is for what has to come, however busy the machine is; soon for an answer.
const (
	wait = 30 * time.Second
	soon = 5 * time.Second
)

// A docker of another origin may come first in PATH.
const (
	dockerd   = "/usr/sbin/dockerd"
	dockerCLI = "/usr/bin/docker"
	busybox   = "/bin/busybox"
)

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
		if built.dir, built.err = os.MkdirTemp("", "bpfnet-driver"); built.err != nil {
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

// engine is a Docker Engine in a lab, and bpfnet beside it. /run is the Engine's own.
type engine struct {
	*lab.Lab
	t       testing.TB
	dir     string // of the Engine's, with a short name: sockets are in it
	flags   []string
	mounts  *lab.Process // holds the mount namespace
	process *lab.Process
	daemon  *lab.Process
}

// newEngine starts both; flags are dockerd's.
func newEngine(t testing.TB, flags ...string) *engine {
	t.Helper()
	programs(t)
	dir, err := os.MkdirTemp("", "bnd")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	e := &engine{Lab: lab.New(t, lab.HostDefault(), lab.RouteToHost()), t: t, dir: dir, flags: flags}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "run"), 0o700))
	e.holdMounts()
	e.startDaemon()
	e.startEngine()
	t.Cleanup(e.end)
	e.importImage()
	return e
}

func (e *engine) socket() string { return "unix://" + filepath.Join(e.dir, "s") }

// plugin is where the Engine finds bpfnet.
func (e *engine) plugin() string { return filepath.Join(e.dir, "run", "plugins", "bpfnet.sock") }

// cgroup is the parent of the containers' in the hierarchies of cgroup v1.
func (e *engine) cgroup() string { return "bpfnet-" + filepath.Base(e.dir) }

// script makes a /run of its own, in which /run/docker is the lab's.
const script = `mount -t tmpfs tmpfs /run && mkdir -p /run/docker && mount --bind "$1" /run/docker && exec sleep 100000`

// holdMounts makes the mount namespace that dockerd is started in, again too: what it has
// mounted is in it.
func (e *engine) holdMounts() {
	e.t.Helper()
	e.mounts = e.Start(e.t, e.Host, "unshare", "-m", "sh", "-c", script, "sh", filepath.Join(e.dir, "run"))
	own, err := os.Stat(filepath.Join(e.dir, "run"))
	require.NoError(e.t, err)
	e.eventually("/run/docker is the lab's", func() bool {
		its, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/docker", e.mounts.Pid()))
		return err == nil && os.SameFile(own, its)
	})
}

func (e *engine) startEngine() {
	e.t.Helper()
	config := filepath.Join(e.dir, "daemon.json")
	require.NoError(e.t, os.WriteFile(config, []byte("{}"), 0o600))
	args := append([]string{
		fmt.Sprintf("--mount=/proc/%d/ns/mnt", e.mounts.Pid()), dockerd,
		"--config-file", config, "--data-root", filepath.Join(e.dir, "d"), "--exec-root", filepath.Join(e.dir, "x"),
		"--host", e.socket(), "--pidfile", filepath.Join(e.dir, "pid"), "--cgroup-parent", "/" + e.cgroup(),
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2",
	}, e.flags...)
	e.process = e.Start(e.t, e.Host, "nsenter", args...)
	e.eventually("the Engine answers", func() bool {
		select {
		case <-e.process.Done():
			e.t.Fatalf("dockerd: %v: %s", e.process.Err(), e.process.Stderr())
		default:
		}
		_, err := e.tryDocker("version")
		return err == nil
	})
}

func (e *engine) stopEngine() {
	e.t.Helper()
	require.NoError(e.t, e.process.Signal(unix.SIGTERM))
	require.NoError(e.t, e.process.Wait(wait), e.process.Stderr())
}

// killEngine waits for the Engine's containerd, too, which is killed with it: the next Engine
// would take one that is about to die for its own.
func (e *engine) killEngine() {
	e.t.Helper()
	pid, err := os.ReadFile(filepath.Join(e.dir, "x", "containerd", "containerd.pid"))
	require.NoError(e.t, err)
	require.NoError(e.t, e.process.Signal(unix.SIGKILL))
	require.Error(e.t, e.process.Wait(wait))
	e.eventually("containerd is gone", func() bool {
		_, err := os.Stat("/proc/" + strings.TrimSpace(string(pid)))
		return err != nil
	})
}

// end takes the Engine and its containers away, also those of one that has failed; the lab
// looks for what is left.
func (e *engine) end() {
	if ids, err := e.tryDocker("ps", "-aq"); err == nil && ids != "" {
		if _, err := e.tryDocker(append([]string{"rm", "-f"}, strings.Fields(ids)...)...); err != nil {
			e.t.Error(err)
		}
	}
	if e.t.Failed() {
		e.t.Logf("dockerd: %s", tail(e.process.Stderr()))
		e.t.Logf("bpfnet: %s", tail(e.daemon.Stderr()))
	}
	_ = e.process.Signal(unix.SIGTERM) // it may have ended
	if err := e.process.Wait(wait); err != nil && !e.t.Failed() {
		e.t.Errorf("dockerd: %v: %s", err, tail(e.process.Stderr()))
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + e.cgroup())
	for _, d := range dirs {
		var inner []string
		_ = filepath.WalkDir(d, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.IsDir() {
				inner = append(inner, path)
				killAll(path)
			}
			return nil
		})
		for _, path := range slices.Backward(inner) {
			var err error
			for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if err = unix.Rmdir(path); err != unix.EBUSY { // until its processes are gone
					break
				}
			}
			if err != nil {
				e.t.Errorf("cgroup %s: %v", path, err)
			}
		}
	}
}

// killAll ends, by number, what an Engine that has failed has left in a cgroup.
func killAll(cgroup string) {
	data, _ := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	for _, f := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-6000):] }

func (e *engine) startDaemon() {
	e.t.Helper()
	e.daemon = e.Start(e.t, e.Host, binary(e.t), "daemon", "--docker-driver="+e.plugin())
	e.says("docker driver: listening on ")
	e.says("following " + e.Root)
}

func (e *engine) stopDaemon() {
	e.t.Helper()
	require.NoError(e.t, e.daemon.Signal(unix.SIGTERM))
	require.NoError(e.t, e.daemon.Wait(wait))
}

func (e *engine) says(words string) {
	e.t.Helper()
	e.eventually("bpfnet says: "+words, func() bool {
		select {
		case <-e.daemon.Done():
			e.t.Fatalf("bpfnet: %v: %s", e.daemon.Err(), e.daemon.Stderr())
		default:
		}
		return strings.Contains(e.daemon.Stderr(), words)
	})
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
	out, err := e.tryDocker(args...)
	require.NoError(e.t, err)
	return out
}

func (e *engine) tryDocker(args ...string) (string, error) {
	out, err := e.Run(e.Host, dockerCLI, append([]string{"--host", e.socket()}, args...)...)
	return strings.TrimSpace(out), err
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
	for _, name := range strings.Fields("sh sleep ping nc wget cat ip nslookup") {
		require.NoError(e.t, w.WriteHeader(&tar.Header{Name: "bin/" + name, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink}))
	}
	require.NoError(e.t, w.Close())
	file := filepath.Join(e.dir, "box.tar")
	require.NoError(e.t, os.WriteFile(file, buf.Bytes(), 0o600))
	e.docker("import", "--change", `ENV PATH=/bin`, file, "box")
}

// in is the engine for a test within the test.
func (e *engine) in(t *testing.T) *engine {
	inner := *e
	inner.t = t
	return &inner
}
