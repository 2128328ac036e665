// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// promptly is within what the daemon promises to follow.
const promptly = time.Second

// daemon is the real program's, which follows the lab's host.
type daemon struct {
	*lab.Process
	t testing.TB
}

// daemon starts one and waits until it follows.
func (c *cast) daemon() *daemon {
	c.t.Helper()
	d := &daemon{c.startDaemon(c), c.t}
	d.says("following ")
	return d
}

func (d *daemon) says(words string) {
	d.t.Helper()
	eventually(d.t, "daemon: "+words, func() bool { return strings.Contains(d.Stderr(), words) })
}

// ends requires that it ends, after a signal or for a reason of its own, with status 0.
func (d *daemon) ends() {
	d.t.Helper()
	require.NoError(d.t, d.Wait(wait), d.Stderr())
}

// within asks again and again for what must be so promptly, and says after how long it was.
func (c *cast) within(limit time.Duration, what string, cond func() error) time.Duration {
	c.t.Helper()
	start := time.Now()
	limit = time.Duration(float64(limit) * leeway())
	var err error
	for tick := time.NewTicker(2 * time.Millisecond); ; <-tick.C {
		if err = cond(); err == nil {
			tick.Stop()
			return time.Since(start)
		}
		if time.Since(start) > limit {
			require.NoError(c.t, err, "%s: not within %v", what, limit)
		}
	}
}

// answered is a condition for within: server answers at to, and sees src.
func answered(from *netns.NS, proto, bind, to, server, src string) func() error {
	return func() error {
		reply, err := ask(from, proto, bind, to, 30*time.Millisecond)
		if err == nil && (reply.Server != server || src != "" && reply.Remote.Addr().String() != src) {
			err = fmt.Errorf("%s answered to %s", reply.Server, reply.Remote)
		}
		return err
	}
}

// run runs a command on the host, which must work: "ip route add …".
func (c *cast) run(ns *netns.NS, line string) string {
	c.t.Helper()
	f := strings.Fields(line)
	out, err := c.Run(ns, f[0], f[1:]...)
	require.NoError(c.t, err)
	return out
}

// The daemon is one for a root, ends by a signal, and nothing depends on it: not when it
// is killed, nor when the host is uninstalled under it.
func TestDaemon(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	d := c.daemon()
	c.refuses([]string{"daemon"}, "one runs for", c.Root, "already")
	talk, call := c.talking("tcp", c.Client, at(lab.HostIPv4, 8080), "srv"), c.calling("udp", c.Client, at(lab.HostIPv4, 8080), "srv")
	for _, sig := range []os.Signal{unix.SIGTERM, unix.SIGINT} {
		require.NoError(t, d.Signal(sig))
		d.ends()
		unharmed(talk, call)
		require.Empty(t, strings.TrimSpace(c.must("reconcile")))
		d = c.daemon()
	}
	for range times(50, 5) {
		lab.AddAddr(t, c.Host, c.X.Device, "203.0.113.50/24")
		d.Kill()
		unharmed(talk, call)
		c.must("reconcile")
		c.answers(c.Client, "203.0.113.50:8080", "srv", lab.ClientIPv4)
		lab.DelAddr(t, c.Host, c.X.Device, "203.0.113.50/24")
		d = c.daemon()
	}
	// Commands beside it.
	for i := range 5 {
		c.must("publish", "srv", fmt.Sprintf("%d:80", 9000+i))
		lab.AddAddr(t, c.Host, c.X.Device, fmt.Sprintf("203.0.113.%d/24", 60+i))
	}
	c.within(promptly, "the last address", answered(c.Client, "tcp", "", "203.0.113.64:9004", "srv", lab.ClientIPv4))
	over(talk, call)
	require.NotContains(t, d.Stderr(), "error", "what it logged")
	c.answers(s.ns, at(lab.HostIPv4, 8080), "srv", "")
	require.NoError(t, c.m.Uninstall())
	d.says("not set up any more")
	d.ends()
	require.NoDirExists(t, c.Root)
	require.NoError(t, os.MkdirAll(c.Root, 0o700))
	require.NoError(t, c.m.Init(nil))
	d = c.daemon()
	require.NoError(t, d.Signal(unix.SIGTERM))
	d.ends()
}

// What fails is tried again, though nothing else happens meanwhile.
func TestDaemonTriesAgain(t *testing.T) {
	parallel(t)
	c, _, _, _ := ownCast(t)
	d := c.daemon()
	// In its place no command can leave its mark, nor take it away.
	full, mark := filepath.Join(t.TempDir(), "full"), filepath.Join(c.Root, "dirty")
	require.NoError(t, os.MkdirAll(filepath.Join(full, "x"), 0o700))
	eventually(t, "no command works", func() bool { return os.Rename(full, mark) == nil })
	lab.AddAddr(t, c.Host, c.X.Device, "203.0.113.50/24")
	d.says("error: mark: ")
	asked := answered(c.Client, "tcp", "", "203.0.113.50:8080", "srv", lab.ClientIPv4)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); { // until it waits for longer than its patrols
		require.Error(t, asked())
	}
	require.NoError(t, os.RemoveAll(mark))
	c.within(10*time.Second, "the address", asked)
	require.NoError(t, d.Signal(unix.SIGTERM))
	d.ends()
}

