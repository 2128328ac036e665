// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// limit is how long what must come is waited for.
const limit = 10 * time.Second

func TestDrawing(t *testing.T) {
	l := New(t)
	// At once: the kernel would ask for a neighbour again after a minute only.
	for _, key := range []string{"ipv4/neigh/eth0/retrans_time_ms", "ipv6/neigh/eth0/retrans_time_ms"} {
		Sysctl(t, l.Client, key, "60000")
		Sysctl(t, l.Host, key, "60000")
	}
	for _, to := range []string{HostIPv4, HostIPv6} {
		require.NoError(t, Ping(l.Client, to, limit))
	}
	for _, to := range []string{ClientIPv4, ClientIPv6} {
		require.NoError(t, Ping(l.Host, to, limit))
	}
	require.ErrorIs(t, Ping(l.Client, "198.51.100.1", limit), unix.ENETUNREACH)
	require.ErrorIs(t, Ping(l.Host, "198.51.100.1", limit), unix.ENETUNREACH)

	st, err := os.Stat(l.BPFFS)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o700), st.Mode().Perm())
	var fsinfo unix.Statfs_t
	require.NoError(t, unix.Statfs(l.BPFFS, &fsinfo))
	require.EqualValues(t, unix.BPF_FS_MAGIC, fsinfo.Type)
	require.NoError(t, unix.Statfs(l.Cgroup, &fsinfo))
	require.EqualValues(t, unix.CGROUP2_SUPER_MAGIC, fsinfo.Type)
	require.Empty(t, l.Leftovers(t))

	// The host that another process finds by the environment is H.
	out, err := l.Run(l.Client, "sh", "-c", `nsenter --net="$BPFNET_NETNS" readlink /proc/self/ns/net; cat /proc/self/cgroup`)
	require.NoError(t, err)
	_, inode, _ := strings.Cut(l.Host.ID(), ":")
	require.Contains(t, out, "net:["+inode+"]")
	require.Contains(t, out, filepath.Base(l.Cgroup))
}

func TestOptions(t *testing.T) {
	l := New(t, RouteToHost(), HostDefault())
	far := l.AddClient(t, "Y", "198.51.100.1/24", "2001:db8:51::1/64")
	require.Equal(t, "eth1", far.Device)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("2001:db8:51::2")}, far.Addrs)
	require.NoError(t, Ping(l.Host, "198.51.100.2", limit))
	require.NoError(t, Ping(l.Host, "2001:db8:51::2", limit))
	require.NoError(t, Ping(l.Client, "198.51.100.1", limit), "by the default route")

	// H's default route leads to X.
	AddAddr(t, l.Client, "lo", "192.0.2.9/32")
	AddAddr(t, l.Client, "lo", "2001:db8:9::9/128")
	require.NoError(t, Ping(l.Host, "192.0.2.9", limit))
	require.NoError(t, Ping(l.Host, "2001:db8:9::9", limit))
	DelAddr(t, l.Client, "lo", "192.0.2.9/32")
	require.Error(t, Ping(l.Host, "192.0.2.9", 100*time.Millisecond))

	require.Equal(t, "0", ReadSysctl(t, l.Host, "ipv4/ip_forward"))
	Sysctl(t, l.Host, "ipv4/ip_forward", "1")
	require.Equal(t, "1", ReadSysctl(t, l.Host, "ipv4/ip_forward"))
	require.Equal(t, far.HostMAC, Link(t, l.Host, "eth1").Attrs().HardwareAddr)
	require.Equal(t, far.MAC, Link(t, far.NS, "eth0").Attrs().HardwareAddr)
}

// What a test leaves behind is ended and taken away, children of children included.
func TestCloseTakesEverything(t *testing.T) {
	l, err := Open(t.TempDir())
	require.NoError(t, err)
	p, err := l.StartCommand(l.Host, l.Command("sh", "-c", "setsid sleep 1000 & echo started"))
	require.NoError(t, err)
	require.NoError(t, p.Wait(limit))
	sleeping := cgroupProcs(l.Cgroup)
	require.Len(t, sleeping, 1)
	long, err := l.StartCommand(l.Client, l.Command("sleep", "1000"))
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(l.Cgroup, "child"), 0o755))
	require.NoError(t, netns.Persist(l.Host, filepath.Join(l.Root, "netns", "one")))
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Pin(filepath.Join(l.BPFFS, "map")))

	require.NoError(t, l.Close())
	require.NoError(t, l.Close(), "twice is once")
	require.NoDirExists(t, l.Cgroup)
	for _, pid := range append(sleeping, long.Pid()) {
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		require.True(t, len(stat) == 0 || strings.Contains(string(stat), ") Z "), "process %d: %s", pid, stat)
	}
	points, err := below(l.Dir)
	require.NoError(t, err)
	require.Empty(t, points)
	_, err = l.StartCommand(l.Host, l.Command("true"))
	require.Error(t, err)
	require.NoError(t, os.RemoveAll(l.Dir))
}

