// SPDX-License-Identifier: Apache-2.0

// Package dockerd runs Debian's Docker Engine in the host of a lab, bpfnet's daemon beside it, and
// containers of the Engine's, for the tests of both ways to be under it:
//
//	X 203.0.113.2 ─── H: dockerd, bpfnet daemon … ─┬─ bridge ─── containers: busybox
//	                                               └─ bridge ─── containers
//
// make test-engines installs it.
package dockerd

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/lab"
	"github.com/bpfnet/bpfnet/tests/needs"
)

// Wait is for what has to come, however busy the machine is; Soon for an answer.
const (
	Wait = 30 * time.Second
	Soon = 5 * time.Second
)

// The real ones: a docker of another origin may come first in PATH.
const (
	server  = "/usr/sbin/dockerd"
	cli     = "/usr/bin/docker"
	busybox = "/bin/busybox"
)

// Engine is a Docker Engine in a lab, and bpfnet beside it.
type Engine struct {
	*lab.Lab
	T       testing.TB
	Dir     string   // of the Engine's, with a short name: sockets are in it
	Flags   []string // of dockerd's, beside those that keep it in the lab
	Process *lab.Process
	Daemon  *lab.Process // bpfnet's; nil: none yet
	mounts  *lab.Process // holds a mount namespace for the Engine
}

// New makes a lab for an Engine, which is not started yet. The test is skipped unless
// make test-engines runs it.
func New(t testing.TB, flags ...string) *Engine {
	t.Helper()
	needs.Engines(t)
	return On(t, lab.New(t, lab.HostDefault(), lab.RouteToHost()), flags...)
}

// On is New for a lab that there is.
func On(t testing.TB, l *lab.Lab, flags ...string) *Engine {
	t.Helper()
	for _, p := range []string{server, cli, busybox} {
		_, err := os.Stat(p)
		require.NoError(t, err, "make engines-deps installs it")
	}
	dir, err := os.MkdirTemp("", "bne")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	e := &Engine{Lab: l, T: t, Dir: dir, Flags: flags}
	t.Cleanup(e.end)
	return e
}

// In is the engine for a test within the test.
func (e *Engine) In(t testing.TB) *Engine {
	inner := *e
	inner.T = t
	return &inner
}

// Socket is where the Engine listens, as a URL.
func (e *Engine) Socket() string { return "unix://" + filepath.Join(e.Dir, "s") }

// cgroup is the parent of the containers' in the hierarchies of cgroup v1.
func (e *Engine) cgroup() string { return "bpfnet-" + filepath.Base(e.Dir) }

// Plugins is the directory in which an Engine with a /run of its own looks for plugins.
func (e *Engine) Plugins() string { return filepath.Join(e.Dir, "run", "plugins") }

// ownRun makes a /run in which /run/docker is the lab's.
const ownRun = `mount -t tmpfs tmpfs /run && mkdir -p /run/docker && mount --bind "$1" /run/docker && exec sleep 100000`

// OwnRun gives the Engine a mount namespace in which /run/docker is the lab's, before it is
// started for the first time: again too, what it has mounted is in it.
func (e *Engine) OwnRun() {
	e.T.Helper()
	dir := filepath.Dir(e.Plugins())
	require.NoError(e.T, os.MkdirAll(dir, 0o700))
	e.mounts = e.Start(e.T, e.Host, "unshare", "-m", "sh", "-c", ownRun, "sh", dir)
	own, err := os.Stat(dir)
	require.NoError(e.T, err)
	e.Eventually("/run/docker is the lab's", func() bool {
		its, err := os.Stat(fmt.Sprintf("/proc/%d/root/run/docker", e.mounts.Pid()))
		return err == nil && os.SameFile(own, its)
	})
}

// StartEngine starts dockerd and waits until it answers.
func (e *Engine) StartEngine() {
	e.T.Helper()
	config := filepath.Join(e.Dir, "daemon.json")
	require.NoError(e.T, os.WriteFile(config, []byte("{}"), 0o600))
	args := append([]string{
		"--config-file", config, "--data-root", filepath.Join(e.Dir, "d"), "--exec-root", filepath.Join(e.Dir, "x"),
		"--host", e.Socket(), "--pidfile", filepath.Join(e.Dir, "pid"), "--cgroup-parent", "/" + e.cgroup(),
		"--exec-opt", "native.cgroupdriver=cgroupfs", "--storage-driver", "overlay2", "--log-level", "warn",
	}, e.Flags...)
	name := server
	if e.mounts != nil {
		name, args = "nsenter", append([]string{fmt.Sprintf("--mount=/proc/%d/ns/mnt", e.mounts.Pid()), server}, args...)
	}
	e.Process = e.Start(e.T, e.Host, name, args...)
	e.Eventually("the Engine answers", func() bool {
		select {
		case <-e.Process.Done():
			e.T.Fatalf("dockerd: %v: %s", e.Process.Err(), e.Process.Stderr())
		default:
		}
		return e.answers()
	})
}

// answers asks the Engine whether it is there, without its client: again and again that would keep
// a processor from the Engine that starts.
func (e *Engine) answers() bool {
	conn, err := net.Dial("unix", filepath.Join(e.Dir, "s"))
	if err != nil {
		return false
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(Soon)) // a socket that works has one
	_, err = fmt.Fprintf(conn, "GET /_ping HTTP/1.0\r\n\r\n")
	answer, _ := io.ReadAll(conn)
	return err == nil && bytes.HasSuffix(answer, []byte("OK"))
}

