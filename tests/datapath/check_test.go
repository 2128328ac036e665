// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"bytes"
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
)

// want is what a program should make of a packet. The reason is counted exactly
// once, and no other is; 0: nothing is counted.
type want struct {
	verdict   int
	reason    loader.BPFReason
	anyReason bool   // some reason, whichever
	parked    uint64 // fragments kept until their first comes
	out       []byte // nil: the packet itself, untouched
	anyOut    bool   // whatever: the test looks itself
}

func passed() want                             { return want{verdict: pass} }
func refused(r loader.BPFReason) want          { return want{verdict: drop, reason: r} }
func swallowed() want                          { return want{verdict: drop} }
func sent(out []byte) want                     { return want{verdict: redirect, out: out} }
func parked() want                             { return want{verdict: drop, parked: 1} }
func handed() want                             { return want{verdict: redirect} }
func (w want) keeping() want                   { w.parked = 1; return w }
func (w want) because(r loader.BPFReason) want { w.reason = r; return w }

// check runs a packet through a program and compares all that can be seen.
func (w *world) check(p *ebpf.Program, ifindex int, frame []byte, want want, edit ...func(*skb)) result {
	w.t.Helper()
	before, kept := w.drops(), w.counter(loader.BPFCounterCOUNTER_FRAGMENT_PARKED)
	r := w.run(p, ifindex, frame, edit...)
	delta := map[loader.BPFReason]uint64{}
	for reason, n := range w.drops() {
		if n -= before[reason]; n > 0 {
			delta[reason] = n
		}
	}
	expected := map[loader.BPFReason]uint64{}
	if want.reason != loader.BPFReasonREASON_NONE {
		expected[want.reason] = 1
	}
	require.Equal(w.t, want.verdict, r.verdict, "verdict; drops counted: %v", delta)
	require.Equal(w.t, want.parked, w.counter(loader.BPFCounterCOUNTER_FRAGMENT_PARKED)-kept, "fragments parked")
	if want.anyReason {
		require.Len(w.t, delta, 1, "drops counted")
	} else {
		require.Equal(w.t, expected, delta, "drops counted, by reason")
	}
	if want.verdict == drop || want.anyOut {
		return r
	}
	if want.out == nil {
		want.out = frame
	}
	if !bytes.Equal(want.out, r.raw) {
		require.Equal(w.t, dump(want.out), dump(r.raw), "packet out")
	}
	return r
}

// arrive gives the packet to from_uplink.
func (w *world) arrive(p packet, want want, edit ...func(*skb)) result {
	w.t.Helper()
	return w.check(w.objs.FromUplink, w.uplink, p.frame(), want, edit...)
}

// say gives the packet to from_endpoint of a container.
func (w *world) say(slot uint32, p packet, want want, edit ...func(*skb)) result {
	w.t.Helper()
	return w.check(w.objs.FromEndpoint, w.containers[slot].ifindex, p.frame(), want, edit...)
}

// call gives the packet to from_lo.
func (w *world) call(p packet, want want) result {
	w.t.Helper()
	p.from.mac, p.to.mac = make([]byte, 6), make([]byte, 6)
	return w.check(w.objs.FromLo, 1, p.frame(), want)
}

// emit gives the packet to to_bridge of a network.
func (w *world) emit(number uint32, p packet, want want, edit ...func(*skb)) result {
	w.t.Helper()
	return w.check(w.objs.ToBridge, w.bridges[number], p.frame(), want, edit...)
}

func dump(frame []byte) string {
	return gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default).Dump()
}

// drops counts the packets dropped since the world began.
func (w *world) drops() map[loader.BPFReason]uint64 {
	w.t.Helper()
	out := map[loader.BPFReason]uint64{}
	var key loader.BPFDropKey
	var values []uint64
	it := w.objs.Drops.Iterate()
	for it.Next(&key, &values) {
		for _, v := range values {
			out[loader.BPFReason(key.Reason)] += v
		}
	}
	require.NoError(w.t, it.Err())
	return out
}