// A burst of a thousand changes costs a few looks: the processor time of the daemon shows it.
func TestDaemonBurst(t *testing.T) {
	c, _, _, _ := ownCast(t)
	d := c.daemon()
	h, err := c.Host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	l := lab.Link(t, c.Host, c.X.Device)
	one := func(i int) {
		require.NoError(t, h.LinkSetAlias(l, fmt.Sprint("alias ", i)))
	}
	// What one look costs: changes far apart.
	before := d.cpu()
	const far = 10
	for i := range far {
		lab.AddAddr(t, c.Host, c.X.Device, fmt.Sprintf("203.0.113.%d/24", 100+i))
		c.within(promptly, "address", answered(c.Client, "udp", "", fmt.Sprintf("203.0.113.%d:8080", 100+i), "srv", ""))
	}
	each := max(d.cpu()-before, 10*time.Millisecond) / far
	before = d.cpu()
	start := time.Now()
	for i := range 1000 {
		one(i)
	}
	took := time.Since(start)
	lab.AddAddr(t, c.Host, c.X.Device, "203.0.113.150/24")
	last := c.within(promptly, "the change after the burst", answered(c.Client, "udp", "", "203.0.113.150:8080", "srv", ""))
	burst := d.cpu() - before
	t.Logf("one look %v of processor time; 1,000 changes in %v: %v, and obeyed %v later", each, took, burst, last)
	require.Less(t, burst, 100*each, "a thousand changes")
}

// cpu is the processor time that it has used, to 10 ms.
func (d *daemon) cpu() time.Duration {
	d.t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", d.Pid()))
	require.NoError(d.t, err)
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err := strconv.Atoi(f[11])
	require.NoError(d.t, err)
	kernel, err := strconv.Atoi(f[12])
	require.NoError(d.t, err)
	return time.Duration(user+kernel) * 10 * time.Millisecond
}

// A18: an uplink or an address that appears later works promptly with the daemon, or
// after reconcile, and one that goes is not used any more.
//
//	X 203.0.113.2 ──── eth0 H ──── srv
//	Y 198.51.100.2 ─── eth1 (later)
func TestA18(t *testing.T) {
	parallel(t)
	for _, by := range []string{"daemon", "reconcile"} {
		t.Run(by, func(t *testing.T) {
			c, s, _, _ := ownCast(t)
			obey := func() { c.must("reconcile") }
			if by == "daemon" {
				c.daemon()
				obey = func() {}
			}
			var worst time.Duration
			soon := func(what string, cond func() error) {
				t.Helper()
				obey()
				took := c.within(promptly, what, cond)
				t.Logf("%s: %v", what, took)
				worst = max(worst, took)
			}
			for range 2 {
				y := c.AddClient(t, "Y", "198.51.100.1/24", "fd99::1/64")
				lab.ServeTCP(t, y.NS, "Y", ":9000")
				lab.ServeUDP(t, y.NS, "Y", ":9000")
				soon("a new uplink", answered(y.NS, "tcp", "", "198.51.100.1:8080", "srv", "198.51.100.2"))
				for _, d := range []struct{ host, client string }{{"198.51.100.1", "198.51.100.2"}, {"fd99::1", "fd99::2"}} {
					c.answers(y.NS, at(d.host, 8080), "srv", d.client)
					c.answers(s.ns, at(d.client, 9000), "Y", d.host)
					c.pings(s.ns, d.client)
				}
				for _, a := range []struct{ addr, bits string }{{"203.0.113.77", "/24"}, {"2001:db8:113::77", "/64"}} {
					lab.AddAddr(t, c.Host, c.X.Device, a.addr+a.bits)
					soon("a new address", answered(c.Client, "tcp", "", at(a.addr, 8080), "srv", ""))
					c.answers(c.Client, at(a.addr, 8080), "srv", "")
					c.answers(s.ns, at(a.addr, 8080), "srv", "")
					lab.DelAddr(t, c.Host, c.X.Device, a.addr+a.bits)
					// As nobody's: a container that asks for it is not answered by H any more.
					soon("a lost address", func() error {
						if reply, err := ask(s.ns, "udp", "", at(a.addr, 8080), silence); err == nil {
							return fmt.Errorf("still answered by %s", reply.Server)
						}
						return nil
					})
				}
				h, err := c.Host.Netlink()
				require.NoError(t, err)
				require.NoError(t, h.LinkDel(lab.Link(t, c.Host, y.Device)))
				h.Close()
				soon("a lost uplink", func() error {
					status, err := c.m.Status()
					if err == nil && len(status.Problems) > 0 {
						err = fmt.Errorf("%v", status.Problems)
					}
					return err
				})
				c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
			}
			t.Logf("obeyed within %v at most", worst)
		})
	}
}
