// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"encoding/binary"
	"net/netip"

	"github.com/bpfnet/bpfnet/loader"
)

const (
	icmp4, igmp, tcp, udp, icmp6, sctp = 1, 2, 6, 17, 58, 132
	typeIP4, typeARP, typeIP6          = 0x0800, 0x0806, 0x86dd
	etherLen                           = 14
	fin, syn, rst, ack                 = 1, 2, 4, 16
)

// kind is what a packet is to the datapath.
type kind int

const (
	foreign  kind = iota // neither IP nor ARP
	arpKind              //
	query                // has a tuple: TCP, UDP, SCTP, an echo
	fragment             //
	icmpKind             // any other ICMP
	other                // any other protocol
)

// packet is what the headers say.
type packet struct {
	dstMAC, srcMAC MAC
	kind, whole    kind // whole: what a first fragment begins
	six            bool
	ip             bool // it has an IP header
	src, dst       netip.Addr
	proto          uint8
	ttl            uint8
	l2, l4         int // offsets: of the IP header, of the transport header
	payload        int // bytes from l4 on that are of the packet
	sport, dport   uint16
	flags          uint8 // TCP's; SCTP: syn for INIT
	seq, ack       uint32
	icmpType       uint8
	id             uint32 // of a fragment: identification,
	at             int    // offset in the whole,
	length         int    // bytes of the whole,
	more           bool   // not the last
}

// bytes are n bytes at an offset, or nil where there are not so many.
func bytes(b []byte, off, n int) []byte {
	if off < 0 || off+n > len(b) {
		return nil
	}
	return b[off : off+n]
}

func be16(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

func addr4(b []byte) netip.Addr { return netip.AddrFrom4([4]byte(b)) }
func addr6(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b)) }

// parse reads a frame, of which the first l2 bytes are the link layer's. segmented: the device
// has put several packets into one, and lengths do not count.
func parse(b []byte, l2 int, ethertype uint16, segmented bool) (p packet, reason loader.BPFReason) {
	p.l2 = l2
	if l2 > 0 {
		copy(p.dstMAC[:], b)
		copy(p.srcMAC[:], b[6:])
	}
	switch ethertype {
	case typeIP4:
		return p, p.parse4(b, segmented)
	case typeIP6:
		return p, p.parse6(b, segmented)
	case typeARP:
		p.kind = arpKind
	}
	return p, none
}

func (p *packet) parse4(b []byte, segmented bool) loader.BPFReason {
	h := bytes(b, p.l2, 20)
	if h == nil {
		return malformed
	}
	header, total := int(h[0]&15)*4, int(be16(h[2:]))
	if h[0]>>4 != 4 || header < 20 || total < header || total > len(b)-p.l2 && !segmented {
		return malformed
	}
	p.ip, p.src, p.dst, p.proto, p.ttl = true, addr4(h[12:]), addr4(h[16:]), h[9], h[8]
	p.l4, p.payload = p.l2+header, total-header
	if sourceRouted(b, p.l2+20, p.l4) {
		return unsupported
	}
	p.at, p.more = int(be16(h[6:])&0x1fff)*8, be16(h[6:])&0x2000 != 0
	if p.at == 0 && !p.more {
		return p.transport(b, segmented)
	}
	p.id = uint32(be16(h[4:]))
	p.length = p.payload
	return p.fragment(b, segmented)
}

// sourceRouted: an option says that the destination is not the last one (RFC 7126 section 4.3).
func sourceRouted(b []byte, off, end int) bool {
	for off < end {
		option := bytes(b, off, 2)
		switch {
		case option == nil || option[0] == 0:
			return false
		case option[0] == 131 || option[0] == 137:
			return true
		case option[0] == 1:
			off++
		case option[1] < 2:
			return false
		default:
			off += int(option[1])
		}
	}
	return false
}

// chain is what follows an IPv6 header (RFC 8200 section 4).
type chain struct {
	proto    uint8
	l4       int
	fragment int // offset of the fragment header; 0: none
	word     uint16
	id       uint32
}

// walk goes along hop-by-hop, routing, destination options and fragment headers, eight at most.
// What is behind the fragment header of a later fragment is no header.
func walk(b []byte, off int, next uint8) (c chain, reason loader.BPFReason) {
	c.l4, c.proto = off, next
	for n := 0; c.proto == 0 || c.proto == 43 || c.proto == 44 || c.proto == 60; n++ {
		if n == 8 {
			return c, unsupported
		}
		h := bytes(b, c.l4, 4)
		if h == nil {
			return c, malformed
		}
		if c.proto == 44 {
			if c.fragment != 0 {
				return c, unsupported
			}
			h = bytes(b, c.l4, 8)
			if h == nil {
				return c, malformed
			}
			c.fragment, c.word, c.id = c.l4, be16(h[2:]), be32(h[4:])
			c.proto, c.l4 = h[0], c.l4+8
			if c.word&0xfff8 != 0 {
				return c, none
			}
			continue
		}
		if c.proto == 43 && h[3] != 0 {
			return c, unsupported
		}
		c.proto, c.l4 = h[0], c.l4+8*(int(h[1])+1)
	}
	return c, none
}

