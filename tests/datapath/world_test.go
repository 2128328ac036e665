// SPDX-License-Identifier: Apache-2.0

// Package datapath runs the programs by PROG_TEST_RUN: a packet in, a verdict
// and a packet out. The tables are filled with the generated types directly, so
// that a mistake in package maps cannot hide one in the programs, or the reverse.
//
//	                      uplink (203.0.113.1, 2001:db8:113::1)
//	world ────────────────┤
//	                      ├── br1 10.1.0.0/16, fd00:1::/64  icc, masquerade, isolated
//	                      │     ├── s  .0.2 ::2   endpoint 1, published 8080 -> 80
//	                      │     └── p  .0.3 ::3   endpoint 2
//	                      └── br2 10.2.0.0/16, fd00:2::/64  icc off
//	                            ├── o  .0.2 ::2   endpoint 3
//	                            └── q  .0.3 ::3   endpoint 4
package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
)

// Verdicts of a TC program.
const (
	pass     = -1
	drop     = 2
	redirect = 7
)

const (
	net1, net2     = 1, 2
	epS, epP       = 1, 2
	epO, epQ       = 3, 4
	rulePublished  = 5000 // 0.0.0.0:8080, [::]:8080 -> s:80
	ruleLoopback   = 5001 // 127.0.0.1:8081 -> s:80
	ruleFrom       = 5002 // 0.0.0.0:8082 from 203.0.113.0/24 -> s:80
	tcp, udp, icmp = 6, 17, 1
	icmp6          = 58
)

// container is an endpoint as the test knows it.
type container struct {
	slot, network uint32
	ifindex       int
	mac           net.HardwareAddr
	ip4, ip6, ll6 netip.Addr
}

type world struct {
	t          testing.TB
	objs       loader.BPFObjects
	uplink     int
	bridges    map[uint32]int
	bridgeMAC  map[uint32]net.HardwareAddr
	containers map[uint32]container
	hostMAC    net.HardwareAddr
	clientMAC  net.HardwareAddr
}

var (
	host4, host6     = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")
	client4, client6 = netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:113::2")
)

// newWorld fills the programs' tables as drawn, in a namespace of the test's own.
// The test's goroutine stays on its thread.
func newWorld(t testing.TB) *world {
	t.Helper()
	require.Zero(t, unix.Geteuid(), "needs root")
	require.NoError(t, rlimit.RemoveMemlock())
	runtime.LockOSThread() // and never unlocked: the thread dies with the test
	require.NoError(t, unix.Unshare(unix.CLONE_NEWNET))

	w := &world{t: t, objs: load(t), bridges: map[uint32]int{}, bridgeMAC: map[uint32]net.HardwareAddr{}, containers: map[uint32]container{}}
	w.hostMAC, w.clientMAC = mac(0xee, 1), mac(0xee, 2)
	w.uplink = w.device("uplink", w.hostMAC)
	for number := range uint32(2) {
		number++
		w.bridgeMAC[number] = mac(0xbb, byte(number))
		w.bridges[number] = w.device("br"+string('0'+byte(number)), w.bridgeMAC[number])
	}
	w.network(net1, uint32(loader.BPFNetworkFlagsNETWORK_ICC|loader.BPFNetworkFlagsNETWORK_MASQUERADE|loader.BPFNetworkFlagsNETWORK_ISOLATE))
	w.network(net2, uint32(loader.BPFNetworkFlagsNETWORK_MASQUERADE|loader.BPFNetworkFlagsNETWORK_ISOLATE))
	w.endpoint(epS, net1, 2)
	w.endpoint(epP, net1, 3)
	w.endpoint(epO, net2, 2)
	w.endpoint(epQ, net2, 3)
	for _, a := range []netip.Addr{host4, host6, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")} {
		w.put(w.objs.HostAddrs, addr(a), uint32(w.uplink))
	}
	w.put(w.objs.Routes, way(0, "203.0.113.0/24"), route(w.uplink, netip.Addr{}, host4))
	w.put(w.objs.Routes, way(0, "0.0.0.0/0"), route(w.uplink, netip.MustParseAddr("203.0.113.254"), host4))
	w.put(w.objs.Routes, way(0, "2001:db8:113::/64"), route(w.uplink, netip.Addr{}, host6))
	w.put(w.objs.Routes, way(0, "::/0"), route(w.uplink, netip.MustParseAddr("2001:db8:113::fe"), host6))
	w.settings(loader.BPFConfig{
		Quota: 32768, PoolSize: 1000, PoolCount: 1, IcmpRate: 1000, Slots: 131072, SweepMs: 100,
		Pool:     [8]loader.BPFPortRange{{First: 20000, Last: 20999}},
		Timeouts: [6]uint16{7440, 240, 30, 120, 300, 60},
	})
	w.publish(rulePublished, epS, 8080, 80, 0)
	w.publish(ruleFrom, epS, 8082, 80, uint8(loader.BPFRuleFlagsRULE_SOURCES))
	src := loader.BPFSourceKey{Prefixlen: 32 + 96 + 24, Rule: ruleFrom, Addr: addr(netip.MustParseAddr("203.0.113.0"))}
	w.put(w.objs.Sources, src, uint32(1))
	w.put(w.objs.Rules, uint32(ruleLoopback), loader.BPFRule{Gen: 1, Kind: uint8(loader.BPFRuleKindRULE_PUBLICATION), HostPort: 8081, Port: 80, Endpoint4: epS})
	for i, proto := range []uint8{tcp, udp} {
		w.put(w.objs.Ports4, uint32(i*65536+8081), uint32(loader.BPFPortSlotPORT_ADDRESSES))
		w.put(w.objs.PortsAddr, loader.BPFPortKey{Addr: addr(netip.MustParseAddr("127.0.0.1")), Port: be16(8081), Proto: proto}, uint32(ruleLoopback))
	}
	return w
}

