// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
)

// The lab of this file: the program itself, on a host of its own.
//
//	┌ netns: the host ────────────────┐
//	│ lo      bpfnet0 ── containers   │   --root, --bpffs, --netns, --cgroup of its own
//	└─────────────────────────────────┘
type lab struct {
	t   *testing.T
	ns  *netns.NS
	env []string
	dir string
}

func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, dir: t.TempDir()}
	var err error
	l.ns, err = netns.New()
	require.NoError(t, err)
	t.Cleanup(func() { l.ns.Close() })
	path := filepath.Join(l.dir, "ns", "host")
	require.NoError(t, netns.Persist(l.ns, path))
	t.Cleanup(func() { require.NoError(t, netns.Unpersist(path)) })
	h, err := l.ns.Netlink()
	require.NoError(t, err)
	lo, err := h.LinkByName("lo")
	require.NoError(t, err)
	require.NoError(t, h.LinkSetUp(lo))
	h.Close()

	cgroup := filepath.Join(unifiedCgroup(t), fmt.Sprintf("cli-test-%d-%s", os.Getpid(), t.Name()))
	require.NoError(t, os.Mkdir(cgroup, 0o755))
	t.Cleanup(func() { require.NoError(t, os.Remove(cgroup)) })
	config := filepath.Join(l.dir, "config.json")
	require.NoError(t, os.WriteFile(config, []byte("{}"), 0o600))
	l.env = append(os.Environ(), beBpfnet+"=1", "BPFNET_ROOT="+l.dir+"/root", "BPFNET_BPFFS="+l.dir+"/bpf",
		"BPFNET_NETNS="+path, "BPFNET_CGROUP="+cgroup, "BPFNET_CONFIG="+config)
	t.Cleanup(func() {
		out, code := l.bpfnet("uninstall", "-t", "0")
		require.Zero(t, code, out)
		require.NoFileExists(t, l.dir+"/root/store.db")
	})
	return l
}

func unifiedCgroup(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	for line := range strings.Lines(string(data)) {
		if before, after, _ := strings.Cut(line, " - "); strings.HasPrefix(after, "cgroup2 ") {
			return strings.Fields(before)[4]
		}
	}
	require.Fail(t, "no cgroup v2 is mounted")
	return ""
}

func (l *lab) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = l.env
	return cmd
}

// bpfnet runs a command line and returns all that it printed, and its status.
func (l *lab) bpfnet(args ...string) (string, int) {
	l.t.Helper()
	out, err := l.command(args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		require.NoError(l.t, err)
	}
	if exit != nil {
		return string(out), exit.ExitCode()
	}
	return string(out), 0
}

// must is bpfnet where it has to work; without the last newline.
func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, code := l.bpfnet(args...)
	require.Zero(l.t, code, "%v: %s", args, out)
	return strings.TrimSuffix(out, "\n")
}

func (l *lab) field(name, template string) string {
	l.t.Helper()
	return l.must("inspect", "-f", template, name)
}

func (l *lab) number(name, template string) int {
	l.t.Helper()
	n, err := strconv.Atoi(l.field(name, template))
	require.NoError(l.t, err)
	return n
}

func (l *lab) eventually(what string, cond func() bool) {
	l.t.Helper()
	require.Eventually(l.t, cond, 15*time.Second, 5*time.Millisecond, what)
}

// logged waits until a container's log ends with a text.
func (l *lab) logged(name, text string) {
	l.t.Helper()
	l.eventually(name+" writes "+text, func() bool {
		out, code := l.bpfnet("logs", name)
		return code == 0 && strings.HasSuffix(out, text)
	})
}

// supervisor is the process that waits for a container's command.
func (l *lab) supervisor(name string) int {
	l.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", l.number(name, "{{.State.Pid}}")))
	require.NoError(l.t, err)
	pid, err := strconv.Atoi(strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))[1])
	require.NoError(l.t, err)
	return pid
}

