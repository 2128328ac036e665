// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// entry is one direction of a flow, of any of the four tables.
type entry struct {
	src, dst    netip.AddrPort
	zone        uint32
	proto       uint8
	established bool
	table       *ebpf.Map
	key         uint64
	loader.BPFFlow
}

func addrOf(a loader.BPFAddr) netip.Addr {
	var b [16]byte
	for i, v := range a.W {
		binary.NativeEndian.PutUint32(b[i*4:], v)
	}
	return netip.AddrFrom16(b).Unmap()
}

// entries lists all flows.
func (w *world) entries() (list []entry) {
	w.t.Helper()
	for i, m := range []*ebpf.Map{w.objs.Flows4, w.objs.Flows6, w.objs.Half4, w.objs.Half6} {
		var k uint64
		var f loader.BPFFlow
		it := m.Iterate()
		for it.Next(&k, &f) {
			t := f.Tuple
			list = append(list, entry{netip.AddrPortFrom(addrOf(t.Saddr), be16(t.Sport)), netip.AddrPortFrom(addrOf(t.Daddr), be16(t.Dport)), t.Zone, t.Proto, i < 2, m, k, f})
		}
		require.NoError(w.t, it.Err())
	}
	return list
}

// tables counts the entries: established, half-open.
func (w *world) tables() (established, half int) {
	w.t.Helper()
	for _, e := range w.entries() {
		if e.established {
			established++
		} else {
			half++
		}
	}
	return established, half
}

// entry finds the flow of a packet that arrives in a zone.
func (w *world) entry(p packet, zone int) entry {
	w.t.Helper()
	for _, e := range w.entries() {
		if e.src == netip.AddrPortFrom(p.from.addr, p.from.port) && e.dst == netip.AddrPortFrom(p.to.addr, p.to.port) && e.zone == uint32(zone) && e.proto == p.proto {
			return e
		}
	}
	require.FailNow(w.t, "no such flow", "%v:%d to %v:%d in zone %d", p.from.addr, p.from.port, p.to.addr, p.to.port, zone)
	return entry{}
}

// age makes all flows look as if nothing had been heard of them for so long.
func (w *world) age(ticks uint32) {
	w.t.Helper()
	for _, e := range w.entries() {
		e.Seen -= ticks
		if err := e.table.Update(e.key, e.BPFFlow, ebpf.UpdateExist); !errors.Is(err, ebpf.ErrKeyNotExist) { // the sweep was faster
			require.NoError(w.t, err)
		}
	}
}

// quota is how many established flows count against an endpoint.
func (w *world) quota(slot uint32) uint32 {
	var e loader.BPFEndpoint
	require.NoError(w.t, w.objs.Endpoints.Lookup(slot, &e))
	return e.Flows
}

// slots is how many places of the sweep's list are taken.
func (w *world) slots() uint32 {
	var s loader.BPFSweeper
	require.NoError(w.t, w.objs.Sweepers.Lookup(uint32(0), &s))
	return s.Used4 + s.Used6
}

// change edits an endpoint in place.
func (w *world) change(slot uint32, edit func(*loader.BPFEndpoint)) {
	w.t.Helper()
	var e loader.BPFEndpoint
	require.NoError(w.t, w.objs.Endpoints.Lookup(slot, &e))
	edit(&e)
	w.put(w.objs.Endpoints, slot, e)
	w.advance()
}

// flags edits a network's flags, and gives it its next generation.
func (w *world) flags(number uint32, set, clear loader.BPFNetworkFlags) {
	w.t.Helper()
	var n loader.BPFNetwork
	require.NoError(w.t, w.objs.Networks.Lookup(number, &n))
	n.Flags = n.Flags&^uint32(clear) | uint32(set)
	w.put(w.objs.Networks, number, n)
	w.bump(number, loader.BPFRuleKindRULE_NETWORK)
}

// configure edits the settings.
func (w *world) configure(edit func(*loader.BPFConfig)) {
	w.t.Helper()
	var c loader.BPFConfig
	require.NoError(w.t, w.objs.BPFMaps.Settings.Lookup(uint32(0), &c))
	edit(&c)
	w.settings(c)
}

// allow lets a client reach a port of a server although icc is off; client 0:
// anybody, by the routed network's own addresses.
func (w *world) allow(rule, client, server uint32, proto uint8, port uint16) {
	w.t.Helper()
	w.bump(rule, loader.BPFRuleKindRULE_LINK)
	w.put(w.objs.Links, loader.BPFLinkKey{Client: client, Server: server, Port: be16(port), Proto: proto}, rule)
}
