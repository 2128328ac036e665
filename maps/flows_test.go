// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
	"unsafe"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"
)

// put enters a flow as the programs do, its tuple byte by byte.
func put(t *testing.T, f *Flows, name string, src, dst netip.AddrPort, zone uint32, proto Proto, w loader.BPFFlow) {
	t.Helper()
	s, d := src.Addr().As16(), dst.Addr().As16()
	tuple := append(s[:], d[:]...)
	tuple = binary.BigEndian.AppendUint16(tuple, src.Port())
	tuple = binary.BigEndian.AppendUint16(tuple, dst.Port())
	tuple = binary.NativeEndian.AppendUint32(tuple, zone)
	tuple = append(tuple, byte(proto), name[len(name)-1]-'0', 0, 0)
	w.Tuple = *(*loader.BPFTuple)(unsafe.Pointer(&tuple[0]))
	seed, err := loader.SeedOf(flowMap(t, f, loader.BPFMapSeeds))
	require.NoError(t, err)
	require.NoError(t, flowMap(t, f, name).Put(seed.Digest(w.Tuple), &w))
}

func flowMap(t *testing.T, f *Flows, name string) *ebpf.Map {
	t.Helper()
	m, err := f.src.Map(name)
	require.NoError(t, err)
	return m
}

func collect(t *testing.T, f *Flows) []Flow {
	t.Helper()
	var list []Flow
	require.NoError(t, f.Each(func(f Flow) error { list = append(list, f); return nil }))
	return list
}

func TestFlows(t *testing.T) {
	f := newTables(t).Flows
	now, err := nowTicks()
	require.NoError(t, err)
	client, host, server := addrPort("198.51.100.7:40000"), addrPort("192.0.2.1:8080"), addrPort("10.9.0.2:80")
	w := loader.BPFFlow{
		Packets: 10, Bytes: 1000, Seen: now - 3, Timeout: 100, Mtu: 1500,
		Verdict: uint8(VerdictPeer), State: uint8(FlowEstablished), Kind: uint8(FlowPublished), Flags: uint8(loader.BPFFlowFlagsFLOW_TTL),
		Ifindex: 7, Sport: toBE16(40000), Dport: toBE16(80), Macs: [12]uint8{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12},
		Src: loader.BPFRef{}, Dst: loader.BPFRef{Id: 5, Gen: 2}, Rule: loader.BPFRef{Id: 5000, Gen: 1},
		Saddr: toAddr(client.Addr()), Daddr: toAddr(server.Addr()), ZoneTwin: 7, Slot: 3, Owner: 5,
	}
	put(t, f, "flows4", client, host, ZoneWorld, TCP, w)

	list := collect(t, f)
	require.Len(t, list, 1)
	got := list[0]
	require.InDelta(t, 3*tick, got.Idle, float64(tick))
	require.InDelta(t, 97*tick, got.Expires(), float64(tick))
	got.Idle = 0
	require.Equal(t, Flow{
		Key:         FlowKey{client, host, ZoneWorld, TCP},
		Established: true, Kind: FlowPublished, State: FlowEstablished, Verdict: VerdictPeer, Flags: 2,
		Packets: 10, Bytes: 1000, Timeout: 100 * tick, Ifindex: 7, MTU: 1500,
		NewSrc: client, NewDst: server,
		DstMAC: net.HardwareAddr{1, 2, 3, 4, 5, 6}, SrcMAC: net.HardwareAddr{7, 8, 9, 10, 11, 12},
		Dst: Ref{5, 2}, Rule: Ref{5000, 1}, ZoneTwin: 7, Owner: 5, Slot: 3,
	}, got)
	require.Equal(t, FlowKey{server, client, 7, TCP}, got.Twin())
	require.False(t, got.Reply())

	again, ok, err := f.Get(got.Key)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, got.NewDst, again.NewDst)
	require.NoError(t, f.Delete(got.Key))
	require.NoError(t, f.Delete(got.Key))
	_, ok, err = f.Get(got.Key)
	require.NoError(t, err)
	require.False(t, ok)
}

