// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Init()
	os.Exit(m.Run())
}

var env = []string{"PATH=" + DefaultPath}

// run starts a command and returns what it wrote and its exit status.
func run(t *testing.T, s Spec) (string, int) {
	t.Helper()
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	s.Stdout, s.Stderr = w, w
	if s.Env == nil {
		s.Env = env
	}
	p, err := Start(s)
	w.Close()
	require.NoError(t, err)
	out, err := io.ReadAll(r)
	require.NoError(t, err)
	code, err := p.Wait()
	require.NoError(t, err)
	return strings.TrimSpace(string(out)), code
}

func sh(script string) []string { return []string{"sh", "-c", script} }

// newNetns makes a network namespace that lives as long as the file.
func newNetns(t *testing.T) *os.File {
	t.Helper()
	type result struct {
		f   *os.File
		err error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread is given up with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			c <- result{nil, err}
			return
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		c <- result{f, err}
	}()
	r := <-c
	require.NoError(t, r.err)
	t.Cleanup(func() { r.f.Close() })
	return r.f
}

func inode(t *testing.T, f *os.File) string {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	return fmt.Sprint(st.Ino)
}

// ownNamespace is of the thread that runs: newNetns may have had the process's first one.
func ownNamespace(t *testing.T, name string) string {
	t.Helper()
	s, err := os.Readlink("/proc/thread-self/ns/" + name)
	require.NoError(t, err)
	return s
}

func writeFile(t *testing.T, path, text string, mode os.FileMode) string {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, []byte(text), mode))
	require.NoError(t, os.Chmod(path, mode))
	return path
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, time.Millisecond, what)
}

func TestExitStatus(t *testing.T) {
	for _, c := range []struct {
		script string
		code   int
	}{
		{"exit 0", 0},
		{"exit 3", 3},
		{"exit 255", 255},
		{"kill -9 $$", 137},
		{"kill -TERM $$", 143},
	} {
		t.Run(c.script, func(t *testing.T) {
			_, code := run(t, Spec{Args: sh(c.script)})
			require.Equal(t, c.code, code)
		})
	}
}

