// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// killable is a command that is killed at its work, and what takes it back.
type killable struct {
	name string
	prep []string
	args []string
	undo []string
}

// G3: a command killed at any step: `reconcile`, or the next command, leaves what was before it
// or what it was to make, and no litter: links, pins, leases, sockets, netns.
func TestG3(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	c.network("n2", 2, true)
	s := c.container("srv", "n1", publish("8080:80", "8080:80/udp"))
	c.serve(s, 80)
	ns, path := c.namespace("guest")
	attach := []string{"attach", "--net", "n1", "-p", "8081:80", "-p", "7000-7019:7000-7019/udp", "guest", "netns:" + path}
	run := func(flags ...string) []string {
		line := append([]string{"run", "-d", "--name", "job", "--net", "n1", "-p", "8082:80"}, flags...)
		return append(append(line, "--"), lab.Self("hold")...)
	}
	ops := []killable{
		{name: "attach", args: attach, undo: []string{"rm", "guest"}},
		{name: "rm", prep: attach, args: []string{"rm", "guest"}},
		{name: "publish", args: []string{"publish", "srv", "9000-9099:9000-9099", "127.0.0.1:99:99/udp"}, undo: []string{"unpublish", "srv", "9000-9099:9000-9099", "127.0.0.1:99:99/udp"}},
		{name: "network create", args: []string{"network", "create", "--ipv6", "--subnet", "10.9.0.0/24", "--subnet", "fd00:9::/64", "n9"}, undo: []string{"network", "rm", "n9"}},
		{name: "network connect", args: []string{"network", "connect", "n2", "srv"}, undo: []string{"network", "disconnect", "n2", "srv"}},
		{name: "run", args: run(), undo: []string{"rm", "-f", "job"}},
		{name: "run --rm", args: run("--rm"), undo: []string{"rm", "-f", "job"}},
	}
	c.must(run()...) // makes the directories that stay
	c.must("rm", "-f", "job")
	base := c.litter(ns)
	points := times(200, 15)
	type clean struct {
		before, after []string
		took          time.Duration
	}
	cleans := make([]clean, len(ops))
	for i, op := range ops {
		var k clean
		if op.prep != nil {
			c.must(op.prep...)
		}
		k.before = c.litter(ns)
		start := time.Now()
		c.must(op.args...)
		k.took = time.Since(start)
		k.after = c.litter(ns)
		require.NotEmpty(t, difference(k.before, k.after), op.name)
		if op.undo != nil {
			c.must(op.undo...)
		}
		require.Empty(t, difference(base, c.litter(ns)), "%s and back", op.name)
		cleans[i] = k
	}
	counts := make(map[string]int)
	for i := range points {
		op, k := ops[i%len(ops)], cleans[i%len(ops)]
		round, rounds := i/len(ops), (points+len(ops)-1)/len(ops)
		// The points are spread over the time that the command takes, none at its very start.
		delay := k.took * time.Duration(2*round+1) / time.Duration(2*rounds)
		what := fmt.Sprintf("%s killed after %v of %v", op.name, delay, k.took)
		if op.prep != nil {
			c.must(op.prep...)
		}
		c.killAfter(c.start(op.args...), delay)
		next := []string{"reconcile"}
		if round%2 == 1 {
			next = op.args
		}
		r := c.bpfnet(next...)
		require.True(t, r.code == 0 || round%2 == 1, "%s: %s: %s", what, next[0], r.err)
		state := c.litter(ns)
		// A container that never began keeps its record, as `run` without --rm keeps every one.
		if op.name == "run" && slices.ContainsFunc(state, func(l string) bool { return strings.HasPrefix(l, "container job ") && strings.Contains(l, " exited ") }) {
			c.must("rm", "job")
			require.Empty(t, difference(k.before, c.litter(ns)), "%s: %s, rm", what, next[0])
			c.must(op.args...)
			state = c.litter(ns)
			counts["ended"]++
		}
		back := difference(k.before, state)
		on := difference(unsupervised(k.after), unsupervised(state))
		switch {
		case len(back) == 0:
			counts["as before"]++
			require.Empty(t, strings.TrimSpace(c.must("reconcile")), what)
			c.must(op.args...)
			require.Empty(t, difference(k.after, c.litter(ns)), "%s: %s, once more", what, next[0])
		case len(on) == 0:
			counts["as after"]++
			require.Empty(t, strings.TrimSpace(c.must("reconcile")), what)
		default:
			require.Fail(t, "litter", "%s: after %s (%s)\nto before: %s\nto after: %s", what, next[0], r.err,
				strings.Join(back, "\n"), strings.Join(on, "\n"))
		}
		if op.undo != nil {
			c.must(op.undo...)
		}
		require.Empty(t, difference(base, c.litter(ns)), "%s and back", what)
		c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
	}
	t.Logf("%d points: %v", points, counts)
	require.NotZero(t, counts["as before"])
	require.NotZero(t, counts["as after"]+counts["ended"])
}

// killAfter ends with SIGKILL all processes of the program that a command has begun.
func (c *cast) killAfter(p *lab.Process, delay time.Duration) {
	c.t.Helper()
	timer := time.NewTimer(delay)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.Done():
	}
	c.killOwn()
	<-p.Done()
}

// killOwn ends with SIGKILL, by pid, every process of the program, until there is none.
func (c *cast) killOwn() (killed []int) {
	c.t.Helper()
	eventually(c.t, "processes end", func() bool {
		pids := c.own()
		for _, pid := range pids {
			if !slices.Contains(killed, pid) {
				killed = append(killed, pid)
			}
			unix.Kill(pid, unix.SIGKILL)
		}
		return len(pids) == 0
	})
	return killed
}

// litter is the inventory, with what is in a guest's namespace and how many other processes
// there are in the lab's cgroup.
func (c *cast) litter(guest *netns.NS) []string {
	c.t.Helper()
	list := c.inventory()
	h, err := guest.Netlink()
	require.NoError(c.t, err)
	defer h.Close()
	links, err := h.LinkList()
	require.NoError(c.t, err)
	for _, l := range links {
		list = append(list, "guest's device "+l.Attrs().Name)
	}
	own := c.own()
	procs, err := os.ReadFile(filepath.Join(c.Cgroup, "cgroup.procs"))
	require.NoError(c.t, err)
	for _, f := range strings.Fields(string(procs)) {
		if pid, _ := strconv.Atoi(f); !slices.Contains(own, pid) && running(pid) {
			list = append(list, "command")
		}
	}
	return list
}

// running says whether a process is more than a zombie.
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	state := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	return err == nil && !strings.HasPrefix(strings.TrimSpace(state), "Z")
}

// unsupervised is without the processes that were killed.
func unsupervised(list []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(l string) bool { return strings.HasPrefix(l, "process ") })
}
