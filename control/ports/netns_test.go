// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNetns runs fn in a network namespace of its own, with lo up. The thread is
// never unlocked, so that it and the namespace end with the goroutine.
func inNetns(t testing.TB, fn func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		require.NoError(t, unix.Unshare(unix.CLONE_NEWNET), "root is needed")
		lo, err := netlink.LinkByName("lo")
		require.NoError(t, err)
		require.NoError(t, netlink.LinkSetUp(lo))
		for _, a := range []string{"10.0.0.1/32", "10.0.0.2/32", "2001:db8::1/128"} {
			parsed, err := netlink.ParseAddr(a)
			require.NoError(t, err)
			parsed.Flags = unix.IFA_F_NODAD
			require.NoError(t, netlink.AddrAdd(lo, parsed))
		}
		fn()
	}()
	<-done
}

func writeSysctl(t testing.TB, name, value string) {
	t.Helper()
	require.NoError(t, os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0))
}
