// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// What gopacket does not build, or builds too well: frames edited by hand.

const (
	ethLen, ip4Len, ip6Len = 14, 20, 40
	broadcastMAC           = "\xff\xff\xff\xff\xff\xff"
)

func serialize(ls ...gopacket.SerializableLayer) []byte {
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func isSix(frame []byte) bool { return frame[12] == 0x86 }

// edited is a copy of the frame with something changed, and an IPv4 header
// checksum that fits again.
func edited(frame []byte, edit func(b []byte)) []byte {
	b := slices.Clone(frame)
	edit(b)
	if b[12] == 8 && b[13] == 0 && len(b) >= ethLen+ip4Len {
		end := min(ethLen+int(b[ethLen]&15)*4, len(b))
		b[24], b[25] = 0, 0
		binary.BigEndian.PutUint16(b[24:], checksum(b[ethLen:end]))
	}
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		word := uint32(b[i]) << 8
		if i+1 < len(b) {
			word |= uint32(b[i+1])
		}
		sum += word
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// extended has n×4 bytes of IPv4 options (no-operations), or n IPv6 destination
// options headers of 8 bytes.
func extended(frame []byte, n int) []byte {
	if !isSix(frame) {
		return edited(slices.Insert(slices.Clone(frame), ethLen+ip4Len, slices.Repeat([]byte{1}, 4*n)...), func(b []byte) {
			b[ethLen] += byte(n)
			binary.BigEndian.PutUint16(b[16:], binary.BigEndian.Uint16(b[16:])+uint16(4*n))
		})
	}
	for range n {
		frame = withHeader(frame, 60, []byte{0, 0, 1, 4, 0, 0, 0, 0})
	}
	return frame
}

// withHeader puts an IPv6 extension header in front of all others.
func withHeader(frame []byte, kind byte, header []byte) []byte {
	header = slices.Clone(header)
	header[0] = frame[20]
	b := slices.Insert(slices.Clone(frame), ethLen+ip6Len, header...)
	b[20] = kind
	binary.BigEndian.PutUint16(b[18:], binary.BigEndian.Uint16(b[18:])+uint16(len(header)))
	return b
}

var fragments uint16 // made so far: no two belong to one datagram

// fragment marks the frame as one, of a datagram of its own: offset in units of 8 bytes.
// If more are to come it is as long as it has to be, a multiple of 8 bytes behind the
// IP header, or behind the fragment header.
func fragment(frame []byte, offset uint16, more bool) []byte {
	fragments++
	field, before := 16, ip4Len // of the length, and what it counts before the payload
	if isSix(frame) {
		field, before = 18, 0
	}
	length := int(binary.BigEndian.Uint16(frame[field:]))
	if odd := (length - before) % 8; more && odd > 0 {
		frame = slices.Concat(frame, make([]byte, 8))
		binary.BigEndian.PutUint16(frame[field:], uint16(length+8-odd))
	}
	if isSix(frame) {
		word := offset << 3
		if more {
			word |= 1
		}
		return withHeader(frame, 44, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16([]byte{0, 0}, word), uint32(fragments)))
	}
	return edited(frame, func(b []byte) {
		if more {
			offset |= 0x2000
		}
		binary.BigEndian.PutUint16(b[18:], fragments)
		binary.BigEndian.PutUint16(b[20:], offset)
	})
}

// withProto makes it a packet of a protocol that has no ports.
func withProto(frame []byte, proto byte) []byte {
	return edited(frame, func(b []byte) {
		if isSix(b) {
			b[20] = proto
		} else {
			b[23] = proto
		}
	})
}

// withMACs changes the link layer only; nil leaves one as it is.
func withMACs(frame []byte, dst, src net.HardwareAddr) []byte {
	b := slices.Clone(frame)
	copy(b, dst)
	copy(b[6:], src)
	return b
}

// tagged is the frame in VLAN 5, the tag in the frame.
func tagged(frame []byte) []byte {
	return slices.Insert(slices.Clone(frame), 12, 0x81, 0x00, 0x00, 0x05)
}

// ether is a frame of an ethertype that nobody here speaks.
func ether(dst, src net.HardwareAddr, kind layers.EthernetType) []byte {
	return serialize(&layers.Ethernet{SrcMAC: src, DstMAC: dst, EthernetType: kind}, gopacket.Payload(make([]byte, 46)))
}

// arp says op (1 asks, 2 answers): "sender is at its MAC", about target.
func arp(op uint16, sender, target side, edit ...func(*layers.Ethernet, *layers.ARP)) []byte {
	eth := &layers.Ethernet{SrcMAC: sender.mac, DstMAC: target.mac, EthernetType: layers.EthernetTypeARP}
	a := &layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
		Operation: op, SourceHwAddress: sender.mac, SourceProtAddress: sender.addr.AsSlice(), DstHwAddress: target.mac, DstProtAddress: target.addr.AsSlice()}
	if op == 1 {
		eth.DstMAC, a.DstHwAddress = net.HardwareAddr(broadcastMAC), make([]byte, 6)
	}
	for _, e := range edit {
		e(eth, a)
	}
	return serialize(eth, a)
}

