/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The fast path: one lookup, a rewrite, a redirect. MISS hands the packet to the
 * slow path, which knows everything this does not: options, extension headers,
 * fragments, half-open flows, SYN, FIN and RST, packets that are too long or too old.
 */
#ifndef BPFNET_FAST_H
#define BPFNET_FAST_H

#include "deliver.h"

/* What a hook knows of its packets beyond the tuple. */
enum hook {
	HOOK_UPLINK,
	HOOK_TUNNEL,			/* an uplink without a link-layer header */
	HOOK_ENDPOINT,			/* the source MAC must be the endpoint's */
	HOOK_BRIDGE,
	HOOK_LO,
};

static __always_inline __u32 l2_of(enum hook hook)
{
	return hook == HOOK_TUNNEL ? 0 : ETH_HLEN;
}

static __always_inline bool flow_usable(struct __sk_buff *skb, struct ethhdr *eth, struct flow *f,
					enum hook hook, __u8 ttl, __u32 l4_end)
{
	struct clock *c = clock();
	__u32 tick = c ? c->tick : 0;

	if (flow_stale(f, c) || flow_idle(f, tick) || f->state != FLOW_ESTABLISHED)
		return false;
	if (f->flags & (FLOW_TO_IPV4 | FLOW_TO_IPV6))
		return false;
	if ((f->flags & FLOW_TTL) && ttl <= 1)
		return false;
	if (too_big(skb, l2_of(hook), l4_end, f->mtu))
		return false;
	if (hook == HOOK_ENDPOINT && !mac_equal(eth->src, f->sender))
		return false;
	if (f->seen != tick)
		f->seen = tick;
	f->packets++;
	f->bytes += skb->len;
	return true;
}

static __always_inline int fast4(struct __sk_buff *skb, __u32 zone, enum hook hook)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct iphdr *ip = data + l2_of(hook);
	void *l4 = data + l2_of(hook) + sizeof(*ip);
	struct key4 key = { .zone = zone };
	__u32 l4_end;
	struct flow *f;

	if (l4 + sizeof(struct udphdr) > end)
		return MISS;
	if (ip->version_ihl != 0x45 || (ip->frag_off & bpf_htons(IP_FRAGMENT)))
		return MISS;
	if (ip->protocol == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || (tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST)))
			return MISS;
		l4_end = l2_of(hook) + sizeof(*ip) + (tcp->doff >> 4) * 4;
		key.sport = tcp->source;
		key.dport = tcp->dest;
	} else if (ip->protocol == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		l4_end = l2_of(hook) + sizeof(*ip) + sizeof(*udp);
		key.sport = udp->source;
		key.dport = udp->dest;
	} else {
		return MISS;
	}
	key.saddr = ip->saddr;
	key.daddr = ip->daddr;
	key.proto = ip->protocol;
	f = bpf_map_lookup_elem(&flows4, &key);
	if (!f || !flow_usable(skb, eth, f, hook, ip->ttl, l4_end))
		return MISS;
	if (f->verdict == VERDICT_STACK)
		return PASS;
	if (!rewrite4(skb, ip, l4, end, f))
		return MISS;
	return hook == HOOK_TUNNEL ? send_headless(skb, f, 4) : send(skb, eth, f, 4);
}

static __always_inline int fast6(struct __sk_buff *skb, __u32 zone, enum hook hook)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;
	struct ipv6hdr *ip = data + l2_of(hook);
	void *l4 = data + l2_of(hook) + sizeof(*ip);
	struct key6 key = { .zone = zone };
	__u32 l4_end;
	struct flow *f;

	if (l4 + sizeof(struct udphdr) > end)
		return MISS;
	if (ip->nexthdr == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > end || (tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST)))
			return MISS;
		l4_end = l2_of(hook) + sizeof(*ip) + (tcp->doff >> 4) * 4;
		key.sport = tcp->source;
		key.dport = tcp->dest;
	} else if (ip->nexthdr == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		l4_end = l2_of(hook) + sizeof(*ip) + sizeof(*udp);
		key.sport = udp->source;
		key.dport = udp->dest;
	} else {
		return MISS;
	}
	key.saddr = ip->saddr;
	key.daddr = ip->daddr;
	key.proto = ip->nexthdr;
	f = bpf_map_lookup_elem(&flows6, &key);
	if (!f || !flow_usable(skb, eth, f, hook, ip->hop_limit, l4_end))
		return MISS;
	if (f->verdict == VERDICT_STACK)
		return PASS;
	if (!rewrite6(skb, ip, l4, end, ip->nexthdr, f))
		return MISS;
	return hook == HOOK_TUNNEL ? send_headless(skb, f, 6) : send(skb, eth, f, 6);
}

static __always_inline int fast(struct __sk_buff *skb, __u32 zone, enum hook hook)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	/* Some drivers leave the headers in a page. */
	if (data + l2_of(hook) + sizeof(struct iphdr) + sizeof(struct tcphdr) > end && end - data < skb->len)
		bpf_skb_pull_data(skb, skb->len < 74 ? skb->len : 74);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return fast4(skb, zone, hook);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return fast6(skb, zone, hook);
	return MISS;
}

#endif
