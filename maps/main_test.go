// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "maps: these tests need root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

const testTable = 1024 // established flows

// newTables are the real maps on a bpffs of the test's own.
func newTables(t testing.TB) *Tables {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pins")
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	m, err := loader.CreateMaps(loader.Options{BPFFS: dir, Sizes: loader.Sizes{FlowTable: testTable, HalfOpen: testTable}})
	require.NoError(t, err)
	t.Cleanup(func() { m.Close() })
	return New(m)
}

func ip(s string) netip.Addr       { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
func addrPort(s string) netip.AddrPort {
	return netip.MustParseAddrPort(s)
}
