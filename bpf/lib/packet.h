/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Reading packets. The fast path (fast.h) looks at plain headers in place; all
 * else goes through parse(), which copies what decisions need into struct packet.
 * parse() reads with bpf_skb_load_bytes, so that it does not care where the
 * bytes lie, and every bound is checked by the helper.
 */
#ifndef BPFNET_PACKET_H
#define BPFNET_PACKET_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "types.h"

#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_IPV6 0x86dd

#define IPPROTO_ICMP 1
#define IPPROTO_IGMP 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129

#define IP_FRAGMENT 0x3fff		/* more-fragments and offset */
#define IPV6_MAX_EXTENSIONS 8

struct ethhdr {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
} __attribute__((packed));

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	struct addr saddr;
	struct addr daddr;
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff;			/* high nibble: header length in words */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urg_ptr;
};

struct udphdr {
	__be16 source;
	__be16 dest;
	__be16 len;
	__sum16 check;
};

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};

struct arp {
	__be16 htype;
	__be16 ptype;
	__u8 hlen;
	__u8 plen;
	__be16 op;
	__u8 sha[6];
	__be32 spa;
	__u8 tha[6];
	__be32 tpa;
} __attribute__((packed));

enum packet_kind {
	PACKET_FLOW = 0,		/* TCP, UDP, ICMP query: has a tuple */
	PACKET_FRAGMENT,
	PACKET_ICMP,			/* any other ICMP or ICMPv6 */
	PACKET_OTHER,			/* any other IP protocol */
	PACKET_ARP,
	PACKET_FOREIGN,			/* neither IP nor ARP */
};

struct packet {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;			/* see struct key4 */
	__be16 dport;
	__u32 zone;
	__u32 len;			/* from the IP header on, as the device gave it */
	__u32 seq;			/* TCP, host order */
	__u32 ack;
	__u16 l4;			/* offset of the transport header */
	__u16 first_fragment;
	__u8 family;			/* 4, 6, or 0 */
	__u8 kind;			/* enum packet_kind */
	__u8 proto;
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type;
	__u8 dst_mac[6];
	__u8 src_mac[6];
	__u8 pad[2];
};

/* One direction of a flow, family-blind: what key4 and key6 are made from. */
struct tuple {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;
	__be16 dport;
	__u32 zone;
	__u8 proto;
	__u8 family;
	__u8 pad[2];
};

#define V4_MAPPED bpf_htonl(0xffff)

