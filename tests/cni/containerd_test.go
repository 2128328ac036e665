// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// ownCNI gives a command a mount namespace in which the plugins and the networks are the lab's:
// ctr has fixed places for them, in which Debian's packages have directories.
const ownCNI = `mount --bind "$1" /usr/lib/cni && mount --bind "$2" /etc/cni/net.d && shift 2 && exec "$@"`

// long is for what has to come, however busy the machine is.
const long = 30 * time.Second

// containerd is a real one on the lab's host, with ctr as its client.
type containerd struct {
	*runtime
	dir, socket, plugins, networks string
}

func newContainerd(t *testing.T) *containerd {
	r := newRuntime(t, lab.RouteToHost())
	dir, err := os.MkdirTemp("", "bnc") // with a short name: sockets are in it
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	c := &containerd{r, dir, filepath.Join(dir, "s"), filepath.Join(dir, "plugins"), filepath.Join(dir, "networks")}
	root := filepath.Join(dir, "image")
	for _, d := range []string{c.plugins, c.networks, filepath.Join(root, "bin"), filepath.Join(root, "proc"), filepath.Join(root, "sys"), filepath.Join(root, "dev")} {
		require.NoError(t, os.MkdirAll(d, 0o755))
	}
	copyFile(t, "/bin/busybox", filepath.Join(root, "bin", "sleep"))
	copyFile(t, filepath.Join(upstream(t), "loopback"), filepath.Join(c.plugins, "loopback"))
	require.NoError(t, os.Symlink(lab.Binary(t), filepath.Join(c.plugins, "bpfnet")))
	list := map[string]any{"cniVersion": "1.0.0", "name": "pods", "plugins": []any{r.pods().with(conf{"cniVersion": nil, "name": nil})}}
	require.NoError(t, os.WriteFile(filepath.Join(c.networks, "10.conflist"), []byte(mustJSON(t, list)), 0o644))
	config := filepath.Join(dir, "config.toml")
	require.NoError(t, os.WriteFile(config, fmt.Appendf(nil, `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = %q
`, filepath.Join(dir, "d"), filepath.Join(dir, "x"), c.socket), 0o644))
	p := r.Start(t, r.Host, "containerd", "-c", config, "--log-level", "warn")
	t.Cleanup(func() {
		require.NoError(t, p.Signal(unix.SIGTERM))
		require.NoError(t, p.Wait(long))
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		require.NoError(t, err)
		for _, m := range mounts {
			require.NoError(t, unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
		}
	})
	require.Eventually(t, func() bool { _, err := os.Stat(c.socket); return err == nil }, long, 20*time.Millisecond, "containerd listens")
	return c
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, content, 0o755))
}

// start has ctr run a container, and puts servers of the lab's into it. end kills it: then ctr
// takes it off the network, and ends.
func (c *containerd) start(id string) (started pod, end func()) {
	c.t.Helper()
	p := c.Start(c.t, c.Host, "unshare", "-m", "sh", "-ec", ownCNI, "sh", c.plugins, c.networks,
		"ctr", "-a", c.socket, "run", "--rm", "--rootfs", "--cni", "--cgroup", "", filepath.Join(c.dir, "image"), id, "/bin/sleep", "100000")
	var pid int
	require.Eventually(c.t, func() bool {
		select {
		case <-p.Done():
			c.t.Fatalf("ctr run %s: %v: %s", id, p.Err(), p.Stderr())
		default:
		}
		out, err := c.Run(c.Host, "ctr", "-a", c.socket, "tasks", "ls")
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) == 3 && f[0] == id && f[2] == "RUNNING" {
				pid, err = strconv.Atoi(f[1])
			}
		}
		return err == nil && pid > 0
	}, long, 100*time.Millisecond, "%s runs", id)
	ns, err := netns.OfPID(pid)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { ns.Close() })
	started = pod{id: id, ns: ns}
	c.serve(started, 80)
	return started, func() {
		c.t.Helper()
		require.NoError(c.t, unix.Kill(pid, unix.SIGKILL))
		require.Error(c.t, p.Wait(long), "its status is the container's")
		require.NotContains(c.t, p.Stderr(), "cni")
	}
}

// containerd and ctr, which hands the plugin no ports: bpfnet publish does it.
func TestContainerd(t *testing.T) {
	c := newContainerd(t)
	web, endWeb := c.start("web")
	peer, endPeer := c.start("peer")
	_, err := c.Run(c.Host, lab.Binary(t), "publish", "default-web", "8080:80", "8080:80/udp")
	require.NoError(t, err)
	lab.ServeTCP(t, c.Client, "world", ":9000")
	lab.ServeUDP(t, c.Client, "world", ":9000")
	for _, proto := range []string{"tcp", "udp"} {
		c.asks(peer.ns, proto, "10.88.0.2:80", "web", "10.88.0.3")
		c.asks(peer.ns, proto, "[fd00:88::2]:80", "web", "fd00:88::3")
		c.asks(c.Client, proto, lab.HostIPv4+":8080", "web", lab.ClientIPv4)
		c.asks(c.Client, proto, "["+lab.HostIPv6+"]:8080", "web", lab.ClientIPv6)
		c.asks(web.ns, proto, lab.ClientIPv4+":9000", "world", lab.HostIPv4)
	}
	lab.Unreachable(t, "a container by a route to it",
		func() error { _, err := lab.AskTCP(c.Client, "", "10.88.0.2:80", "x", silence); return err },
		func() error { _, err := lab.AskTCP(c.Client, "", lab.HostIPv4+":8080", "x", wait); return err })
	endWeb()
	endPeer()
	c.empty()
}
