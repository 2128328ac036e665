// SPDX-License-Identifier: Apache-2.0

package link

import (
	"slices"
	"testing"
	"time"
	"unsafe"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// groOn asks the device, by ETHTOOL_GGRO.
func groOn(t *testing.T, ns *netns.NS, device string) bool {
	t.Helper()
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_GGRO, 0}
	require.NoError(t, ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		req := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&value)}
		copy(req.name[:], device)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		require.Zero(t, errno)
		return nil
	}))
	return value.data == 1
}

func median(list []time.Duration) time.Duration {
	sorted := slices.Clone(list)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}
