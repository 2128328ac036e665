// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// Builds that differ from this one: in their programs alone; in the layout of what the
// programs remember, of what they are told and of what they count; in a way that keeps
// flows from being carried over.
var (
	otherPrograms = []edit{{"sweep.c", "#define SWEEP_SLOTS 1024", "#define SWEEP_SLOTS 1023"}}
	otherLayout   = []edit{
		{"lib/types.h", "	__u32 seen;			/* tick of", "	__u64 novel;\n	__u32 seen;			/* tick of"},
		{"lib/types.h", "	__u32 flows;			/* established flows that count", "	__u8 colour[12];\n	__u32 flows;			/* established flows that count"},
		{"lib/types.h", "	__u16 host_port;		/* first port of", "	__u32 weight;\n	__u16 host_port;		/* first port of"},
		{"lib/types.h", "	__u32 missing;			/* the sweep", "	__u32 novel;\n	__u32 missing;			/* the sweep"},
		{"lib/types.h", "	COUNTER_COUNT,", "	COUNTER_NOVEL,\n	COUNTER_COUNT,"},
	}
	narrowLayout = []edit{{"lib/types.h", "		__u32 expect;		/* of TCP", "		__u16 expect;		/* of TCP"}}
)

// upgraded runs reconcile by a build and requires that it replaced the programs.
func (c *cast) upgraded(path string) string {
	c.t.Helper()
	r := c.by(path, "reconcile")
	require.Zero(c.t, r.code, r.err)
	require.Contains(c.t, r.out, "attachments upgraded")
	return r.out
}

// upgradeTalks are conversations in every direction, each over one socket.
//
//	X ── 8080 ──► srv   H ── 127.0.0.1:8080, 10.1.0.x:80 ──► srv   peer ──► srv   srv ──► X
func (c *cast) upgradeTalks(proto string, s, p *actor) (talks []*dialogue) {
	c.t.Helper()
	for _, to := range []string{at(lab.HostIPv4, 8080), at(lab.HostIPv6, 8080)} {
		talks = append(talks, c.talking(proto, c.Client, to, "srv"))
	}
	for _, to := range []string{"127.0.0.1:8080", "[::1]:8080", at(s.ip4, 80), at(s.ip6, 80)} {
		talks = append(talks, c.talking(proto, c.Host, to, "srv"))
	}
	for _, to := range []string{at(s.ip4, 80), at(s.ip6, 80), at(lab.HostIPv4, 8080)} {
		talks = append(talks, c.talking(proto, p.ns, to, "srv"))
	}
	for _, to := range []string{at(lab.ClientIPv4, 9000), at(lab.ClientIPv6, 9000)} {
		talks = append(talks, c.talking(proto, s.ns, to, "X"))
	}
	return talks
}

func upgradeCast(t *testing.T) (c *cast, s, p *actor) {
	c, s, p, _ = ownCast(t)
	lab.ServeTCP(t, c.Client, "X", ":9000")
	lab.ServeUDP(t, c.Client, "X", ":9000")
	return c, s, p
}

// G2: the programs are upgraded under traffic: nothing is lost, no packet passes a hook
// unseen; a changed layout carries flows and all else over, or is refused with its price.
func TestG2(t *testing.T) {
	for _, kind := range []string{loader.KindTCX, loader.KindClsact} {
		t.Run(kind, func(t *testing.T) {
			if kind == loader.KindClsact {
				t.Setenv(loader.NoTCX, "1")
			} else {
				parallel(t)
			}
			upgrades(t, kind)
		})
	}
	t.Run("layout", changedLayout)
	t.Run("layout, killed", killedUpgrade)
	t.Run("no way", refusedLayout)
}

