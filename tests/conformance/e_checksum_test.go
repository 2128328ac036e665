// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"net/netip"
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// E4 in small, and without tools: packets whose checksum is computed before the programs
// see them, and packets whose checksum a device computes after that. Both arrive, which
// tells that the programs know which is which; a receiver drops a wrong one.
//
//	X eth0 (computes its own) ──► H ──► srv          the programs see whole checksums
//	X eth0 ◄── H uplink (computes what is missing) ◄── srv    the programs see checksums to be made
func TestE4Sums(t *testing.T) {
	parallel(t)
	c, s, p, _ := ownCast(t)
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	computes := []port{{c.Client, "eth0"}, {c.Host, c.X.Device}, {c.Host, c.hostDevice(s)}}
	for _, d := range computes {
		leavesSums(t, d.ns, d.dev)
	}
	receivers := []*netns.NS{c.Client, c.Host, s.ns, p.ns}
	before := sumErrors(t, receivers...)
	for i, host := range []string{lab.HostIPv4, lab.HostIPv6} {
		world := []string{lab.ClientIPv4, lab.ClientIPv6}[i]
		c.answers(c.Client, at(host, 8080), "srv", world)
		c.answers(s.ns, at(world, 7000), "world", host)
		c.answers(p.ns, at(host, 8080), "srv", []netip.Addr{p.ip4, p.ip6}[i].String())
		conn, err := lab.Dial(s.ns, "tcp", "", at(world, 7000), wait)
		require.NoError(t, err)
		defer conn.Close()
		c.carries(conn, 100_000)
	}
	c.answers(c.Host, "127.0.0.1:8080", "srv", "10.1.0.1")
	c.answers(c.Host, "[::1]:8080", "srv", "fd00:1::1")
	require.Equal(t, before, sumErrors(t, receivers...), "wrong checksums")
}

// leavesSums makes a device not compute the checksums of what it sends: the kernel does
// so just before (ETHTOOL_STXCSUM).
func leavesSums(t testing.TB, ns *netns.NS, device string) {
	t.Helper()
	value := struct{ cmd, data uint32 }{unix.ETHTOOL_STXCSUM, 0} // struct ethtool_value
	var req struct {                                             // struct ifreq
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [24 - unsafe.Sizeof(uintptr(0))]byte
	}
	copy(req.name[:unix.IFNAMSIZ-1], device)
	req.data = unsafe.Pointer(&value)
	require.NoError(t, ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return os.NewSyscallError("ethtool tx "+device, errno)
		}
		return nil
	}))
}
