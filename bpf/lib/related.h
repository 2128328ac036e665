/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP and ICMPv6 errors about packets that we translated (RFC 5508 section 4): the
 * packet that an error quotes left us as the answer's mirror image, so the flow of the
 * other direction says who sent it, and as what. Errors never create, refresh or end a
 * flow. Called by the slow paths for what is ICMP and no query.
 */
#ifndef BPFNET_RELATED_H
#define BPFNET_RELATED_H

#include "change_error.h"

/* The quoted packet: as much of it as there has to be (RFC 792: its IP header and 8 bytes). */
struct quote {
	struct tuple tuple;		/* of the answer to it, as that would arrive */
	__u32 ip;			/* offsets: its IP header, */
	__u32 l4;			/* its transport header, */
	__u32 check;			/* the transport checksum; 0: not quoted, or none */
};

/* Redirects (5, 137) are between a host and its router; source quench is obsolete (RFC 6633). */
static __always_inline bool is_error(const struct packet *p)
{
	if (p->kind != PACKET_ICMP)
		return false;
	if (p->family == 4)
		return p->icmp_type == ICMP_DEST_UNREACH || p->icmp_type == ICMP_TIME_EXCEEDED ||
		       p->icmp_type == ICMP_PARAMETER_PROBLEM;
	return p->icmp_type >= ICMPV6_UNREACHABLE && p->icmp_type <= ICMPV6_PARAMETER_PROBLEM;
}

/* The quoted transport header, of which 8 bytes lie before end. False: it has no tuple. */
static __always_inline bool quoted_transport(struct __sk_buff *skb, struct quote *q, __u32 end)
{
	__be16 h[4];

	if (q->l4 + sizeof(h) > end || bpf_skb_load_bytes(skb, q->l4, h, sizeof(h)))
		return false;
	switch (q->tuple.proto) {
	case IPPROTO_TCP:
		q->tuple.sport = h[1];
		q->tuple.dport = h[0];
		q->check = q->l4 + 18 <= end ? q->l4 + 16 : 0;
		return true;
	case IPPROTO_SCTP:
		q->tuple.sport = h[1];
		q->tuple.dport = h[0];
		return true;
	case IPPROTO_UDP:
		q->tuple.sport = h[1];
		q->tuple.dport = h[0];
		q->check = h[3] ? q->l4 + 6 : 0;
		return true;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if ((q->tuple.proto == IPPROTO_ICMP) != (q->tuple.family == 4))
			return false;
		q->check = q->l4 + 2;
		/* Mirrored: a request is answered by a reply (struct tuple). */
		if ((h[0] & bpf_htons(0xff00)) == bpf_htons((q->tuple.family == 4 ? ICMP_ECHO : ICMPV6_ECHO) << 8))
			q->tuple.dport = h[2];
		else if ((h[0] & bpf_htons(0xff00)) ==
			 bpf_htons((q->tuple.family == 4 ? ICMP_ECHO_REPLY : ICMPV6_ECHO_REPLY) << 8))
			q->tuple.sport = h[2];
		else
			return false;
		return true;
	default:
		return false;
	}
}

