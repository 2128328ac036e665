// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestHandle(t *testing.T) {
	p, err := Start(Spec{Args: sh("trap 'exit 7' TERM; while :; do read x; done"), Env: env, OpenStdin: true})
	require.NoError(t, err)
	require.True(t, Alive(p.PID, p.Start))
	require.False(t, Alive(p.PID, p.Start+1), "the same pid, another process")
	require.False(t, Alive(0, 0))
	require.False(t, Alive(1<<22+1, p.Start))

	h, err := Open(p.PID, p.Start)
	require.NoError(t, err)
	defer h.Close()
	require.Equal(t, os.Getpid(), h.Parent)
	ended, err := h.Wait(0)
	require.NoError(t, err)
	require.False(t, ended)

	// The trap may not be set yet: the shell reads once it is.
	eventually(t, "the shell reads", func() bool {
		data, _ := os.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/wchan")
		return strings.Contains(string(data), "pipe_read")
	})
	sent, err := h.Stop(10 * time.Second)
	require.NoError(t, err)
	require.Equal(t, unix.SIGTERM, sent)
	require.False(t, Alive(p.PID, p.Start), "a zombie is not alive")
	code, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, 7, code)
	require.ErrorIs(t, h.Signal(unix.SIGTERM), os.ErrProcessDone)
}

func TestStopKills(t *testing.T) {
	for _, grace := range []time.Duration{0, 50 * time.Millisecond} {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		p, err := Start(Spec{Args: sh("trap '' TERM; echo; while :; do read x; done"), Env: env, OpenStdin: true, Stdout: w})
		require.NoError(t, err)
		w.Close()
		_, err = r.Read(make([]byte, 1))
		require.NoError(t, err)
		r.Close()
		h, err := Open(p.PID, p.Start)
		require.NoError(t, err)
		sent, err := h.Stop(grace)
		require.NoError(t, err)
		require.Equal(t, unix.SIGKILL, sent)
		h.Close()
		code, err := p.Wait()
		require.NoError(t, err)
		require.Equal(t, 137, code)
	}
}

