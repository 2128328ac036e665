// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// Broadcast is the MAC of everybody.
var Broadcast = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// Packet is the part that all frames of one conversation share. Its methods build a
// whole Ethernet frame each, with right lengths and checksums; to forge those, change
// the bytes afterwards.
type Packet struct {
	SrcMAC, DstMAC net.HardwareAddr
	Src, Dst       netip.Addr // both of one family
	TTL            uint8      // or hop limit; 0: 64, and 255 for neighbour discovery
	TOS            uint8      // or traffic class
	ID             uint16     // of IPv4
	DF             bool       // of IPv4
	Options        []layers.IPv4Option
}

// Frame puts layers together, the outermost first, with right lengths and checksums.
func Frame(list ...gopacket.SerializableLayer) []byte {
	var network gopacket.NetworkLayer
	for _, l := range list {
		if n, ok := l.(gopacket.NetworkLayer); ok {
			network = n
		}
		if c, ok := l.(interface {
			SetNetworkLayerForChecksum(gopacket.NetworkLayer) error
		}); ok && network != nil {
			if err := c.SetNetworkLayerForChecksum(network); err != nil {
				panic(fmt.Sprintf("frame: %v", err))
			}
		}
	}
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, list...); err != nil {
		panic(fmt.Sprintf("frame: %v", err)) // the test's own mistake
	}
	return append([]byte{}, buf.Bytes()...)
}

// Decode parses a frame that begins with an Ethernet header.
func Decode(frame []byte) gopacket.Packet {
	return gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
}

// IP builds a frame with the given layers behind the IP header.
func (p Packet) IP(proto layers.IPProtocol, list ...gopacket.SerializableLayer) []byte {
	ttl := p.TTL
	if ttl == 0 {
		ttl = 64
	}
	eth := &layers.Ethernet{SrcMAC: p.SrcMAC, DstMAC: p.DstMAC, EthernetType: layers.EthernetTypeIPv4}
	var ip gopacket.SerializableLayer
	if p.Dst.Is4() {
		v4 := &layers.IPv4{Version: 4, TTL: ttl, TOS: p.TOS, Id: p.ID, Protocol: proto,
			SrcIP: p.Src.AsSlice(), DstIP: p.Dst.AsSlice(), Options: p.Options}
		if p.DF {
			v4.Flags = layers.IPv4DontFragment
		}
		ip = v4
	} else {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip = &layers.IPv6{Version: 6, HopLimit: ttl, TrafficClass: p.TOS, NextHeader: proto,
			SrcIP: p.Src.AsSlice(), DstIP: p.Dst.AsSlice()}
	}
	return Frame(append([]gopacket.SerializableLayer{eth, ip}, list...)...)
}

// UDP builds a datagram.
func (p Packet) UDP(srcPort, dstPort uint16, payload []byte) []byte {
	return p.IP(layers.IPProtocolUDP, &layers.UDP{SrcPort: layers.UDPPort(srcPort), DstPort: layers.UDPPort(dstPort)},
		gopacket.Payload(payload))
}

// TCP builds a segment; flags are letters out of "SAFRPUEC".
func (p Packet) TCP(srcPort, dstPort uint16, flags string, seq, ack uint32, payload []byte) []byte {
	tcp := &layers.TCP{SrcPort: layers.TCPPort(srcPort), DstPort: layers.TCPPort(dstPort), Seq: seq, Ack: ack, Window: 65535}
	for _, f := range flags {
		switch f {
		case 'S':
			tcp.SYN = true
		case 'A':
			tcp.ACK = true
		case 'F':
			tcp.FIN = true
		case 'R':
			tcp.RST = true
		case 'P':
			tcp.PSH = true
		case 'U':
			tcp.URG = true
		case 'E':
			tcp.ECE = true
		case 'C':
			tcp.CWR = true
		default:
			panic("frame: no such TCP flag: " + string(f))
		}
	}
	return p.IP(layers.IPProtocolTCP, tcp, gopacket.Payload(payload))
}

// Echo builds an echo request, or a reply, of the family of Dst.
func (p Packet) Echo(reply bool, id, seq uint16, payload []byte) []byte {
	if p.Dst.Is4() {
		kind := uint8(layers.ICMPv4TypeEchoRequest)
		if reply {
			kind = layers.ICMPv4TypeEchoReply
		}
		return p.IP(layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: id, Seq: seq},
			gopacket.Payload(payload))
	}
	kind := uint8(layers.ICMPv6TypeEchoRequest)
	if reply {
		kind = layers.ICMPv6TypeEchoReply
	}
	return p.IP(layers.IPProtocolICMPv6, icmp6(kind, 0),
		&layers.ICMPv6Echo{Identifier: id, SeqNumber: seq}, gopacket.Payload(payload))
}

