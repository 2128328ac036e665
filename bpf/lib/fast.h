/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The fast path: one lookup, a rewrite, a redirect. What it leaves goes to the
 * slow path, which knows everything this does not: options, extension headers,
 * fragments, half-open flows, SYN, FIN and RST, packets that are too long or too old.
 */
#ifndef BPFNET_FAST_H
#define BPFNET_FAST_H

#include "deliver.h"
#include "hook.h"

/* Of a plain TCP or UDP header the checksum field; NULL: not for the fast path. The
 * first 8 bytes are known to lie before end. */
static __always_inline __u16 *plain_transport(void *l4, void *end, __u8 proto)
{
	struct udphdr *udp = l4;
	struct tcphdr *tcp = l4;

	if (proto == IPPROTO_TCP)
		return (void *)(tcp + 1) > end || (tcp->flags & (TCP_SYN | TCP_FIN | TCP_RST)) ? NULL : &tcp->check;
	return proto == IPPROTO_UDP ? &udp->check : NULL;
}

/* Longer than mtu, and no GSO packet of segments that are not: l3 and l4 are offsets.
 * It looks at the packet anew, so that nothing has to be kept for it. */
static __always_inline bool fast_too_big(struct __sk_buff *skb, __u32 l3, __u32 l4, __u8 proto, __u32 mtu)
{
	struct tcphdr *tcp;

	if (likely(skb->len - l3 <= mtu))
		return false;
	if (proto != IPPROTO_TCP)
		return too_big(skb, l3, l4 - l3 + sizeof(struct udphdr), mtu);
	tcp = (void *)(long)skb->data + l4;
	return (void *)(tcp + 1) > (void *)(long)skb->data_end ||
	       too_big(skb, l3, l4 - l3 + (tcp->doff >> 4) * 4, mtu);
}

/* Not zero where they differ; without a branch. */
static __always_inline __u64 addr_differs(const struct addr *a, const struct addr *b)
{
	return (((dword *)a)[0] ^ ((dword *)b)[0]) | (((dword *)a)[1] ^ ((dword *)b)[1]);
}

/* verdict, state, flags and kind as one word: established, and of one family. Ports
 * are moved as one, too. */
_Static_assert(__builtin_offsetof(struct flow, kind) == __builtin_offsetof(struct flow, verdict) + 3 &&
	       __builtin_offsetof(struct flow, dport) == __builtin_offsetof(struct flow, sport) + 2, "neighbours");
#define PLAIN_MASK bpf_htonl(0x00ff0000 | (FLOW_TO_IPV4 | FLOW_TO_IPV6) << 8)
#define PLAIN bpf_htonl(FLOW_ESTABLISHED << 16)

static __always_inline bool flow_usable(struct __sk_buff *skb, struct ethhdr *eth, struct flow *f, enum hook hook,
					const __u8 *ttl)
{
	struct clock *c = clock();
	__u32 tick;

	/* What an old epoch means the slow path finds out. */
	if (unlikely(!c || f->epoch != *(volatile __u32 *)&c->epoch))
		return false;
	tick = c->tick;
	if (unlikely(flow_idle(f, tick) || (*(word *)&f->verdict & PLAIN_MASK) != PLAIN))
		return false;
	if (unlikely(*ttl <= 1) && (f->flags & FLOW_TTL))
		return false;
	if (hook == HOOK_ENDPOINT && (*(half *)((void *)eth + 6) != *(half *)f->sender ||
				      *(word *)((void *)eth + 8) != *(word *)(f->sender + 2)))
		return false;
	if (f->seen != tick)
		f->seen = tick;
	f->packets++;
	f->bytes += skb->len;
	return true;
}

/* Was the entry used again while it was read? Another CPU may delete it, and give its memory to
 * another flow at once, while this one waits, as a virtual one may at any place: then what was
 * read of it means nothing. The next one has the same two ports once in tens of thousands. */
static __always_inline bool reused(const struct flow *f, __u32 ports)
{
	barrier();
	return *(const volatile word *)&f->tuple.sport != ports;
}

/* As sum_misplaced, of a packet that is all that the fast path asks for, and by one field instead
 * of two pointers: the kernel has set it on the way in. headers is the length of the IP header. */
static __always_inline bool sum_elsewhere(struct __sk_buff *skb, __u32 headers, __u8 proto)
{
	__u16 check = proto == IPPROTO_TCP ? __builtin_offsetof(struct tcphdr, check) : __builtin_offsetof(struct udphdr, check);
	struct sk_buff *kernel;

	if (bpf_cast_to_kern_ctx) {
		kernel = bpf_cast_to_kern_ctx(skb);
		return kernel->csum_start != kernel->network_header + headers || kernel->csum_offset != check;
	}
	kernel = (struct sk_buff *)skb;
	return BPF_CORE_READ(kernel, csum_start) != BPF_CORE_READ(kernel, network_header) + headers ||
	       BPF_CORE_READ(kernel, csum_offset) != check;
}