func upgrades(t *testing.T, kind string) {
	c, s, p := upgradeCast(t)
	list, err := c.m.Status()
	require.NoError(t, err)
	require.True(t, slices.ContainsFunc(list.Hooks, func(h control.HookStatus) bool { return h.Device == "eth0" && h.Kind == kind }))
	this, other := lab.Binary(t), build(t, "programs", otherPrograms...)
	udp, tcp := c.upgradeTalks("udp", s, p), c.upgradeTalks("tcp", s, p)
	fresh := []*dialogue{c.calling("tcp", c.Client, at(lab.HostIPv4, 8080), "srv"), c.calling("udp", s.ns, at(lab.ClientIPv6, 9000), "X")}
	before := c.drops("")
	for i := range times(500, 6) {
		out := c.upgraded([]string{other, this}[i%2])
		require.NotContains(t, out, "tables")
		unharmed(slices.Concat(udp, tcp, fresh)...)
	}
	require.Empty(t, c.must("reconcile"), "once more for nothing")
	over(slices.Concat(tcp, fresh)...)
	var want []uint64
	for _, k := range udp {
		require.NoError(t, k.end())
		want = append(want, 2*uint64(k.answered.Load()))
	}
	require.Equal(t, before, c.drops(""))
	// Each question and each answer was seen, once.
	flows, err := c.m.Flows(control.FlowFilter{Proto: "udp"})
	require.NoError(t, err)
	var got []uint64
	for _, f := range flows {
		got = append(got, f.Packets)
	}
	for i, n := range want {
		at := slices.Index(got, n)
		require.GreaterOrEqual(t, at, 0, "%s: no flow has %d packets: %v", udp[i].what, n, got)
		got = slices.Delete(got, at, at+1)
	}
	t.Logf("%s: %d upgrades under %d conversations, %d datagrams each seen once", kind, times(500, 6), len(udp)+len(tcp)+len(fresh), sum(want))
}

func sum(list []uint64) (n uint64) {
	for _, x := range list {
		n += x
	}
	return n
}

// pinned opens maps by name.
func (c *cast) pinned() (table func(name string) *ebpf.Map, done func()) {
	c.t.Helper()
	src, err := loader.OpenMaps(loader.Options{BPFFS: c.BPFFS})
	require.NoError(c.t, err)
	return func(name string) *ebpf.Map {
		c.t.Helper()
		m, err := src.Map(name)
		require.NoError(c.t, err)
		return m
	}, func() { src.Close() }
}

// quotasAre waits until every endpoint's flows are counted as they are listed.
func (c *cast) quotasAre() {
	c.t.Helper()
	table, done := c.pinned()
	defer done()
	eventually(c.t, "quotas are as many as the flows", func() bool {
		listed := make(map[uint32]uint32)
		for _, name := range []string{loader.BPFMapFlows4, loader.BPFMapFlows6} {
			var f loader.BPFFlow
			for key, all := new([]byte), table(name).Iterate(); all.Next(key, &f); {
				if f.Flags&uint8(loader.BPFFlowFlagsFLOW_REPLY) == 0 {
					listed[f.Owner]++
				}
			}
		}
		for slot := uint32(1); slot < 8; slot++ {
			var e loader.BPFEndpoint
			require.NoError(c.t, table(loader.BPFMapEndpoints).Lookup(slot, &e))
			if e.Flows != listed[slot] {
				return false
			}
		}
		return len(listed) > 1
	})
}

