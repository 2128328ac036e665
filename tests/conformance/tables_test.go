// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// table is a table as bpfnet status -o json shows it.
func (c *cast) table(name string) (found control.TableStatus) {
	c.t.Helper()
	var list []control.Status
	require.NoError(c.t, json.Unmarshal([]byte(c.must("status", "-o", "json")), &list))
	require.Len(c.t, list, 1)
	for _, table := range list[0].Tables {
		if table.Name == name {
			return table
		}
	}
	require.Fail(c.t, "no table "+name)
	return found
}

// The tables' sizes change under traffic; smaller than what lives is refused.
func TestTableSizes(t *testing.T) {
	parallel(t)
	c, s, p := upgradeCast(t)
	require.NoError(t, c.m.Init(&control.Config{FlowTableSize: 131072, HalfOpenTableSize: 32768}))
	talks := append(c.upgradeTalks("tcp", s, p), c.upgradeTalks("udp", s, p)...)
	idle := append(c.idle("tcp", c.Client, at(lab.HostIPv4, 8080), 1000), c.idle("udp", c.Client, at(lab.HostIPv4, 8080), 300)...)
	used := c.table("flows4").Used
	require.GreaterOrEqual(t, used, 2600)
	require.Equal(t, 262144, c.table("flows4").Size)
	for _, size := range []string{"2048", "1048576", "4096"} {
		require.Empty(t, c.must("init", "--flow-table-size", size, "--half-open-table-size", size, "--flow-quota", "1000000"))
		unharmed(talks...)
		require.Equal(t, used, c.table("flows4").Used, size)
	}
	require.Equal(t, control.TableStatus{Name: "flows4", Used: used, Size: 8192}, c.table("flows4"))
	require.Equal(t, 8192, c.table("half6").Size)
	c.refuses([]string{"init", "--flow-table-size", "1024"}, "flow-table-size", "more live flows than the 2048 entries there is room for", "choose a larger one")
	require.Equal(t, 8192, c.table("flows4").Size)
	unharmed(talks...)
	require.Empty(t, c.must("reconcile"), "nothing has changed")
	over(talks...)
	require.Equal(t, len(idle), alive(idle))
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
}

// The programs and Go make one digest of a tuple, by a seed that nobody else has.
func TestDigests(t *testing.T) {
	parallel(t)
	c, s, p := upgradeCast(t)
	talks := append(c.upgradeTalks("tcp", s, p), c.upgradeTalks("udp", s, p)...)
	unharmed(talks...)
	table, done := c.pinned()
	defer done()
	seed, err := loader.SeedOf(table(loader.BPFMapSeeds))
	require.NoError(t, err)
	for _, word := range loader.ObjectSeed {
		require.NotContains(t, seed, word)
	}
	for _, name := range []string{loader.BPFMapFlows4, loader.BPFMapFlows6} {
		n := 0
		var f loader.BPFFlow
		for key, all := new(uint64), table(name).Iterate(); all.Next(key, &f); n++ {
			require.Equal(t, seed.Digest(f.Tuple), *key, name)
		}
		require.GreaterOrEqual(t, n, 4, name)
	}
	over(talks...)
}

// counter is one of status, read by itself: status costs milliseconds.
func (c *cast) counter(name string) uint64 {
	c.t.Helper()
	src, err := loader.OpenMaps(loader.Options{BPFFS: c.BPFFS})
	require.NoError(c.t, err)
	defer src.Close()
	counters, err := maps.New(src).Counters.Read()
	require.NoError(c.t, err)
	require.Contains(c.t, counters, name)
	return counters[name]
}
