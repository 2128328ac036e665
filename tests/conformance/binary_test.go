// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// result is what a command line came to.
type result struct {
	out, err string
	code     int
}

// start starts the real program on the lab's host.
func (c *cast) start(args ...string) *lab.Process {
	c.t.Helper()
	return c.Start(c.t, c.Host, lab.Binary(c.t), args...)
}

// bpfnet runs the real program on the lab's host to its end.
func (c *cast) bpfnet(args ...string) result {
	c.t.Helper()
	return c.ended(c.start(args...), args)
}

func (c *cast) ended(p *lab.Process, args []string) result {
	c.t.Helper()
	r := result{}
	err := p.Wait(time.Minute)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		r.code = exit.ExitCode()
	} else {
		require.NoError(c.t, err, "bpfnet %.200s", strings.Join(args, " "))
	}
	r.out, r.err = p.Stdout(), p.Stderr()
	return r
}

// must is bpfnet where it has to work; without the last newline.
func (c *cast) must(args ...string) string {
	c.t.Helper()
	r := c.bpfnet(args...)
	require.Zero(c.t, r.code, "bpfnet %.200s: %s", strings.Join(args, " "), r.err)
	return strings.TrimSuffix(r.out, "\n")
}

// refuses requires that a command line ends with a status that is not 0, and with one
// clear line that has each of the words; it is returned.
func (c *cast) refuses(args []string, words ...string) string {
	c.t.Helper()
	return clear(c.t, c.bpfnet(args...), args, words...)
}

func clear(t testing.TB, r result, args []string, words ...string) string {
	t.Helper()
	line := strings.Join(args, " ")
	require.NotZero(t, r.code, "bpfnet %s", line)
	require.Empty(t, r.out, "bpfnet %s", line)
	text := strings.TrimSuffix(r.err, "\n")
	require.NotEmpty(t, text, "bpfnet %s", line)
	require.NotContains(t, text, "\n", "bpfnet %s", line)
	require.True(t, strings.HasPrefix(text, "bpfnet: "), "bpfnet %s: %s", line, text)
	for _, bad := range []string{"goroutine", "panic", "Usage:", "%!", "runtime error"} {
		require.NotContains(t, text, bad, "bpfnet %s", line)
	}
	for _, w := range words {
		require.Contains(t, text, w, "bpfnet %s", line)
	}
	return text
}

// eventually waits for a condition, at most ten seconds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, 5*time.Millisecond, what)
}

// namespace makes one that could be somebody's container.
func (c *cast) namespace(name string) (*netns.NS, string) {
	c.t.Helper()
	return c.AddNetns(c.t, name)
}

// in is the cast as a subtest has it.
func (c *cast) in(t testing.TB) *cast {
	d := *c
	d.t = t
	return &d
}
