/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * ICMP errors about flows that change their family ([::1] to an IPv4-only container):
 * an error of one family becomes one of the other, and so does the header that it quotes
 * (RFC 7915 sections 4.2, 4.3, 5.2 and 5.3). Called by related().
 *
 * RFC 4884's extensions get lost: their place is told by a length in the half of the
 * header that is written anew, and the headers' difference does not fit its units.
 */
#ifndef BPFNET_CHANGE_ERROR_H
#define BPFNET_CHANGE_ERROR_H

#include "slow.h"

#define ICMP_PARAMETER_PROBLEM 12
#define ICMP_PROT_UNREACH 2
#define ICMP_PORT_UNREACH 3
#define ICMPV6_UNREACHABLE 1
#define ICMPV6_PORT_UNREACH 4
#define ICMPV6_PARAMETER_PROBLEM 4
#define ICMPV6_UNKNOWN_NEXT 1
#define ICMP_HLEN 8			/* of an error, before what it quotes */

#define MIN_MTU4 68			/* RFC 791 section 3.2 */
#define MIN_MTU6 1280			/* RFC 8200 section 5 */
#define HEADERS_DIFFER (sizeof(struct ipv6hdr) - sizeof(struct iphdr))

/* As they are when neither IP header has options or extension headers. */
struct error4 {
	struct iphdr ip;
	struct icmphdr icmp;
	struct iphdr quoted;
};

struct error6 {
	struct ipv6hdr ip;
	struct icmphdr icmp;
	struct ipv6hdr quoted;
};

/* The MTU of a quoted packet of length bytes that was too long. 0 is said by routers that
 * know no RFC 1191: they mean the next of that RFC's plateaus (section 7.1). */
static __always_inline __u32 mtu_to_6(__u32 mtu, __u32 length)
{
	if (!mtu)
		mtu = length > 32000 ? 32000 : length > 17914 ? 17914 : length > 8166 ? 8166 :
		      length > 4352 ? 4352 : length > 2002 ? 2002 : length > 1492 ? 1492 : 0;
	mtu += HEADERS_DIFFER;
	return mtu < MIN_MTU6 ? MIN_MTU6 : mtu;
}

static __always_inline __u32 mtu_to_4(__u32 mtu)
{
	if (mtu < MIN_MTU4 + HEADERS_DIFFER)
		return MIN_MTU4;
	return mtu > 65535 + HEADERS_DIFFER ? 65535 : mtu - HEADERS_DIFFER;
}

/* Makes h say in ICMPv6 what it says; length is that of the quoted packet. False: it
 * cannot be said (RFC 7915 section 4.2). */
static __always_inline bool kind_to_6(struct icmphdr *h, __u32 length)
{
	__u32 type = h->type, code = h->code, rest = 0, at;

	if (type == ICMP_TIME_EXCEEDED) {
		type = ICMPV6_TIME_EXCEEDED;
	} else if (type == ICMP_PARAMETER_PROBLEM) {
		if (code != 0 && code != 2)
			return false;
		at = *(__u8 *)&h->id;
		/* Figure 3. */
		if (at <= 1)
			rest = at;
		else if (at <= 3)
			rest = 4;	/* total length: payload length */
		else if (at == 8)
			rest = 7;	/* TTL: hop limit */
		else if (at == 9)
			rest = 6;	/* protocol: next header */
		else if (at >= 12 && at <= 19)
			rest = at < 16 ? 8 : 24;
		else
			return false;
		type = ICMPV6_PARAMETER_PROBLEM;
		code = 0;
	} else if (code == ICMP_FRAG_NEEDED) {
		type = ICMPV6_PACKET_TOO_BIG;
		code = 0;
		rest = mtu_to_6(bpf_ntohs(h->sequence), length);
	} else if (code == ICMP_PROT_UNREACH) {
		type = ICMPV6_PARAMETER_PROBLEM;
		code = ICMPV6_UNKNOWN_NEXT;
		rest = 6;
	} else {
		if (code == 14 || code > 15)
			return false;
		type = ICMPV6_UNREACHABLE;
		code = code == ICMP_PORT_UNREACH ? ICMPV6_PORT_UNREACH :
		       code == 9 || code == 10 || code == 13 || code == 15 ? 1 : 0;
	}
	h->type = type;
	h->code = code;
	h->id = bpf_htons(rest >> 16);
	h->sequence = bpf_htons(rest);
	return true;
}

