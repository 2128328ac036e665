/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a router says when it cannot forward: time exceeded, fragmentation
 * needed, packet too big (RFC 792, 1191, 4443). Built out of the offending
 * packet, which is cut to its headers, and sent back where it came from.
 */
#ifndef BPFNET_ICMP_H
#define BPFNET_ICMP_H

#include "deliver.h"

#define ICMP_DEST_UNREACH 3
#define ICMP_FRAG_NEEDED 4
#define ICMP_TIME_EXCEEDED 11
#define ICMPV6_PACKET_TOO_BIG 2
#define ICMPV6_TIME_EXCEEDED 3

/* The quoted header and what of its transport a TCP checksum offload needs to
 * stay in the packet (net/core/filter.c, __bpf_skb_min_len). */
#define QUOTE 48
#define QUOTE_MAX 80			/* an IPv4 header with all its options, and TCP's */

/* Errors sent in this tick of 2^30 ns. */
struct limit {
	__u32 tick;
	__u32 sent;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct limit);
} icmp_limit SEC(".maps");

static __always_inline bool icmp_allowed(void)
{
	__u32 zero = 0, tick = now();
	struct limit *l = bpf_map_lookup_elem(&icmp_limit, &zero);
	struct config *c = config();

	if (!l || !c)
		return false;
	if (l->tick != tick) {
		l->tick = tick;
		l->sent = 0;
	}
	if (l->sent >= c->icmp_rate)
		return false;
	l->sent++;
	return true;
}

struct icmp_error4 {
	struct iphdr ip;
	struct icmphdr icmp;
};

struct icmp_error6 {
	struct ipv6hdr ip;
	struct icmphdr icmp;
};

/* Turns the packet into an error about itself. from is our address in it. */
static __always_inline int icmp_build4(struct __sk_buff *skb, const struct packet *p, __be32 from,
				       __u8 type, __u8 code, __u16 mtu, __u8 *quote)
{
	struct icmp_error4 h = {};
	__u32 l2 = p->l2, header = p->l4 - l2, quote_len = header + 20 > QUOTE ? header + 20 : QUOTE;
	__s64 sum;

	if (skb->len < l2 + quote_len)
		quote_len = header + 8;
	if (quote_len < 28 || quote_len > QUOTE_MAX)
		return REASON_ERROR;
	if (skb->len > l2 + quote_len && bpf_skb_change_tail(skb, l2 + quote_len, 0))
		return REASON_ERROR;
	if (bpf_skb_adjust_room(skb, sizeof(h), BPF_ADJ_ROOM_MAC, 0))
		return REASON_ERROR;
	h.ip.version_ihl = 0x45;
	h.ip.ttl = 64;
	h.ip.protocol = IPPROTO_ICMP;
	h.ip.tot_len = bpf_htons(sizeof(h) + quote_len);
	h.ip.saddr = from;
	h.ip.daddr = p->saddr.w[3];
	h.ip.check = ~csum_fold(bpf_csum_diff(0, 0, (__be32 *)&h.ip, sizeof(h.ip), 0));
	h.icmp.type = type;
	h.icmp.code = code;
	h.icmp.sequence = bpf_htons(mtu);
	sum = bpf_csum_diff(0, 0, (__be32 *)&h.icmp, sizeof(h.icmp), 0);
	if (bpf_skb_load_bytes(skb, l2 + sizeof(h), quote, quote_len))
		return REASON_ERROR;
	sum = bpf_csum_diff(0, 0, (__be32 *)quote, quote_len, sum);
	h.icmp.checksum = ~csum_fold(sum);
	if (bpf_skb_store_bytes(skb, l2, &h, sizeof(h), 0))
		return REASON_ERROR;
	return 0;
}

