// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// G9: a netns path that is swapped while it is attached, a path that is no netns, the host's own
// netns: an error, and nothing changed in the host.
func TestG9(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	dir := filepath.Join(c.Dir, "paths")
	require.NoError(t, os.Mkdir(dir, 0o755))
	in := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(in("file"), []byte("x"), 0o644))
	require.NoError(t, unix.Mkfifo(in("fifo"), 0o644))
	require.NoError(t, os.Symlink(in("none"), in("dangling")))
	require.NoError(t, os.Symlink(c.NetnsPath, in("host")))
	require.NoError(t, os.Symlink(in("loop"), in("loop")))
	line := lab.Self("hold")
	onHost := c.Start(t, c.Host, line[0], line[1:]...)
	proc := fmt.Sprintf("/proc/%d", onHost.Pid())
	before := c.litter(c.Client)
	refused := func(target string, words ...string) {
		t.Helper()
		c.refuses([]string{"attach", "--net", "n1", "-p", "8080:80", "guest", target}, words...)
		require.Empty(t, difference(before, c.litter(c.Client)), target)
	}
	const noNetns, hosts = "not a network namespace", "is the host's own network namespace"
	for _, v := range []struct {
		words string
		paths []string
	}{
		{noNetns, []string{in("file"), dir, in("fifo"), "/dev/null", proc + "/ns/mnt", proc + "/ns/user", proc + "/ns/pid", proc + "/exe", proc + "/ns"}},
		{"no such file or directory", []string{in("none"), in("dangling")}},
		{"too many levels of symbolic links", []string{in("loop")}},
		{hosts, []string{c.NetnsPath, in("host"), proc + "/ns/net"}},
	} {
		for _, path := range v.paths {
			refused("netns:"+path, path+": "+v.words)
		}
	}
	refused(fmt.Sprintf("pid:%d", onHost.Pid()), hosts)
	refused("pid:4194305", "no such process")
	require.Equal(t, []string{"eth0", "lo"}, c.deviceNames(c.Client)) // X is no container

	a, pathA := c.namespace("a")
	b, pathB := c.namespace("b")
	// The first container makes directories that stay.
	c.must("attach", "--net", "n1", "warm", "netns:"+pathA)
	c.must("rm", "warm")
	before = c.litter(c.Client)
	swapped := in("swapped")
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swap := func(i int) error {
		target := []string{pathA, pathB, in("file"), pathB, pathA, c.NetnsPath}[i%6]
		if err := os.Symlink(target, swapped+".new"); err != nil {
			return err
		}
		return os.Rename(swapped+".new", swapped)
	}
	require.NoError(t, swap(0))
	swapping.Go(func() {
		for i := 1; ; i++ {
			select {
			case <-stop:
				return
			default:
				if err := swap(i); err != nil {
					t.Errorf("swap: %v", err)
					return
				}
			}
		}
	})
	defer func() { close(stop); swapping.Wait() }()
	refusals, attached := 0, 0
	for i := range times(1000, 30) {
		args := []string{"attach", "--net", "n1", "-p", "8080:80", "guest", "netns:" + swapped}
		if r := c.bpfnet(args...); r.code != 0 {
			refusals++
			require.Regexp(t, swapped+": ("+noNetns+"|"+hosts+"|changed while it was attached)$", clear(t, r, args))
		} else {
			attached++
			require.Equal(t, 3, len(c.deviceNames(a))+len(c.deviceNames(b)), "round %d: one of the two has a cable", i)
			c.must("rm", "guest")
		}
		require.Equal(t, []string{"lo"}, c.deviceNames(a), "round %d", i)
		require.Equal(t, []string{"lo"}, c.deviceNames(b), "round %d", i)
		require.Empty(t, difference(before, c.litter(c.Client)), "round %d", i)
	}
	t.Logf("%d refused, %d attached", refusals, attached)
	require.NotZero(t, refusals)
	// The control: a path that stays is attached.
	c.must("attach", "--net", "n1", "-p", "8080:80", "guest", "netns:"+pathA)
	require.Equal(t, []string{"eth0", "lo"}, c.deviceNames(a))
}

// deviceNames are the names of a namespace's devices, in order.
func (c *cast) deviceNames(ns *netns.NS) (names []string) {
	c.t.Helper()
	h, err := ns.Netlink()
	require.NoError(c.t, err)
	defer h.Close()
	links, err := h.LinkList()
	require.NoError(c.t, err)
	for _, l := range links {
		names = append(names, l.Attrs().Name)
	}
	slices.Sort(names)
	return names
}
