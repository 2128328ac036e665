// SPDX-License-Identifier: Apache-2.0

// Package maps gives the pinned maps types: netip addresses, host byte order,
// Go durations. It is the only place that knows byte order and the layout of
// bpf/lib/types.h.
//
// The maps are the kernel's working truth; control writes them, one process at
// a time (the store's lock), while the programs read them. So every change is
// made in an order in which the programs never find half of it: an array entry
// is complete before a lookup table leads to it, and nothing leads to it any
// more before it is emptied. An update that finds what it would write changes
// nothing, so that it can be repeated at will.
package maps

import (
	"errors"
	"fmt"
	"unsafe"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Source opens maps by name: loader.Maps, or loader.Objects.
type Source interface {
	Map(name string) (*ebpf.Map, error)
}

// Tables are the maps by what they are about. A map is opened when it is used.
type Tables struct {
	Endpoints     *Endpoints
	Networks      *Networks
	Rules         *Rules
	Ports         *Ports
	Links         *Links
	Devices       *Devices
	HostAddresses *HostAddresses
	Routes        *Routes
	Settings      *Settings
	Flows         *Flows
	Counters      *Counters
}

// New opens nothing yet. The Source stays the caller's to close.
func New(src Source) *Tables {
	devices := &Devices{table[uint32, loader.BPFDevice]{src, loader.BPFMapDevices}}
	rules := &Rules{
		rules:   ruleTable{table[uint32, loader.BPFRule]{src, loader.BPFMapRules}, epoch{src}},
		sources: table[loader.BPFSourceKey, uint32]{src, loader.BPFMapSources},
	}
	return &Tables{
		Endpoints: &Endpoints{
			endpoints: versioned[uint32, loader.BPFEndpoint]{table[uint32, loader.BPFEndpoint]{src, loader.BPFMapEndpoints}, epoch{src}},
			addrs:     table[loader.BPFEndpointKey, uint32]{src, loader.BPFMapEndpointAddrs},
			devices:   devices,
		},
		Networks: &Networks{
			networks: table[uint32, loader.BPFNetwork]{src, loader.BPFMapNetworks},
			members:  table[loader.BPFMemberKey, uint32]{src, loader.BPFMapMembers},
			subnets:  table[loader.BPFPrefix, uint32]{src, loader.BPFMapSubnets},
			devices:  devices,
			rules:    rules,
		},
		Rules: rules,
		Ports: &Ports{
			src:   src,
			addrs: table[loader.BPFPortKey, uint32]{src, loader.BPFMapPortsAddr},
		},
		Links:         &Links{table[loader.BPFLinkKey, uint32]{src, loader.BPFMapLinks}},
		Devices:       devices,
		HostAddresses: &HostAddresses{table[loader.BPFAddr, uint32]{src, loader.BPFMapHostAddrs}},
		Routes: &Routes{
			table:  table[loader.BPFRouteKey, loader.BPFRoute]{src, loader.BPFMapRoutes},
			tables: table[uint32, uint32]{src, loader.BPFMapRouteTables},
			epoch:  epoch{src},
		},
		Settings: &Settings{src, table[uint32, loader.BPFConfig]{src, loader.BPFMapSettings}},
		Flows:    newFlows(src),
		Counters: &Counters{
			counters: table[uint32, uint64]{src, loader.BPFMapCounters},
			drops:    table[loader.BPFDropKey, uint64]{src, loader.BPFMapDrops},
		},
	}
}

// table is a map of which keys and values are generated types.
type table[K comparable, V any] struct {
	src  Source
	name string
}

func (t table[K, V]) open() (*ebpf.Map, error) {
	m, err := t.src.Map(t.name)
	if err != nil {
		return nil, err
	}
	var k K
	var v V
	if m.KeySize() != uint32(unsafe.Sizeof(k)) || m.ValueSize() != uint32(unsafe.Sizeof(v)) {
		return nil, fmt.Errorf("map %s: %w (key %d bytes, value %d; not %d, %d)",
			t.name, loader.ErrLayout, m.KeySize(), m.ValueSize(), unsafe.Sizeof(k), unsafe.Sizeof(v))
	}
	return m, nil
}

func (t table[K, V]) get(k K) (v V, ok bool, err error) {
	m, err := t.open()
	if err != nil {
		return v, false, err
	}
	err = m.Lookup(&k, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, t.wrap(err)
	}
	return v, true, nil
}

func (t table[K, V]) put(k K, v V) error {
	m, err := t.open()
	if err != nil {
		return err
	}
	if err := m.Put(&k, &v); err != nil {
		return t.wrap(err)
	}
	return nil
}

// del is fine with a key that is not there.
func (t table[K, V]) del(k K) error {
	m, err := t.open()
	if err != nil {
		return err
	}
	if err := m.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return t.wrap(err)
	}
	return nil
}

// each calls f with every entry, in no order. Entries that come and go meanwhile
// may be missed. f must not change the map.
func (t table[K, V]) each(f func(K, V) error) error {
	m, err := t.open()
	if err != nil {
		return err
	}
	var cursor ebpf.MapBatchCursor
	for n := min(int(m.MaxEntries()), 4096); ; {
		keys, values := make([]K, n), make([]V, n)
		for {
			got, err := m.BatchLookup(&cursor, keys, values, nil)
			if errors.Is(err, unix.ENOSPC) {
				n *= 2 // a bucket of a hash table must fit
				break
			}
			last := errors.Is(err, ebpf.ErrKeyNotExist)
			if err != nil && !last {
				return t.wrap(err)
			}
			for i := range got {
				if err := f(keys[i], values[i]); err != nil {
					return err
				}
			}
			if last {
				return nil
			}
		}
	}
}

func (t table[K, V]) all() (map[K]V, error) {
	m := make(map[K]V)
	err := t.each(func(k K, v V) error { m[k] = v; return nil })
	return m, err
}

func (t table[K, V]) count() (n int, err error) {
	err = t.each(func(K, V) error { n++; return nil })
	return n, err
}

// replace makes the map hold exactly want: first what is new, then what is
// stale, so that what stays is never missed. It calls between, if not nil, in between.
func replace[K comparable, V comparable](t table[K, V], want map[K]V, between func() error) (changed int, err error) {
	m, err := t.open()
	if err != nil {
		return 0, err
	}
	if len(want) > int(m.MaxEntries()) {
		return 0, fmt.Errorf("map %s: %d entries, room for %d", t.name, len(want), m.MaxEntries())
	}
	have, err := t.all()
	if err != nil {
		return 0, err
	}
	for k, v := range want {
		if old, ok := have[k]; ok && old == v {
			continue
		}
		if err := t.put(k, v); err != nil {
			return changed, err
		}
		changed++
	}
	if between != nil {
		if err := between(); err != nil {
			return changed, err
		}
	}
	for k := range have {
		if _, ok := want[k]; ok {
			continue
		}
		if err := t.del(k); err != nil {
			return changed, err
		}
		changed++
	}
	return changed, nil
}

func (t table[K, V]) wrap(err error) error {
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("map %s is full: %w", t.name, err)
	}
	return fmt.Errorf("map %s: %w", t.name, err)
}