static __always_inline bool fast4(struct __sk_buff *skb, void *data, void *end, __u32 zone, enum hook hook,
				   int *verdict)
{
	struct ethhdr *eth = data;
	struct iphdr *ip = data + l2_of(hook);
	void *l4 = data + l2_of(hook) + sizeof(*ip);
	__u32 ports, kind;
	__u16 *check;
	struct flow *f;
	__u8 summed;
	__u64 key;

	touch(&flows4);
	if (unlikely(l4 + sizeof(struct udphdr) > end))
		return false;
	if (unlikely(ip->version_ihl != 0x45 || (ip->frag_off & bpf_htons(IP_FRAGMENT))))
		return false;
	check = plain_transport(l4, end, ip->protocol);
	if (!check)
		return false;
	ports = *(word *)l4;
	kind = ip->protocol | 4 << 8;
	key = digest4(ip->saddr, ip->daddr, ports, zone, kind);
	f = bpf_map_lookup_elem(&flows4, &key);
	if (!f)
		return false;
	if (unlikely((f->tuple.saddr.w[3] ^ ip->saddr) | (f->tuple.daddr.w[3] ^ ip->daddr) |
		     (*(word *)&f->tuple.sport ^ ports) | (f->tuple.zone ^ zone) | (*(half *)&f->tuple.proto ^ kind)))
		return false;
	if (fast_too_big(skb, l2_of(hook), l2_of(hook) + sizeof(*ip), kind, f->mtu))
		return false;
	summed = ip_summed(skb);
	if (summed == CHECKSUM_PARTIAL && unlikely(sum_elsewhere(skb, sizeof(*ip), ip->protocol)))
		return false;
	if (!flow_usable(skb, eth, f, hook, &ip->ttl))
		return false;
	*verdict = PASS;
	if (f->verdict == VERDICT_STACK)
		return true;
	*(word *)l4 = *(word *)&f->sport;
	fix_transport(skb, check, ip->protocol == IPPROTO_UDP, 4, summed, f);
	fix4(ip, f);
	*verdict = hook == HOOK_TUNNEL ? send_headless(skb, f, 4) : send(skb, eth, f, 4);
	if (unlikely(reused(f, ports)))
		*verdict = drop(skb, REASON_NO_FLOW);
	return true;
}

static __always_inline bool fast6(struct __sk_buff *skb, void *data, void *end, __u32 zone, enum hook hook,
				   int *verdict)
{
	struct ethhdr *eth = data;
	struct ipv6hdr *ip = data + l2_of(hook);
	void *l4 = data + l2_of(hook) + sizeof(*ip);
	__u32 ports, kind;
	__u16 *check;
	struct flow *f;
	__u64 key;
	__u8 summed;

	touch(&flows6);
	if (unlikely(l4 + sizeof(struct udphdr) > end))
		return false;
	check = plain_transport(l4, end, ip->nexthdr);
	if (!check)
		return false;
	ports = *(word *)l4;
	kind = ip->nexthdr | 6 << 8;
	key = digest6(&ip->saddr, &ip->daddr, ports, zone, kind);
	f = bpf_map_lookup_elem(&flows6, &key);
	if (!f)
		return false;
	if (unlikely(addr_differs(&f->tuple.saddr, &ip->saddr) | addr_differs(&f->tuple.daddr, &ip->daddr) |
		     (*(word *)&f->tuple.sport ^ ports) | (f->tuple.zone ^ zone) | (*(half *)&f->tuple.proto ^ kind)))
		return false;
	if (fast_too_big(skb, l2_of(hook), l2_of(hook) + sizeof(*ip), kind, f->mtu))
		return false;
	summed = ip_summed(skb);
	if (summed == CHECKSUM_PARTIAL && unlikely(sum_elsewhere(skb, sizeof(*ip), ip->nexthdr)))
		return false;
	if (!flow_usable(skb, eth, f, hook, &ip->hop_limit))
		return false;
	*verdict = PASS;
	if (f->verdict == VERDICT_STACK)
		return true;
	*(word *)l4 = *(word *)&f->sport;
	fix_transport(skb, check, ip->nexthdr == IPPROTO_UDP, 6, summed, f);
	fix6(skb, ip, summed, f);
	*verdict = hook == HOOK_TUNNEL ? send_headless(skb, f, 6) : send(skb, eth, f, 6);
	if (unlikely(reused(f, ports)))
		*verdict = drop(skb, REASON_NO_FLOW);
	return true;
}

/* False: not done, for the slow path. (One result for both would have to be looked at
 * again after the redirect.) */
static __always_inline bool fast(struct __sk_buff *skb, __u32 zone, enum hook hook, int *verdict)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	/* Some drivers leave the headers in a page. SCTP's pieces must stay as they are: its
	 * receivers expect whole ones behind a common header. */
	if (unlikely(data + l2_of(hook) + sizeof(struct iphdr) + sizeof(struct tcphdr) > end)) {
		if (end - data < skb->len && skb->gso_size != GSO_BY_FRAGS)
			bpf_skb_pull_data(skb, skb->len < 74 ? skb->len : 74);
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
	}
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return fast4(skb, data, end, zone, hook, verdict);
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return fast6(skb, data, end, zone, hook, verdict);
	return false;
}

#endif