// What a command leaves behind, in whatever session, ends with it; what lives
// in other mount namespaces does not.
func TestWaitEndsTheRest(t *testing.T) {
	for _, own := range []bool{true, false} {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		p, err := Start(Spec{Args: sh("setsid sleep 1000 & echo $!; sleep 1000 & echo $!"), Env: env, NewMount: own, Stdout: w})
		require.NoError(t, err)
		w.Close()
		in := bufio.NewReader(r)
		var pids []int
		for range 2 {
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			pid, err := strconv.Atoi(strings.TrimSpace(line))
			require.NoError(t, err)
			pids = append(pids, pid)
		}
		_, err = p.Wait()
		require.NoError(t, err)
		if own {
			_, err = io.ReadAll(in) // ends when nobody holds the other end
			require.NoError(t, err)
		}
		for _, pid := range pids {
			start, err := StartTime(pid)
			alive := err == nil && Alive(pid, start)
			require.Equal(t, !own, alive)
			if alive {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
		r.Close()
	}
}

func TestJoin(t *testing.T) {
	dir := copyRoot(t, "sh", "cat", "readlink", "hostname")
	hosts := writeFile(t, t.TempDir()+"/hosts", "192.0.2.1 sample\n", 0o644)
	for _, rootfs := range []string{"", dir} {
		ns := newNetns(t)
		p, err := Start(Spec{
			Args: sh("read x"), Env: env, OpenStdin: true, NetnsFile: ns,
			NewMount: true, NewUTS: true, Hostname: "inside", Rootfs: rootfs,
			Binds: map[string]string{"/etc/hosts": hosts},
		})
		require.NoError(t, err)
		link := func(name string) string {
			s, err := os.Readlink("/proc/" + strconv.Itoa(p.PID) + "/ns/" + name)
			require.NoError(t, err)
			return s
		}
		want := strings.Join([]string{"inside", link("net"), link("mnt"), link("uts"), "192.0.2.1 sample"}, "\n")
		for range 20 { // whichever thread it is that executes
			out, code := run(t, Spec{
				Args: sh("hostname; readlink /proc/self/ns/net; readlink /proc/self/ns/mnt; readlink /proc/self/ns/uts; cat /etc/hosts; exit 9"),
				Join: p.PID, JoinStart: p.Start,
			})
			require.Equal(t, want, out)
			require.Equal(t, 9, code)
		}
		require.True(t, Alive(p.PID, p.Start), "the end of one that joined ends nothing else")

		h, err := Open(p.PID, p.Start)
		require.NoError(t, err)
		joined, err := Start(Spec{Args: sh("read x"), Env: env, OpenStdin: true, Join: p.PID, JoinStart: p.Start})
		require.NoError(t, err)
		_, err = h.Stop(0)
		require.NoError(t, err)
		h.Close()
		code, err := joined.Wait()
		require.NoError(t, err)
		require.Equal(t, 137, code, "the end of the container ends those that joined it")
		_, err = p.Wait()
		require.NoError(t, err)
	}
}

func TestJoinOnlyNetwork(t *testing.T) {
	ns := newNetns(t)
	out, _ := run(t, Spec{Args: sh("readlink /proc/self/ns/net /proc/self/ns/mnt"), NetnsFile: ns})
	require.Equal(t, "net:["+inode(t, ns)+"]\n"+ownNamespace(t, "mnt"), out)
}

func TestParseStat(t *testing.T) {
	rest := " S 41 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 987654 23"
	for name, ok := range map[string]bool{
		"1 (sh)" + rest:                true,
		"1 (a) R 9 9 (b) c\n)" + rest:  true,
		"1 (sh":                        false,
		"":                             false,
		"1 (sh) S 1 2":                 false,
		"1 (sh)" + rest[:len(rest)-10]: false,
	} {
		st, err := parseStat([]byte(name))
		if !ok {
			require.Error(t, err, name)
			continue
		}
		require.NoError(t, err, name)
		require.Equal(t, stat{41, 987654}, st)
	}
}

func TestTerminal(t *testing.T) {
	user, window, err := pty.Open()
	require.NoError(t, err)
	defer user.Close()
	defer window.Close()
	require.NoError(t, pty.Setsize(user, &pty.Winsize{Rows: 33, Cols: 77}))

	p, err := Start(Spec{
		Args: sh(`stty size; tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo x >/dev/tty; read line; echo "got $line"; trap 'stty size; exit 4' WINCH; echo ready; while :; do read x; done`),
		Env:  env, TTY: true, Stdin: window, Stdout: window, NewMount: true,
	})
	require.NoError(t, err)
	before, err := unix.IoctlGetTermios(int(window.Fd()), unix.TCGETS)
	require.NoError(t, err)
	restore, err := p.Attach(window, window)
	require.NoError(t, err)
	raw, err := unix.IoctlGetTermios(int(window.Fd()), unix.TCGETS)
	require.NoError(t, err)
	require.Zero(t, raw.Lflag&unix.ECHO)

	out := bufio.NewReader(user)
	line := func() string {
		s, err := out.ReadString('\n')
		require.NoError(t, err)
		return strings.TrimRight(s, "\r\n")
	}
	require.Equal(t, "33 77", line())
	require.Contains(t, line(), "/dev/pts/")
	require.Equal(t, "all", line())
	require.Equal(t, "x", line())
	_, err = user.WriteString("hello\r")
	require.NoError(t, err)
	require.Equal(t, "hello", line(), "echoed by the command's terminal")
	require.Equal(t, "got hello", line())
	require.Equal(t, "ready", line())
	require.NoError(t, pty.Setsize(user, &pty.Winsize{Rows: 20, Cols: 60}))
	require.NoError(t, unix.Kill(os.Getpid(), unix.SIGWINCH)) // it is not this process's own terminal
	require.Equal(t, "20 60", line())
	code, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, 4, code)
	restore()
	after, err := unix.IoctlGetTermios(int(window.Fd()), unix.TCGETS)
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// In its log too, if it has one; one that cannot be written takes nothing from the terminal.
func TestTerminalOutputIsWhole(t *testing.T) {
	for _, log := range []string{"", t.TempDir() + "/log", "/dev/full"} {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		p, err := Start(Spec{Args: sh("seq 1 20000"), Env: env, TTY: true, Log: log})
		require.NoError(t, err)
		restore, err := p.Attach(nil, w)
		require.NoError(t, err)
		got := make(chan string)
		go func() {
			data, _ := io.ReadAll(r)
			got <- string(data)
		}()
		_, err = p.Wait()
		require.NoError(t, err)
		restore()
		w.Close()
		text := <-got
		r.Close()
		require.True(t, strings.HasSuffix(text, "\n20000\r\n"), text[max(0, len(text)-40):])
		require.Equal(t, 20000, strings.Count(text, "\n"))
		if strings.HasSuffix(log, "/log") {
			data, err := os.ReadFile(log)
			require.NoError(t, err)
			require.Equal(t, text, string(data))
		}
	}
	_, err := Start(Spec{Args: sh("exit"), Env: env, TTY: true, Log: "/no/such/log"})
	require.ErrorContains(t, err, "log: open /no/such/log")
}

func TestSignalsAreForwarded(t *testing.T) {
	signals := Catch()
	// Sent before there is a command: it gets the signal once it runs.
	require.NoError(t, unix.Kill(os.Getpid(), unix.SIGUSR1))
	p, err := Start(Spec{Args: []string{"sleep", "1000"}, Env: env})
	require.NoError(t, err)
	signals.Forward(p)
	code, err := p.Wait()
	require.NoError(t, err)
	require.Equal(t, 128+int(unix.SIGUSR1), code)
	signals.Stop()
}