// ICMP builds an error about a packet: rest is the second half of the header (the
// next hop's MTU, for one), about the packet that it speaks of, from its IP header on.
func (p Packet) ICMP(kind, code uint8, rest uint32, about []byte) []byte {
	word := []byte{byte(rest >> 24), byte(rest >> 16), byte(rest >> 8), byte(rest)}
	if p.Dst.Is4() {
		return p.IP(layers.IPProtocolICMPv4, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, code),
			Id: uint16(rest >> 16), Seq: uint16(rest)}, gopacket.Payload(about))
	}
	return p.IP(layers.IPProtocolICMPv6, icmp6(kind, code), gopacket.Payload(append(word, about...)))
}

func icmp6(kind, code uint8) *layers.ICMPv6 {
	return &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, code)}
}

// nd sends neighbour discovery with the hop limit without which it is not accepted.
func (p Packet) nd(kind uint8, msg gopacket.SerializableLayer) []byte {
	if p.TTL == 0 {
		p.TTL = 255
	}
	return p.IP(layers.IPProtocolICMPv6, icmp6(kind, 0), msg)
}

func macOption(kind layers.ICMPv6Opt, mac net.HardwareAddr) layers.ICMPv6Options {
	if mac == nil {
		return nil
	}
	return layers.ICMPv6Options{{Type: kind, Data: mac}}
}

// NeighborSolicitation asks for target; mac is the sender's, in the option (nil: none).
func (p Packet) NeighborSolicitation(target netip.Addr, mac net.HardwareAddr) []byte {
	return p.nd(layers.ICMPv6TypeNeighborSolicitation, &layers.ICMPv6NeighborSolicitation{
		TargetAddress: target.AsSlice(), Options: macOption(layers.ICMPv6OptSourceAddress, mac)})
}

// Flags of a neighbour advertisement: RFC 4861, section 4.4.
const (
	NARouter    = 0x80
	NASolicited = 0x40
	NAOverride  = 0x20
)

// NeighborAdvertisement says that target is at mac, in the option (nil: none).
func (p Packet) NeighborAdvertisement(target netip.Addr, flags uint8, mac net.HardwareAddr) []byte {
	return p.nd(layers.ICMPv6TypeNeighborAdvertisement, &layers.ICMPv6NeighborAdvertisement{
		TargetAddress: target.AsSlice(), Flags: flags, Options: macOption(layers.ICMPv6OptTargetAddress, mac)})
}

// RouterAdvertisement says that the sender is a router for lifetime seconds.
func (p Packet) RouterAdvertisement(lifetime uint16, mac net.HardwareAddr) []byte {
	return p.nd(layers.ICMPv6TypeRouterAdvertisement, &layers.ICMPv6RouterAdvertisement{
		HopLimit: 64, RouterLifetime: lifetime, Options: macOption(layers.ICMPv6OptSourceAddress, mac)})
}

// ARP is an ARP message in an Ethernet frame; every field may lie.
type ARP struct {
	SrcMAC, DstMAC       net.HardwareAddr // of the frame
	Reply                bool
	SenderMAC, TargetMAC net.HardwareAddr // nil: zeros
	Sender, Target       netip.Addr
}

// Frame builds it.
func (a ARP) Frame() []byte {
	op := uint16(layers.ARPRequest)
	if a.Reply {
		op = layers.ARPReply
	}
	mac := func(m net.HardwareAddr) []byte {
		if m == nil {
			return make([]byte, 6)
		}
		return m
	}
	return Frame(&layers.Ethernet{SrcMAC: a.SrcMAC, DstMAC: a.DstMAC, EthernetType: layers.EthernetTypeARP},
		&layers.ARP{AddrType: layers.LinkTypeEthernet, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4,
			Operation: op, SourceHwAddress: mac(a.SenderMAC), SourceProtAddress: a.Sender.AsSlice(),
			DstHwAddress: mac(a.TargetMAC), DstProtAddress: a.Target.AsSlice()})
}

// DHCPOffer is what a DHCP server sends to a client that has no address yet.
func (p Packet) DHCPOffer(client net.HardwareAddr, offered netip.Addr) []byte {
	return p.dhcp(67, 68, &layers.DHCPv4{Operation: layers.DHCPOpReply, HardwareType: layers.LinkTypeEthernet, HardwareLen: 6,
		ClientHWAddr: client, YourClientIP: offered.AsSlice(),
		Options: layers.DHCPOptions{layers.NewDHCPOption(layers.DHCPOptMessageType, []byte{byte(layers.DHCPMsgTypeOffer)})}})
}

// DHCPDiscover is what a client sends to find a server.
func (p Packet) DHCPDiscover(client net.HardwareAddr) []byte {
	return p.dhcp(68, 67, &layers.DHCPv4{Operation: layers.DHCPOpRequest, HardwareType: layers.LinkTypeEthernet, HardwareLen: 6,
		ClientHWAddr: client,
		Options:      layers.DHCPOptions{layers.NewDHCPOption(layers.DHCPOptMessageType, []byte{byte(layers.DHCPMsgTypeDiscover)})}})
}

func (p Packet) dhcp(src, dst layers.UDPPort, msg *layers.DHCPv4) []byte {
	return p.IP(layers.IPProtocolUDP, &layers.UDP{SrcPort: src, DstPort: dst}, msg)
}