/* Fills *q from the error in p. False when it quotes nothing that can belong to a flow. */
__noinline int parse_quote(struct __sk_buff *skb, const struct packet *p, struct quote *q)
{
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip;
	struct chain chain = {};

	if (!p || !q)
		return false;
	__builtin_memset(q, 0, sizeof(*q));
	q->ip = p->l4 + ICMP_HLEN;
	q->tuple.family = p->family;
	q->tuple.zone = p->zone;
	if (p->family == 4) {
		if (bpf_skb_load_bytes(skb, q->ip, &ip.v4, sizeof(ip.v4)))
			return false;
		if ((ip.v4.version_ihl >> 4) != 4 || (ip.v4.version_ihl & 0xf) < 5 ||
		    (ip.v4.frag_off & bpf_htons(0x1fff)))
			return false;
		addr_set4(&q->tuple.saddr, ip.v4.daddr);
		addr_set4(&q->tuple.daddr, ip.v4.saddr);
		q->tuple.proto = ip.v4.protocol;
		q->l4 = q->ip + (ip.v4.version_ihl & 0xf) * 4;
	} else {
		if (bpf_skb_load_bytes(skb, q->ip, &ip.v6, sizeof(ip.v6)))
			return false;
		if ((ip.v6.version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
			return false;
		q->tuple.saddr = ip.v6.daddr;
		q->tuple.daddr = ip.v6.saddr;
		chain.off = q->ip + sizeof(ip.v6);
		chain.next = ip.v6.nexthdr;
		if (walk(skb, &chain) || (chain.fragment && (chain.frag_off & bpf_htons(0xfff8))))
			return false;
		q->tuple.proto = chain.next;
		q->l4 = chain.off;
	}
	/* An error goes to who sent what it quotes. */
	return addr_equal(&q->tuple.daddr, &p->daddr) && quoted_transport(skb, q, p->l4 + p->payload);
}

/* Writes two bytes and returns what they add to the checksum over them. */
static __always_inline __u32 put16(struct __sk_buff *skb, __u32 off, __be16 was, __be16 is)
{
	if (was == is || bpf_skb_store_bytes(skb, off, &is, sizeof(is), 0))
		return 0;
	return csum_delta(was, is);
}

/* Undoes the translation of the quoted packet; but its IP header is left to change_error() if
 * the family changes. Returns what the ICMP checksum changes by. */
__noinline __u32 restore_quote(struct __sk_buff *skb, const struct quote *q, const struct flow *f)
{
	__u32 addr_delta, port_delta, sum;
	__be16 was;
	__u8 family;

	if (!q || !f)
		return 0;
	family = q->tuple.family;
	addr_delta = f->addr_delta;
	sum = addr_delta;
	if (f->flags & (FLOW_TO_IPV4 | FLOW_TO_IPV6)) {
		sum = 0;
	} else if (family == 4) {
		if (bpf_skb_load_bytes(skb, q->ip + 10, &was, sizeof(was)))
			return 0;
		sum += put16(skb, q->ip + 10, was, csum_apply(was, addr_delta));
		bpf_skb_store_bytes(skb, q->ip + 12, &f->daddr.w[3], 4, 0);
		bpf_skb_store_bytes(skb, q->ip + 16, &f->saddr.w[3], 4, 0);
	} else {
		bpf_skb_store_bytes(skb, q->ip + 8, &f->daddr, 16, 0);
		bpf_skb_store_bytes(skb, q->ip + 24, &f->saddr, 16, 0);
	}
	if (q->tuple.proto == IPPROTO_ICMP || q->tuple.proto == IPPROTO_ICMPV6) {
		was = q->tuple.sport | q->tuple.dport;
		port_delta = put16(skb, q->l4 + 4, was, f->sport | f->dport);
		sum += port_delta;
	} else {
		port_delta = put16(skb, q->l4, q->tuple.dport, f->dport);
		sum += port_delta;
		sum += put16(skb, q->l4 + 2, q->tuple.sport, f->sport);
		port_delta += csum_delta(q->tuple.sport, f->sport);
	}
	if (q->check && !bpf_skb_load_bytes(skb, q->check, &was, sizeof(was))) {
		/* ICMP's checksum has no pseudo header. */
		__u32 delta = q->tuple.proto == IPPROTO_ICMP ? 0 : addr_delta;
		__u16 is = csum_apply(was, csum_fold(delta + csum_fold(port_delta)));

		if (q->tuple.proto == IPPROTO_UDP && !is)
			is = 0xffff;
		sum += put16(skb, q->check, was, is);
	}
	return csum_fold(sum);
}

/* The error's own header: to who sent the quoted packet, from the flow's other end, or
 * from whoever on the way cannot forward. False when it is malformed. */
static __always_inline bool readdress(struct __sk_buff *skb, const struct scratch *s, const struct flow *f,
				      const struct quote *q, __u32 sum)
{
	const struct packet *p = &s->packet;
	/* A container's own address means nothing elsewhere, whichever of them it took. */
	bool other_end = s->endpoint || addr_equal(&p->saddr, &q->tuple.saddr);
	const struct addr *from = other_end ? &f->saddr : &p->saddr;
	__u16 delta = csum_delta(csum_addr_words(&p->saddr, p->family) + csum_addr_words(&p->daddr, p->family),
				 csum_addr_words(from, p->family) + csum_addr_words(&f->daddr, p->family));
	__be16 check;

	if (p->family == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, p->l2, &ip, sizeof(ip)))
			return false;
		if (f->flags & FLOW_TTL) {
			ip.ttl--;
			delta = csum_fold((__u32)delta + (__u16)~bpf_htons(0x0100));
		}
		ip.check = csum_apply(ip.check, delta);
		ip.saddr = from->w[3];
		ip.daddr = f->daddr.w[3];
		if (bpf_skb_store_bytes(skb, p->l2, &ip, sizeof(ip), 0))
			return false;
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, p->l2, &ip, sizeof(ip)))
			return false;
		if (f->flags & FLOW_TTL) {
			ip.hop_limit--;
			if (ip_summed(skb) == CHECKSUM_COMPLETE)
				bpf_csum_update(skb, (__u16)~bpf_htons(1));
		}
		ip.saddr = *from;
		ip.daddr = f->daddr;
		sum = csum_fold(sum + delta);
		if (bpf_skb_store_bytes(skb, p->l2, &ip, sizeof(ip), 0))
			return false;
	}
	if (bpf_skb_load_bytes(skb, p->l4 + 2, &check, sizeof(check)))
		return false;
	check = csum_apply(check, sum);
	return !bpf_skb_store_bytes(skb, p->l4 + 2, &check, sizeof(check), 0);
}