func mac(a, b byte) net.HardwareAddr { return net.HardwareAddr{2, 0x42, 0, 0, a, b} }

// device makes a veth and returns the ifindex of the end that stays.
func (w *world) device(name string, mac net.HardwareAddr) int {
	w.t.Helper()
	la := netlink.NewLinkAttrs()
	la.Name, la.HardwareAddr = name, mac
	require.NoError(w.t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: la, PeerName: name + "x"}))
	l, err := netlink.LinkByName(name)
	require.NoError(w.t, err)
	return l.Attrs().Index
}

func (w *world) put(m *ebpf.Map, key, value any) {
	w.t.Helper()
	require.NoError(w.t, m.Put(key, value), m.String())
}

func (w *world) settings(c loader.BPFConfig) {
	w.t.Helper()
	w.put(w.objs.BPFMaps.Settings, uint32(0), c)
}

func (w *world) network(number, flags uint32) {
	w.t.Helper()
	n := loader.BPFNetwork{
		Flags: flags, Bridge: uint32(w.bridges[number]), Mtu: 1500,
		Gateway4: addr(gateway(number, 4)), Gateway6: addr(gateway(number, 6)),
		LinkLocal:  addr(linkLocal(w.bridgeMAC[number])),
		Broadcast4: addr(netip.AddrFrom4([4]byte{10, byte(number), 255, 255})),
	}
	copy(n.Mac[:], w.bridgeMAC[number])
	var old loader.BPFNetwork
	require.NoError(w.t, w.objs.Networks.Lookup(number, &old))
	n.Members = old.Members
	w.put(w.objs.Networks, number, n)
	w.bump(number, loader.BPFRuleKindRULE_NETWORK)
	w.put(w.objs.Devices, uint32(w.bridges[number]), loader.BPFDevice{Kind: uint32(loader.BPFDeviceKindDEVICE_BRIDGE), Id: number})
	w.put(w.objs.Subnets, prefix(netip.PrefixFrom(gateway(number, 4), 16).Masked().String()), number)
	w.put(w.objs.Subnets, prefix(netip.PrefixFrom(gateway(number, 6), 64).Masked().String()), number)
	for _, family := range []int{4, 6} {
		w.put(w.objs.HostAddrs, addr(gateway(number, family)), uint32(w.bridges[number]))
	}
}

// bump gives a rule the next generation: what depended on it is decided again.
func (w *world) bump(rule uint32, kind loader.BPFRuleKind) {
	w.t.Helper()
	var r loader.BPFRule
	require.NoError(w.t, w.objs.Rules.Lookup(rule, &r))
	r.Gen, r.Kind = r.Gen+1, uint8(kind)
	w.put(w.objs.Rules, rule, r)
	w.advance()
}