// StopEngine ends dockerd as systemd does.
func (e *Engine) StopEngine() {
	e.T.Helper()
	require.NoError(e.T, e.Process.Signal(unix.SIGTERM))
	require.NoError(e.T, e.Process.Wait(Wait), e.Process.Stderr())
}

// KillEngine waits for the Engine's containerd, too, which is killed with it: the next Engine
// would take one that is about to die for its own.
func (e *Engine) KillEngine() {
	e.T.Helper()
	pid, err := os.ReadFile(filepath.Join(e.Dir, "x", "containerd", "containerd.pid"))
	require.NoError(e.T, err)
	require.NoError(e.T, e.Process.Signal(unix.SIGKILL))
	require.Error(e.T, e.Process.Wait(Wait))
	e.Eventually("containerd is gone", func() bool {
		_, err := os.Stat("/proc/" + strings.TrimSpace(string(pid)))
		return err != nil
	})
}

// StartDaemon starts bpfnet daemon with flags, and waits until it follows the host.
func (e *Engine) StartDaemon(flags ...string) {
	e.T.Helper()
	e.Daemon = e.Start(e.T, e.Host, lab.Binary(e.T), append([]string{"daemon"}, flags...)...)
	e.Says("following " + e.Root)
}

// StopDaemon ends bpfnet's daemon.
func (e *Engine) StopDaemon() {
	e.T.Helper()
	require.NoError(e.T, e.Daemon.Signal(unix.SIGTERM))
	require.NoError(e.T, e.Daemon.Wait(Wait))
}

// Says waits for words of bpfnet's daemon.
func (e *Engine) Says(words string) {
	e.T.Helper()
	e.Eventually("bpfnet says: "+words, func() bool {
		select {
		case <-e.Daemon.Done():
			e.T.Fatalf("bpfnet: %v: %s", e.Daemon.Err(), e.Daemon.Stderr())
		default:
		}
		return strings.Contains(e.Daemon.Stderr(), words)
	})
}

// Eventually waits for a condition.
func (e *Engine) Eventually(what string, cond func() bool) {
	e.T.Helper()
	require.Eventually(e.T, cond, Wait, 5*time.Millisecond, what)
}

// Bpfnet runs the real program to its end, and gives what it wrote.
func (e *Engine) Bpfnet(args ...string) string {
	e.T.Helper()
	out, err := e.Run(e.Host, lab.Binary(e.T), args...)
	require.NoError(e.T, err)
	return strings.TrimSpace(out)
}

// Docker runs the Engine's own client to its end, and gives what it wrote.
func (e *Engine) Docker(args ...string) string {
	e.T.Helper()
	out, err := e.TryDocker(args...)
	require.NoError(e.T, err)
	return out
}

// TryDocker is Docker where it may fail.
func (e *Engine) TryDocker(args ...string) (string, error) {
	out, err := e.Run(e.Host, cli, append([]string{"--host", e.Socket()}, args...)...)
	return strings.TrimSpace(out), err
}

// end takes the Engine and its containers away, also those of one that has failed; the lab
// looks for what is left.
func (e *Engine) end() {
	if e.Process == nil {
		return
	}
	if slices.Contains(e.Flags, "--live-restore") { // else it ends them itself
		e.removeAll()
	}
	if e.T.Failed() {
		e.T.Logf("dockerd: %s", tail(e.Process.Stderr()))
		if e.Daemon != nil {
			e.T.Logf("bpfnet: %s", tail(e.Daemon.Stderr()))
		}
	}
	_ = e.Process.Signal(unix.SIGTERM) // it may have ended
	if err := e.Process.Wait(Wait); err != nil && !e.T.Failed() {
		e.T.Errorf("dockerd: %v: %s", err, tail(e.Process.Stderr()))
	}
	// dockerd leaves some: the host's namespace, and with live-restore its root.
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(e.Dir))
	if err != nil {
		e.T.Error(err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			e.T.Errorf("mount %s: %v", m.Mountpoint, err)
		}
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + e.cgroup())
	for _, d := range dirs {
		e.removeCgroup(d)
	}
}

func (e *Engine) removeAll() {
	ids, err := e.TryDocker("ps", "-aq")
	if err != nil {
		return
	}
	list := strings.Fields(ids)
	if err := Many(len(list), func(i int) error { _, err := e.TryDocker("rm", "-f", list[i]); return err }); err != nil {
		e.T.Error(err)
	}
}

// removeCgroup removes one with all below it; what an Engine that has failed has left in it
// is ended, by number.
func (e *Engine) removeCgroup(dir string) {
	var inner []string
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.IsDir() {
			inner = append(inner, path)
			killAll(path)
		}
		return nil
	})
	for _, path := range slices.Backward(inner) {
		var err error
		for end := time.Now().Add(Wait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if err = unix.Rmdir(path); err != unix.EBUSY { // until its processes are gone
				break
			}
		}
		if err != nil {
			e.T.Errorf("cgroup %s: %v", path, err)
		}
	}
}

func killAll(cgroup string) {
	data, _ := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	for _, f := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-20000):] }
