// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
)

func TestMain(m *testing.M) {
	Init()
	os.Exit(m.Run())
}

// saw is whom the server of a contender's flow must see; the site's containers are
// 172.17.0.2 (peer) and 172.17.0.3 (web).
var saw = map[string]string{
	"bpf published": "203.0.113.2", "bpf world": "203.0.113.1", "bpf peer": "172.17.0.2", "bpf local": "172.17.0.1",
	"iptables published": "203.0.113.2", "iptables world": "203.0.113.1", "iptables peer": "172.17.0.2", "iptables local": "172.17.0.1",
	"host published": "203.0.113.2", "host world": "203.0.113.1",
	"routing published": "203.0.113.2", "routing world": "172.17.0.3",
	"bridging peer": "172.17.0.2", "loopback local": "127.0.0.1", "docker-proxy local": "172.17.0.1",
}

// One real, short run: every workload moves data on every flow of every contender
// that is here, on the path that it claims, in turns; and nothing is left.
//
//	   client                    host                     containers
//	┌─────────────┐  uplink   ┌──────────────────┐     ┌───────────┐
//	│ 203.0.113.2 ├───────────┤ 203.0.113.1      ├─────┤ peer, web │     twice: with bpfnet, and plain
//	└─────────────┘           └──────────────────┘     └───────────┘
func TestRun(t *testing.T) {
	before := leftovers(t)
	t.Run("in turns", func(t *testing.T) {
		r := run(t, Options{Workloads: []string{"tcp-rr"}, Rounds: 2, Time: shortest})
		require.Len(t, r.Cases, len(Flows))
		for _, c := range r.Cases {
			checkCase(t, c, 2)
		}
		checkTurns(t, r)
	})
	t.Run("request/response and flood, all flows", func(t *testing.T) {
		r := run(t, Options{Workloads: []string{"tcp-crr", "udp-rr", "udp-flood"}, Rounds: 1, Time: shortest})
		require.Len(t, r.Cases, 3*len(Flows))
		for _, c := range r.Cases {
			checkCase(t, c, 1)
			for _, e := range c.Entries {
				for _, m := range e.Measurements {
					where := fmt.Sprintf("%s %s %s", c.Workload, c.Flow, e.Contender)
					require.NotNil(t, m.ClientCPU, where)
					client, server, apart := fmt.Sprint(*m.ClientCPU), fmt.Sprint(*m.ServerCPU), strings.Contains(c.CPUs, ",")
					require.Equal(t, [2]string{m.ClientCPUs, m.ServerCPUs}, [2]string{client, server}, where)
					require.Equal(t, apart, client != server, where)
				}
			}
		}
	})
	t.Run("streams and HTTP, published", func(t *testing.T) {
		r := run(t, Options{Workloads: []string{"tcp-in", "tcp-out", "tcp-in-1500", "tcp-out-1500", "tcp-in-gro", "tcp-out-gro", "http", "http-short"}, Flows: []string{FlowPublished},
			Contenders: []string{BPF}, Rounds: 1, Time: shortest, brief: true})
		require.Empty(t, r.Skipped)
		require.Len(t, r.Cases, 8)
		for _, c := range r.Cases {
			checkCase(t, c, 1)
			m := c.Entries[0].Measurements[0]
			switch c.Workload {
			case "tcp-in", "tcp-out":
				require.Greater(t, m.Frame, float64(smallFrame), "packets are joined unless that is turned off")
			case "tcp-in-1500", "tcp-out-1500":
				require.Greater(t, m.Frame, 1400.0)
				require.LessOrEqual(t, m.Frame, float64(smallFrame))
			}
		}
	})
	t.Run("scales and commands", func(t *testing.T) {
		scales := []Scale{One, {200, 3}}
		r := run(t, Options{Workloads: []string{"tcp-rr", workPublish, workContainer}, Flows: []string{FlowPublished}, Contenders: []string{BPF}, Scales: scales,
			Rounds: 1, Time: shortest})
		require.Len(t, r.Cases, 1+2*len(publishes)+2)
		for _, c := range r.Cases {
			require.Len(t, c.Entries, 2, c.Title)
			require.Equal(t, scales, []Scale{c.Entries[0].Scale, c.Entries[1].Scale})
			require.NotNil(t, c.Entries[1].AgainstOne)
			for _, e := range c.Entries {
				require.Greater(t, e.Rate, 0.0)
			}
		}
		require.Len(t, r.Memory, 2)
		require.Greater(t, r.Memory[0].MapCount, 10)
		require.Greater(t, r.Memory[0].Maps, uint64(1<<20))
		require.Zero(t, r.Memory[0].Processes)
	})
	require.Equal(t, before, leftovers(t))
}