func TestCloseNamesALeak(t *testing.T) {
	l, err := Open(t.TempDir())
	require.NoError(t, err)
	held, err := netns.Open(l.NetnsPath)
	require.NoError(t, err)
	defer held.Close()
	l.patience = 20 * time.Millisecond
	err = l.Close()
	require.ErrorContains(t, err, "network namespaces are still held by")
	require.ErrorContains(t, err, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), held.FD()))
}

func TestLeftovers(t *testing.T) {
	l := New(t)
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	require.NoError(t, err)
	defer prog.Close()
	guard, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.CGroupSock, AttachType: ebpf.AttachCGroupInet4PostBind, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	require.NoError(t, err)
	defer guard.Close()
	var tcx link.Link
	require.NoError(t, l.Host.Do(func() (err error) {
		tcx, err = link.AttachTCX(link.TCXOptions{Interface: Link(t, l.Host, "eth0").Attrs().Index, Program: prog, Attach: ebpf.AttachTCXIngress})
		return err
	}))
	defer tcx.Close()
	cg, err := link.AttachCgroup(link.CgroupOptions{Path: l.Cgroup, Attach: ebpf.AttachCGroupInet4PostBind, Program: guard})
	require.NoError(t, err)
	defer cg.Close()
	require.NoError(t, prog.Pin(filepath.Join(l.BPFFS, "prog")))
	h, err := l.Host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	require.NoError(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "bpfnet0"}}))
	require.NoError(t, h.QdiscAdd(&netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: Link(t, l.Host, "eth0").Attrs().Index,
		Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT}}))
	require.NoError(t, netns.Persist(l.Host, filepath.Join(l.Root, "netns", "one")))
	_, err = l.Run(l.Host, "sh", "-c", "sleep 1000 &")
	require.NoError(t, err)
	l.Start(t, l.Host, "sleep", "1000") // the test's own

	found := strings.Join(l.Leftovers(t), "\n")
	for _, want := range []string{"device bpfnet0", "clsact on eth0", "(TCXIngress) on eth0", "(CGroupInet4PostBind) on the cgroup",
		"pin " + l.BPFFS + "/prog", "mount " + l.Root + "/netns/one", "process "} {
		require.Contains(t, found, want)
	}
	require.Equal(t, 1, strings.Count(found, "process "))
}

// Labs of processes that were killed are swept away by the next one.
func TestSweep(t *testing.T) {
	dead := exec.Command("true")
	require.NoError(t, dead.Run())
	name := fmt.Sprintf("%s%d-000000", namePrefix, dead.Process.Pid)
	root, err := cgroupRoot()
	require.NoError(t, err)
	require.NoError(t, os.Mkdir(filepath.Join(root, name), 0o755))
	dir := t.TempDir()
	require.NoError(t, unix.Mount(name, dir, "bpf", 0, ""))

	other := New(t)
	require.NoDirExists(t, filepath.Join(root, name))
	list, err := mountinfo.GetMounts(nil)
	require.NoError(t, err)
	for _, m := range list {
		require.NotEqual(t, name, m.Source)
	}
	sweep()
	require.DirExists(t, other.Cgroup, "a living one's is left")
	require.DirExists(t, other.BPFFS)
}

func TestRun(t *testing.T) {
	l := New(t)
	out, err := l.Run(l.Client, "sh", "-c", "echo out; echo err >&2; exit 3")
	require.Equal(t, "out\n", out)
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	require.Equal(t, 3, exit.ExitCode())
	require.ErrorContains(t, err, "err")
	_, err = l.Run(l.Client, "/no/such/program")
	require.ErrorIs(t, err, fs.ErrNotExist)

	// A program that leaves another one running, with its output, keeps nobody waiting.
	start := time.Now()
	out, err = l.Run(l.Host, "sh", "-c", "sleep 1000 & echo done")
	require.NoError(t, err)
	require.Equal(t, "done\n", out)
	require.Less(t, time.Since(start), limit)

	p := l.Start(t, l.Host, "sh", "-c", "echo ready; exec sleep 1000")
	require.True(t, p.WaitOutput("ready", limit))
	require.False(t, p.WaitOutput("never", 10*time.Millisecond))
	require.ErrorContains(t, p.Wait(10*time.Millisecond), "does not end")
	<-p.Done()
	require.Error(t, p.Err())
}
