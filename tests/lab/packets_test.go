// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"github.com/stretchr/testify/require"
)

// toHost are packets as X would send them to H.
func toHost(l *Lab, v6 bool) Packet {
	p := Packet{SrcMAC: l.X.MAC, DstMAC: l.X.HostMAC, Src: netip.MustParseAddr(ClientIPv4), Dst: netip.MustParseAddr(HostIPv4)}
	if v6 {
		p.Src, p.Dst = netip.MustParseAddr(ClientIPv6), netip.MustParseAddr(HostIPv6)
	}
	return p
}

// Every kind of frame is right: H's kernel, which checks lengths and checksums, answers it.
func TestFramesAreRight(t *testing.T) {
	l := New(t)
	has := func(want func(gopacket.Packet) bool) func([]byte) bool {
		return Matching(func(p gopacket.Packet) bool { return p.ErrorLayer() == nil && want(p) })
	}
	icmp6 := func(kind uint8) func([]byte) bool {
		return has(func(p gopacket.Packet) bool {
			i, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
			return ok && i.TypeCode.Type() == kind
		})
	}
	icmp4 := func(kind uint8) func([]byte) bool {
		return has(func(p gopacket.Packet) bool {
			i, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			return ok && i.TypeCode.Type() == kind
		})
	}
	reset := has(func(p gopacket.Packet) bool {
		tcp, ok := p.Layer(layers.LayerTypeTCP).(*layers.TCP)
		return ok && tcp.RST && tcp.Ack == 1001
	})
	v4, v6 := toHost(l, false), toHost(l, true)
	linkLocal, group := v6, v6
	linkLocal.Src = netip.MustParseAddr("fe80::bf:ff:fe00:2")
	group.Dst, group.DstMAC = netip.MustParseAddr("ff02::1:ff00:1"), net.HardwareAddr{0x33, 0x33, 0xff, 0, 0, 1}

	for name, c := range map[string]struct {
		frame  []byte
		answer func([]byte) bool
	}{
		"tcp":        {v4.TCP(1234, 81, "S", 1000, 0, nil), reset},
		"tcp6":       {v6.TCP(1234, 81, "S", 1000, 0, nil), reset},
		"udp":        {v4.UDP(1234, 81, []byte("odd")), icmp4(layers.ICMPv4TypeDestinationUnreachable)},
		"udp6":       {v6.UDP(1234, 81, []byte("odd")), icmp6(layers.ICMPv6TypeDestinationUnreachable)},
		"echo":       {v4.Echo(false, 7, 1, []byte("odd")), icmp4(layers.ICMPv4TypeEchoReply)},
		"echo6":      {v6.Echo(false, 7, 1, []byte("odd")), icmp6(layers.ICMPv6TypeEchoReply)},
		"solicit":    {group.NeighborSolicitation(netip.MustParseAddr(HostIPv6), l.X.MAC), icmp6(layers.ICMPv6TypeNeighborAdvertisement)},
		"link-local": {linkLocal.Echo(false, 9, 1, nil), nil},
		"arp": {ARP{SrcMAC: l.X.MAC, DstMAC: Broadcast, SenderMAC: l.X.MAC, Sender: netip.MustParseAddr(ClientIPv4),
			Target: netip.MustParseAddr(HostIPv4)}.Frame(),
			has(func(p gopacket.Packet) bool {
				a, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
				return ok && a.Operation == layers.ARPReply && string(a.SourceHwAddress) == string(l.X.HostMAC)
			})},
	} {
		t.Run(name, func(t *testing.T) {
			if c.answer == nil {
				c.answer = icmp6(layers.ICMPv6TypeEchoReply)
			}
			answers := CaptureIn(t, l.Client, "eth0", c.answer)
			require.NoError(t, Inject(l.Client, "eth0", c.frame, 1))
			require.True(t, answers.Wait(1, limit))
			require.Equal(t, 1, answers.Count(), Describe(answers.Frames()))
		})
	}

	// What the kernel does not answer, gopacket reads back.
	about := v4.UDP(1, 2, nil)[14:]
	for name, c := range map[string]struct {
		frame []byte
		layer gopacket.LayerType
	}{
		"needs fragmenting":    {v4.ICMP(3, 4, 1400, about), layers.LayerTypeICMPv4},
		"too big":              {v6.ICMP(2, 0, 1280, v6.UDP(1, 2, nil)[14:]), layers.LayerTypeICMPv6},
		"router advertisement": {group.RouterAdvertisement(1800, l.X.MAC), layers.LayerTypeICMPv6RouterAdvertisement},
		"advertisement":        {v6.NeighborAdvertisement(v6.Src, NAOverride, l.X.MAC), layers.LayerTypeICMPv6NeighborAdvertisement},
		"offer":                {v4.DHCPOffer(l.X.MAC, v4.Src), layers.LayerTypeDHCPv4},
		"discover":             {v4.DHCPDiscover(l.X.MAC), layers.LayerTypeDHCPv4},
	} {
		t.Run(name, func(t *testing.T) {
			p := Decode(c.frame)
			require.Nil(t, p.ErrorLayer())
			require.NotNil(t, p.Layer(c.layer), p.String())
		})
	}
	require.EqualValues(t, 1400, binary.BigEndian.Uint16(v4.ICMP(3, 4, 1400, about)[14+20+6:]))
	require.EqualValues(t, 1280, binary.BigEndian.Uint32(v6.ICMP(2, 0, 1280, nil)[14+40+4:]))
	odd := v4
	odd.TTL, odd.TOS, odd.ID, odd.DF = 3, 0xb8, 99, true
	ip := Decode(odd.UDP(1, 2, nil)).NetworkLayer().(*layers.IPv4)
	require.Equal(t, []any{uint8(3), uint8(0xb8), uint16(99), layers.IPv4DontFragment}, []any{ip.TTL, ip.TOS, ip.Id, ip.Flags})
	require.Panics(t, func() { v4.TCP(1, 2, "X", 0, 0, nil) })
}