/* The other way (RFC 7915 section 5.2). */
static __always_inline bool kind_to_4(struct icmphdr *h)
{
	__u32 type = h->type, code = h->code, at = bpf_ntohs(h->id) << 16 | bpf_ntohs(h->sequence), first = 0, second = 0;

	if (type == ICMPV6_UNREACHABLE) {
		if (code > 4)
			return false;
		type = ICMP_DEST_UNREACH;
		code = code == ICMPV6_PORT_UNREACH ? ICMP_PORT_UNREACH : code == 1 ? 10 : 1;
	} else if (type == ICMPV6_PACKET_TOO_BIG) {
		type = ICMP_DEST_UNREACH;
		code = ICMP_FRAG_NEEDED;
		second = mtu_to_4(at);
	} else if (type == ICMPV6_TIME_EXCEEDED) {
		type = ICMP_TIME_EXCEEDED;
	} else if (code == ICMPV6_UNKNOWN_NEXT) {
		type = ICMP_DEST_UNREACH;
		code = ICMP_PROT_UNREACH;
	} else {
		if (code)
			return false;
		/* Figure 6. */
		if (at <= 1)
			first = at;
		else if (at == 4 || at == 5)
			first = 2;	/* payload length: total length */
		else if (at == 6)
			first = 9;	/* next header: protocol */
		else if (at == 7)
			first = 8;	/* hop limit: TTL */
		else if (at >= 8 && at <= 39)
			first = at < 24 ? 12 : 16;
		else
			return false;
		type = ICMP_PARAMETER_PROBLEM;
	}
	h->type = type;
	h->code = code;
	h->id = bpf_htons(first << 8);
	h->sequence = bpf_htons(second);
	return true;
}

/* What an ICMPv6 message of len bytes has in its pseudo header (RFC 8200 section 8.1). */
static __always_inline __u16 csum_pseudo6(const struct addr *from, const struct addr *to, __u32 len)
{
	return csum_fold(csum_addr(from) + csum_addr(to) + bpf_htons(len) + bpf_htons(IPPROTO_ICMPV6));
}

static __always_inline struct error6 *error6_of(struct scratch *s)
{
	return (void *)s->bytes;
}

static __always_inline struct error4 *error4_of(struct scratch *s)
{
	return (void *)(s->bytes + sizeof(struct error6));
}

/* The headers of an ICMP error as those of an ICMPv6 error. sum is what its checksum changes
 * by behind them. Returns a reason. */
static __always_inline int headers_to_6(struct scratch *s, __u32 sum)
{
	struct error4 *was = error4_of(s);
	struct error6 *is = error6_of(s);
	const struct flow *f = &s->flow;
	__u32 len = s->packet.payload + HEADERS_DIFFER, length = bpf_ntohs(was->quoted.tot_len);
	__sum16 check = was->icmp.checksum;

	if (length < sizeof(was->quoted) || (was->quoted.frag_off & bpf_htons(IP_FRAGMENT)))
		return REASON_UNSUPPORTED;
	is->icmp = was->icmp;
	if (!kind_to_6(&is->icmp, length))
		return REASON_UNSUPPORTED;
	is->ip.version_class_flow = bpf_htonl(0x60000000 | (__u32)was->ip.tos << 20);
	is->ip.payload_len = bpf_htons(len);
	is->ip.nexthdr = IPPROTO_ICMPV6;
	is->ip.hop_limit = 64;
	is->ip.saddr = f->saddr;
	is->ip.daddr = f->daddr;
	is->quoted.version_class_flow = bpf_htonl(0x60000000 | (__u32)was->quoted.tos << 20);
	is->quoted.payload_len = bpf_htons(length - sizeof(was->quoted));
	is->quoted.nexthdr = was->quoted.protocol;
	is->quoted.hop_limit = was->quoted.ttl;
	is->quoted.saddr = f->daddr;
	is->quoted.daddr = f->saddr;
	was->icmp.checksum = is->icmp.checksum = 0;
	sum += csum_pseudo6(&f->saddr, &f->daddr, len);
	sum = csum_fold(bpf_csum_diff((__be32 *)&was->icmp, sizeof(was->icmp) + sizeof(was->quoted),
				      (__be32 *)&is->icmp, sizeof(is->icmp) + sizeof(is->quoted), sum));
	is->icmp.checksum = csum_apply(check, sum);
	return 0;
}