func (w *world) endpoint(slot, number uint32, last byte) {
	w.t.Helper()
	c := container{slot: slot, network: number, mac: mac(byte(number), last),
		ip4: netip.AddrFrom4([4]byte{10, byte(number), 0, last})}
	six := netip.MustParseAddr("fd00::").As16()
	six[3], six[15] = byte(number), last
	c.ip6, c.ll6 = netip.AddrFrom16(six), linkLocal(c.mac)
	c.ifindex = w.device("veth"+string('0'+byte(slot)), mac(0xcc, byte(slot)))
	e := loader.BPFEndpoint{Gen: 1, Ifindex: uint32(c.ifindex), Network: number, Mtu: 1500, Ip4: addr(c.ip4), Ip6: addr(c.ip6), LinkLocal: addr(c.ll6)}
	copy(e.Mac[:], c.mac)
	w.put(w.objs.Endpoints, slot, e)
	w.advance()
	w.put(w.objs.Devices, uint32(c.ifindex), loader.BPFDevice{Kind: uint32(loader.BPFDeviceKindDEVICE_ENDPOINT), Id: slot})
	for _, a := range []netip.Addr{c.ip4, c.ip6, c.ll6} {
		w.put(w.objs.EndpointAddrs, loader.BPFEndpointKey{Addr: addr(a), Network: number}, slot)
	}
	var n loader.BPFNetwork
	require.NoError(w.t, w.objs.Networks.Lookup(number, &n))
	w.put(w.objs.Members, loader.BPFMemberKey{Network: number, Index: n.Members}, slot)
	n.Members++
	w.put(w.objs.Networks, number, n)
	w.containers[slot] = c
}

// publish opens a port on all addresses, in both families, for TCP and UDP.
func (w *world) publish(rule, slot uint32, hostPort, port uint16, flags uint8) {
	w.t.Helper()
	var old loader.BPFRule
	require.NoError(w.t, w.objs.Rules.Lookup(rule, &old))
	w.put(w.objs.Rules, rule, loader.BPFRule{Gen: old.Gen + 1, Kind: uint8(loader.BPFRuleKindRULE_PUBLICATION), Flags: flags,
		HostPort: hostPort, Port: port, Endpoint4: slot, Endpoint6: slot})
	w.advance()
	for proto := range uint32(2) {
		w.put(w.objs.Ports4, proto*65536+uint32(hostPort), rule)
		w.put(w.objs.Ports6, proto*65536+uint32(hostPort), rule)
	}
}

func gateway(number uint32, family int) netip.Addr {
	if family == 4 {
		return netip.AddrFrom4([4]byte{10, byte(number), 0, 1})
	}
	six := netip.MustParseAddr("fd00::1").As16()
	six[3] = byte(number)
	return netip.AddrFrom16(six)
}

func linkLocal(m net.HardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

func addr(a netip.Addr) (out loader.BPFAddr) {
	b := a.As16()
	for i := range out.W {
		out.W[i] = binary.NativeEndian.Uint32(b[i*4:])
	}
	return out
}

func prefix(s string) loader.BPFPrefix {
	p := netip.MustParsePrefix(s)
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += 96
	}
	return loader.BPFPrefix{Prefixlen: uint32(bits), Addr: addr(p.Addr())}
}

// way is the key of a route in a table.
func way(table uint32, s string) loader.BPFRouteKey {
	p := prefix(s)
	return loader.BPFRouteKey{Prefixlen: 32 + p.Prefixlen, Table: table, Addr: p.Addr}
}

func route(ifindex int, next, source netip.Addr) loader.BPFRoute {
	r := loader.BPFRoute{Ifindex: uint32(ifindex), Mtu: 1500, Source: addr(source)}
	if next.IsValid() {
		r.Nexthop = addr(next)
	}
	return r
}

func be16(v uint16) uint16 { return v<<8 | v>>8 }

// advance tells the programs that a generation has changed.
func (w *world) advance() {
	w.t.Helper()
	var clock loader.BPFClock
	require.NoError(w.t, w.objs.Clocks.Lookup(uint32(0), &clock))
	clock.Epoch++
	w.put(w.objs.Clocks, uint32(0), clock)
}
