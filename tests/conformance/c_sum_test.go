// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// C9: a packet socket may name the place where the kernel or a device puts the checksum
// (PACKET_VNET_HDR): what names another one than its header's does not leave, neither before its
// flow is established nor after. What names the right one does, with the right sum.
//
//	p ── H ── X
func TestC9Checksum(t *testing.T) {
	parallel(t)
	c, _, p, _ := mainCast(t)
	lab.ServeUDP(t, c.Client, "world", ":7000")
	me, gw := c.station(p, "n1"), c.gateway("n1")
	send := partial(t, p, me.dev)
	for i, to := range []string{lab.ClientIPv4, lab.ClientIPv6} {
		x := netip.MustParseAddr(to)
		own, place, l4 := me.ip4, 14+12, 14+20
		if i == 1 {
			own, place, l4 = me.ip6, 14+8, 14+40
		}
		frame := func(text string) []byte {
			return lab.Packet{SrcMAC: me.mac, DstMAC: gw.mac, Src: own, Dst: x}.UDP(5000, 7000, []byte(text))
		}
		wrong := map[string][2]int{ // the kernel itself refuses a start before 20
			"the source address":         {20, place - 20},
			"the source port":            {l4, 0},
			"the destination port":       {l4 - 4, 6},
			"the length of the datagram": {l4, 4},
			"behind the header":          {l4 + 2, 12},
			"the IP header's checksum":   {20, 4},
		}
		round := func(when string) {
			for what, at := range wrong {
				text := fmt.Sprintf("%s, %s of IPv%d", when, what, []int{4, 6}[i])
				seen := lab.CaptureIn(t, c.Client, "eth0", marked(text))
				before := c.drops("MALFORMED")
				require.NoError(t, send(at[0], at[1], frame(text)), text)
				require.Equal(t, before+1, c.drops("MALFORMED"), text)
				require.Empty(t, seen.Frames(), text)
			}
			text := fmt.Sprintf("%s, as it should be, IPv%d", when, []int{4, 6}[i])
			seen := lab.CaptureIn(t, c.Client, "eth0", marked(text))
			right := frame(text)
			binary.BigEndian.PutUint16(right[l4+6:], pseudo(right, l4))
			for n := 1; n <= 2; n++ { // with the second one, after X's answer, the flow is established
				require.NoError(t, send(l4, 6, right), text)
				require.True(t, soon(func() bool { return len(seen.Frames()) == 2*n }), text)
			}
			for n, got := range seen.Frames() {
				if n%2 == 1 {
					continue // X's answer
				}
				from, _ := netip.AddrFromSlice(got[place:][:len(own.AsSlice())])
				require.Equal(t, []string{lab.HostIPv4, lab.HostIPv6}[i], from.String())
				// A cable leaves it as it is: the sum of the pseudo header, of the new one.
				require.Equal(t, pseudo(got, l4), binary.BigEndian.Uint16(got[l4+6:]), "the checksum")
			}
		}
		round("first")
		flows, err := c.m.Flows(control.FlowFilter{Port: 7000})
		require.NoError(t, err)
		require.Equal(t, "established", flows[0].State)
		round("later")
	}
}