// changedLayout: forth to a build with another layout, and back.
func changedLayout(t *testing.T) {
	parallel(t)
	c, s, p := upgradeCast(t)
	this, other := lab.Binary(t), build(t, "layout", otherLayout...)
	// The sets of programs have names of their own.
	inventory := func() []string {
		return slices.DeleteFunc(c.inventory(), func(l string) bool { return strings.Contains(l, "programs/") })
	}
	before := inventory()
	talks := append(c.upgradeTalks("tcp", s, p), c.upgradeTalks("udp", s, p)...)
	idle := c.idle("tcp", c.Client, at(lab.HostIPv4, 8080), 200)
	// Who calls in the very milliseconds of the change is refused, and tries again, as TCP does.
	var fresh []*dialogue
	for _, x := range []struct {
		from       *netns.NS
		to, server string
	}{{c.Client, at(lab.HostIPv4, 8080), "srv"}, {c.Client, at(lab.HostIPv6, 8080), "srv"}, {s.ns, at(lab.ClientIPv4, 9000), "X"}, {c.Host, "127.0.0.1:8080", "srv"}} {
		fresh = append(fresh, c.talk("new tcp to "+x.to, callPace, func(int64) error {
			reply, err := ask(x.from, "tcp", "", x.to, 3*wait)
			if err == nil && reply.Server != x.server {
				err = fmt.Errorf("answered by %s", reply.Server)
			}
			return err
		}, func() error { return nil }))
	}
	var slowest time.Duration
	for range times(20, 2) {
		for _, path := range []string{other, this} {
			start := time.Now()
			out := c.upgraded(path)
			slowest = max(slowest, time.Since(start))
			require.Contains(t, out, "made anew")
			require.Regexp(t, `[23][0-9][0-9] flows carried over`, out)
			unharmed(slices.Concat(talks, fresh)...)
			if path == other {
				_, err := c.m.Flows(control.FlowFilter{})
				require.ErrorIs(t, err, loader.ErrLayout, "this build does not touch tables that it cannot read")
				require.ErrorContains(t, err, "run bpfnet reconcile")
				r := c.by(other, "status")
				require.Zero(t, r.code, r.err)
				require.NotContains(t, r.out, "Problem")
			}
		}
	}
	over(fresh...)
	c.quotasAre()
	over(talks...)
	require.Equal(t, 200, alive(idle), "idle connections")
	require.Empty(t, c.must("reconcile"), "once more for nothing")
	require.Empty(t, difference(before, inventory()), "there and back")
	t.Logf("flows carried over %d times, at most %v", times(40, 4), slowest.Round(time.Millisecond))
}

// killedUpgrade: reconcile is killed at any step of a change of layout, and run again.
func killedUpgrade(t *testing.T) {
	parallel(t)
	c, s, p := upgradeCast(t)
	this, other := lab.Binary(t), build(t, "layout", otherLayout...)
	talks := append(c.upgradeTalks("tcp", s, p), c.upgradeTalks("udp", s, p)...)
	idle := c.idle("tcp", c.Client, at(lab.HostIPv4, 8080), 100)
	used := c.table("flows4").Used
	start := time.Now()
	c.upgraded(other)
	took := time.Since(start)
	n, finished := times(100, 8), 0
	for i := range n {
		path := []string{this, other}[i%2]
		p := c.Start(t, c.Host, path, "reconcile")
		_ = p.Wait(took * time.Duration(i/2*2+1) / time.Duration(n)) // kills it then
		r := c.by(path, "reconcile")
		require.Zero(t, r.code, "%d: %s", i, r.err)
		if r.out == "" {
			finished++
		}
		unharmed(talks...)
		for _, dir := range []string{"maps-next", "maps-ready", "maps-old"} {
			require.NoDirExists(t, filepath.Join(c.BPFFS, dir), "%d", i)
		}
	}
	c.upgraded(this)
	t.Logf("killed %d times within %v, %d of them too late", n, took.Round(time.Millisecond), finished)
	require.Less(t, finished, n)
	eventually(t, "as many flows as before", func() bool { return c.table("flows4").Used == used })
	over(talks...)
	require.Equal(t, 100, alive(idle))
	require.Empty(t, c.must("reconcile"))
}

// refusedLayout: what cannot be carried over is refused, until it is told to.
func refusedLayout(t *testing.T) {
	parallel(t)
	c, s, p := upgradeCast(t)
	narrow := build(t, "narrow", narrowLayout...)
	talks := c.upgradeTalks("tcp", s, p)
	r := c.by(narrow, "reconcile")
	line := clear(t, r, []string{"reconcile"}, "flows would end", "expect: unsigned short was unsigned int", "bpfnet reconcile --drop-flows")
	require.Contains(t, line, fmt.Sprintf("%d flows would end", len(talks)))
	unharmed(talks...)
	require.Empty(t, strings.TrimSpace(c.must("reconcile")), "nothing has changed")
	r = c.by(narrow, "reconcile", "--drop-flows")
	require.Zero(t, r.code, r.err)
	require.Contains(t, r.out, fmt.Sprintf("%d flows ended", len(talks)))
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
	c.answers(s.ns, at(lab.ClientIPv6, 9000), "X", lab.HostIPv6)
	r = c.by(narrow, "uninstall")
	require.Zero(t, r.code, r.err)
}
