// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

// Structs that hold network order are filled so that their memory, not their
// value, is right: hence NativeEndian on one side.

// toAddr is all zero for the zero Addr.
func toAddr(a netip.Addr) (b loader.BPFAddr) {
	if !a.IsValid() {
		return b
	}
	raw := a.As16()
	for i := range b.W {
		b.W[i] = binary.NativeEndian.Uint32(raw[4*i:])
	}
	return b
}

// fromAddr is the zero Addr for all zero, and IPv4 for a v4-mapped address.
func fromAddr(b loader.BPFAddr) netip.Addr {
	if b == (loader.BPFAddr{}) {
		return netip.Addr{}
	}
	return rawAddr(b).Unmap()
}

func rawAddr(b loader.BPFAddr) netip.Addr {
	var raw [16]byte
	for i, w := range b.W {
		binary.NativeEndian.PutUint32(raw[4*i:], w)
	}
	return netip.AddrFrom16(raw)
}

func toBE16(v uint16) uint16 {
	var raw [2]byte
	binary.BigEndian.PutUint16(raw[:], v)
	return binary.NativeEndian.Uint16(raw[:])
}

func fromBE16(v uint16) uint16 {
	var raw [2]byte
	binary.NativeEndian.PutUint16(raw[:], v)
	return binary.BigEndian.Uint16(raw[:])
}

// v4Bits is the length of the prefix of v4-mapped addresses.
const v4Bits = 96

func toPrefix(p netip.Prefix) (k loader.BPFPrefix, err error) {
	if !p.IsValid() {
		return k, fmt.Errorf("prefix %s: not valid", p)
	}
	p = p.Masked()
	bits := p.Bits()
	if p.Addr().Is4() {
		bits += v4Bits
	}
	return loader.BPFPrefix{Prefixlen: uint32(bits), Addr: toAddr(p.Addr())}, nil
}

func fromPrefix(k loader.BPFPrefix) netip.Prefix {
	a, bits := rawAddr(k.Addr), int(k.Prefixlen)
	if a.Is4In6() && bits >= v4Bits {
		return netip.PrefixFrom(a.Unmap(), bits-v4Bits)
	}
	return netip.PrefixFrom(a, bits)
}

func comparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

func toMAC(mac net.HardwareAddr) (b [6]uint8, err error) {
	if len(mac) != len(b) {
		return b, fmt.Errorf("mac %q: not 6 bytes", mac)
	}
	copy(b[:], mac)
	return b, nil
}

func fromMAC(b [6]uint8) net.HardwareAddr {
	return net.HardwareAddr(append([]byte(nil), b[:]...))
}

// LinkLocal is the IPv6 link-local address that the kernel makes of a MAC of 6
// bytes (EUI-64: RFC 4291, appendix A).
func LinkLocal(mac net.HardwareAddr) netip.Addr {
	if len(mac) != 6 {
		return netip.Addr{}
	}
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: mac[0] ^ 2, 9: mac[1], 10: mac[2], 11: 0xff,
		12: 0xfe, 13: mac[3], 14: mac[4], 15: mac[5]})
}

// toMTU checks an MTU; 68 is IPv4's least (RFC 791).
func toMTU(mtu int) (uint16, error) {
	if mtu < 68 || mtu > 65535 {
		return 0, fmt.Errorf("mtu %d: not 68 to 65535", mtu)
	}
	return uint16(mtu), nil
}

// Proto is an IP protocol number.
type Proto uint8

// Protocols that have flows; those with ports can be published.
const (
	ICMP   Proto = 1
	TCP    Proto = 6
	UDP    Proto = 17
	ICMPv6 Proto = 58
	SCTP   Proto = 132
)

var protoNames = map[Proto]string{ICMP: "icmp", TCP: "tcp", UDP: "udp", ICMPv6: "icmpv6", SCTP: "sctp"}

func (p Proto) String() string {
	if name := protoNames[p]; name != "" {
		return name
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// ParseProto knows tcp, udp and sctp, in lower case.
func ParseProto(s string) (Proto, error) {
	for _, p := range []Proto{TCP, UDP, SCTP} {
		if p.String() == s {
			return p, nil
		}
	}
	return 0, fmt.Errorf("protocol %q: not tcp, udp or sctp", s)
}

// index is the protocol's place in the ports arrays.
func (p Proto) index() (int, error) {
	switch p {
	case TCP:
		return int(loader.BPFProtoIndexPROTO_TCP), nil
	case UDP:
		return int(loader.BPFProtoIndexPROTO_UDP), nil
	case SCTP:
		return int(loader.BPFProtoIndexPROTO_SCTP), nil
	}
	return 0, fmt.Errorf("protocol %s: has no ports", p)
}
