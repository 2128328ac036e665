// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
)

var (
	friend4, friend6 = netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:113::9")
	client4, client6 = netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:113::2")
	remote4, remote6 = netip.MustParseAddr("198.18.7.7"), netip.MustParseAddr("2001:db8:ffff::7")
	far4, far6       = netip.MustParseAddr("9.9.9.10"), netip.MustParseAddr("2001:db8:fffe::8")
	beyond4, beyond6 = netip.MustParseAddr("8.0.3.3"), netip.MustParseAddr("2001:db8:86dd::33")
)

// maker makes packets: valid ones of every kind, the next ones of conversations under way, and
// what becomes of them when somebody tampers with them.
type maker struct {
	*world
	*rand.Rand
	going []Arrival // the next packets of conversations
}

func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// chance is true once in n.
func (g *maker) chance(n int) bool { return g.IntN(n) == 0 }

var (
	somePorts = []uint16{80, 80, 22, 53, 67, 68, 90, 94, 443, 546, 547, 5353, 8080, 8080, 8080, 8081, 8082, 8083, 8084, 8085, 8089, 8090, 8091, 8092, 8093, 8093, 8093, 8093, 8094, 20000, 20005, 20007, 20011, 20019, 21003, 40000, 40001, 40002, 65535, 0}
	groups    = []string{"224.0.0.1", "224.0.0.251", "239.1.2.3", "255.255.255.255", "10.1.0.255", "10.2.0.255", "ff02::1", "ff02::2", "ff02::16", "ff02::fb", "ff05::1:3"}
	odd       = []string{"0.0.0.0", "::", "127.0.0.1", "127.9.9.9", "::1", "169.254.1.1", "192.0.2.7", "fe80::77", "::ffff:10.1.0.3", "::ffff:203.0.113.1", "10.1.0.77", "fd00:1::77", "10.9.9.9", "255.255.255.255"}
)

// address is somebody's of a family.
func (g *maker) address(six bool) netip.Addr {
	for {
		var a netip.Addr
		switch n := g.IntN(20); {
		case n < 4:
			a = one(g.Rand, client4, client6, friend4, friend6)
		case n < 6:
			a = one(g.Rand, remote4, remote6, far4, far6, beyond4, beyond6)
		case n < 8:
			a = one(g.Rand, host4, host6, second4, second6, tunnel4, tunnel6, lo4, lo6)
		case n < 11:
			m := g.m.Networks[1+uint32(g.IntN(7))]
			a = one(g.Rand, m.Gateway4, m.Gateway6, m.LinkLocal)
		case n < 17:
			e := g.m.Endpoints[1+uint32(g.IntN(13))]
			a = one(g.Rand, e.IP4, e.IP6, e.LinkLocal)
		case n < 18:
			a = netip.MustParseAddr(one(g.Rand, groups...))
		default:
			a = netip.MustParseAddr(one(g.Rand, odd...))
		}
		if a.IsValid() && a.Is6() == six {
			return a
		}
	}
}

func (g *maker) port() uint16 {
	if g.chance(4) {
		return uint16(30000 + g.IntN(64))
	}
	return one(g.Rand, somePorts...)
}

// fix makes lengths and checksums of a frame right.
func fix(b []byte, l2 int, ethertype uint16) {
	p, _ := parse(b, l2, ethertype, true)
	if !p.ip {
		return
	}
	if !p.six {
		binary.BigEndian.PutUint16(b[l2+2:], uint16(len(b)-l2))
		end := min(len(b), l2+headerLen(b, l2))
		binary.BigEndian.PutUint16(b[l2+10:], 0)
		binary.BigEndian.PutUint16(b[l2+10:], ^fold(sum(b[l2:end])))
	} else {
		binary.BigEndian.PutUint16(b[l2+4:], uint16(len(b)-l2-40))
	}
	if p.kind == fragment || p.l4 == 0 {
		return
	}
	if p.proto == udp && p.l4+6 <= len(b) {
		binary.BigEndian.PutUint16(b[p.l4+4:], uint16(len(b)-p.l4))
	}
	check := map[uint8]int{tcp: 16, udp: 6, icmp4: 2, icmp6: 2}[p.proto] + p.l4
	if check == p.l4 || check+2 > len(b) || p.proto == udp && be16(b[check:]) == 0 {
		return
	}
	binary.BigEndian.PutUint16(b[check:], 0)
	s := sum(b[p.l4:])
	if p.proto != icmp4 {
		s += sum(p.src.AsSlice(), p.dst.AsSlice()) + uint64(p.proto) + uint64(len(b)-p.l4)
	}
	field := ^fold(s)
	if field == 0 && p.proto == udp {
		field = 0xffff
	}
	binary.BigEndian.PutUint16(b[check:], field)
}

