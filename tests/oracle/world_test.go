// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"net"
	"net/netip"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
)

// world is the model and the programs with the same tables, one network of each sort:
//
//	world ── up0 203.0.113.1, 2001:db8:113::1 ──┐
//	world ── up1 198.51.100.1, 2001:db8:51::1 ──┤
//	tunnel ─ tun 8.0.0.1, 2001:db8:86dd::1 ─────┤   the default way: up0 or up1, by hash
//	                                            ├── br1 icc, masquerade, isolated        1 s  2 p
//	                                            ├── br2 masquerade, isolated, no icc     3 o  4 q, o linked to q's tcp/80
//	                                            ├── br3 icc, routed                      5 r  6 t, r's tcp/80 and udp/80 open
//	                                            ├── br4 icc, internal                    7    8
//	                                            ├── br5 icc, masquerade, full cone       9   10 a DHCP server
//	                                            ├── br6 icc, masquerade, IPv4 only      11
//	                                            └─┬ icc, masquerade, no bridge: cables  12
//	                                              └───────────────────────────────────  13
//	up0 ── 14, a macvlan; up1 ── 15, one where the host has no address on its link
//
// Tunnel's addresses are such that a test run, which takes the first bytes of any packet for an
// Ethernet header, finds the right ethertype in them.
type world struct {
	*kernel
	m     *Model
	tried map[string]int
}

var (
	host4, host6     = netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:113::1")
	second4, second6 = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:51::1")
	tunnel4, tunnel6 = netip.MustParseAddr("8.0.0.1"), netip.MustParseAddr("2001:db8:86dd::1")
	lo4, lo6         = netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
)

const publication, linkRule = loader.BPFRuleKindRULE_PUBLICATION, loader.BPFRuleKindRULE_LINK

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{kernel: newKernel(t), m: NewModel()}
	w.draw()
	w.listen()
	w.m.Now = 1000
	w.asked()
	return w
}

// asked lets the model ask this world's programs for what it cannot know.
func (w *world) asked() {
	w.m.Chose = w.chose
	w.m.Remembers = func(t Tuple) bool { return w.flow(t, false) != nil }
}

// of is the world, with the same programs, as the goroutine of another test has it. That stays on
// its thread. To load the programs takes longer than any test.
func (w *world) of(t testing.TB) *world {
	t.Helper()
	runtime.LockOSThread() // and never unlocked: the thread dies with the test
	require.NoError(t, unix.Setns(w.ns, unix.CLONE_NEWNET))
	oneCPU(t)
	k := *w.kernel
	k.t = t
	other := &world{kernel: &k, m: w.m}
	other.asked()
	return other
}