func (l *lab) noContainers() {
	l.t.Helper()
	require.Equal(l.t, "[]", l.must("ps", "-a", "-o", "json"))
}

// server answers with the address that asked; it is this test binary.
func init() {
	if os.Getenv("BPFNET_TEST_SERVER") == "" {
		return
	}
	err := http.ListenAndServe(":80", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		io.WriteString(w, host)
	}))
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// get fetches a page from the host; "" when it does not answer.
func (l *lab) get(address string) (page string) {
	l.ns.Do(func() error {
		conn, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			return err
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "GET / HTTP/1.0\r\nHost: %s\r\n\r\n", address)
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return err
		}
		body, _ := io.ReadAll(answer.Body)
		page = string(body)
		return nil
	})
	return page
}

func TestRunInForeground(t *testing.T) {
	l := newLab(t)
	out := l.must("run", "--rm", "-h", "inside", "--add-host", "there:192.0.2.9", "--dns", "192.0.2.53", "--dns-search", "example.org", "-e", "A=b c", "--",
		"sh", "-c", `hostname; cat /etc/hostname /etc/resolv.conf; grep -c there /etc/hosts; ls /sys/class/net | sort | tr "\n" " "; echo "$A"; pwd`)
	dir, err := os.Getwd()
	require.NoError(t, err)
	require.Equal(t, "inside\ninside\nnameserver 192.0.2.53\nsearch example.org\n1\neth0 lo b c\n"+dir, out)
	l.noContainers()

	for _, c := range []struct {
		code int
		text string
		args []string
	}{
		{7, "", []string{"sh", "-c", "exit 7"}},
		{143, "", []string{"sh", "-c", "kill -TERM $$"}},
		{127, "bpfnet: no-such-command: command not found\n", []string{"no-such-command"}},
		{126, "bpfnet: /etc/passwd: permission denied\n", []string{"/etc/passwd"}},
		{125, "bpfnet: working directory /no/such: no such file or directory\n", []string{"-w", "/no/such", "true"}},
		{125, "", []string{"-p", "0:80", "true"}},
		{125, "", []string{"--net", "no-such-network", "true"}},
	} {
		out, code := l.bpfnet(append([]string{"run", "--rm"}, c.args...)...)
		require.Equal(t, c.code, code, out)
		if c.text != "" {
			require.Equal(t, c.text, out)
		}
		l.noContainers()
	}

	// Without --rm it stays, with its exit code; unless it never started.
	_, code := l.bpfnet("run", "--name", "once", "sh", "-c", "exit 3")
	require.Equal(t, 3, code)
	require.Equal(t, "exited 3", l.field("once", "{{.State.Status}} {{.State.ExitCode}}"))
	_, code = l.bpfnet("run", "no-such-command")
	require.Equal(t, 127, code)
	l.must("rm", "once")
	l.noContainers()

	cmd := l.command("run", "-i", "--rm", "cat")
	cmd.Stdin = strings.NewReader("through\n")
	data, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, "through\n", string(data))
	cmd = l.command("run", "--rm", "cat")
	cmd.Stdin = strings.NewReader("not without -i\n")
	data, err = cmd.Output()
	require.NoError(t, err)
	require.Empty(t, data)
}

func TestForegroundSignals(t *testing.T) {
	l := newLab(t)
	for _, c := range []struct {
		end  func(cmd *exec.Cmd)
		code int
	}{
		{func(cmd *exec.Cmd) { cmd.Process.Signal(unix.SIGTERM) }, 5},
		{func(cmd *exec.Cmd) { cmd.Process.Signal(unix.SIGUSR2) }, 128 + int(unix.SIGUSR2)},
		{func(*exec.Cmd) { l.must("stop", "front") }, 5},
		{func(*exec.Cmd) { l.must("rm", "-f", "front") }, 137},
	} {
		cmd := l.command("run", "--rm", "--name", "front", "sh", "-c", `trap "exit 5" TERM; echo ready; while :; do sleep 0.05; done`)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "ready\n", line)
		require.Equal(t, "running", l.field("front", "{{.State.Status}}"))
		c.end(cmd)
		cmd.Wait()
		require.Equal(t, c.code, cmd.ProcessState.ExitCode())
		l.noContainers()
	}
}