func TestDoesNotStart(t *testing.T) {
	dir := t.TempDir()
	notExecutable := writeFile(t, dir+"/bin/plain", "#!/bin/sh\n", 0o644)
	noInterpreter := writeFile(t, dir+"/bin/lost", "#!/no/such/interpreter\n", 0o755)
	noFormat := writeFile(t, dir+"/bin/junk", "\x01\x02\x03", 0o755)
	for _, c := range []struct {
		name string
		spec Spec
		code int
		text string
	}{
		{"nothing", Spec{}, CodeFailed, "no command"},
		{"no such name", Spec{Args: []string{"no-such-command"}}, CodeNotFound, "no-such-command: command not found"},
		{"no such path", Spec{Args: []string{"/no/such"}}, CodeNotFound, "/no/such: no such file"},
		{"not executable", Spec{Args: []string{notExecutable}}, CodeNotExecutable, "permission denied"},
		{"not executable, by name", Spec{Args: []string{"plain"}, Env: []string{"PATH=/nowhere:" + dir + "/bin"}}, CodeNotExecutable, "permission denied"},
		{"directory", Spec{Args: []string{dir}}, CodeNotExecutable, "is a directory"},
		{"no interpreter", Spec{Args: []string{noInterpreter}}, CodeNotFound, "interpreter"},
		{"no format", Spec{Args: []string{noFormat}}, CodeNotExecutable, "exec format error"},
		{"no directory", Spec{Args: sh("true"), Dir: "/no/such"}, CodeFailed, "working directory /no/such"},
		{"no netns", Spec{Args: sh("true"), Netns: dir + "/none"}, CodeFailed, "no such file"},
		{"not a netns", Spec{Args: sh("true"), Netns: notExecutable}, CodeFailed, "not a network namespace"},
		{"another kind", Spec{Args: sh("true"), Netns: "/proc/self/ns/uts"}, CodeFailed, "not a network namespace"},
		{"another netns", Spec{Args: sh("true"), Netns: "/proc/self/ns/net", NetnsID: "1:2"}, CodeFailed, "is another one now"},
		{"no rootfs", Spec{Args: sh("true"), NewMount: true, Rootfs: dir + "/none"}, CodeFailed, "rootfs"},
		{"rootfs is a file", Spec{Args: sh("true"), NewMount: true, Rootfs: notExecutable}, CodeFailed, "rootfs"},
		{"hostname too long", Spec{Args: sh("true"), NewUTS: true, Hostname: strings.Repeat("x", 65)}, CodeFailed, "hostname"},
		{"binds without a mount namespace", Spec{Args: sh("true"), Binds: map[string]string{"/etc/hosts": "/dev/null"}}, CodeFailed, "mount namespace"},
		{"joined and arranged", Spec{Args: sh("true"), Join: 1, NewUTS: true}, CodeFailed, "joined"},
		{"joined is gone", Spec{Args: sh("true"), Join: os.Getpid(), JoinStart: 1}, CodeFailed, "already finished"},
		{"log is no file", Spec{Args: sh("true"), Log: dir}, CodeFailed, "log"},
		{"refused by the caller", Spec{Args: sh("true"), Ready: func(int) error { return errors.New("not now") }}, CodeFailed, "not now"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.spec.Env == nil {
				c.spec.Env = env
			}
			p, err := Start(c.spec)
			require.Nil(t, p)
			var se *StartError
			require.ErrorAs(t, err, &se)
			require.Equal(t, c.code, se.Code, err)
			require.ErrorContains(t, err, c.text)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestReadyComesBeforeTheCommand(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ran")
	var recorded int
	p, err := Start(Spec{Args: sh("touch " + file), Env: env, Ready: func(pid int) error {
		recorded = pid
		_, err := os.Stat(file)
		require.ErrorIs(t, err, os.ErrNotExist)
		return nil
	}})
	require.NoError(t, err)
	require.Equal(t, p.PID, recorded)
	start, err := StartTime(p.PID)
	require.NoError(t, err)
	require.Equal(t, p.Start, start)
	_, err = p.Wait()
	require.NoError(t, err)
	require.FileExists(t, file)
}

func TestNamespaces(t *testing.T) {
	ns := newNetns(t)
	hosts := writeFile(t, t.TempDir()+"/hosts", "192.0.2.1 sample\n", 0o644)
	before, err := os.ReadFile("/etc/hosts")
	require.NoError(t, err)
	out, code := run(t, Spec{
		Args:      sh(`hostname; readlink /proc/self/ns/net /proc/self/ns/mnt /proc/self/ns/uts; cat /etc/hosts; ls /sys/class/net; pwd; test -d /sys/fs/cgroup && echo cgroup; touch /sys/x 2>&1`),
		NetnsFile: ns, NewMount: true, NewUTS: true, Hostname: "inside", Dir: "/usr",
		Binds: map[string]string{"/etc/hosts": hosts},
	})
	lines := strings.Split(out, "\n")
	require.Len(t, lines, 9, out)
	require.Equal(t, "inside", lines[0])
	require.Equal(t, "net:["+inode(t, ns)+"]", lines[1])
	require.NotEqual(t, ownNamespace(t, "net"), lines[1])
	require.NotEqual(t, ownNamespace(t, "mnt"), lines[2])
	require.NotEqual(t, ownNamespace(t, "uts"), lines[3])
	require.Equal(t, "192.0.2.1 sample", lines[4])
	require.Equal(t, "lo", lines[5])
	require.Equal(t, "/usr", lines[6])
	require.Equal(t, "cgroup", lines[7])
	require.Contains(t, lines[8], "Read-only")
	require.NotZero(t, code)

	after, err := os.ReadFile("/etc/hosts")
	require.NoError(t, err)
	require.Equal(t, before, after)
	host, err := os.Hostname()
	require.NoError(t, err)
	require.NotEqual(t, "inside", host)
}

func TestInheritsNothing(t *testing.T) {
	fd, err := unix.FcntlInt(0, unix.F_DUPFD, 20) // without close-on-exec
	require.NoError(t, err)
	defer unix.Close(fd)
	t.Setenv("SECRET", "1")
	ns := newNetns(t)
	out, _ := run(t, Spec{Args: []string{"ls", "/proc/self/fd"}, NetnsFile: ns, NewMount: true, NewUTS: true})
	require.Equal(t, "0\n1\n2\n3", out, "3 is the directory that ls reads")
	out, _ = run(t, Spec{Args: []string{"env"}, Env: append(env, "A=\xff b")})
	require.Equal(t, env[0]+"\nA=\xff b", out)
	signal.Ignore(unix.SIGHUP, unix.SIGUSR1) // as nohup has it
	defer signal.Reset(unix.SIGHUP, unix.SIGUSR1)
	out, _ = run(t, Spec{Args: sh("cut -d' ' -f6 /proc/self/stat; echo $$; grep SigIgn /proc/self/status")})
	f := strings.Fields(out)
	require.Equal(t, f[1], f[0], "leads a session of its own")
	ignored, err := strconv.ParseUint(f[3], 16, 64)
	require.NoError(t, err)
	require.Zero(t, ignored, "ignores no signals")
}

func TestLogIsTheCommandsOwn(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	for _, s := range []string{"echo one; echo two >&2", "echo three"} {
		_, code := run(t, Spec{Args: sh(s + "; readlink /proc/$$/fd/1"), Log: log})
		require.Zero(t, code)
	}
	data, err := os.ReadFile(log)
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\n"+log+"\nthree\n"+log+"\n", string(data))

	link := filepath.Join(t.TempDir(), "link")
	require.NoError(t, os.Symlink(log, link))
	_, err = Start(Spec{Args: sh("true"), Env: env, Log: link})
	require.Error(t, err, "a link planted in the log's place is not followed")
}

func TestOpenStdin(t *testing.T) {
	p, err := Start(Spec{Args: sh("read x; exit 5"), Env: env, OpenStdin: true})
	require.NoError(t, err)
	h, err := Open(p.PID, p.Start)
	require.NoError(t, err)
	defer h.Close()
	// Its reading is shown by where it sleeps; a shell whose input ends is gone instead.
	eventually(t, "waits for input", func() bool {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", p.PID))
		return strings.Contains(string(data), "pipe_read")
	})
	require.NoError(t, h.Signal(unix.SIGKILL))
	code, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, 137, code)

	_, code = run(t, Spec{Args: sh("read x; exit 5")})
	require.Equal(t, 5, code, "without it, input ends at once")
}

func TestLeavesNoDescriptors(t *testing.T) {
	count := func() int {
		d, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(d)
	}
	log := t.TempDir() + "/log"
	one := func() {
		p, err := Start(Spec{Args: sh("exit 1"), Env: env, NewMount: true, NewUTS: true, Netns: "/proc/self/ns/net"})
		require.NoError(t, err)
		_, err = p.Wait()
		require.NoError(t, err)
		_, err = Start(Spec{Args: []string{"/no/such"}, Env: env, NewMount: true})
		require.Error(t, err)
		p, err = Start(Spec{Args: sh("exit 1"), Env: env, TTY: true, Log: log})
		require.NoError(t, err)
		_, err = p.Wait()
		require.NoError(t, err)
	}
	one()
	before := count()
	one()
	require.Equal(t, before, count())
}

// copyRoot makes a root directory with some of the host's commands and their libraries.
func copyRoot(t *testing.T, commands ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, c := range commands {
		path, err := exec.LookPath(c)
		require.NoError(t, err)
		out, err := exec.Command("ldd", path).Output()
		require.NoError(t, err)
		files := regexp.MustCompile(`/\S+`).FindAllString(string(out), -1)
		for _, from := range append(files, path) {
			to := dir + from
			if from == path {
				to = dir + "/bin/" + c
			}
			data, err := os.ReadFile(from)
			require.NoError(t, err)
			writeFile(t, to, string(data), 0o755)
		}
	}
	return dir
}
