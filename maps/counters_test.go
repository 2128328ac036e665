// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

func TestCounters(t *testing.T) {
	c := newTables(t).Counters
	m, err := c.counters.open()
	require.NoError(t, err)
	cpus, err := ebpf.PossibleCPU()
	require.NoError(t, err)
	values := make([]uint64, cpus)
	for i := range values {
		values[i] = 10 + uint64(i)
	}
	require.NoError(t, m.Put(uint32(loader.BPFCounterCOUNTER_FLOODED), values))
	sums, err := c.Read()
	require.NoError(t, err)
	require.Equal(t, sum(values), sums["flooded"])
	require.Zero(t, sums["flow_new"])
	require.Len(t, sums, int(loader.BPFCounterCOUNTER_COUNT))
}

func TestDrops(t *testing.T) {
	c := newTables(t).Counters
	drops, err := c.Drops()
	require.NoError(t, err)
	require.Empty(t, drops)
	m, err := c.drops.open()
	require.NoError(t, err)
	cpus, err := ebpf.PossibleCPU()
	require.NoError(t, err)
	values := make([]uint64, cpus)
	values[0], values[cpus-1] = 3, 4
	const n = 1500 // more than a batch
	var want []Drop
	for i := range n {
		d := Drop{Ifindex: 1 + i/10, Reason: Reason(i % 10), Packets: sum(values)}
		require.NoError(t, m.Put(&loader.BPFDropKey{Ifindex: uint32(d.Ifindex), Reason: uint32(d.Reason)}, values))
		want = append(want, d)
	}
	drops, err = c.Drops()
	require.NoError(t, err)
	require.Equal(t, want, drops)
}

// A map of another layout is refused, not misread.
func TestLayout(t *testing.T) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 12, MaxEntries: 10})
	require.NoError(t, err)
	defer m.Close()
	tables := New(oneMap{m})
	_, err = tables.Endpoints.Get(1)
	require.ErrorIs(t, err, loader.ErrLayout)
	require.ErrorContains(t, err, "map endpoints")
	require.ErrorIs(t, tables.Ports.Publish(Binding{TCP, any4, 1, 1, 1}), loader.ErrLayout)
}

type oneMap struct{ m *ebpf.Map }

func (o oneMap) Map(string) (*ebpf.Map, error) { return o.m, nil }
