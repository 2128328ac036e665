/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * parse() copies what decisions need into struct packet. It reads with
 * bpf_skb_load_bytes, so that it does not care where the bytes lie, and every bound is
 * checked by the helper. (The fast path, fast.h, looks at plain headers in place.)
 */
#ifndef BPFNET_PARSE_H
#define BPFNET_PARSE_H

#include "packet.h"

/* The transport header at p->l4: ports, ICMP query id, TCP state. Padding behind the
 * packet is not of it. */
static __always_inline int parse_transport(struct __sk_buff *skb, struct packet *p)
{
	union {
		struct tcphdr tcp;
		struct udphdr udp;
		struct icmphdr icmp;
		struct sctphdr sctp;
	} h;
	__u32 size = p->proto == IPPROTO_TCP ? sizeof(h.tcp) : p->proto == IPPROTO_SCTP ? sizeof(h.sctp) : 8;

	p->kind = PACKET_OTHER;
	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_ICMP &&
	    p->proto != IPPROTO_ICMPV6 && p->proto != IPPROTO_SCTP)
		return 0;
	if (p->payload < size && !skb->gso_size)
		return REASON_MALFORMED;
	switch (p->proto) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, p->l4, &h.tcp, sizeof(h.tcp)))
			return REASON_MALFORMED;
		if (h.tcp.doff >> 4 < 5 || ((h.tcp.doff >> 4) * 4 > p->payload && !skb->gso_size))
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
	case IPPROTO_SCTP:
		/* RFC 9260 section 3.1: port 0 must not be used. */
		if (bpf_skb_load_bytes(skb, p->l4, &h.sctp, sizeof(h.sctp)) || !h.sctp.source || !h.sctp.dest)
			return REASON_MALFORMED;
		p->sport = h.sctp.source;
		p->dport = h.sctp.dest;
		/* An association begins with INIT as a connection does with SYN. */
		p->tcp_flags = h.sctp.chunk == SCTP_INIT ? TCP_SYN : 0;
		p->kind = PACKET_FLOW;
		return 0;
	default:
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
	}
}

/* A fragment, frag_off being IPv4's or IPv6's offset in bytes. A first one shows what it
 * begins; one that is too small to is refused, and so is a second one that reaches into
 * the transport header (RFC 1858), or past the largest packet. */
static __always_inline int parse_fragment(struct __sk_buff *skb, struct packet *p)
{
	int err = 0;

	if (!p->frag_off) {
		err = parse_transport(skb, p);
		p->whole = p->kind;
	}
	p->kind = PACKET_FRAGMENT;
	if (err || !p->payload || (p->more && (p->payload & 7)) || (__u32)p->frag_off + p->payload > 65535 ||
	    (p->proto == IPPROTO_TCP && p->frag_off && p->frag_off < sizeof(struct tcphdr)))
		return REASON_FRAGMENT;
	return 0;
}

/* Loose and strict source routes say that the destination is not the last one
 * (RFC 791 section 3.1, RFC 7126 section 4.3): such a packet is not ours to read. */
static __noinline bool source_routed(struct __sk_buff *skb, __u32 off, __u32 end)
{
	__u8 option[2];
	int i;

	for (i = 0; i < 40 && off < end; i++) {
		if (bpf_skb_load_bytes(skb, off, option, 2) || !option[0])
			return false;
		if (option[0] == 131 || option[0] == 137)
			return true;
		off += option[0] == 1 ? 1 : option[1] < 2 ? 40 : option[1];
	}
	return false;
}

static __always_inline int parse4(struct __sk_buff *skb, struct packet *p)
{
	struct iphdr ip;
	__u32 ihl;

	if (bpf_skb_load_bytes(skb, p->l2, &ip, sizeof(ip)))
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
	p->l4 = p->l2 + ihl;
	p->payload = bpf_ntohs(ip.tot_len) - ihl;
	if (ihl > sizeof(ip) && source_routed(skb, p->l2 + sizeof(ip), p->l4))
		return REASON_UNSUPPORTED;
	if (!(ip.frag_off & bpf_htons(IP_FRAGMENT)))
		return parse_transport(skb, p);
	p->id = ip.id;
	p->more = !!(ip.frag_off & bpf_htons(0x2000));
	p->frag_off = (bpf_ntohs(ip.frag_off) & 0x1fff) * 8;
	return parse_fragment(skb, p);
}

/* A walk along IPv6's extension headers (RFC 8200 section 4): hop-by-hop, routing,
 * destination options, fragment. */