static __always_inline void addr_set4(struct addr *a, __be32 v4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = V4_MAPPED;
	a->w[3] = v4;
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool addr_zero(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

/* The unspecified address of either family. */
static __always_inline bool addr_unspecified(const struct addr *a)
{
	return !a->w[3] && !a->w[0] && !a->w[1] && (!a->w[2] || a->w[2] == V4_MAPPED);
}

static __always_inline bool addr_loopback(const struct addr *a)
{
	if (a->w[0] | a->w[1])
		return false;
	if (a->w[2] == V4_MAPPED)
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->w[2] && a->w[3] == bpf_htonl(1);
}

static __always_inline bool addr_multicast(const struct addr *a)
{
	if (!(a->w[0] | a->w[1]) && a->w[2] == V4_MAPPED)
		return (a->w[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
	return (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline bool addr_link_local6(const struct addr *a)
{
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	const __u16 *x = (const __u16 *)a, *y = (const __u16 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

static __always_inline void mac_copy(__u8 *to, const __u8 *from)
{
	__builtin_memcpy(to, from, 6);
}

/* The transport header at p->l4: ports, ICMP query id, TCP state. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	union {
		struct tcphdr tcp;
		struct udphdr udp;
		struct icmphdr icmp;
	} h;

	switch (p->proto) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, p->l4, &h.tcp, sizeof(h.tcp)))
			return REASON_MALFORMED;
		p->sport = h.tcp.source;
		p->dport = h.tcp.dest;
		p->tcp_flags = h.tcp.flags;
		p->seq = bpf_ntohl(h.tcp.seq);
		p->ack = bpf_ntohl(h.tcp.ack_seq);
		p->kind = PACKET_FLOW;
		return 0;
	case IPPROTO_UDP:
		if (bpf_skb_load_bytes(skb, p->l4, &h.udp, sizeof(h.udp)))
			return REASON_MALFORMED;
		p->sport = h.udp.source;
		p->dport = h.udp.dest;
		p->kind = PACKET_FLOW;
		return 0;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((p->proto == IPPROTO_ICMP) != (p->family == 4))
			return REASON_MALFORMED;
		if (bpf_skb_load_bytes(skb, p->l4, &h.icmp, sizeof(h.icmp)))
			return REASON_MALFORMED;
		p->icmp_type = h.icmp.type;
		p->kind = PACKET_FLOW;
		if (h.icmp.type == (p->family == 4 ? ICMP_ECHO : ICMPV6_ECHO))
			p->sport = h.icmp.id;
		else if (h.icmp.type == (p->family == 4 ? ICMP_ECHO_REPLY : ICMPV6_ECHO_REPLY))
			p->dport = h.icmp.id;
		else
			p->kind = PACKET_ICMP;
		return 0;
	default:
		p->kind = PACKET_OTHER;
		return 0;
	}
}

/* A first fragment shows what it begins (the guards look); one that is too small
 * to is refused (RFC 1858). Only a whole packet has a flow. */
static __always_inline int parse_fragment(struct __sk_buff *skb, struct packet *p, bool first)
{
	int err = first ? parse_transport(skb, p) : 0;

	p->kind = PACKET_FRAGMENT;
	p->first_fragment = first;
	return err;
}

static __always_inline int parse4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;
	__u32 ihl;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	ihl = (ip.version_ihl & 0xf) * 4;
	if ((ip.version_ihl >> 4) != 4 || ihl < sizeof(ip) || bpf_ntohs(ip.tot_len) < ihl)
		return REASON_MALFORMED;
	if (bpf_ntohs(ip.tot_len) > p->len && !skb->gso_size)
		return REASON_MALFORMED;
	p->family = 4;
	addr_set4(&p->saddr, ip.saddr);
	addr_set4(&p->daddr, ip.daddr);
	p->proto = ip.protocol;
	p->ttl = ip.ttl;
	p->l4 = ETH_HLEN + ihl;
	if (ip.frag_off & bpf_htons(IP_FRAGMENT))
		return parse_fragment(skb, p, !(ip.frag_off & bpf_htons(0x1fff)));
	return parse_transport(skb, p);
}

/* RFC 8200 section 4: hop-by-hop, routing, destination options, fragment. */
static __always_inline int parse6(struct __sk_buff *skb, struct packet *p)
{
	struct ipv6hdr ip;
	struct {
		__u8 next;
		__u8 len;
		__be16 frag_off;
	} ext;
	__u32 off = ETH_HLEN + sizeof(ip);
	bool fragment = false;
	__u8 next;
	int i;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	if ((ip.version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return REASON_MALFORMED;
	if (bpf_ntohs(ip.payload_len) + sizeof(ip) > p->len && !skb->gso_size)
		return REASON_MALFORMED;
	p->family = 6;
	p->saddr = ip.saddr;
	p->daddr = ip.daddr;
	p->ttl = ip.hop_limit;
	/* A v4-mapped address on the wire would read as IPv4 in our tables (RFC 4942 section 2.2). */
	if (!(ip.saddr.w[0] | ip.saddr.w[1]) && ip.saddr.w[2] == V4_MAPPED)
		return REASON_MARTIAN;
	if (!(ip.daddr.w[0] | ip.daddr.w[1]) && ip.daddr.w[2] == V4_MAPPED)
		return REASON_MARTIAN;
	next = ip.nexthdr;
	for (i = 0; i < IPV6_MAX_EXTENSIONS; i++) {
		if (next != 0 && next != 43 && next != 60 && next != 44)
			break;
		if (bpf_skb_load_bytes(skb, off, &ext, sizeof(ext)))
			return REASON_MALFORMED;
		if (next == 44) {
			if (ext.frag_off & bpf_htons(0xfff8)) {
				p->proto = ext.next;
				p->l4 = off + 8;
				return parse_fragment(skb, p, false);
			}
			/* A first fragment has the whole chain (RFC 7112 section 5). */
			fragment |= ext.frag_off & bpf_htons(1);
			off += 8;
		} else {
			off += (ext.len + 1) * 8;
		}
		next = ext.next;
	}
	if (next == 0 || next == 43 || next == 60 || next == 44)
		return REASON_UNSUPPORTED;
	p->proto = next;
	p->l4 = off;
	return fragment ? parse_fragment(skb, p, true) : parse_transport(skb, p);
}

/* Fills all of *p but zone. Returns 0 or an enum reason. */
__noinline int parse(struct __sk_buff *skb, struct packet *p)
{
	struct ethhdr eth;

	if (!p)
		return REASON_ERROR;
	__builtin_memset(p, 0, sizeof(*p));
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return REASON_MALFORMED;
	mac_copy(p->dst_mac, eth.dst);
	mac_copy(p->src_mac, eth.src);
	p->len = skb->len - ETH_HLEN;
	switch (eth.proto) {
	case bpf_htons(ETH_P_IP):
		return parse4(skb, p);
	case bpf_htons(ETH_P_IPV6):
		return parse6(skb, p);
	case bpf_htons(ETH_P_ARP):
		p->kind = PACKET_ARP;
		return 0;
	default:
		p->kind = PACKET_FOREIGN;
		return 0;
	}
}

#endif