func TestTerminal(t *testing.T) {
	l := newLab(t)
	cmd := l.command("run", "-it", "--name", "term", "sh", "-c", `test -t 0 && stty size && read x && echo "got $x"; exit 6`)
	user, err := pty.StartWithSize(cmd, &pty.Winsize{Rows: 30, Cols: 90})
	require.NoError(t, err)
	defer user.Close()
	in := bufio.NewReader(user)
	line, err := in.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "30 90\r\n", line)
	l.logged("term", "30 90\r\n")
	_, err = user.WriteString("word\r")
	require.NoError(t, err)
	rest, _ := io.ReadAll(in) // ends with EIO
	require.Equal(t, "word\r\ngot word\r\n", string(rest))
	cmd.Wait()
	require.Equal(t, 6, cmd.ProcessState.ExitCode())
	require.Equal(t, "30 90\r\nword\r\ngot word\r", l.must("logs", "term"), "what the terminal showed")
	require.Equal(t, "got word\r", l.must("logs", "--tail", "1", "term"))
	l.must("rm", "term")
}

func TestBackground(t *testing.T) {
	l := newLab(t)
	id := l.must("run", "-d", "--name", "bg", "sh", "-c", `echo start; trap "echo bye; exit 9" TERM; echo ready; while :; do sleep 0.05; done`)
	require.Regexp(t, "^[0-9a-f]{64}$", id)
	l.logged("bg", "ready\n")
	require.Equal(t, "ready", l.must("logs", "--tail", "1", "bg"))
	require.Equal(t, id[:12], l.must("ps", "-q"))
	require.Equal(t, id, l.must("ps", "-lq", "--no-trunc"))
	require.Regexp(t, `^bg Up .*second`, l.must("ps", "--format", "{{.Names}} {{.Status}}"))

	require.Equal(t, id[:12], l.must("exec", "bg", "--", "hostname"))
	out, code := l.bpfnet("exec", "bg", "sh", "-c", "exit 4")
	require.Equal(t, 4, code, out)
	out, code = l.bpfnet("exec", "bg", "no-such-command")
	require.Equal(t, 127, code, out)
	require.Equal(t, l.field("bg", "{{.NetworkSettings.IPAddress}}"),
		l.must("exec", "bg", "sh", "-c", `ip -4 -o addr show eth0 | sed 's/.*inet \([^/]*\).*/\1/'`))

	_, code = l.bpfnet("rm", "bg")
	require.Equal(t, 1, code, "it runs")
	follow := l.command("logs", "-f", "bg")
	var followed bytes.Buffer
	follow.Stdout = &followed
	require.NoError(t, follow.Start())
	require.Equal(t, "bg", l.must("stop", "bg"))
	require.NoError(t, follow.Wait(), "ends with the command")
	require.Equal(t, "start\nready\nbye\n", followed.String())
	require.Equal(t, "exited 9", l.field("bg", "{{.State.Status}} {{.State.ExitCode}}"), "the command's own status")
	l.must("stop", "bg") // is no error

	l.must("start", "bg")
	l.logged("bg", "bye\nstart\nready\n")
	pid := l.number("bg", "{{.State.Pid}}")
	l.must("start", "bg")
	require.Equal(t, pid, l.number("bg", "{{.State.Pid}}"), "runs already")
	l.must("restart", "bg")
	require.NotEqual(t, pid, l.number("bg", "{{.State.Pid}}"))
	l.must("rm", "-f", "bg")
	l.noContainers()

	out, code = l.bpfnet("run", "-d", "no-such-command")
	require.Equal(t, 127, code)
	require.Equal(t, "bpfnet: no-such-command: command not found\n", out)
	l.noContainers()

	l.must("run", "-d", "--rm", "--name", "short", "true")
	l.eventually("--rm removes it", func() bool { return l.must("ps", "-a", "-o", "json") == "[]" })

	l.must("run", "-dit", "--name", "shell", "sh")
	require.Equal(t, "running", l.field("shell", "{{.State.Status}}"), "its input stays open")
	l.must("rm", "-f", "shell")
}