// E1: an error cannot have the quoted packet filled in, which says whose it is. A tunnel's outer
// header keeps its own sum, or none, while an inner one is left to whoever they meet.
//
//	p ── H ── X
func TestC9InnerChecksum(t *testing.T) {
	parallel(t)
	c, _, p, _ := mainCast(t)
	lab.ServeUDP(t, c.Client, "world", ":7000")
	me, gw := c.station(p, "n1"), c.gateway("n1")
	send := partial(t, p, me.dev)
	for i, to := range []string{lab.ClientIPv4, lab.ClientIPv6} {
		x, own, l4, protocol := netip.MustParseAddr(to), me.ip4, 14+20, 14+9
		if i == 1 {
			own, l4, protocol = me.ip6, 14+40, 14+6
		}
		out := lab.Packet{SrcMAC: me.mac, DstMAC: gw.mac, Src: own, Dst: x}
		back := lab.Packet{SrcMAC: gw.mac, DstMAC: me.mac, Src: x, Dst: own}
		conn, err := lab.Dial(p.ns, "udp", at(own, 5000), at(x, 7000), wait)
		require.NoError(t, err)
		defer conn.Close()
		_, err = conn.Ask("who", wait)
		require.NoError(t, err)
		kind := []uint8{3, 1}[i] // unreachable: the port
		problem := out.ICMP(kind, []uint8{3, 4}[i], 0, back.UDP(7000, 5000, []byte("an answer"))[14:])
		heard := lab.CaptureIn(t, c.Client, "eth0", func(f []byte) bool {
			return len(f) > l4 && f[protocol] == []byte{unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6}[i] && f[l4] == kind
		})
		before := c.drops("MALFORMED")
		require.NoError(t, send(l4+8, l4-14+2, problem), "IPv%d", []int{4, 6}[i])
		require.Equal(t, before+1, c.drops("MALFORMED"))
		require.Empty(t, heard.Frames())
		require.NoError(t, lab.Inject(p.ns, me.dev, problem, 1))
		require.True(t, soon(func() bool { return len(heard.Frames()) == 1 }), "the control: the same error, whole")

		for _, sum := range []uint16{0, 1} { // none, or the right one
			text := fmt.Sprintf("a packet in a packet, sum %d, IPv%d", sum, []int{4, 6}[i])
			seen := lab.CaptureIn(t, c.Client, "eth0", marked(text))
			frame := out.UDP(5001, 7001, []byte("  the inner header "+text))
			right := binary.BigEndian.Uint16(frame[l4+6:])
			if sum == 0 {
				if i == 1 {
					continue // IPv6 has no datagram without
				}
				right, frame[l4+6], frame[l4+7] = 0, 0, 0
			}
			for n := range 2 {
				require.NoError(t, send(l4+8, 2, frame), text)
				require.True(t, soon(func() bool { return len(seen.Frames()) == n+1 }), text)
			}
			for _, got := range seen.Frames() {
				if sum == 0 {
					require.Zero(t, binary.BigEndian.Uint16(got[l4+6:]), text)
					continue
				}
				require.NotEqual(t, right, binary.BigEndian.Uint16(got[l4+6:]), "it has another sender")
				require.True(t, rightSum(got), text)
			}
		}
	}
}

// partial sends frames whose checksum is left to whoever they meet: at start+offset, over all from
// start on (struct virtio_net_hdr of include/uapi/linux/virtio_net.h).
func partial(t *testing.T, a *actor, device string) func(start, offset int, frame []byte) error {
	t.Helper()
	fd := -1
	require.NoError(t, a.ns.Do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: lab.Link(t, a.ns, device).Attrs().Index})
	}))
	t.Cleanup(func() { unix.Close(fd) })
	return func(start, offset int, frame []byte) error {
		header := make([]byte, 10, 10+len(frame))
		header[0] = 1                                                 // VIRTIO_NET_HDR_F_NEEDS_CSUM
		binary.NativeEndian.PutUint16(header[2:], uint16(len(frame))) // all of it in one piece
		binary.NativeEndian.PutUint16(header[6:], uint16(start))
		binary.NativeEndian.PutUint16(header[8:], uint16(offset))
		_, err := unix.Write(fd, append(header, frame...))
		return err
	}
}

// pseudo is the sum of a UDP frame's pseudo header, not complemented.
func pseudo(frame []byte, l4 int) uint16 {
	addrs := frame[26:34]
	if l4 == 14+40 {
		addrs = frame[22:54]
	}
	sum := uint32(unix.IPPROTO_UDP) + uint32(len(frame)-l4)
	for i := range addrs {
		sum += uint32(addrs[i]) << (8 * (1 - i%2))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
