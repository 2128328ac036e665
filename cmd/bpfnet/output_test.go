// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// lost runs a command line whose output nobody gets: into a full device, or a pipe that has no reader.
func (l *lab) lost(pipe bool, args ...string) (stderr string, code int) {
	l.t.Helper()
	out, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if pipe {
		var r *os.File
		r, out, err = os.Pipe()
		require.NoError(l.t, r.Close())
	}
	require.NoError(l.t, err)
	defer out.Close()
	var errs strings.Builder
	cmd := l.command(args...)
	cmd.Stdout, cmd.Stderr = out, &errs
	_ = cmd.Run()
	return errs.String(), cmd.ProcessState.ExitCode()
}

const deviceFull = "bpfnet: standard output: no space left on device\n"

func TestLostOutputWithoutHost(t *testing.T) {
	l := &lab{t: t, env: append(os.Environ(), beBpfnet+"=1")}
	for _, line := range []string{"version", "version -o json", "--help", "help ps", "network", "completion bash", "__complete --output ''"} {
		errs, code := l.lost(false, words(line)...)
		require.Equal(t, 1, code, line)
		if !strings.HasPrefix(line, "__") { // it says what it completes on standard error
			require.Equal(t, deviceFull, errs, line)
		}
		errs, code = l.lost(true, words(line)...)
		require.Equal(t, 1, code, line)
		if !strings.HasPrefix(line, "__") {
			require.Empty(t, errs, line)
		}
	}
}

// Output that is lost is an error; what a command does is done before.
func TestLostOutput(t *testing.T) {
	l := newLab(t)
	l.must("run", "-d", "--name", "web", "-p", "8080:80", "sleep", "1000")
	for _, line := range []string{
		"status", "status -o json", "flows", "flows -f", "bridge ls", "ps", "ps -q", "ps --format {{.ID}}", "network ls", "network ls -q", "port web", "port web 80",
		"inspect web", "inspect -f {{.Id}} web", "network create lost1", "publish web 8081:81",
	} {
		errs, code := l.lost(false, words(line)...)
		require.Equal(t, 1, code, line)
		require.Equal(t, deviceFull, errs, line)
	}
	l.must("network", "inspect", "lost1")
	require.Equal(t, "0.0.0.0:8081", l.must("port", "web", "81"))
	errs, code := l.lost(false, "run", "-d", "--name", "job", "sleep", "1000")
	require.Equal(t, 125, code)
	require.Equal(t, deviceFull, errs)
	errs, code = l.lost(false, "rm", "-f", "job", "no-such")
	require.Equal(t, 1, code)
	require.Equal(t, "bpfnet: No such container: no-such\n"+deviceFull, errs)
	_, code = l.bpfnet("inspect", "job")
	require.Equal(t, 1, code)

	// A reader that has gone ends no command halfway.
	l.must("run", "-d", "--name", "job", "sh", "-c", "echo out; exec sleep 1000")
	l.logged("job", "out\n")
	for _, line := range []string{"ps", "flows -f", "logs -f job", "stop -t 0 job web", "rm -f job web", "network create lost2"} {
		errs, code := l.lost(true, words(line)...)
		require.Equal(t, 1, code, line)
		require.Empty(t, errs, line)
	}
	l.noContainers()
	l.must("network", "inspect", "lost2")

	// What a container's command makes of SIGPIPE is its own matter; a terminal that is gone hangs up.
	const ignoresIt = `awk '/SigIgn/ { exit substr($2, 13, 1) % 2 }' /proc/self/status` // bit 12
	l.must("run", "--rm", "sh", "-c", ignoresIt)
	errs, code = l.lost(true, "run", "--rm", "yes")
	require.Equal(t, 128+13, code, errs)
	for _, pipe := range []bool{false, true} {
		errs, code = l.lost(pipe, "run", "--rm", "-t", "yes")
		require.Equal(t, 128+1, code, errs)
		require.Empty(t, errs)
	}
	l.noContainers()
}