// Nobody of ours is needed: the command lives on, its port and its log with it.
func TestSupervisorKilled(t *testing.T) {
	l := newLab(t)
	server, err := os.Executable()
	require.NoError(t, err)
	l.must("run", "-d", "--name", "web", "-p", "8080:80", "-e", "BPFNET_TEST_SERVER=1", "--", server)
	l.must("run", "-d", "--name", "tick", "sh", "-c", `i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done`)
	l.eventually("the server answers", func() bool { return l.get("127.0.0.1:8080") != "" })
	for _, name := range []string{"web", "tick"} {
		pid := l.supervisor(name)
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		require.NoError(t, err)
		require.Contains(t, string(cmdline), "\x00supervise\x00")
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		l.eventually("the supervisor is gone", func() bool { return l.supervisor(name) != pid })
	}
	require.NotEmpty(t, l.get("127.0.0.1:8080"))
	last := l.must("logs", "--tail", "1", "tick")
	l.eventually("the log grows", func() bool { return l.must("logs", "--tail", "1", "tick") != last })
	require.Equal(t, "tick running\nweb running", l.must("ps", "--format", "{{.Names}} {{.State}}"))
	require.Equal(t, "0.0.0.0:8080", l.must("port", "web", "80"))

	l.must("stop", "tick", "web")
	require.Equal(t, "exited 143", l.field("web", "{{.State.Status}} {{.State.ExitCode}}"))
	require.Empty(t, l.get("127.0.0.1:8080"))
	l.must("start", "web")
	l.eventually("the server answers again", func() bool { return l.get("127.0.0.1:8080") != "" })
	require.NoError(t, unix.Kill(l.supervisor("web"), unix.SIGKILL))
	l.must("rm", "-f", "web", "tick")
	l.noContainers()
}

// What a command leaves running ends with it.
func TestNothingOutlivesItsContainer(t *testing.T) {
	l := newLab(t)
	l.must("run", "-d", "--name", "parent", "sh", "-c", `setsid sleep 1000 & echo $!; while :; do sleep 0.05; done`)
	l.logged("parent", "\n")
	pid, err := strconv.Atoi(l.must("logs", "parent"))
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, 0))
	l.must("stop", "-t", "0", "parent")
	l.eventually("the child is gone", func() bool { return unix.Kill(pid, 0) != nil })
}

func TestAttached(t *testing.T) {
	l := newLab(t)
	ns, err := netns.New()
	require.NoError(t, err)
	defer ns.Close()
	path := filepath.Join(l.dir, "ns", "theirs")
	require.NoError(t, netns.Persist(ns, path))
	defer netns.Unpersist(path)
	l.must("attach", "theirs", "netns:"+path)
	require.Contains(t, l.must("exec", "theirs", "ls", "/proc/sys/net/ipv4/conf"), "eth0")
	for _, args := range [][]string{{"stop", "theirs"}, {"start", "theirs"}, {"restart", "theirs"}} {
		out, code := l.bpfnet(args...)
		require.Equal(t, 1, code, args)
		require.Contains(t, out, "is attached")
	}
	require.Contains(t, l.must("ps"), `"(attached)"`)
	l.must("rm", "-f", "theirs")
	out, code := l.bpfnet("exec", "theirs", "true")
	require.Equal(t, 1, code)
	require.Contains(t, out, "No such container")
}

