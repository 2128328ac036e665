// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func mounts(t *testing.T, below string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var found []string
	for line := range strings.Lines(string(data)) {
		if point := strings.Fields(line)[4]; point == below || strings.HasPrefix(point, below+"/") {
			found = append(found, line)
		}
	}
	return found
}

func TestPersist(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "deep", "netns")
	path := filepath.Join(dir, "one")
	ns, err := New()
	require.NoError(t, err)
	cookie, err := ns.Cookie()
	require.NoError(t, err)

	require.NoError(t, Persist(ns, path))
	t.Cleanup(func() { Unpersist(path) })
	require.NoError(t, Persist(ns, path), "twice is once")
	require.Len(t, mounts(t, path), 1)
	ns.Close()

	again, err := Open(path)
	require.NoError(t, err, "it lives by its name alone")
	defer again.Close()
	got, err := again.Cookie()
	require.NoError(t, err)
	require.Equal(t, cookie, got)

	other := newNS(t)
	require.ErrorIs(t, Persist(other, path), fs.ErrExist)

	// Another process sees it by its path.
	require.NoError(t, exec.Command("nsenter", "--net="+path, "true").Run())

	second := filepath.Join(dir, "two")
	require.NoError(t, Persist(other, second))
	require.NoError(t, Unpersist(path))
	require.NoFileExists(t, path)
	require.NoError(t, Unpersist(path), "twice is once")
	require.Len(t, mounts(t, second), 1)
	require.NoError(t, Unpersist(second))
	require.Empty(t, mounts(t, dir), "the directory's own mount went with the last name")
	require.NoError(t, os.Remove(dir))
	require.NoError(t, Unpersist(path), "no directory either")
}

func TestPersistMode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	require.NoError(t, Persist(newNS(t), path))
	require.NoError(t, unix.Unmount(path, unix.MNT_DETACH))
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), st.Mode())
	require.NoError(t, Unpersist(path), "a name whose mount is gone, as after a reboot")
	require.NoFileExists(t, path)
}

func TestPersistRefuses(t *testing.T) {
	dir := t.TempDir()
	ns := newNS(t)
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, []byte("precious"), 0o600))
	require.NoError(t, os.Symlink(file, link))
	require.Error(t, Persist(ns, link))
	require.Empty(t, mounts(t, file))
	require.Error(t, Persist(ns, dir+"/"), "a directory")

	require.ErrorIs(t, Unpersist(file), ErrNotNetns)
	require.ErrorIs(t, Unpersist(link), ErrNotNetns)
	require.FileExists(t, file)

	closed := newNS(t)
	closed.Close()
	none := filepath.Join(dir, "none")
	require.Error(t, Persist(closed, none))
	require.NoFileExists(t, none)
	require.NoError(t, Unpersist(none))
	require.Empty(t, mounts(t, dir))
}

// A process with a copy of the mounts, as a container's is, does not keep the
// namespace's name after it went, provided that it follows its parent (rslave).
func TestUnpersistReachesCopies(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ns")
	require.NoError(t, Persist(newNS(t), path))
	t.Cleanup(func() { Unpersist(path) })

	child := exec.Command("unshare", "--mount", "--propagation", "slave", "cat")
	in, err := child.StdinPipe()
	require.NoError(t, err)
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())
	defer child.Wait()
	defer in.Close()
	_, err = in.Write([]byte("x")) // an echo says that it has unshared
	require.NoError(t, err)
	_, err = out.Read(make([]byte, 1))
	require.NoError(t, err)

	inChild := func() bool {
		data, err := os.ReadFile("/proc/" + strconv.Itoa(child.Process.Pid) + "/mountinfo")
		require.NoError(t, err)
		return strings.Contains(string(data), path)
	}
	require.True(t, inChild())
	require.NoError(t, Unpersist(path))
	require.Eventually(t, func() bool { return !inChild() }, 5*time.Second, time.Millisecond)
}

// Many at once in one directory: each gets its name, and nothing is left at the end.
func TestPersistAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "netns")
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			path := filepath.Join(dir, strconv.Itoa(w))
			for range 10 {
				ns, err := New()
				if err != nil {
					t.Error(err)
					return
				}
				if err := Persist(ns, path); err != nil {
					t.Error(err)
				} else if got, err := Open(path); err != nil {
					t.Error(err)
				} else {
					if !got.Equal(ns) {
						t.Error("another namespace")
					}
					got.Close()
				}
				if err := Unpersist(path); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
					t.Error("still there")
				}
				ns.Close()
			}
		})
	}
	wg.Wait()
	require.Empty(t, mounts(t, dir))
}
