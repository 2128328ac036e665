// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
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

// killable is a command that is killed at its work.
type killable struct {
	name    string
	prep    [][]string // what it needs before
	harm    func()     // what it has to mend
	args    []string
	undo    [][]string // what takes all back
	between [][]string // what makes the state that it has in its middle, if it may stay there
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
	c.container("cli", "n1")
	ns, path := c.namespace("guest")
	line := func(text string) []string { return strings.Fields(text) }
	lines := func(list ...string) (all [][]string) {
		for _, l := range list {
			all = append(all, line(l))
		}
		return all
	}
	attach := line("attach --net n1 -p 8081:80 -p 7000-7019:7000-7019/udp guest netns:" + path)
	run := func(flags ...string) []string {
		line := append(append(line("run -d --name job --net n1 -p 8082:80"), flags...), "--")
		return append(line, lab.Self("hold")...)
	}
	const (
		create  = "network create --ipv6 --subnet 10.9.0.0/24 --subnet fd00:9::/64 n9"
		publish = "publish srv 9000-9099:9000-9099 127.0.0.1:99:99/udp"
		connect = "network connect n2 srv"
		link    = "link cli srv:db"
	)
	stopped := [][]string{run(), line("stop -t 0 job")}
	ops := []killable{
		{name: "attach", args: attach, undo: lines("rm guest")},
		{name: "rm", prep: [][]string{attach}, args: line("rm guest")},
		{name: "publish", args: line(publish), undo: lines("un" + publish)},
		{name: "unpublish", prep: lines(publish), args: line("un" + publish)},
		{name: "network create", args: line(create), undo: lines("network rm n9")},
		{name: "network rm", prep: lines(create), args: line("network rm n9")},
		{name: "network connect", args: line(connect), undo: lines("network disconnect n2 srv")},
		{name: "network disconnect", prep: lines(connect), args: line("network disconnect n2 srv")},
		{name: "link", args: line(link), undo: lines("unlink cli srv")},
		{name: "unlink", prep: lines(link), args: line("unlink cli srv")},
		{name: "run", args: run(), undo: lines("rm -f job"), between: stopped},
		{name: "stop", prep: [][]string{run()}, args: line("stop -t 0 job"), undo: lines("rm job")},
		{name: "run --rm", args: run("--rm"), undo: lines("rm -f job")},
		{name: "start", prep: stopped, args: line("start job"), undo: lines("rm -f job")},
		{name: "restart", prep: [][]string{run()}, args: line("restart -t 0 job"), undo: lines("rm -f job"), between: stopped},
		{name: "init", args: line("init --icc=false --ip-masq=false"), undo: lines("init --icc=true --ip-masq=true")},
		{name: "reconcile", harm: func() {
			for _, device := range []string{c.gateway("n1").dev, c.hostDevice(s)} {
				c.run(c.Host, "ip link delete "+device)
			}
		}, args: line("reconcile")},
	}
	all := func(list [][]string) {
		for _, l := range list {
			c.must(l...)
		}
	}
	all([][]string{run("--net", "bridge"), line("rm -f job")}) // makes the directories that stay, and the default network
	base := c.litter(ns)
	type clean struct {
		before, after, between []string
		took                   time.Duration
	}
	cleans := make([]clean, len(ops))
	for i, op := range ops {
		var k clean
		if op.between != nil {
			all(op.between)
			k.between = c.litter(ns)
			all(op.undo)
		}
		all(op.prep)
		if op.harm != nil {
			op.harm()
		}
		k.before = c.litter(ns)
		start := time.Now()
		c.must(op.args...)
		k.took = time.Since(start)
		k.after = c.litter(ns)
		if op.name != "restart" {
			require.NotEmpty(t, difference(k.before, k.after), op.name)
		}
		all(op.undo)
		require.Empty(t, difference(base, c.litter(ns)), "%s and back", op.name)
		cleans[i] = k
	}
	counts := make(map[string]int)
	rounds := times(30, 1)
	for i := range rounds * len(ops) {
		op, k := ops[i%len(ops)], cleans[i%len(ops)]
		round := i / len(ops)
		// The points are spread over the time that the command takes, none at its very start.
		delay := k.took * time.Duration(2*round+1) / time.Duration(2*rounds)
		what := fmt.Sprintf("%s killed after %v of %v", op.name, delay, k.took)
		all(op.prep)
		if op.harm != nil {
			op.harm()
		}
		c.killAfter(c.start(op.args...), delay)
		next := []string{"reconcile"}
		if i%2 == 1 {
			next = op.args
		}
		r := c.bpfnet(next...)
		require.True(t, r.code == 0 || i%2 == 1, "%s: %s: %s", what, next[0], r.err)
		state := c.litter(ns)
		back, on := difference(unsupervised(k.before), unrecorded(state)), difference(unsupervised(k.after), unsupervised(state))
		switch {
		case len(back) == 0:
			counts["as before"]++
			require.Empty(t, strings.TrimSpace(c.must("reconcile")), what)
			c.must(op.args...)
			require.Empty(t, difference(k.after, c.litter(ns)), "%s: %s, once more", what, next[0])
		case len(on) == 0:
			counts["as after"]++
			require.Empty(t, strings.TrimSpace(c.must("reconcile")), what)
		case op.between != nil && len(difference(unsupervised(k.between), unrecorded(state))) == 0:
			counts["between"]++
			require.Empty(t, strings.TrimSpace(c.must("reconcile")), what)
		default:
			require.Fail(t, "litter", "%s: after %s (%s)\nto before: %s\nto after: %s", what, next[0], r.err,
				strings.Join(back, "\n"), strings.Join(on, "\n"))
		}
		all(op.undo)
		require.Empty(t, difference(base, c.litter(ns)), "%s and back", what)
		c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
	}
	t.Logf("%d points: %v", rounds*len(ops), counts)
	require.NotZero(t, counts["as before"])
	require.NotZero(t, counts["as after"]+counts["between"])
}

