// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestReadRange(t *testing.T) {
	host, err := ReadRange()
	require.NoError(t, err)
	inNetns(t, func() {
		writeSysctl(t, "ip_local_port_range", "40000 40009")
		got, err := ReadRange()
		require.NoError(t, err)
		require.Equal(t, Range{40000, 40009}, got)
	})
	again, err := ReadRange()
	require.NoError(t, err)
	require.Equal(t, host, again, "another namespace's")
	for _, bad := range []string{"", "1", "1 2 3", "0 5", "5 4", "1 65536", "x y"} {
		_, err := parseLocalRange(bad)
		require.ErrorContains(t, err, "ip_local_port_range", bad)
	}
}

// What the kernel does, which the code relies on.
func TestKernelReservedPorts(t *testing.T) {
	inNetns(t, func() {
		var every2 Set // 191,052 bytes
		for p := 1; p < 65536; p += 2 {
			every2.Add(uint16(p))
		}
		require.NoError(t, WriteReserved(every2))
		text, err := os.ReadFile(reservedFile)
		require.NoError(t, err)
		require.LessOrEqual(t, len(text), 1024, "os.ReadFile begins with a small buffer, and the rest does not come")

		f, err := os.OpenFile(reservedFile, os.O_RDWR, 0)
		require.NoError(t, err)
		defer func() { _ = f.Close() }()
		n, err := unix.Pwrite(int(f.Fd()), []byte(every2.String()), 0)
		require.NoError(t, err)
		require.Less(t, n, 4096, "one write takes a page at most")
		got, err := ReadReserved()
		require.NoError(t, err)
		require.Less(t, got.Len(), every2.Len()/10, "a write at offset 0 replaces")

		_, err = f.WriteAt([]byte("8"), 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte("10,12"), 1)
		require.NoError(t, err)
		got, err = ReadReserved()
		require.NoError(t, err)
		require.Equal(t, "8,10,12", got.String(), "a write behind it adds")
	})
}

func TestReserved(t *testing.T) {
	inNetns(t, func() {
		got, err := ReadReserved()
		require.NoError(t, err)
		require.Equal(t, Set{}, got)

		var pairs, odd, all Set
		for p := 10000; p < 65535; p += 3 { // the longest text there is
			pairs.AddRange(Range{uint16(p), uint16(p + 1)})
		}
		for p := 1; p < 65536; p += 2 {
			odd.Add(uint16(p))
		}
		all.AddRange(Range{1, 65535})
		one := set(t, "8080")
		some := set(t, "1-5,7,32768-40000,65535")
		for _, s := range []Set{one, some, {}, pairs, odd, pairs, all, one, odd, {}} {
			require.NoError(t, WriteReserved(s))
			got, err := ReadReserved()
			require.NoError(t, err)
			require.True(t, s == got, "%d ports written, %d read", s.Len(), got.Len())
		}
	})
	host, err := ReadReserved()
	require.NoError(t, err)
	require.False(t, host.Has(8080), "another namespace's")
}

// Ports that are added never make others vanish, not for a moment.
func TestReservedAddsInPlace(t *testing.T) {
	inNetns(t, func() {
		base := set(t, "9000")
		for p := 1; p < 30000; p += 2 {
			base.Add(uint16(p))
		}
		require.NoError(t, WriteReserved(base))
		self := fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid())
		fd, err := unix.Open(self, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		stop, watched := make(chan struct{}), make(chan int)
		go func() {
			runtime.LockOSThread()
			missing, looks := 0, 0
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				missing = 1_000_000
			}
			for {
				select {
				case <-stop:
					if looks == 0 {
						missing = -1
					}
					watched <- missing
					return
				default:
				}
				if now, err := ReadReserved(); err != nil || base.Minus(&now) != (Set{}) {
					missing++
				}
				looks++
			}
		}()
		next := base
		for p := 40000; p < 60000; p += 2 {
			next.Add(uint16(p))
			if p%500 == 0 {
				require.NoError(t, WriteReserved(next))
			}
		}
		require.NoError(t, WriteReserved(next))
		close(stop)
		require.Zero(t, <-watched)
		now, err := ReadReserved()
		require.NoError(t, err)
		require.True(t, now == next)
		require.NoError(t, unix.Close(fd))
	})
}

// With the half that Reserve takes reserved, the host goes on connecting and
// binding, and none of it gets a reserved port.
func TestReservedLeavesTheHostPorts(t *testing.T) {
	inNetns(t, func() {
		writeSysctl(t, "ip_local_port_range", "40000 40019")
		eph, err := ReadRange()
		require.NoError(t, err)
		want := set(t, "40000-40019")
		next, _, complete := Reserve(want, Set{}, Set{}, eph)
		require.False(t, complete)
		require.NoError(t, WriteReserved(next))
		ln, err := net.Listen("tcp4", "127.0.0.1:80")
		require.NoError(t, err)
		for range 5 { // five and five of ten ports
			b, err := net.Listen("tcp4", "127.0.0.1:0")
			require.NoError(t, err)
			require.False(t, next.Has(uint16(b.Addr().(*net.TCPAddr).Port)))
			c, err := net.Dial("tcp4", ln.Addr().String())
			require.NoError(t, err)
			require.False(t, next.Has(uint16(c.LocalAddr().(*net.TCPAddr).Port)))
			defer func() { _, _ = b.Close(), c.Close() }()
		}
		_ = ln.Close()
	})
}