func TestListsAreJSON(t *testing.T) {
	l := newLab(t)
	for _, line := range []string{"ps", "network ls", "bridge ls", "flows", "status"} {
		require.NotContains(t, l.must(append(strings.Fields(line), "-o", "json")...), "null", line)
	}
	l.must("run", "-d", "--name", "web", "-p", "8080:80", "--expose", "90", "sleep", "1000")
	for _, line := range []string{
		"ps", "container ls", "port web", "network ls", "network inspect bridge", "inspect web", "bridge ls", "flows", "status",
	} {
		out := l.must(append(strings.Fields(line), "-o", "json")...)
		var list []map[string]any
		require.NoError(t, json.Unmarshal([]byte(out), &list), "%s: %s", line, out)
		if line != "flows" {
			require.NotEmpty(t, list, line)
		}
		if line != "inspect web" { // a port that is not published is null, as in Docker
			require.NotContains(t, out, "null", line)
		}
	}
	require.Equal(t, "[]", l.must("flows", "-o", "json"))
	require.Equal(t, "80/tcp -> 0.0.0.0:8080", l.must("port", "web"))
	out, code := l.bpfnet("port", "web", "81")
	require.Equal(t, 1, code)
	require.Equal(t, "bpfnet: no public port '81/tcp' published for web\n", out)
	out, code = l.bpfnet("rm", "no-such", "neither")
	require.Equal(t, 1, code)
	require.Equal(t, "bpfnet: No such container: no-such\nbpfnet: No such container: neither\n", out)
	l.must("rm", "-f", "web")
	require.Equal(t, "[]", l.must("ps", "-o", "json"))
}

// What ps lists may end while it asks for the ports.
func TestPsEnded(t *testing.T) {
	l := newLab(t)
	l.must("init")
	m, err := control.Open(control.Options{Root: l.dir + "/root"})
	require.NoError(t, err)
	defer m.Close()
	rows, err := psRows(m, []*control.Container{{ID: strings.Repeat("f", 64)}}, true)
	require.NoError(t, err)
	require.Empty(t, rows)
}

// Ctrl-C in the middle of the demo, and a reader that has gone, leave nothing behind.
func TestDemoInterrupted(t *testing.T) {
	groups := func() []string {
		list, err := filepath.Glob(unifiedCgroup(t) + "/bpfnet-demo-*")
		require.NoError(t, err)
		return list
	}
	before, dir := groups(), t.TempDir()
	for _, end := range []func(*exec.Cmd, io.ReadCloser) error{
		func(cmd *exec.Cmd, _ io.ReadCloser) error { return cmd.Process.Signal(unix.SIGINT) },
		func(_ *exec.Cmd, out io.ReadCloser) error { return out.Close() },
	} {
		var errs strings.Builder
		cmd := exec.Command("/proc/self/exe", "demo")
		cmd.Env, cmd.Stderr = append(os.Environ(), beBpfnet+"=1", "TMPDIR="+dir), &errs
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for lines.Scan() && !strings.Contains(lines.Text(), "$ bpfnet attach") {
		}
		require.NotEmpty(t, groups())
		require.NoError(t, end(cmd, out))
		_, _ = io.Copy(io.Discard, out)
		switch err := cmd.Wait(); cmd.ProcessState.ExitCode() {
		case 0, 1: // over before the signal; or its output is lost
			require.Empty(t, errs.String())
		default:
			require.Equal(t, 130, cmd.ProcessState.ExitCode(), "%v: %s", err, errs.String())
			require.Equal(t, "bpfnet: demo: interrupted; nothing is left behind\n", errs.String())
		}
		require.Eventually(t, func() bool { // another demo may be running
			return !slices.ContainsFunc(groups(), func(g string) bool { return !slices.Contains(before, g) })
		}, 20*time.Second, 10*time.Millisecond)
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left)
	}
}