func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// ip is a frame with an IP packet.
func (g *maker) ip(dst, src MAC, from, to netip.Addr, proto uint8, body []byte) []byte {
	h := ipHeader(from, to, proto, len(body), one[uint16](g.Rand, 0, 0x4000))
	b := slices.Concat(dst[:], src[:], h, body)
	ttl := 14 + 8
	if from.Is6() {
		ttl = 14 + 7
	} else {
		b[18], b[19] = byte(g.IntN(3)), byte(g.IntN(3))
	}
	b[ttl] = one[byte](g.Rand, 64, 64, 64, 64, 64, 255, 3, 2, 1, 0)
	b[15] = byte(g.IntN(2)) << 4 * byte(g.IntN(16))
	fix(b, etherLen, be16(b[12:]))
	return b
}

// transport is a body of a protocol.
func (g *maker) transport(proto uint8, six bool, sport, dport uint16, flags uint8, seq, acked uint32) []byte {
	data := make([]byte, one(g.Rand, 0, 1, 7, 8, 40, 40, 100, 1200, 1350, 1452, 1480, 1600))
	for i := range data {
		data[i] = byte(i * 7)
	}
	if g.chance(3) {
		data = data[:min(len(data), g.IntN(64))]
	}
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	switch proto {
	case tcp:
		words := one(g.Rand, 5, 5, 8, 15)
		b = binary.BigEndian.AppendUint32(b, seq)
		b = binary.BigEndian.AppendUint32(b, acked)
		b = append(b, byte(words<<4), flags, 4, 0, 1, 1, 0, 0)
		b = append(b, slices.Repeat([]byte{1}, 4*(words-5))...)
	case udp:
		b = append(b, 0, 0, 1, 1)
		if !six && g.chance(6) {
			b[6], b[7] = 0, 0
		}
	case sctp:
		b = append(b, 1, 2, 3, 4, 5, 6, 7, 8, flags&1, 0, 0, 4)
	case icmp4, icmp6:
		kind := echoRequest(six)
		if flags&ack != 0 {
			kind = echoReply(six)
		}
		b = []byte{kind, 0, 1, 1, byte(sport >> 8), byte(sport), 0, 1}
	}
	return append(b, data...)
}

// place is where a packet is seen: a hook and its device, the MACs of its frames.
func (g *maker) place(h Hook) (a Arrival, dst, src MAC) {
	a.Hook, a.ForUs = h, true
	them := MAC{2, 0x42, 0, 0, 0xdd, byte(g.IntN(3))}
	switch h {
	case FromUplink, ToUplink:
		a.Ifindex = g.devices[one(g.Rand, "up0", "up0", "up1")]
		dst, src = g.macs[a.Ifindex], them
	case FromTunnel, ToTunnel:
		a.Ifindex = g.devices["tun"]
	case FromEndpoint, ToEndpoint:
		e := g.m.Endpoints[1+uint32(g.IntN(13))]
		a.Ifindex, src, dst = e.Ifindex, e.MAC, g.m.Networks[e.Network].MAC
		if a.Ifindex == 0 {
			return g.place(h)
		}
	case ToBridge:
		n := g.m.Networks[1+uint32(g.IntN(6))]
		a.Ifindex, src, dst = n.Bridge, n.MAC, them
	case FromLo:
		a.Ifindex = 1
	case ToParent:
		e := g.m.Endpoints[14+uint32(g.IntN(2))]
		a.Ifindex, src, dst = e.Ifindex, e.MAC, them
		if g.chance(3) {
			src = g.macs[a.Ifindex]
		}
	}
	if h == ToUplink || h == ToTunnel || h == ToEndpoint || h == ToParent {
		a.Forwarded = g.chance(2)
		a.Mark = one[uint32](g.Rand, 0, 0, 1, passed)
	}
	if h == ToBridge {
		a.Forwarded = g.chance(12)
	}
	return a, dst, src
}

