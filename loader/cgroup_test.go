// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const bindEnv = "BPFNET_TEST_BIND"

// The child of bind: binds, and says how it went by its exit status.
func init() {
	address := os.Getenv(bindEnv)
	if address == "" {
		return
	}
	a := netip.MustParseAddrPort(address)
	family, sa := unix.AF_INET6, unix.Sockaddr(&unix.SockaddrInet6{Port: int(a.Port())})
	if a.Addr().Is4() {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port())}
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM, 0)
	if err == nil {
		err = unix.Bind(fd, sa)
	}
	switch {
	case err == nil:
		os.Exit(0)
	case errors.Is(err, unix.EPERM):
		os.Exit(10)
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// bind binds in a process of its own inside a cgroup; allowed or EPERM.
func bind(t *testing.T, cgroup, address string) (allowed bool) {
	t.Helper()
	dir, err := os.Open(cgroup)
	require.NoError(t, err)
	defer dir.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), bindEnv+"="+address)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Cloneflags: syscall.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); err != nil && code != 10 {
		require.NoError(t, err, string(out))
	}
	return err == nil
}

// deciding is a bind guard that says the same to everybody.
func deciding(t *testing.T, at ebpf.AttachType, allow int32) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.CGroupSock, AttachType: at, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, allow), asm.Return()},
	})
	require.NoError(t, err)
	t.Cleanup(func() { p.Close() })
	return p
}

// guardOf is a guard of these two, with bind hooks that let everybody pass.
func guardOf(t *testing.T, post4, post6 *ebpf.Program) BindGuard {
	t.Helper()
	pass := func(at ebpf.AttachType) *ebpf.Program {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Type: ebpf.CGroupSockAddr, AttachType: at, License: "GPL",
			Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()},
		})
		require.NoError(t, err)
		t.Cleanup(func() { p.Close() })
		return p
	}
	return BindGuard{Bind4: pass(ebpf.AttachCGroupInet4Bind), Bind6: pass(ebpf.AttachCGroupInet6Bind), PostBind4: post4, PostBind6: post6}
}

func TestBindGuard(t *testing.T) {
	pins, one, two := testPins(t), newCgroup(t, "one"), newCgroup(t, "two")
	const v4, v6 = ebpf.AttachCGroupInet4PostBind, ebpf.AttachCGroupInet6PostBind
	allow4, allow6 := deciding(t, v4, 1), deciding(t, v6, 1)
	deny4, deny6 := deciding(t, v4, 0), deciding(t, v6, 0)
	const at4, at6 = "0.0.0.0:8080", "[::]:8080"

	guard := guardOf(t, nil, nil)
	attach := func(dir string, p4, p6 *ebpf.Program) bool {
		guard.PostBind4, guard.PostBind6 = p4, p6
		changed, err := AttachBindGuard(dir, guard, pins)
		require.NoError(t, err)
		return changed
	}
	require.True(t, bind(t, one, at4))
	require.True(t, attach(one, deny4, deny6))
	require.False(t, bind(t, one, at4))
	require.False(t, bind(t, one, at6))
	require.True(t, bind(t, two, at4))
	require.False(t, attach(one, deny4, deny6))

	require.True(t, attach(one, allow4, deny6), "upgrade")
	require.True(t, bind(t, one, at4))
	require.False(t, bind(t, one, at6))

	require.True(t, attach(two, deny4, allow6), "another cgroup")
	require.True(t, bind(t, one, at6))
	require.False(t, bind(t, two, at4))

	require.NoError(t, DetachBindGuard(pins))
	require.True(t, bind(t, two, at4))
	require.NoError(t, DetachBindGuard(pins))
}

func TestBindGuardBothOrNone(t *testing.T) {
	pins, dir := testPins(t), newCgroup(t, "both")
	deny4 := deciding(t, ebpf.AttachCGroupInet4PostBind, 0)
	_, err := AttachBindGuard(dir, guardOf(t, deny4, deny4), pins) // of the wrong type for IPv6
	require.ErrorContains(t, err, "program post_bind6")
	require.True(t, bind(t, dir, "0.0.0.0:8080"))
	left, err := os.ReadDir(linksDir(pins))
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestBindGuardGone(t *testing.T) {
	pins, dir := testPins(t), newCgroup(t, "gone")
	p4, p6 := deciding(t, ebpf.AttachCGroupInet4PostBind, 1), deciding(t, ebpf.AttachCGroupInet6PostBind, 1)
	guard := guardOf(t, p4, p6)
	_, err := AttachBindGuard(dir, guard, pins)
	require.NoError(t, err)
	require.NoError(t, os.Remove(dir))
	require.Eventually(t, func() bool {
		pruned, err := Prune(pins)
		require.NoError(t, err)
		left, err := readRecords(pins)
		require.NoError(t, err)
		return len(pruned) == 0 && len(left) == 0
	}, waitLimit, waitTick)

	_, err = AttachBindGuard(t.TempDir(), guard, pins)
	require.ErrorContains(t, err, "not in a cgroup v2 tree")
}