// G3, uninstall: killed at any step, it leaves after `reconcile` what was before it or a host that is set up
// anew, and the next uninstall leaves nothing.
func TestG3Uninstall(t *testing.T) {
	parallel(t)
	c := newCast(t)
	ns, path := c.namespace("guest")
	guest := &actor{name: "guest", ns: ns}
	c.serve(guest, 80)
	uninstall := []string{"uninstall", "-t", "0"}
	c.must(uninstall...)
	c.must("init")
	fresh := c.litter(ns)
	points := times(50, 3)
	var before, stopped []string
	var took time.Duration
	counts := make(map[string]int)
	for i := range points + 1 {
		c.network("n1", 1, true)
		c.must("attach", "--net", "n1", "-p", "8080:80", "-p", "8080:80/udp", "guest", "netns:"+path)
		c.must(append([]string{"run", "-d", "--name", "job", "--net", "n1", "-p", "8081:81", "--"}, lab.Self("hold")...)...)
		if i == 0 {
			before = c.litter(ns)
			c.must("stop", "-t", "0", "job")
			stopped = c.litter(ns)
			c.must("start", "job")
			start := time.Now()
			c.must(uninstall...)
			took = time.Since(start)
		} else {
			delay := took * time.Duration(2*i-1) / time.Duration(2*points)
			what := fmt.Sprintf("killed after %v of %v", delay, took)
			c.killAfter(c.start(uninstall...), delay)
			if i%2 == 1 {
				c.must("reconcile")
				state := unrecorded(c.litter(ns))
				switch {
				case len(difference(unrecorded(fresh), state)) == 0:
					counts["gone"]++
				case len(difference(unsupervised(before), state)) == 0, len(difference(unsupervised(stopped), state)) == 0:
					counts["there"]++
					c.answers(c.Client, at(lab.HostIPv4, 8080), "guest", lab.ClientIPv4)
					c.answers(c.Client, at(lab.HostIPv6, 8080), "guest", lab.ClientIPv6)
				default:
					require.Fail(t, "litter", "%s\nto before: %s\nto fresh: %s", what,
						strings.Join(difference(unsupervised(before), state), "\n"), strings.Join(difference(unrecorded(fresh), state), "\n"))
				}
				require.Empty(t, strings.TrimSpace(c.must("reconcile")), what)
			}
			c.must(uninstall...)
			require.NoDirExists(t, c.Root, what)
			require.Empty(t, c.Leftovers(t), what)
		}
		c.must("init")
		require.Empty(t, difference(fresh, c.litter(ns)))
	}
	t.Logf("%d points: %v", points, counts)
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

// unsupervised is without the processes that were killed, and without what they would have recorded.
func unsupervised(list []string) []string {
	return unrecorded(slices.DeleteFunc(slices.Clone(list), func(l string) bool { return strings.HasPrefix(l, "process ") }))
}

// unrecorded is without exit statuses and logs: who would have written them was killed.
func unrecorded(list []string) (rest []string) {
	for _, l := range list {
		if !strings.HasSuffix(l, "/log") {
			rest = append(rest, exitStatus.ReplaceAllString(l, ""))
		}
	}
	return rest
}

var exitStatus = regexp.MustCompile(` exit=\d+`)