// counter reads an event counter.
func (w *world) counter(c loader.BPFCounter) (n uint64) {
	var values []uint64
	if w.objs.Counters.Lookup(uint32(c), &values) != nil {
		return 0
	}
	for _, v := range values {
		n += v
	}
	return n
}

// sub is a subtest in the same world: on a thread of its own, in its namespace.
func (w *world) sub(name string, f func(*world)) {
	w.t.Helper()
	ns, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(w.t, err)
	defer unix.Close(ns)
	w.t.(*testing.T).Run(name, func(t *testing.T) {
		runtime.LockOSThread() // and never unlocked: the thread dies with the subtest
		require.NoError(t, unix.Setns(ns, unix.CLONE_NEWNET))
		inner := *w
		inner.t = t
		f(&inner)
	})
}

// bothFamilies runs f in a fresh world for IPv4, and in another for IPv6.
func bothFamilies(t *testing.T, f func(w *world, six bool)) {
	t.Helper()
	t.Run("IPv4", func(t *testing.T) { f(newWorld(t), false) })
	t.Run("IPv6", func(t *testing.T) { f(newWorld(t), true) })
}

// end is a container's side.
func (w *world) end(slot uint32, six bool, port uint16) side {
	c := w.containers[slot]
	if six {
		return side{c.mac, c.ip6, port}
	}
	return side{c.mac, c.ip4, port}
}

// gate is the host's side on a network.
func (w *world) gate(number uint32, six bool, port uint16) side {
	if six {
		return side{w.bridgeMAC[number], gateway(number, 6), port}
	}
	return side{w.bridgeMAC[number], gateway(number, 4), port}
}

// via is the side as a packet on its way to it looks: the MAC is the next hop's.
func (s side) via(hop side) side { s.mac = hop.mac; return s }

var protoNames = map[uint8]string{tcp: "TCP", udp: "UDP", icmp: "echo", icmp6: "echo"}

// opening is the first packet of a flow: SYN, a datagram, an echo request.
func opening(from, to side, proto uint8) packet {
	if proto == icmp || proto == icmp6 {
		to.port = 0
	}
	return packet{from: from, to: to, proto: proto, flags: "S", seq: 100}
}

// answer is what the receiver of p says.
func (p packet) answer() packet {
	a := p
	a.from, a.to, a.reply = p.to, p.from, true
	a.flags, a.seq, a.ack = "SA", 500, p.seq+1
	return a
}

// assign gives a device of the world an address and brings it up.
func (w *world) assign(device string, a netip.Addr) {
	w.t.Helper()
	l, err := netlink.LinkByName(device)
	require.NoError(w.t, err)
	require.NoError(w.t, netlink.LinkSetUp(l))
	network := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
	require.NoError(w.t, netlink.AddrAdd(l, &netlink.Addr{IPNet: network, Flags: unix.IFA_F_NODAD}))
	_, route, err := net.ParseCIDR(netip.PrefixFrom(a, a.BitLen()-8).Masked().String())
	require.NoError(w.t, err)
	require.NoError(w.t, netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: route, Scope: netlink.SCOPE_LINK}))
}

// any accepts whatever comes out.
func (w want) any() want { w.anyOut = true; return w }

// sourcePort is the port (or ICMP id) that a frame's sender is known by.
func sourcePort(frame []byte) uint16 {
	l4, proto := ethLen+ip4Len, frame[23]
	if isSix(frame) {
		l4, proto = ethLen+ip6Len, frame[20]
	}
	if proto == icmp || proto == icmp6 {
		l4 += 4
	}
	return uint16(frame[l4])<<8 | uint16(frame[l4+1])
}

// with is the packet with something changed.
func (p packet) with(edit func(*packet)) packet {
	edit(&p)
	return p
}