/* The other way. */
static __always_inline int headers_to_4(struct scratch *s, __u32 sum)
{
	struct error6 *was = error6_of(s);
	struct error4 *is = error4_of(s);
	const struct packet *p = &s->packet;
	const struct flow *f = &s->flow;
	__u32 length = bpf_ntohs(was->quoted.payload_len) + sizeof(is->quoted);
	__sum16 check = was->icmp.checksum;

	if (length > 65535)
		return REASON_UNSUPPORTED;
	__builtin_memset(is, 0, sizeof(*is));
	is->icmp = was->icmp;
	if (!kind_to_4(&is->icmp))
		return REASON_UNSUPPORTED;
	is->ip.version_ihl = is->quoted.version_ihl = 0x45;
	is->ip.frag_off = is->quoted.frag_off = bpf_htons(0x4000);
	is->ip.tos = bpf_ntohl(was->ip.version_class_flow) >> 20;
	is->ip.tot_len = bpf_htons(sizeof(is->ip) + p->payload - HEADERS_DIFFER);
	is->ip.ttl = 64;
	is->ip.protocol = IPPROTO_ICMP;
	is->ip.saddr = f->saddr.w[3];
	is->ip.daddr = f->daddr.w[3];
	is->ip.check = ~csum_fold(bpf_csum_diff(0, 0, (__be32 *)&is->ip, sizeof(is->ip), 0));
	is->quoted.tos = bpf_ntohl(was->quoted.version_class_flow) >> 20;
	is->quoted.tot_len = bpf_htons(length);
	is->quoted.ttl = was->quoted.hop_limit;
	is->quoted.protocol = was->quoted.nexthdr;
	is->quoted.saddr = f->daddr.w[3];
	is->quoted.daddr = f->saddr.w[3];
	is->quoted.check = ~csum_fold(bpf_csum_diff(0, 0, (__be32 *)&is->quoted, sizeof(is->quoted), 0));
	was->icmp.checksum = is->icmp.checksum = 0;
	sum += (__u16)~csum_pseudo6(&p->saddr, &p->daddr, p->payload);
	sum = csum_fold(bpf_csum_diff((__be32 *)&was->icmp, sizeof(was->icmp) + sizeof(was->quoted),
				      (__be32 *)&is->icmp, sizeof(is->icmp) + sizeof(is->quoted), sum));
	is->icmp.checksum = csum_apply(check, sum);
	return 0;
}

/* Makes the error in s->packet one of the other family, s->flow being its way: to who sent
 * the quoted packet, from whom that was for. quoted is the length of the quoted IP header,
 * sum what the checksum changes by behind it. Returns a reason. */
__noinline int change_error(struct __sk_buff *skb, struct scratch *s, __u32 quoted, __u32 sum)
{
	__u32 to4, header;
	__be16 proto;
	int err;

	if (!s)
		return REASON_ERROR;
	if (s->tuple.proto != IPPROTO_TCP && s->tuple.proto != IPPROTO_UDP)
		return REASON_UNSUPPORTED;
	to4 = s->flow.flags & FLOW_TO_IPV4;
	header = to4 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	/* As in deliver(): options, extension headers and fragments have no counterpart. */
	if (s->packet.more || s->packet.l4 != ETH_HLEN + header || quoted != header)
		return REASON_UNSUPPORTED;
	if (to4)
		err = bpf_skb_load_bytes(skb, ETH_HLEN, error6_of(s), sizeof(struct error6));
	else
		err = bpf_skb_load_bytes(skb, ETH_HLEN, error4_of(s), sizeof(struct error4));
	if (err)
		return REASON_MALFORMED;
	err = to4 ? headers_to_4(s, sum) : headers_to_6(s, sum);
	if (err)
		return err;
	proto = to4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	if (bpf_skb_change_proto(skb, proto, 0) ||
	    bpf_skb_adjust_room(skb, to4 ? -(int)HEADERS_DIFFER : HEADERS_DIFFER, BPF_ADJ_ROOM_MAC, 0) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN - 2, &proto, sizeof(proto), 0))
		return REASON_ERROR;
	bpf_csum_update(skb, sum); /* what restore_quote() wrote */
	if (to4)
		err = bpf_skb_store_bytes(skb, ETH_HLEN, error4_of(s), sizeof(struct error4), BPF_F_RECOMPUTE_CSUM);
	else
		err = bpf_skb_store_bytes(skb, ETH_HLEN, error6_of(s), sizeof(struct error6), BPF_F_RECOMPUTE_CSUM);
	return err ? REASON_ERROR : 0;
}

#endif
