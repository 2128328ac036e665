// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func newNS(t *testing.T) *NS {
	t.Helper()
	ns, err := New()
	require.NoError(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

func current(t *testing.T) *NS {
	t.Helper()
	ns, err := Current()
	require.NoError(t, err)
	t.Cleanup(func() { ns.Close() })
	return ns
}

func TestOpenRefusesWhatIsNoNetns(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink("/proc/self/ns/uts", link))
	socket := filepath.Join(dir, "socket")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	defer l.Close()

	for _, path := range []string{
		file, fifo, link, socket, dir, "/dev/null", "/dev/tty", "/proc/self/status",
		"/proc/self/ns/mnt", "/proc/self/ns/user", "/proc/self/ns/pid_for_children",
	} {
		t.Run(path, func(t *testing.T) {
			done := make(chan error, 1)
			go func() {
				_, err := Open(path)
				done <- err
			}()
			select {
			case err := <-done:
				require.ErrorIs(t, err, ErrNotNetns)
				require.ErrorContains(t, err, path+": not a network namespace")
			case <-time.After(5 * time.Second):
				t.Fatal("Open hangs")
			}
		})
	}

	_, err = Open(filepath.Join(dir, "nothing"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = OfPID(1 << 30)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestOpenFollowsLinks(t *testing.T) {
	ns := newNS(t)
	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(ns.Path(), link))
	again, err := Open(link)
	require.NoError(t, err)
	defer again.Close()
	require.True(t, again.Equal(ns))
	require.False(t, again.Equal(current(t)))
	require.False(t, again.Equal(nil))
}

// A namespace that was opened stays the one that is worked in, whatever becomes of its path.
func TestSwappedPath(t *testing.T) {
	good, bad := newNS(t), newNS(t)
	path := filepath.Join(t.TempDir(), "ns")
	require.NoError(t, Persist(good, path))
	defer Unpersist(path)

	opened, err := Open(path)
	require.NoError(t, err)
	defer opened.Close()
	require.NoError(t, Unpersist(path))
	require.NoError(t, Persist(bad, path))

	require.True(t, opened.Equal(good))
	require.NoError(t, opened.Do(func() error {
		here, err := Current()
		require.NoError(t, err)
		defer here.Close()
		require.True(t, here.Equal(good))
		require.False(t, here.Equal(bad))
		return nil
	}))
}

// While one thread swaps the path between a namespace, things that are none, and
// nothing, Open gives the namespace or the error that fits, never anything else. It
// goes on until the path was seen to change often, with every outcome among them.
func TestSwapRace(t *testing.T) {
	const changes = 200
	ns := newNS(t)
	dir := t.TempDir()
	path, file := filepath.Join(dir, "path"), filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))

	stop := make(chan struct{})
	var swapper sync.WaitGroup
	defer swapper.Wait()
	defer close(stop)
	swapper.Go(func() {
		tmp := filepath.Join(dir, "tmp")
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			if i%4 == 3 {
				os.Remove(path)
				continue
			}
			if os.Symlink([]string{ns.Path(), file, "/proc/self/ns/mnt"}[i%4], tmp) == nil {
				os.Rename(tmp, path)
			}
		}
	})

	seen := make(map[string]int)
	last, changed := "", 0
	for deadline := time.Now().Add(time.Minute); changed < changes || len(seen) < 3; {
		require.True(t, time.Now().Before(deadline), "%d changes seen, outcomes %v", changed, seen)
		got, err := Open(path)
		outcome := "namespace"
		switch {
		case err == nil:
			require.True(t, got.Equal(ns), "opened %s", got)
			got.Close()
		case errors.Is(err, ErrNotNetns):
			outcome = "no namespace"
		case errors.Is(err, fs.ErrNotExist):
			outcome = "nothing"
		default:
			require.NoError(t, err)
		}
		if seen[outcome]++; outcome != last {
			last, changed = outcome, changed+1
		}
	}
}

func TestCookie(t *testing.T) {
	ns := newNS(t)
	a, err := ns.Cookie()
	require.NoError(t, err)
	b, err := newNS(t).Cookie()
	require.NoError(t, err)
	require.NotZero(t, a)
	require.NotEqual(t, a, b)

	// As a socket of another family in the namespace has it.
	var inside uint64
	require.NoError(t, ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		inside, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	}))
	require.Equal(t, inside, a)
}