/* A source that nobody in the world can have. */
static __noinline bool martian(const struct addr *a)
{
	return addr_unspecified(a) || addr_loopback(a) || addr_multicast(a) ||
	       (!(a->w[0] | a->w[1]) && a->w[2] == V4_MAPPED && a->w[3] == 0xffffffff) ||
	       network_of(a) || host_addr(a);
}

/* Sends the error in s->packet where the packet that it quotes came from. MISS when
 * that belongs to no flow of ours. */
__noinline int related(struct __sk_buff *skb, struct scratch *s)
{
	struct quote q;
	struct flow *f;
	__u32 sum;
	int err;

	if (!s || !is_error(&s->packet) || !parse_quote(skb, &s->packet, &q))
		return MISS;
	s->tuple = q.tuple;
	f = find(&s->tuple);
	if (!f || f->kind == FLOW_LOCAL || f->verdict == VERDICT_STACK)
		return MISS;
	if (flow_stale(f, clock()) || flow_idle(f, now()))
		return drop(skb, REASON_NO_FLOW);
	if (s->packet.zone == ZONE_WORLD && martian(&s->packet.saddr))
		return drop(skb, REASON_MARTIAN);
	/* Work on a copy: the entry may go meanwhile. */
	s->flow = *f;
	f = &s->flow;
	if ((f->flags & FLOW_TTL) && s->packet.ttl <= 1)
		return drop(skb, REASON_TTL_EXCEEDED);
	sum = restore_quote(skb, &q, f);
	if (f->flags & (FLOW_TO_IPV4 | FLOW_TO_IPV6))
		err = change_error(skb, s, q.l4 - q.ip, sum);
	else
		err = readdress(skb, s, f, &q, sum) ? 0 : REASON_MALFORMED;
	if (err)
		return drop(skb, err);
	return dispatch(skb, f, &s->packet);
}

#endif