// likely is a source and a destination that make sense at a place.
func (g *maker) likely(a *Arrival, six bool) (src, dst netip.Addr) {
	pick := func(four, v6 netip.Addr) netip.Addr {
		if six {
			return v6
		}
		return four
	}
	world := func() netip.Addr {
		i := g.IntN(5)
		return []netip.Addr{pick(client4, client6), pick(friend4, friend6), pick(remote4, remote6), pick(far4, far6), pick(beyond4, beyond6)}[i]
	}
	own := func() netip.Addr {
		return one(g.Rand, pick(host4, host6), pick(host4, host6), pick(second4, second6), pick(tunnel4, tunnel6))
	}
	switch a.Hook {
	case FromUplink:
		src, dst = world(), own()
	case FromTunnel:
		src, dst = pick(beyond4, beyond6), pick(tunnel4, tunnel6)
	case ToUplink:
		src, dst = own(), world()
	case ToParent:
		e := g.m.Endpoints[14+uint32(g.IntN(2))]
		src, dst = one(g.Rand, pick(e.IP4, e.IP6), own()), world()
	case ToTunnel:
		src, dst = pick(tunnel4, tunnel6), pick(beyond4, beyond6)
	case FromEndpoint, ToEndpoint:
		e := g.m.Endpoints[g.m.endpointAt(a.Ifindex)]
		if e == nil { // it is gone
			return g.address(six), g.address(six)
		}
		n := g.m.Networks[e.Network]
		src = pick(e.IP4, e.IP6)
		mate := g.m.Endpoints[one(g.Rand, append(n.Members, 1)...)]
		dst = one(g.Rand, world(), world(), own(), pick(n.Gateway4, n.Gateway6), pick(mate.IP4, mate.IP6))
		if six && g.chance(10) {
			src, dst = e.LinkLocal, one(g.Rand, n.LinkLocal, mate.LinkLocal)
		}
	case ToBridge:
		n := g.m.Networks[g.m.networkAt(a.Ifindex)]
		mate := g.m.Endpoints[one(g.Rand, append(n.Members, 1)...)]
		src, dst = one(g.Rand, pick(n.Gateway4, n.Gateway6), own()), pick(mate.IP4, mate.IP6)
	case FromLo:
		src, dst = one(g.Rand, own(), pick(lo4, lo6)), one(g.Rand, own(), pick(lo4, lo6))
	}
	if !src.IsValid() || g.chance(12) {
		src = g.address(six)
	}
	if !dst.IsValid() || g.chance(8) {
		dst = g.address(six)
	}
	return src, dst
}

// fresh is a valid packet that belongs to nothing.
func (g *maker) fresh(h Hook) Arrival {
	a, dst, src := g.place(h)
	six := g.chance(2)
	from, to := g.likely(&a, six)
	proto := one[uint8](g.Rand, tcp, tcp, tcp, udp, udp, udp, icmp4, icmp4, sctp, 47, igmp)
	if proto == icmp4 && six {
		proto = icmp6
	}
	kind := g.IntN(24)
	flags := one[uint8](g.Rand, syn, syn, syn, syn, ack, syn|ack, fin|ack, rst, 8|ack)
	dport := g.port()
	if h == FromLo && six && g.chance(2) { // what changes its family
		to, dport = lo6, 8084
	}
	body := g.transport(proto, six, g.port(), dport, flags, g.Uint32(), g.Uint32())
	switch {
	case h == FromEndpoint && kind < 2 || h == ToBridge && kind == 0:
		return g.neighbourly(a, src, six)
	case kind == 2 && six:
		proto, body = icmp6, append([]byte{one[byte](g.Rand, 1, 2, 3, 4, 130, 133, 134, 137, 143), 0, 0, 0, 0, 0, 0, 0}, make([]byte, g.IntN(40))...)
	case kind == 2:
		proto, body = icmp4, append([]byte{one[byte](g.Rand, 3, 5, 11, 12, 13), 0, 0, 0, 0, 0, 0, 0}, make([]byte, g.IntN(40))...)
	case kind == 3 && h == FromEndpoint && six:
		proto, body = udp, g.transport(udp, six, 547, one[uint16](g.Rand, 546, 547), 0, 0, 0)
	case kind == 3 && h == FromEndpoint:
		from, to = one(g.Rand, from, netip.IPv4Unspecified()), one(g.Rand, to, netip.AddrFrom4([4]byte{255, 255, 255, 255}))
		proto, body = udp, g.transport(udp, six, one[uint16](g.Rand, 67, 68), one[uint16](g.Rand, 67, 68), 0, 0, 0)
	case kind == 4 && to.IsValid():
		group := netip.MustParseAddr(one(g.Rand, groups...))
		if group.Is6() == six {
			to = group
		}
	}
	b := g.ip(dst, src, from, to, proto, body)
	switch {
	case kind == 5:
		b = append(slices.Clone(b[:12]), one(g.Rand, []byte{0x81, 0, 0, 5, 8, 0}, []byte{0x88, 0xa8, 0, 5, 8, 0}, []byte{0x88, 0x47}, []byte{0x88, 0xcc}, []byte{0, 20})...)
		b = append(b, make([]byte, 46)...)
	case kind < 9 && kind > 5:
		b = g.fragmented(b)
	}
	g.onto(&a, b)
	return a
}