static __always_inline int icmp_build6(struct __sk_buff *skb, const struct packet *p,
				       const struct addr *from, __u8 type, __u8 code, __u32 mtu, __u8 *quote)
{
	struct icmp_error6 h = {};
	__u32 l2 = p->l2, keep = l2 + sizeof(struct ipv6hdr) + 32, len;
	__s64 sum;

	if (skb->len < keep)
		keep = l2 + sizeof(struct ipv6hdr) + 8;
	if (skb->len > keep && bpf_skb_change_tail(skb, keep, 0))
		return REASON_ERROR;
	len = sizeof(h.icmp) + keep - l2;
	if (bpf_skb_adjust_room(skb, sizeof(h), BPF_ADJ_ROOM_MAC, 0))
		return REASON_ERROR;
	h.ip.version_class_flow = bpf_htonl(0x60000000);
	h.ip.payload_len = bpf_htons(len);
	h.ip.nexthdr = IPPROTO_ICMPV6;
	h.ip.hop_limit = 64;
	h.ip.saddr = *from;
	h.ip.daddr = p->saddr;
	h.icmp.type = type;
	h.icmp.code = code;
	h.icmp.id = bpf_htons(mtu >> 16);
	h.icmp.sequence = bpf_htons(mtu);
	/* The pseudo header, RFC 8200 section 8.1. */
	sum = csum_addr(from) + csum_addr(&p->saddr) + bpf_htons(len) + bpf_htons(IPPROTO_ICMPV6);
	sum = bpf_csum_diff(0, 0, (__be32 *)&h.icmp, sizeof(h.icmp), sum);
	if (keep == l2 + sizeof(struct ipv6hdr) + 32) {
		if (bpf_skb_load_bytes(skb, l2 + sizeof(h), quote, 72))
			return REASON_ERROR;
		sum = bpf_csum_diff(0, 0, (__be32 *)quote, 72, sum);
	} else {
		if (bpf_skb_load_bytes(skb, l2 + sizeof(h), quote, 48))
			return REASON_ERROR;
		sum = bpf_csum_diff(0, 0, (__be32 *)quote, 48, sum);
	}
	h.icmp.checksum = ~csum_fold(sum);
	if (bpf_skb_store_bytes(skb, l2, &h, sizeof(h), 0))
		return REASON_ERROR;
	return 0;
}

/* RFC 1122 section 3.2.2: no error about an error, a group or nobody; we speak
 * only of flows, which have none of these. s->packet is the packet, s->addr
 * the address we speak from. The packet goes back out of the device it came in by. */
__noinline int icmp_error(struct __sk_buff *skb, struct scratch *s, __u32 reason, __u32 mtu)
{
	bool big = reason == REASON_TOO_BIG;
	__u32 ifindex = skb->ifindex;
	struct ethhdr *eth;
	void *data, *end;
	struct packet *p;
	int err;

	if (!s)
		return DROP;
	p = &s->packet;
	drop(skb, reason);
	/* As the kernel (net/ipv4/icmp.c, net/ipv6/icmp.c): without these a transfer stalls, and
	 * each is smaller than what asked for it. */
	if (!big && !icmp_allowed()) {
		count(COUNTER_ICMP_LIMITED);
		return DROP;
	}
	if (p->family == 4)
		err = icmp_build4(skb, p, s->addr.w[3], big ? ICMP_DEST_UNREACH : ICMP_TIME_EXCEEDED,
				  big ? ICMP_FRAG_NEEDED : 0, mtu, s->bytes);
	else
		err = icmp_build6(skb, p, &s->addr, big ? ICMPV6_PACKET_TOO_BIG : ICMPV6_TIME_EXCEEDED, 0,
				  mtu, s->bytes);
	if (err)
		return drop(skb, err);
	if (p->l2) {
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + sizeof(*eth) > end)
			return DROP;
		eth = data;
		mac_copy(eth->dst, p->src_mac);
		mac_copy(eth->src, p->dst_mac);
	}
	p->refused = 1;
	count(COUNTER_ICMP_SENT);
	if (s->endpoint) {
		bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(ifindex, 0);
	}
	/* From the host itself, on its way to a container. */
	if (p->zone != ZONE_WORLD)
		return bpf_redirect(ifindex, BPF_F_INGRESS);
	skb->mark = MARK_PASSED;
	return bpf_redirect(ifindex, 0);
}

#endif