func (p *packet) parse6(b []byte, segmented bool) loader.BPFReason {
	h := bytes(b, p.l2, 40)
	if h == nil || h[0]>>4 != 6 {
		return malformed
	}
	length := 40 + int(be16(h[4:]))
	if length > len(b)-p.l2 && !segmented {
		return malformed
	}
	p.ip, p.six, p.src, p.dst, p.ttl = true, true, addr6(h[8:]), addr6(h[24:]), h[7]
	if p.src.Is4In6() || p.dst.Is4In6() {
		return martian
	}
	c, reason := walk(b, p.l2+40, h[6])
	if reason != none {
		return reason
	}
	p.proto, p.l4 = c.proto, c.l4
	p.payload = length - (p.l4 - p.l2)
	if p.payload < 0 && !segmented {
		return malformed
	}
	// One that is the whole packet is none (RFC 6946).
	if c.fragment == 0 || c.word&0xfff9 == 0 {
		return p.transport(b, segmented)
	}
	p.id, p.at, p.more = c.id, int(c.word&0xfff8), c.word&1 != 0
	p.length = length - (c.fragment + 8 - p.l2)
	return p.fragment(b, segmented)
}

// fragment: a first one shows what it begins, or is refused; no other reaches into the
// transport header (RFC 1858), or past the largest packet.
func (p *packet) fragment(b []byte, segmented bool) loader.BPFReason {
	reason := none
	if p.at == 0 {
		reason = p.transport(b, segmented)
		p.whole = p.kind
	}
	p.kind = fragment
	if reason != none || p.payload == 0 || p.more && p.length%8 != 0 || p.at+p.payload > 65535 ||
		p.proto == tcp && p.at > 0 && p.at < 20 {
		return fragmentReason
	}
	return none
}

func (p *packet) transport(b []byte, segmented bool) loader.BPFReason {
	p.kind = other
	least := map[uint8]int{tcp: 20, udp: 8, icmp4: 8, icmp6: 8, sctp: 16}[p.proto]
	if least == 0 {
		return none
	}
	h := bytes(b, p.l4, least)
	if p.payload < least && !segmented || h == nil && !((p.proto == icmp4 || p.proto == icmp6) && (p.proto == icmp4) == p.six) {
		return malformed
	}
	switch p.proto {
	case tcp:
		if header := int(h[12]>>4) * 4; header < 20 || header > p.payload && !segmented {
			return malformed
		}
		p.seq, p.ack, p.flags = be32(h[4:]), be32(h[8:]), h[13]
	case sctp:
		if be16(h) == 0 || be16(h[2:]) == 0 {
			return malformed // RFC 9260 section 3.1
		}
		if h[12] == 1 {
			p.flags = syn
		}
	case icmp4, icmp6:
		if (p.proto == icmp6) != p.six {
			return malformed
		}
		p.icmpType = h[0]
		switch h[0] {
		case echoRequest(p.six):
			p.kind, p.sport = query, be16(h[4:])
		case echoReply(p.six):
			p.kind, p.dport = query, be16(h[4:])
		default:
			p.kind = icmpKind
		}
		return none
	}
	p.kind, p.sport, p.dport = query, be16(h), be16(h[2:])
	return none
}

func echoRequest(six bool) uint8 {
	if six {
		return 128
	}
	return 8
}

func echoReply(six bool) uint8 {
	if six {
		return 129
	}
	return 0
}

// opens says whether a packet may begin a connection: SYN, INIT, a request, a datagram.
func (p *packet) opens() bool {
	switch p.proto {
	case tcp, sctp:
		return p.flags&(syn|ack|rst) == syn
	case icmp4, icmp6:
		return p.icmpType == echoRequest(p.six)
	}
	return true
}

// isError: RFC 5508 section 4. Redirects are between a host and its router, source quench is obsolete.
func (p *packet) isError() bool {
	if p.kind != icmpKind {
		return false
	}
	if p.six {
		return p.icmpType >= 1 && p.icmpType <= 4
	}
	return p.icmpType == 3 || p.icmpType == 11 || p.icmpType == 12
}

func broadcast(a netip.Addr) bool { return a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) }

func linkLocal6(a netip.Addr) bool { return a.Is6() && a.IsLinkLocalUnicast() }