// nd is a neighbour discovery message (RFC 4861): kind, its fixed part after the
// checksum, options.
func nd(from, to side, kind uint8, body []byte, options ...[]byte) []byte {
	eth := &layers.Ethernet{SrcMAC: from.mac, DstMAC: to.mac, EthernetType: layers.EthernetTypeIPv6}
	ip := &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: layers.IPProtocolICMPv6, SrcIP: from.addr.AsSlice(), DstIP: to.addr.AsSlice()}
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
	l.SetNetworkLayerForChecksum(ip)
	return serialize(eth, ip, l, gopacket.Payload(slices.Concat(append([][]byte{body}, options...)...)))
}

// about is the body of a neighbour solicitation or advertisement.
func about(target netip.Addr) []byte { return append(make([]byte, 4), target.AsSlice()...) }

// linkOption is a source (1) or target (2) link-layer address.
func linkOption(kind byte, mac net.HardwareAddr) []byte { return append([]byte{kind, 1}, mac...) }

// solicited is the solicited-node multicast group of an address (RFC 4291 section 2.7.1).
func solicited(a netip.Addr) side {
	b := a.As16()
	return side{mac: net.HardwareAddr{0x33, 0x33, 0xff, b[13], b[14], b[15]},
		addr: netip.AddrFrom16([16]byte{0xff, 2, 11: 1, 0xff, b[13], b[14], b[15]})}
}

// group is the multicast or broadcast side of an address, its MAC included
// (RFC 1112 section 6.4, RFC 2464 section 7).
func group(a string, port uint16) side {
	addr := netip.MustParseAddr(a)
	b := addr.AsSlice()
	switch {
	case addr.Is6():
		return side{net.HardwareAddr{0x33, 0x33, b[12], b[13], b[14], b[15]}, addr, port}
	case addr.IsMulticast():
		return side{net.HardwareAddr{1, 0, 0x5e, b[1] & 0x7f, b[2], b[3]}, addr, port}
	default:
		return side{net.HardwareAddr(broadcastMAC), addr, port}
	}
}

// icmpError is the error about a packet that arrived as in, sent back by its way
// from the address speaker (RFC 792, 1191, 4443): 48 or 28 bytes of it are quoted
// in IPv4, 72 or 48 in IPv6.
func icmpError(in []byte, speaker netip.Addr, kind, code uint8, mtu uint16) []byte {
	eth := &layers.Ethernet{SrcMAC: slices.Clone(in[0:6]), DstMAC: slices.Clone(in[6:12]), EthernetType: layers.EthernetTypeIPv4}
	if !isSix(in) {
		quote := 48
		if len(in) < ethLen+quote {
			quote = 28
		}
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Protocol: layers.IPProtocolICMPv4, SrcIP: speaker.AsSlice(), DstIP: slices.Clone(in[26:30])}
		return serialize(eth, ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code), Seq: mtu}, gopacket.Payload(slices.Clone(in[ethLen:ethLen+quote])))
	}
	quote := 72
	if len(in) < ethLen+quote {
		quote = 48
	}
	eth.EthernetType = layers.EthernetTypeIPv6
	ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolICMPv6, SrcIP: speaker.AsSlice(), DstIP: slices.Clone(in[22:38])}
	l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)}
	l.SetNetworkLayerForChecksum(ip)
	return serialize(eth, ip, l, gopacket.Payload(append([]byte{0, 0, byte(mtu >> 8), byte(mtu)}, in[ethLen:ethLen+quote]...)))
}

// withDestination replaces the destination of a packet, whose transport checksum is not looked at.
func withDestination(frame []byte, a netip.Addr) []byte {
	return edited(frame, func(b []byte) {
		if a.Is4() {
			copy(b[30:], a.AsSlice())
		} else {
			copy(b[38:], a.AsSlice())
		}
	})
}