// draw fills the tables as drawn.
func (w *world) draw() {
	m := w.m
	m.Tables = NewModel().Tables
	for i, name := range []string{"up0", "up1", "tun"} {
		w.device(name, MAC{2, 0x42, 0, 0, 0xee, byte(i)})
	}
	for number := uint32(1); number <= 7; number++ {
		n := &Network{ICC: number != 2, Masquerade: number != 3, Isolate: number <= 2, Routed: number == 3, Internal: number == 4, FullCone: number == 5}
		n.MAC = MAC{2, 0x42, 0, 0, 0xbb, byte(number)}
		if number != 7 {
			n.Bridge = w.device("br"+string('0'+byte(number)), n.MAC)
		}
		n.Gateway4 = netip.AddrFrom4([4]byte{10, byte(number), 0, 1})
		n.Broadcast4 = netip.AddrFrom4([4]byte{10, byte(number), 0, 255})
		n.Subnet4 = netip.PrefixFrom(n.Gateway4, 24).Masked()
		n.LinkLocal = eui64(n.MAC)
		if number != 6 {
			n.Gateway6 = netip.AddrFrom16([16]byte{0xfd, 3: byte(number), 15: 1})
			n.Subnet6 = netip.PrefixFrom(n.Gateway6, 64).Masked()
		}
		m.Networks[number] = n
		m.Rules[number] = &Rule{Gen: 1, Kind: loader.BPFRuleKindRULE_NETWORK}
	}
	for slot := uint32(1); slot <= 11; slot++ {
		w.join(slot, (slot+1)/2)
	}
	w.join(12, 7)
	w.join(13, 7)
	w.child(14, 8, "up0", "203.0.113.50", "2001:db8:113::50", host4, host6)
	w.child(15, 9, "up1", "198.51.100.50", "2001:db8:51::50", netip.Addr{}, netip.Addr{})
	m.Endpoints[2].MTU = 1400
	m.Endpoints[10].DHCPServer = true
	for _, a := range []netip.Addr{host4, host6, second4, second6, tunnel4, tunnel6, lo4, lo6} {
		m.Host[a] = true
	}
	for _, n := range m.Networks {
		for _, a := range []netip.Addr{n.Gateway4, n.Gateway6} {
			if a.IsValid() {
				m.Host[a] = true
			}
		}
	}
	up0, up1, tun := w.devices["up0"], w.devices["up1"], w.devices["tun"]
	prefix := netip.MustParsePrefix
	m.Routes = []Route{
		{0, prefix("203.0.113.0/24"), []Hop{{up0, 1500, netip.Addr{}, host4}}},
		{0, prefix("2001:db8:113::/64"), []Hop{{up0, 1500, netip.Addr{}, host6}}},
		{0, prefix("8.0.0.0/16"), []Hop{{tun, 1420, netip.Addr{}, tunnel4}}},
		{0, prefix("2001:db8:86dd::/64"), []Hop{{tun, 1420, netip.Addr{}, tunnel6}}},
		{0, prefix("192.0.2.0/24"), nil},
		{0, prefix("0.0.0.0/0"), []Hop{{up0, 1500, netip.MustParseAddr("203.0.113.254"), host4}, {up1, 1300, netip.MustParseAddr("198.51.100.254"), second4}}},
		{0, prefix("2000::/3"), []Hop{{up0, 1500, netip.MustParseAddr("2001:db8:113::fe"), host6}, {up1, 1300, netip.MustParseAddr("2001:db8:51::fe"), second6}}},
		{7, prefix("0.0.0.0/0"), []Hop{{up1, 1300, netip.MustParseAddr("198.51.100.254"), second4}}},
		{7, prefix("2000::/3"), []Hop{{up1, 1300, netip.MustParseAddr("2001:db8:51::fe"), netip.Addr{}}}},
	}
	m.RouteTables[10] = 7
	m.Settings = Settings{Quota: 24, ICMPRate: 40, Slots: 128, Pool: []Range{{20000, 20019}, {21000, 21019}}, Timeouts: [6]uint16{7440, 240, 30, 120, 300, 60}}
	for i, proto := range []uint8{tcp, udp} {
		rule := uint32(5000 + 100*i)
		w.publish(rule+0, 1, netip.Addr{}, proto, 8080, 80, 1)
		w.publish(rule+1, 1, lo4, proto, 8081, 80, 1)
		w.publish(rule+2, 1, netip.Addr{}, proto, 8082, 80, 1)
		m.Rules[rule+2].Sources = []netip.Prefix{prefix("203.0.113.0/24"), prefix("10.1.0.0/24"), prefix("2001:db8:113::/64")}
		w.publish(rule+3, 3, netip.Addr{}, proto, 8083, 80, 1)
		w.publish(rule+4, 11, netip.Addr{}, proto, 8084, 80, 1)
		w.publish(rule+5, 2, netip.Addr{}, proto, 8085, 90, 5)
		w.publish(rule+6, 9, second4, proto, 8080, 80, 1)
		w.publish(rule+7, 5, netip.Addr{}, proto, 20005, 80, 1)
		w.publish(rule+10, 14, netip.Addr{}, proto, 8093, 80, 1)
		w.publish(rule+11, 15, netip.Addr{}, proto, 8094, 80, 1)
		w.publish(rule+9, 12, netip.Addr{}, proto, 8092, 80, 1)
		w.publish(rule+8, 1, netip.Addr{}, proto, 8091, 80, 1) // the same server once more
		m.Rules[rule+20] = &Rule{Gen: 1, Kind: publication, Endpoint4: 5, Endpoint6: 5, Port: 80, HostPort: 80}
		m.Links[Link{0, 5, 80, proto}] = rule + 20
	}
	w.publish(5200, 1, netip.Addr{}, sctp, 8080, 8080, 1)
	m.Rules[6000] = &Rule{Gen: 1, Kind: linkRule}
	m.Links[Link{3, 4, 80, tcp}], m.Links[Link{Client: 3, Server: 4}] = 6000, 6000
	m.Rules[hostPorts] = &Rule{Gen: 1}
	m.Epoch = 1
}

func eui64(m MAC) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

// join makes an endpoint on a network.
func (w *world) join(slot, number uint32) {
	n, last := w.m.Networks[number], byte(2+slot)
	e := &Endpoint{Gen: 1, Network: number, MTU: 1500, MAC: MAC{2, 0x42, 0, 0, byte(number), byte(slot)}}
	e.Ifindex = w.device("veth"+string('a'+byte(slot)), MAC{2, 0x42, 0, 0, 0xcc, byte(slot)})
	e.IP4, e.LinkLocal = netip.AddrFrom4([4]byte{10, byte(number), 0, last}), eui64(e.MAC)
	if n.Gateway6.IsValid() {
		e.IP6 = netip.AddrFrom16([16]byte{0xfd, 3: byte(number), 15: last})
	}
	w.m.Endpoints[slot] = e
	n.Members = append(n.Members, slot)
}