// Ten thousand of ten thousand frames are counted.
func TestInjectAndCapture(t *testing.T) {
	const n = 10_000
	l := New(t)
	p := toHost(l, false)
	mine := Matching(func(p gopacket.Packet) bool {
		udp, ok := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		return ok && udp.DstPort == 9
	})
	in := CaptureIn(t, l.Host, "eth0", mine)
	out := CaptureOut(t, l.Client, "eth0", mine)
	both := StartCapture(t, l.Host, "eth0", mine)
	wrong := CaptureOut(t, l.Host, "eth0", mine)
	other := CaptureIn(t, l.Host, "eth0", FromMAC(l.X.HostMAC))
	require.NoError(t, InjectEach(l.Client, "eth0", n, func(i int) []byte {
		return p.UDP(uint16(i), 9, binary.BigEndian.AppendUint32(nil, uint32(i)))
	}))
	require.True(t, in.Wait(n, limit), "%d", in.Count())
	for _, c := range []*Capture{in, out, both} {
		require.Equal(t, n, c.Count(), c.Device)
		require.Zero(t, c.Lost())
	}
	require.Zero(t, wrong.Count())
	require.Zero(t, other.Count())
	seen := make(map[uint32]bool)
	for _, f := range in.Frames() {
		seen[binary.BigEndian.Uint32(f[14+20+8:])] = true
	}
	require.Len(t, seen, n)

	in.Stop()
	in.Stop()
	require.NoError(t, Inject(l.Client, "eth0", p.UDP(1, 9, nil), 5))
	require.True(t, both.Wait(n+5, limit))
	require.Equal(t, n, in.Count(), "stopped")
	require.Error(t, Inject(l.Client, "nothing", nil, 1))
	require.Error(t, Inject(l.Client, "eth0", []byte{1}, 1), "no Ethernet header")
}

// The packets of a test that failed are in its file, the last one included.
func TestTrace(t *testing.T) {
	t.Setenv(pcapDirVar, t.TempDir())
	l := New(t)
	p := toHost(l, false)
	require.NoError(t, Inject(l.Client, "eth0", p.UDP(7, 9, make([]byte, 900)), 20_000))
	require.NoError(t, Ping(l.Client, HostIPv6, limit))
	require.NoError(t, Inject(l.Client, "eth0", p.UDP(7, 10, []byte("the last")), 1))

	l.writeTraces(t)
	files, err := filepath.Glob(filepath.Join(os.Getenv(pcapDirVar), "TestTrace.pcapng"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	f, err := os.Open(files[0])
	require.NoError(t, err)
	defer f.Close()
	r, err := pcapgo.NewNgReader(f, pcapgo.NgReaderOptions{WantMixedLinkType: true})
	require.NoError(t, err)
	var total, echo, last int
	names := make(map[string]bool)
	for {
		data, info, err := r.ReadPacketData()
		if err != nil {
			break
		}
		intf, err := r.Interface(info.InterfaceIndex)
		require.NoError(t, err)
		names[intf.Name] = true
		total++
		packet := Decode(data)
		if packet.Layer(layers.LayerTypeICMPv6Echo) != nil {
			echo++
		}
		if udp, ok := packet.Layer(layers.LayerTypeUDP).(*layers.UDP); ok && udp.DstPort == 10 {
			last++
		}
	}
	require.True(t, names["H:eth0"] && names["X:eth0"], names)
	require.LessOrEqual(t, total, 2*traceKeep)
	require.Greater(t, total, traceKeep)
	require.Equal(t, 4, echo, "request and reply, in two namespaces")
	require.Equal(t, 2, last)
}
