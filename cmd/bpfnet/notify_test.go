// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestReadiness(t *testing.T) {
	quiet := func(line string) { t.Error(line) }
	for _, path := range []string{filepath.Join(t.TempDir(), "notify"), "@bpfnet-test-" + filepath.Base(t.TempDir()) + t.Name()} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		require.NoError(t, err)
		defer l.Close()
		t.Setenv("NOTIFY_SOCKET", path)
		r := awaitedReadiness(quiet)
		require.Empty(t, os.Getenv("NOTIFY_SOCKET"))
		first, second := r.part(), r.part()
		buf := make([]byte, 100)
		first()
		require.NoError(t, l.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		_, err = l.Read(buf)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded) // a part is missing
		second()
		require.NoError(t, l.SetReadDeadline(time.Now().Add(5*time.Second)))
		n, err := l.Read(buf)
		require.NoError(t, err)
		require.Equal(t, "READY=1", string(buf[:n]))
	}
	// Nobody waits; and one who is gone is said, and no more.
	t.Setenv("NOTIFY_SOCKET", "")
	awaitedReadiness(quiet).part()()
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	said := 0
	awaitedReadiness(func(string) { said++ }).part()()
	require.Equal(t, 1, said)
}
