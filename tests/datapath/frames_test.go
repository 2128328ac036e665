// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"net"
	"net/netip"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// side is one end of a packet: who, and which port (or ICMP id).
type side struct {
	mac  net.HardwareAddr
	addr netip.Addr
	port uint16
}

// at gives the side another port.
func (s side) at(port uint16) side { s.port = port; return s }

// packet describes a frame; zero values are a plain TCP ACK with payload and TTL 64.
type packet struct {
	from, to side
	proto    uint8
	flags    string // S, A, F, R, P of TCP; "" is A
	seq, ack uint32
	ttl      uint8
	payload  []byte
	reply    bool // of ICMP echo
	noSum    bool // UDP without a checksum
	options  int  // TCP: words of them
}

func (p packet) frame() []byte {
	six := p.from.addr.Is6()
	if p.ttl == 0 {
		p.ttl = 64
	}
	if p.payload == nil {
		p.payload = []byte("payload")
	}
	eth := &layers.Ethernet{SrcMAC: p.from.mac, DstMAC: p.to.mac, EthernetType: layers.EthernetTypeIPv4}
	var network gopacket.SerializableLayer
	var pseudo gopacket.NetworkLayer
	if six {
		eth.EthernetType = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: p.ttl, NextHeader: layers.IPProtocol(p.proto), SrcIP: p.from.addr.AsSlice(), DstIP: p.to.addr.AsSlice()}
		network, pseudo = ip, ip
	} else {
		ip := &layers.IPv4{Version: 4, IHL: 5, TTL: p.ttl, Protocol: layers.IPProtocol(p.proto), Id: 77, Flags: layers.IPv4DontFragment, SrcIP: p.from.addr.AsSlice(), DstIP: p.to.addr.AsSlice()}
		network, pseudo = ip, ip
	}
	ls := []gopacket.SerializableLayer{eth, network}
	switch p.proto {
	case tcp:
		l := &layers.TCP{SrcPort: layers.TCPPort(p.from.port), DstPort: layers.TCPPort(p.to.port), Seq: p.seq, Ack: p.ack, Window: 1000}
		if p.flags == "" {
			p.flags = "A"
		}
		for range 4 * p.options {
			l.Options = append(l.Options, layers.TCPOption{OptionType: layers.TCPOptionKindNop})
		}
		for _, f := range p.flags {
			switch f {
			case 'S':
				l.SYN = true
			case 'A':
				l.ACK = true
			case 'F':
				l.FIN = true
			case 'R':
				l.RST = true
			case 'P':
				l.PSH = true
			}
		}
		l.SetNetworkLayerForChecksum(pseudo)
		ls = append(ls, l)
	case udp:
		l := &layers.UDP{SrcPort: layers.UDPPort(p.from.port), DstPort: layers.UDPPort(p.to.port)}
		l.SetNetworkLayerForChecksum(pseudo)
		ls = append(ls, l)
	case icmp:
		kind := uint8(layers.ICMPv4TypeEchoRequest)
		if p.reply {
			kind = layers.ICMPv4TypeEchoReply
		}
		ls = append(ls, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(kind, 0), Id: p.from.port | p.to.port, Seq: 1})
	case icmp6:
		kind := uint8(layers.ICMPv6TypeEchoRequest)
		if p.reply {
			kind = layers.ICMPv6TypeEchoReply
		}
		l := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(kind, 0)}
		l.SetNetworkLayerForChecksum(pseudo)
		ls = append(ls, l, &layers.ICMPv6Echo{Identifier: p.from.port | p.to.port, SeqNumber: 1})
	}
	ls = append(ls, gopacket.Payload(p.payload))
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, ls...); err != nil {
		panic(err)
	}
	out := b.Bytes()
	if p.noSum && p.proto == udp && !six {
		out[14+20+6], out[14+20+7] = 0, 0
	}
	return out
}

// like is the frame that p would be, were it sent so: what comes out of a
// program, byte for byte, checksums included.
func (p packet) like(edit func(*packet)) []byte {
	edit(&p)
	return p.frame()
}
