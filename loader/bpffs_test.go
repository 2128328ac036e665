// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMount(t *testing.T) {
	o := testOptions(t)
	require.NoError(t, Mount(o.BPFFS))
	require.NoError(t, Mount(o.BPFFS), "again")
	on, err := onBPFFS(o.BPFFS)
	require.NoError(t, err)
	require.True(t, on)
	mode := func(dir string) os.FileMode {
		fi, err := os.Stat(dir)
		require.NoError(t, err)
		return fi.Mode().Perm()
	}
	require.EqualValues(t, 0o700, mode(o.BPFFS))

	inside := filepath.Join(o.BPFFS, "a", "b")
	require.NoError(t, Mount(inside))
	require.EqualValues(t, 0o700, mode(inside))
	require.NoError(t, os.Chmod(inside, 0o755))
	require.NoError(t, Mount(inside))
	require.EqualValues(t, 0o700, mode(inside), "narrowed")

	require.NoError(t, Unmount(inside))
	require.NoDirExists(t, inside)
	require.DirExists(t, o.BPFFS)
	require.NoError(t, os.Remove(filepath.Join(o.BPFFS, "a")))
	require.NoError(t, Unmount(o.BPFFS))
	require.NoDirExists(t, o.BPFFS)
	require.NoError(t, Unmount(o.BPFFS), "again")
}

// /sys/fs/bpf, in a mount namespace of its own.
func TestMountSystem(t *testing.T) {
	runtime.LockOSThread() // and never unlocked
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNS))
	require.NoError(t, unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	for unix.Unmount(systemBPFFS, unix.MNT_DETACH) == nil {
	}
	on, err := onBPFFS(systemBPFFS)
	require.NoError(t, err)
	require.False(t, on)
	require.NoError(t, Mount(DefaultBPFFS))
	on, err = onBPFFS(systemBPFFS)
	require.NoError(t, err)
	require.True(t, on)
	require.DirExists(t, DefaultBPFFS)
	require.NoError(t, Unmount(DefaultBPFFS))
	on, err = onBPFFS(systemBPFFS)
	require.NoError(t, err)
	require.False(t, on, "our mount stays behind")
}

func TestMountRefuses(t *testing.T) {
	require.ErrorContains(t, Mount("relative"), "not an absolute path")
	o := testOptions(t)
	require.NoError(t, Mount(o.BPFFS))
	inside := filepath.Join(o.BPFFS, "theirs")
	require.NoError(t, os.Mkdir(inside, 0o755))
	require.NoError(t, os.Chown(inside, 65534, 65534))
	require.ErrorContains(t, Mount(inside), "owned by user 65534")

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.Error(t, Mount(file))
	require.ErrorContains(t, Mount(filepath.Dir(file)), `has files ("file"), which a mount would hide`)
	require.FileExists(t, file)
}

func TestProbe(t *testing.T) {
	f, err := Probe()
	require.NoError(t, err)
	require.True(t, f.RedirectPeer && f.Timer && f.Mmapable && f.BTF)
	t.Setenv(NoTCX, "1")
	f, err = Probe()
	require.NoError(t, err)
	require.False(t, f.TCX)
	f.Timer, f.BTF = false, false
	require.ErrorIs(t, f.missing(), ErrKernel)
	require.ErrorContains(t, f.missing(), "bpf_timer, BTF")
	require.False(t, f.Map()["bpf_timer"])
}
