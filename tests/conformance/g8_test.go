// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// hook is a program of ours where it is attached.
type hook struct {
	program, device, kind string
}

// hooks are all of the host's, one of each program where it is on several devices.
func (c *cast) hooks() (list []hook) {
	c.t.Helper()
	status, err := c.m.Status()
	require.NoError(c.t, err)
	require.Empty(c.t, status.Problems)
	seen := make(map[string]bool)
	for _, h := range status.Hooks {
		if !seen[h.Program] {
			seen[h.Program] = true
			list = append(list, hook{h.Program, h.Device, h.Kind})
		}
	}
	require.Len(c.t, list, 10, "%v", list)
	return list
}

// detach takes a program off as somebody with bpftool or tc would.
func (c *cast) detach(h hook) {
	c.t.Helper()
	if h.kind == loader.KindClsact {
		parent := map[bool]uint32{true: netlink.HANDLE_MIN_EGRESS, false: netlink.HANDLE_MIN_INGRESS}[strings.HasPrefix(h.program, "to_")]
		k, err := c.Host.Netlink()
		require.NoError(c.t, err)
		defer k.Close()
		filters, err := k.FilterList(lab.Link(c.t, c.Host, h.device), parent)
		require.NoError(c.t, err)
		require.Len(c.t, filters, 1)
		require.NoError(c.t, k.FilterDel(filters[0]))
		return
	}
	path := filepath.Join(c.BPFFS, "links", h.program)
	if h.kind == loader.KindTCX {
		matches, err := filepath.Glob(fmt.Sprintf("%s-%d-*", path, lab.Link(c.t, c.Host, h.device).Attrs().Index))
		require.NoError(c.t, err)
		require.Len(c.t, matches, 1)
		path = matches[0]
	}
	l, err := link.LoadPinnedLink(path, nil)
	require.NoError(c.t, err)
	defer l.Close()
	require.NoError(c.t, l.Detach())
}

// whole says whether every program is where it belongs.
func (c *cast) whole() error {
	status, err := c.m.Status()
	if err == nil && len(status.Problems) > 0 {
		err = fmt.Errorf("%v", status.Problems)
	}
	return err
}

// G8: each program detached by hand, one at a time, while the host would forward: the
// containers are closed, not open, and the daemon puts it back within a second.
func TestG8(t *testing.T) {
	for _, kind := range []string{loader.KindTCX, loader.KindClsact} {
		t.Run(kind, func(t *testing.T) {
			if kind == loader.KindClsact {
				t.Setenv(loader.NoTCX, "1")
			}
			c, s, p, o := mainCast(t, lab.RouteToHost())
			c.forwarding("1")
			lab.ServeTCP(t, c.Client, "world", ":7000")
			lab.ServeUDP(t, c.Client, "world", ":7000")
			c.network("closed", 3, true, iccOff)
			q, r := c.container("closed1", "closed"), c.container("closed2", "closed")
			c.serve(q, 80)
			all := func() {
				t.Helper()
				for i, host := range []string{lab.HostIPv4, lab.HostIPv6} {
					loop, world := []string{"127.0.0.1", "::1"}[i], []string{lab.ClientIPv4, lab.ClientIPv6}[i]
					c.answersBy("tcp", c.Client, "", at(host, 8080), "srv", "")
					c.answersBy("udp", c.Host, "", at(loop, 8080), "srv", "")
					c.answersBy("udp", p.ns, "", at(world, 7000), "world", host)
				}
				c.answersBy("tcp", p.ns, "", at(s.ip4, 80), "srv", "")
				c.answersBy("tcp", c.Host, "", at(s.ip4, 80), "srv", "")
			}
			all()
			// What is closed while all is well, and while one program is missing.
			forbidden := map[string]func(proto string) error{}
			for name, x := range map[string]struct {
				from *netns.NS
				to   *actor
			}{"the world": {c.Client, s}, "another network": {o.ns, s}, "a peer with icc off": {r.ns, q}} {
				forbidden[name+", IPv4"] = func(proto string) error { _, err := ask(x.from, proto, "", at(x.to.ip4, 80), silence); return err }
				forbidden[name+", IPv6"] = func(proto string) error { _, err := ask(x.from, proto, "", at(x.to.ip6, 80), silence); return err }
			}
			closed := func(what string) {
				t.Helper()
				var asking sync.WaitGroup
				for name, ask := range forbidden {
					for _, proto := range []string{"tcp", "udp"} {
						asking.Go(func() { assert.Error(t, ask(proto), "%s: from %s by %s", what, name, proto) })
					}
				}
				// No container shows in the world by its own address.
				for i, to := range []string{lab.ClientIPv4, lab.ClientIPv6} {
					asking.Go(func() {
						if reply, err := ask(p.ns, "udp", "", at(to, 7000), silence); err == nil {
							assert.Equal(t, []string{lab.HostIPv4, lab.HostIPv6}[i], reply.Remote.Addr().String(), what)
						}
					})
				}
				asking.Wait()
				require.False(t, t.Failed())
			}
			closed("all is well")
			hooks := c.hooks()
			for _, h := range hooks {
				c.detach(h)
				require.Error(t, c.whole(), "%s was not detached", h.program)
				closed(h.program + " is missing")
				c.must("reconcile")
				require.NoError(t, c.whole())
			}
			tails := filepath.Join(c.BPFFS, "programs", "current", loader.BPFMapSlowPaths)
			require.NoError(t, os.Remove(tails))
			require.ErrorContains(t, c.whole(), "slow path")
			closed("the slow path is missing")
			c.must("reconcile")
			require.NoError(t, c.whole())
			all()

			// With all of them gone the world would come in: the host forwards.
			for program, device := range map[string]string{loader.BPFProgFromUplink: c.X.Device, loader.BPFProgToUplink: c.X.Device, loader.BPFProgToBridge: c.gateway("n1").dev,
				loader.BPFProgFromEndpoint: c.endpoint("srv", "n1").HostIf, loader.BPFProgToEndpoint: c.endpoint("srv", "n1").HostIf} {
				c.detach(hook{program, device, kind})
			}
			require.NoError(t, forbidden["the world, IPv4"]("tcp"), "the positive control")
			c.must("reconcile")
			closed("all is well again")

			d := c.daemon()
			var worst time.Duration
			for _, h := range hooks {
				c.detach(h)
				worst = max(worst, c.within(promptly, h.program+" again", c.whole))
			}
			all()
			t.Logf("%d programs, each put back within %v", len(hooks), worst)
			require.NotContains(t, d.Stderr(), "error", "what it logged")

			require.NoError(t, os.Remove(tails))
			c.within(promptly, "the slow path again", c.whole)
			all()

			// A pin that is removed detaches, too; and the veth of a container, by which nobody comes in.
			if kind == loader.KindTCX {
				matches, err := filepath.Glob(filepath.Join(c.BPFFS, "links", loader.BPFProgToUplink+"-*"))
				require.NoError(t, err)
				require.NoError(t, os.Remove(matches[0]))
				c.within(2*promptly, "a pin again", c.whole)
			}
			h, err := c.Host.Netlink()
			require.NoError(t, err)
			defer h.Close()
			require.NoError(t, h.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Index: c.endpoint("peer", "n1").HostIndex}}))
			c.within(2*promptly, "a cable again", answered(p.ns, "tcp", "", at(s.ip4, 80), "srv", ""))
		})
	}
}