// child makes a macvlan, on a network of its own.
func (w *world) child(slot, number uint32, parent, ip4, ip6 string, gateway4, gateway6 netip.Addr) {
	index := w.devices[parent]
	e := &Endpoint{Gen: 1, Ifindex: index, Network: number, Child: true, MTU: 1500, MAC: MAC{2, 0x42, 0, 0, byte(number), byte(slot)},
		IP4: netip.MustParseAddr(ip4), IP6: netip.MustParseAddr(ip6)}
	e.LinkLocal = eui64(e.MAC)
	w.m.Endpoints[slot] = e
	w.m.Networks[number] = &Network{ICC: true, MAC: w.macs[index], LinkLocal: eui64(w.macs[index]), Gateway4: gateway4, Gateway6: gateway6, Members: []uint32{slot}}
	w.m.Rules[number] = &Rule{Gen: 1, Kind: loader.BPFRuleKindRULE_NETWORK}
}

// publish opens count ports, on one address of the host's or on all.
func (w *world) publish(rule, slot uint32, on netip.Addr, proto uint8, hostPort, port uint16, count uint16) {
	m := w.m
	r := &Rule{Gen: 1, Kind: publication, HostPort: hostPort, Port: port, Endpoint4: slot}
	if old := m.Rules[rule]; old != nil {
		r.Gen = old.Gen + 1
	}
	six := m.Endpoints[slot].IP6.IsValid()
	if six {
		r.Endpoint6 = slot
	}
	m.Rules[rule] = r
	for p := hostPort; p < hostPort+count; p++ {
		if !on.IsValid() || on.Is4() {
			m.Ports[Port{false, proto, p, on}] = rule
		}
		if six && !on.IsValid() {
			m.Ports[Port{true, proto, p, on}] = rule
		}
	}
}

// socket is one of the host's.
type socket struct {
	proto         uint8
	local, remote netip.AddrPort // an unspecified address: any; a remote that is not valid: not connected
}

type sockets []socket

func (s sockets) Has(proto uint8, local, remote netip.AddrPort) (any, connected bool) {
	for _, k := range s {
		if k.proto != proto || k.local.Port() != local.Port() || k.local.Addr().Is6() != local.Addr().Is6() {
			continue
		}
		if k.local.Addr() != local.Addr() && !k.local.Addr().IsUnspecified() || k.remote.IsValid() && k.remote != remote {
			continue
		}
		any, connected = true, connected || k.remote.IsValid()
	}
	return any, connected
}

// listen opens the host's sockets: one that is connected to somebody from a published port, and two
// in the middle of masquerade's pool.
func (w *world) listen() {
	w.t.Helper()
	var all sockets
	for name, addrs := range map[string][]netip.Addr{"lo": nil, "up0": {host4, host6}} {
		l, err := netlink.LinkByName(name)
		require.NoError(w.t, err)
		require.NoError(w.t, netlink.LinkSetUp(l))
		for _, a := range addrs {
			length := map[bool]int{true: 24, false: 64}[a.Is4()]
			network := &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(length, a.BitLen())}
			require.NoError(w.t, netlink.AddrAdd(l, &netlink.Addr{IPNet: network, Flags: unix.IFA_F_NODAD}))
		}
	}
	for family, c := range map[string]struct{ own, any, friend netip.Addr }{
		"4": {host4, netip.IPv4Unspecified(), friend4}, "6": {host6, netip.IPv6Unspecified(), friend6},
	} {
		conn, err := net.DialUDP("udp"+family, net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.own, 8080)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.friend, 5353)))
		require.NoError(w.t, err)
		w.t.Cleanup(func() { conn.Close() })
		all = append(all, socket{udp, netip.AddrPortFrom(c.own, 8080), netip.AddrPortFrom(c.friend, 5353)})
		bound, err := net.ListenUDP("udp"+family, net.UDPAddrFromAddrPort(netip.AddrPortFrom(c.any, 20011)))
		require.NoError(w.t, err)
		w.t.Cleanup(func() { bound.Close() })
		all = append(all, socket{proto: udp, local: netip.AddrPortFrom(c.any, 20011)})
		l, err := net.ListenTCP("tcp"+family, net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.any, 20007)))
		require.NoError(w.t, err)
		w.t.Cleanup(func() { l.Close() })
		all = append(all, socket{proto: tcp, local: netip.AddrPortFrom(c.any, 20007)})
	}
	w.m.Sockets = all
}

// chose reads from the programs' answer which port masquerade gave a flow, and whether its socket
// has it for itself.
func (w *world) chose(t Tuple) (port uint16, own, ok bool) {
	f := w.flow(t, false)
	if f == nil {
		return 0, false, false
	}
	outer, o := native(f.Src), make([]byte, 52)
	key := append(append([]byte(nil), raw(&outer)...), byte(f.SPort>>8), byte(f.SPort), 0, 0)
	if w.objs.MappingOwners.Lookup(key, &o) == nil {
		a := native(t.Src)
		own = string(o[:16]) == string(raw(&a)) && be16(o[36:]) == t.SPort && string(o[32:36]) == string(raw(&t.Zone))
	}
	return f.SPort, own, true
}
