// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/cilium/ebpf"
)

// Counters are what the programs count, on each CPU for itself.
type Counters struct {
	counters table[uint32, uint64]
	drops    table[loader.BPFDropKey, uint64]
}

// Drop is how many packets one of our hooks on a device dropped for a reason.
type Drop struct {
	Ifindex int
	Reason  Reason
	Packets uint64
}

// counterNames are what users see: the enumerators, in lower case.
var counterNames = names{
	loader.BPFCounterCOUNTER_FLOW_NEW:         "flow_new",
	loader.BPFCounterCOUNTER_FLOW_ESTABLISHED: "flow_established",
	loader.BPFCounterCOUNTER_FLOW_CLOSED:      "flow_closed",
	loader.BPFCounterCOUNTER_FLOW_EXPIRED:     "flow_expired",
	loader.BPFCounterCOUNTER_FLOW_STALE:       "flow_stale",
	loader.BPFCounterCOUNTER_ICMP_SENT:        "icmp_sent",
	loader.BPFCounterCOUNTER_ICMP_LIMITED:     "icmp_limited",
	loader.BPFCounterCOUNTER_BIND_REFUSED:     "bind_refused",
	loader.BPFCounterCOUNTER_FLOODED:          "flooded",
	loader.BPFCounterCOUNTER_SWEEP_TICKS:      "sweep_ticks",
	loader.BPFCounterCOUNTER_FRAGMENT_PARKED:  "fragment_parked",
	loader.BPFCounterCOUNTER_FULL_FLOWS4:      "full_flows4",
	loader.BPFCounterCOUNTER_FULL_FLOWS6:      "full_flows6",
	loader.BPFCounterCOUNTER_FULL_HALF4:       "full_half4",
	loader.BPFCounterCOUNTER_FULL_HALF6:       "full_half6",
}

// Read is every counter by its name, summed over the CPUs.
func (c *Counters) Read() (map[string]uint64, error) {
	m, err := c.counters.open()
	if err != nil {
		return nil, err
	}
	sums := make(map[string]uint64, m.MaxEntries())
	for i := range m.MaxEntries() {
		var cpus []uint64
		if err := m.Lookup(i, &cpus); err != nil {
			return nil, c.counters.wrap(err)
		}
		sums[counterNames.of("counter", int(i))] = sum(cpus)
	}
	return sums, nil
}

// Drops is every device and reason with a drop, summed over the CPUs, sorted.
func (c *Counters) Drops() ([]Drop, error) {
	m, err := c.drops.open()
	if err != nil {
		return nil, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("map drops: %w", err)
	}
	const n = 1024
	keys, values := make([]loader.BPFDropKey, n), make([]uint64, n*cpus)
	var drops []Drop
	for cursor, last := (ebpf.MapBatchCursor{}), false; !last; {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		last = errors.Is(err, ebpf.ErrKeyNotExist)
		if err != nil && !last {
			return nil, c.drops.wrap(err)
		}
		for i := range got {
			drops = append(drops, Drop{int(keys[i].Ifindex), Reason(keys[i].Reason), sum(values[i*cpus : (i+1)*cpus])})
		}
	}
	slices.SortFunc(drops, func(a, b Drop) int {
		if a.Ifindex != b.Ifindex {
			return a.Ifindex - b.Ifindex
		}
		return int(a.Reason) - int(b.Reason)
	})
	return drops, nil
}

func sum(cpus []uint64) (n uint64) {
	for _, v := range cpus {
		n += v
	}
	return n
}