func TestFlowsIPv6(t *testing.T) {
	f := newTables(t).Flows
	client, host, server := addrPort("[2001:db8::7]:40000"), addrPort("[2001:db8::1]:53"), addrPort("[fd00::2]:5353")
	w := loader.BPFFlow{
		Sport: toBE16(40000), Dport: toBE16(5353), Saddr: toAddr(client.Addr()), Daddr: toAddr(server.Addr()),
		Nexthop: toAddr(ip("fe80::1")), Flags: uint8(loader.BPFFlowFlagsFLOW_REPLY),
	}
	put(t, f, "half6", client, host, ZoneWorld, UDP, w)
	// [::1] to an IPv4-only container: the twin is an IPv4 flow.
	w4 := loader.BPFFlow{Sport: toBE16(40001), Dport: toBE16(80), Saddr: toAddr(ip("10.9.0.1")), Daddr: toAddr(ip("10.9.0.2")), ZoneTwin: 9}
	put(t, f, "flows6", addrPort("[::1]:40001"), addrPort("[::1]:8080"), ZoneLo, TCP, w4)

	by := make(map[Proto]Flow)
	for _, flow := range collect(t, f) {
		by[flow.Key.Proto] = flow
	}
	require.Len(t, by, 2)
	require.False(t, by[UDP].Established)
	require.True(t, by[UDP].Reply())
	require.Equal(t, ip("fe80::1"), by[UDP].NextHop)
	require.Equal(t, FlowKey{server, client, ZoneWorld, UDP}, by[UDP].Twin())
	twin := by[TCP].Twin()
	require.Equal(t, FlowKey{addrPort("10.9.0.2:80"), addrPort("10.9.0.1:40001"), 9, TCP}, twin)
	require.True(t, twin.is4())
	for _, flow := range by {
		require.NoError(t, f.Delete(flow.Key))
	}
	require.Empty(t, collect(t, f))
}

// More than fits into one batch, and into a bucket.
func TestFlowsMany(t *testing.T) {
	tables := newTables(t)
	f := tables.Flows
	const n = 2000
	for i := range n {
		src := netip.AddrPortFrom(ip("198.51.100.7"), uint16(1000+i))
		put(t, f, "flows4", src, addrPort("192.0.2.1:80"), ZoneWorld, TCP, loader.BPFFlow{Packets: uint64(i)})
	}
	half := n / 4 // an LRU gives entries up before it is full
	for i := range half {
		src := netip.AddrPortFrom(ip("198.51.100.8"), uint16(1000+i))
		put(t, f, "half4", src, addrPort("192.0.2.1:80"), ZoneWorld, TCP, loader.BPFFlow{Packets: uint64(n + i)})
	}
	seen := make(map[uint64]bool)
	for _, flow := range collect(t, f) {
		seen[flow.Packets] = true
	}
	require.Len(t, seen, n+half)
	fills, err := tables.Fill()
	require.NoError(t, err)
	by := make(map[string]Fill)
	for _, fill := range fills {
		by[fill.Name] = fill
	}
	require.Equal(t, Fill{"flows4", 0, 2 * testTable, 0}, by["flows4"], "counted by the programs, who did not enter these")
	require.Equal(t, Fill{"half4", half, 2 * testTable, 0}, by["half4"])
	require.Equal(t, Fill{"half6", 0, 2 * testTable, 0}, by["half6"])
}

func TestSweep(t *testing.T) {
	f := newTables(t).Flows
	s, err := f.Sweep()
	require.NoError(t, err)
	require.Zero(t, s.Used4+s.Used6)
	require.False(t, s.Armed)
}

func TestSince(t *testing.T) {
	require.Equal(t, 3*tick, since(10, 7))
	require.Zero(t, since(10, 11), "their clock is ahead")
	require.Equal(t, 2*tick, since(1, 1<<32-1), "wraps")
	require.Zero(t, Flow{Idle: time.Hour, Timeout: time.Minute}.Expires())
}