func run(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Run(context.Background(), o)
	require.NoError(t, err)
	require.Equal(t, o.Rounds, r.Rounds)
	require.Empty(t, r.Failed)
	return r
}

// checkCase holds a case's entries to what the flow is for, and their evidence to the path.
func checkCase(t *testing.T, c *Case, rounds int) {
	t.Helper()
	for _, e := range c.Entries {
		where := fmt.Sprintf("%s %s %s", c.Workload, c.Flow, e.Contender)
		want, ok := saw[e.Contender+" "+c.Flow]
		require.True(t, ok, "%s: not a flow of this contender", where)
		require.Len(t, e.Measurements, rounds, where)
		for i, m := range e.Measurements {
			require.Equal(t, i+1, m.Round, where)
			require.Equal(t, netip.MustParseAddr(want), m.Seen, where)
			require.Greater(t, m.Rate, 0.0, where)
			require.Greater(t, m.CPU, 0.0, where)
			require.Greater(t, m.Bytes, uint64(m.Ops), where)
			require.Equal(t, i == 0 && (e.Contender == BPF || e.Contender == IPTables), m.Flows > 0, where)
			require.Equal(t, i == 0 && e.Contender == BPF, m.FlowPackets > 0, where)
		}
		if e.Contender == BPF {
			require.Nil(t, e.Against, where)
		} else {
			require.Equal(t, BPF, e.Against.Of, where)
		}
	}
	require.Equal(t, BPF, c.Entries[0].Contender)
}

// checkTurns: measurements never overlap, each round has all of one case before the next
// case, and begins with another contender than the round before.
func checkTurns(t *testing.T, r *Report) {
	t.Helper()
	type turn struct {
		Measurement
		who, of string
	}
	var all []turn
	for _, c := range r.Cases {
		for _, e := range c.Entries {
			for _, m := range e.Measurements {
				all = append(all, turn{m, e.Contender, c.Workload + " " + c.Flow})
			}
		}
	}
	slices.SortFunc(all, func(a, b turn) int { return a.Begun.Compare(b.Begun) })
	first := make(map[string][]string) // of each round, by case
	for i, x := range all {
		if x.Turn == 1 {
			first[x.of] = append(first[x.of], x.who)
		}
		if i == 0 {
			continue
		}
		before := all[i-1]
		require.False(t, x.Begun.Before(before.Ended), "%s and %s at the same time", x.who, before.who)
		require.GreaterOrEqual(t, x.Round, before.Round, "a round is over when the next begins")
		if x.Turn > 1 {
			require.Equal(t, [3]any{before.of, before.Round, before.Turn + 1}, [3]any{x.of, x.Round, x.Turn})
			require.NotEqual(t, before.who, x.who)
		}
	}
	for of, who := range first {
		require.Len(t, who, 2, of)
		require.NotEqual(t, who[0], who[1], of)
	}
}

// leftovers is what a run could leave: files, mounts, cgroups, children and namespaces.
func leftovers(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(os.TempDir(), labName+"-*"))
	require.NoError(t, err)
	mounts, err := mountinfo.GetMounts(nil)
	require.NoError(t, err)
	for _, m := range mounts {
		if strings.Contains(m.Mountpoint, labName) {
			found = append(found, "mount "+m.Mountpoint)
		}
		if m.FSType == "cgroup2" {
			groups, err := filepath.Glob(filepath.Join(m.Mountpoint, labName+"-*"))
			require.NoError(t, err)
			found = append(found, groups...)
		}
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	for _, name := range stats {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		text := string(data)
		rest := strings.Fields(text[strings.LastIndexByte(text, ')')+1:]) // "S 1 …": state, parent
		if len(rest) > 1 && rest[1] == fmt.Sprint(os.Getpid()) {
			found = append(found, "child "+text)
		}
	}
	own, err := os.Readlink("/proc/self/ns/net")
	require.NoError(t, err)
	// Threads of netns.Do end a moment after it.
	require.Eventually(t, func() bool {
		for _, pattern := range []string{"/proc/self/task/*/ns/net", "/proc/self/fd/*"} {
			names, _ := filepath.Glob(pattern)
			for _, name := range names {
				if to, err := os.Readlink(name); err == nil && strings.HasPrefix(to, "net:[") && to != own {
					return false
				}
			}
		}
		return true
	}, 5*time.Second, 5*time.Millisecond, "namespaces are still held")
	return found
}