// onto finishes an arrival with its frame, made with a link-layer header.
func (g *maker) onto(a *Arrival, b []byte) {
	a.Frame = slices.Clone(b[min(len(b), etherLen-l2Of(a.Hook)):])
	g.settle(a)
}

func l2Of(h Hook) int {
	if h == FromTunnel || h == ToTunnel {
		return 0
	}
	return etherLen
}

// settle says of a frame what the kernel would (net/ethernet/eth.c, eth_type_trans).
func (g *maker) settle(a *Arrival) {
	if len(a.Frame) < 14 {
		a.Frame = append(a.Frame, make([]byte, 14-len(a.Frame))...)
	}
	a.ForUs = MAC(a.Frame[:6]) == g.macs[a.Ifindex]
	a.Ethertype = be16(a.Frame[12:])
	if a.Ethertype < 0x600 {
		a.Ethertype = 4
	}
	if len(a.Frame) > 3000 {
		a.Frame = a.Frame[:3000]
	}
}

// neighbourly is ARP or neighbour discovery.
func (g *maker) neighbourly(a Arrival, mac MAC, six bool) Arrival {
	all := MAC{255, 255, 255, 255, 255, 255}
	from, to := g.likely(&a, six)
	option := mac
	if g.chance(8) {
		option[5]++
	}
	if !six {
		if g.chance(8) {
			from = one(g.Rand, netip.IPv4Unspecified(), to)
		}
		if g.chance(8) {
			to = from
		}
		b := slices.Concat(all[:], mac[:], []byte{8, 6, 0, 1, 8, 0, 6, 4, 0, one[byte](g.Rand, 1, 1, 2, 3)}, option[:], from.AsSlice(), make([]byte, 6), to.AsSlice())
		g.onto(&a, append(b, make([]byte, one(g.Rand, 0, 18))...))
		return a
	}
	kind := one[byte](g.Rand, 135, 135, 136, 133, 134, 137)
	body := append([]byte{kind, 0, 1, 1, 0, 0, 0, 0}, to.AsSlice()...)
	if kind == 133 {
		body = body[:8]
	}
	for range g.IntN(3) {
		body = append(append(body, one[byte](g.Rand, 1, 2, 14), one[byte](g.Rand, 1, 1, 1, 2, 0)), option[:]...)
	}
	dst := one(g.Rand, to, netip.MustParseAddr("ff02::1"), netip.MustParseAddr("ff02::1:ff00:3"))
	if g.chance(6) {
		from = netip.IPv6Unspecified()
	}
	g.onto(&a, g.ip(all, mac, from, dst, icmp6, body))
	return a
}

// fragmented makes a frame a fragment: of one of a few datagrams, so that they meet.
func (g *maker) fragmented(b []byte) []byte {
	p, reason := parse(b, etherLen, be16(b[12:]), true)
	if reason != none || !p.ip || p.kind == fragment || p.l4 > len(b) {
		return b
	}
	at, more := one(g.Rand, 0, 0, 1, 2, 3, 6, 185), g.chance(2)
	more = more || at == 0
	size := one(g.Rand, 8, 16, 24, 48, 1480, 13)
	rest := b[p.l4:]
	if at > 0 && len(rest) > 24 {
		rest = rest[24:]
	}
	rest = rest[:min(size, len(rest))]
	if more {
		rest = rest[:len(rest)&^7]
	}
	head := slices.Clone(b[:p.l4])
	id := byte(g.IntN(3))
	word := uint16(at)
	if !p.six {
		head[18], head[19] = 0, id
		if more {
			word |= 0x2000
		}
		binary.BigEndian.PutUint16(head[20:], word)
	} else {
		word <<= 3
		if more {
			word |= 1
		}
		next := head[20]
		head[20] = 44
		if p.l4 != etherLen+40 {
			return b
		}
		head = append(head, next, 0, byte(word>>8), byte(word), 0, 0, 0, id)
	}
	out := append(head, rest...)
	fix(out, etherLen, be16(b[12:]))
	return out
}
