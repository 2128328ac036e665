// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "loader: these tests need root")
		os.Exit(1)
	}
	if err := rlimit.RemoveMemlock(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// newNetns gives the test's goroutine a network namespace of its own, with lo
// up; the thread and the namespace end with the test.
func newNetns(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))
	lo, err := netlink.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, netlink.LinkSetUp(lo))
}

// newVeth makes a veth pair and gives the ifindex of one end.
func newVeth(t *testing.T, name string) int {
	t.Helper()
	require.NoError(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}))
	l, err := netlink.LinkByName(name)
	require.NoError(t, err)
	return l.Attrs().Index
}

func delLink(t *testing.T, ifindex int) {
	t.Helper()
	require.NoError(t, netlink.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}))
}

// testOptions are small tables on a bpffs that ends with the test.
func testOptions(t *testing.T) Options {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pins")
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	return Options{BPFFS: dir, Sizes: Sizes{FlowTable: 1024, HalfOpen: 1024}}
}

// testPins is a directory of pins for programs that the test makes itself.
func testPins(t *testing.T) string {
	t.Helper()
	o := testOptions(t)
	require.NoError(t, Mount(o.BPFFS))
	return o.BPFFS
}

func newCounter(t *testing.T) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return m
}

func count(t *testing.T, m *ebpf.Map) uint64 {
	t.Helper()
	var n uint64
	require.NoError(t, m.Lookup(uint32(0), &n))
	return n
}

// counting is a TC program that counts what it sees in m, and passes it on.
func counting(t *testing.T, name string, m *ebpf.Map) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: name, Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.R10, -4, 0, asm.Word),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, 0),
			asm.Mov.Imm(asm.R0, -1).WithSymbol("out"),
			asm.Return(),
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// sender sends datagrams over lo to a socket that reads them.
type sender struct{ out, in *net.UDPConn }

func newSender(t *testing.T) *sender {
	t.Helper()
	in, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { in.Close() })
	out, err := net.DialUDP("udp4", nil, in.LocalAddr().(*net.UDPAddr))
	require.NoError(t, err)
	t.Cleanup(func() { out.Close() })
	return &sender{out, in}
}

// send returns when n datagrams have arrived, so when lo's ingress has seen them.
func (s *sender) send(t *testing.T, n int) {
	t.Helper()
	buf := make([]byte, 16)
	for range n {
		_, err := s.out.Write([]byte("x"))
		require.NoError(t, err)
		require.NoError(t, s.in.SetReadDeadline(time.Now().Add(5*time.Second)))
		_, err = s.in.Read(buf)
		require.NoError(t, err)
	}
}

// newCgroup makes a child of the cgroup v2 tree.
func newCgroup(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		before, after, _ := strings.Cut(line, " - ")
		if strings.HasPrefix(after, "cgroup2 ") {
			dir := filepath.Join(strings.Fields(before)[4], fmt.Sprintf("bpfnet-test-%d-%s", os.Getpid(), name))
			require.NoError(t, os.Mkdir(dir, 0o755))
			t.Cleanup(func() { os.Remove(dir) })
			return dir
		}
	}
	require.Fail(t, "no cgroup v2 mount")
	return ""
}

// How long tests wait for what the kernel does by and by.
const (
	waitLimit = 5 * time.Second
	waitTick  = 10 * time.Millisecond
)