struct chain {
	__u32 off;			/* of the next header */
	__u8 next;			/* its number */
	__u8 pad;
	__be16 frag_off;		/* of the fragment header: offset and flags, */
	__be32 id;			/* identification */
	__u32 fragment;			/* offset of the fragment header; 0: none */
};

static __always_inline bool extension(__u8 next)
{
	return next == 0 || next == 43 || next == 60 || next == 44;
}

/* Ends behind the last extension header, or behind the fragment header of what is no
 * first fragment. Returns a reason. */
__noinline int walk(struct __sk_buff *skb, struct chain *c)
{
	struct {
		__u8 next;
		__u8 len;
		__be16 frag_off;
	} ext;
	int i;

	if (!c)
		return REASON_ERROR;
	for (i = 0; i < IPV6_MAX_EXTENSIONS && extension(c->next); i++) {
		if (bpf_skb_load_bytes(skb, c->off, &ext, sizeof(ext)))
			return REASON_MALFORMED;
		if (c->next == 44) {
			if (c->fragment) /* nobody sends a second one (RFC 8200 section 4.1) */
				return REASON_UNSUPPORTED;
			c->fragment = c->off;
			c->frag_off = ext.frag_off;
			if (bpf_skb_load_bytes(skb, c->off + 4, &c->id, sizeof(c->id)))
				return REASON_MALFORMED;
			c->off += 8;
			c->next = ext.next;
			if (ext.frag_off & bpf_htons(0xfff8))
				return 0;
			continue;
		}
		/* A routing header with segments left: the destination is not the last
		 * one (RFC 5095). */
		if (c->next == 43 && (ext.frag_off & bpf_htons(0x00ff)))
			return REASON_UNSUPPORTED;
		c->off += (ext.len + 1) * 8;
		c->next = ext.next;
	}
	return extension(c->next) ? REASON_UNSUPPORTED : 0;
}

static __always_inline int parse6(struct __sk_buff *skb, struct packet *p)
{
	struct chain chain = {};
	struct ipv6hdr ip;
	__u32 end;
	int err;

	if (bpf_skb_load_bytes(skb, p->l2, &ip, sizeof(ip)))
		return REASON_MALFORMED;
	if ((ip.version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return REASON_MALFORMED;
	if (bpf_ntohs(ip.payload_len) + sizeof(ip) > p->len && !skb->gso_size)
		return REASON_MALFORMED;
	p->family = 6;
	p->saddr = ip.saddr;
	p->daddr = ip.daddr;
	p->ttl = ip.hop_limit;
	if (addr_mapped(&ip.saddr) || addr_mapped(&ip.daddr))
		return REASON_MARTIAN;
	chain.off = p->l2 + sizeof(ip);
	chain.next = ip.nexthdr;
	err = walk(skb, &chain);
	if (err)
		return err;
	p->proto = chain.next;
	p->l4 = chain.off;
	end = sizeof(ip) + bpf_ntohs(ip.payload_len);
	if (p->l4 - p->l2 > end && !skb->gso_size)
		return REASON_MALFORMED;
	p->payload = end - (p->l4 - p->l2);
	/* One that is the whole packet is none (RFC 6946). */
	if (!chain.fragment || !(chain.frag_off & bpf_htons(0xfff9)))
		return parse_transport(skb, p);
	p->id = chain.id;
	p->more = !!(chain.frag_off & bpf_htons(1));
	p->frag_off = bpf_ntohs(chain.frag_off) & 0xfff8;
	/* A first fragment has the whole chain (RFC 7112 section 5), of which the part
	 * behind the fragment header is of its payload. */
	err = parse_fragment(skb, p);
	p->payload += p->l4 - (chain.fragment + 8);
	return err;
}

/* Fills all of *p but zone. l2 is the length of the device's link-layer header.
 * Returns 0 or an enum reason. */
__noinline int parse(struct __sk_buff *skb, struct packet *p, __u32 l2)
{
	struct ethhdr eth = { .proto = skb->protocol };

	if (!p)
		return REASON_ERROR;
	__builtin_memset(p, 0, sizeof(*p));
	if (l2) {
		if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
			return REASON_MALFORMED;
		mac_copy(p->dst_mac, eth.dst);
		mac_copy(p->src_mac, eth.src);
		l2 = ETH_HLEN;
	}
	p->l2 = l2;
	p->len = skb->len - l2;
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