func TestHolds(t *testing.T) {
	home, one, two := current(t), newNS(t), newNS(t)
	child := exec.Command("cat")
	in, err := child.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, one.Do(child.Start))
	defer child.Wait()
	defer in.Close()
	for ns, want := range map[*NS][2]bool{home: {true, false}, one: {false, true}, two: {false, false}} {
		for i, pid := range []int{os.Getpid(), child.Process.Pid} {
			got, err := ns.Holds(pid)
			require.NoError(t, err)
			require.Equal(t, want[i], got, "%s %d", ns, i)
		}
	}
	_, err = home.Holds(1 << 30)
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestClosed(t *testing.T) {
	ns := newNS(t)
	require.NoError(t, ns.Close())
	require.NoError(t, ns.Close())
	require.Equal(t, -1, ns.FD())
	require.ErrorContains(t, ns.Do(func() error { return nil }), "closed")
	_, err := ns.Netlink()
	require.Error(t, err)
}

func TestDoRunsInside(t *testing.T) {
	ns, home := newNS(t), current(t)
	boom := errors.New("boom")
	require.ErrorIs(t, ns.Do(func() error {
		here, err := Current()
		require.NoError(t, err)
		defer here.Close()
		require.True(t, here.Equal(ns))

		// A child inherits it.
		out, err := exec.Command("readlink", "/proc/self/ns/net").Output()
		require.NoError(t, err)
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(ns.FD(), &st))
		require.Equal(t, fmt.Sprintf("net:[%d]", st.Ino), strings.TrimSpace(string(out)))
		return boom
	}), boom)
	require.True(t, current(t).Equal(home))
}

func TestDoPanic(t *testing.T) {
	ns, home := newNS(t), current(t)
	boom := errors.New("boom")
	func() {
		defer func() {
			p, ok := recover().(*PanicError)
			require.True(t, ok)
			require.ErrorIs(t, p, boom)
			require.Contains(t, p.Error(), "TestDoPanic", "the stack of the panic")
		}()
		ns.Do(func() error { panic(boom) })
		t.Error("Do returned")
	}()
	require.True(t, current(t).Equal(home))
}

// testing's FailNow leaves by Goexit; the caller of Do leaves too.
func TestDoGoexit(t *testing.T) {
	ns := newNS(t)
	var after, deferred bool
	var wg sync.WaitGroup
	wg.Go(func() {
		defer func() { deferred = true }()
		ns.Do(func() error { runtime.Goexit(); return nil })
		after = true
	})
	wait := make(chan struct{})
	go func() { wg.Wait(); close(wait) }()
	select {
	case <-wait:
	case <-time.After(5 * time.Second):
		t.Fatal("Do hangs")
	}
	require.True(t, deferred)
	require.False(t, after)
}

// No thread of the process is left in a namespace that Do or New visited, the first
// thread included, which stands for the process in /proc.
func TestNoThreadLeftBehind(t *testing.T) {
	home := current(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				ns, err := New()
				if err != nil {
					t.Error(err)
					return
				}
				ns.Do(func() error { return nil })
				func() {
					defer func() { recover() }()
					ns.Do(func() error { panic("x") })
				}()
				ns.Close()
			}
		})
	}
	wg.Wait()

	require.Eventually(t, func() bool {
		tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
		require.NoError(t, err)
		for _, task := range tasks {
			ns, err := Open(task)
			if errors.Is(err, fs.ErrNotExist) {
				continue // the thread has just ended
			}
			require.NoError(t, err)
			same := ns.Equal(home)
			ns.Close()
			if !same {
				return false
			}
		}
		return true
	}, 5*time.Second, 5*time.Millisecond)
	self, err := OfPID(os.Getpid())
	require.NoError(t, err)
	defer self.Close()
	require.True(t, self.Equal(home))
}

func TestNoDescriptorLeft(t *testing.T) {
	count := func() int {
		list, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(list)
	}
	round := func() {
		ns, err := New()
		require.NoError(t, err)
		h, err := ns.Netlink()
		require.NoError(t, err)
		h.Close()
		_, err = ns.Cookie()
		require.NoError(t, err)
		_, err = Open("/dev/null")
		require.Error(t, err)
		_, err = Open("/proc/self/ns/mnt")
		require.Error(t, err)
		ns.Close()
	}
	round()
	before := count()
	for range 20 {
		round()
	}
	require.Equal(t, before, count())
}

func BenchmarkDo(b *testing.B) {
	ns, err := New()
	require.NoError(b, err)
	defer ns.Close()
	for b.Loop() {
		ns.Do(func() error { return nil })
	}
}
