/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Carrying out what a flow entry says: rewrite in place, then redirect. Used by
 * the fast path with constant offsets, and by the slow path for first packets.
 */
#ifndef BPFNET_DELIVER_H
#define BPFNET_DELIVER_H

#include "csum.h"
#include "flow.h"

/* skb->mark of what from_endpoint has passed, as far as the host's last device. The
 * kernel clears marks when a packet enters or leaves a network namespace, so no
 * container can forge it. */
#define MARK_PASSED 0x62706e66

#define PACKET_HOST 0			/* include/uapi/linux/if_packet.h */
#define AF_INET 2
#define AF_INET6 10

/* Source MAC of what comes back to lo from a container: lo's own packets have
 * zeroes there. */
#define LO_MARK 0x02

static __always_inline __u8 ip_summed(struct __sk_buff *skb)
{
	if (bpf_cast_to_kern_ctx) {
		struct sk_buff *kernel = bpf_cast_to_kern_ctx(skb);

		return BPF_CORE_READ_BITFIELD(kernel, ip_summed);
	}
	/* Before 6.2. The verifier translates accesses to the context, not the
	 * pointer: a helper that takes any address gets the kernel's sk_buff. */
	return BPF_CORE_READ_BITFIELD_PROBED((struct sk_buff *)skb, ip_summed);
}

/* Of a CHECKSUM_PARTIAL packet: is the field that a device will fill another one than that of the
 * header at offset l4? Who sends by a packet socket names it (PACKET_VNET_HDR), and the kernel
 * looks only that it lies in the packet: it could be half of an address that has been checked.
 * An inner header's, of a tunnel, is behind what we look at: inner says that it may be. */
static __always_inline bool sum_misplaced(struct __sk_buff *skb, __u32 l4, __u8 proto, bool inner)
{
	unsigned char *head, *data;
	__u16 start, offset;
	__u32 at;

	if (bpf_cast_to_kern_ctx) {
		struct sk_buff *kernel = bpf_cast_to_kern_ctx(skb);

		start = kernel->csum_start;
		offset = kernel->csum_offset;
		head = kernel->head;
		data = kernel->data;
	} else {
		struct sk_buff *kernel = (struct sk_buff *)skb;

		start = BPF_CORE_READ(kernel, csum_start);
		offset = BPF_CORE_READ(kernel, csum_offset);
		head = BPF_CORE_READ(kernel, head);
		data = BPF_CORE_READ(kernel, data);
	}
	at = start - (__u32)((__u64)data - (__u64)head);
	if (at != l4)
		return inner ? (__s32)(at - l4) < 8 : true;
	switch (proto) {
	case IPPROTO_TCP:
		return offset != __builtin_offsetof(struct tcphdr, check);
	case IPPROTO_UDP:
		return offset != __builtin_offsetof(struct udphdr, check);
	case IPPROTO_SCTP:
		return offset != 8;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return offset != __builtin_offsetof(struct icmphdr, checksum);
	default:
		return false; /* nothing of it is looked at */
	}
}

/* Is the packet too long for the way out? A GSO packet counts as its segments, which
 * have headers bytes from the IP header on before their payload. */
static __always_inline bool too_big(struct __sk_buff *skb, __u32 l2, __u32 headers, __u32 mtu)
{
	if (skb->len - l2 <= mtu)
		return false;
	if (!skb->gso_size)
		return true;
	return headers + skb->gso_size > mtu;
}

/* The checksum of a TCP or UDP header, or an ICMPv6 query's, whose ports f has set. */
static __always_inline void fix_transport(struct __sk_buff *skb, __u16 *check, bool udp, __u8 family, __u8 summed,
					  const struct flow *f)
{
	__u32 delta = (__u32)f->addr_delta + f->port_delta;

	if (summed == CHECKSUM_PARTIAL) {
		/* The field holds the pseudo header's sum, not complemented, or 0 for none. */
		if (!udp || *check)
			*check = csum_fold((__u32)*check + f->addr_delta);
		return;
	}
	if (udp && !*check) {
		/* None. In IPv6 no header's checksum makes up for the addresses. */
		if (summed == CHECKSUM_COMPLETE)
			bpf_csum_update(skb, family == 4 ? f->port_delta : csum_fold(delta));
		return;
	}
	*check = csum_apply(*check, delta);
	if (udp && !*check)
		*check = 0xffff;
	if (summed == CHECKSUM_COMPLETE && family == 4)
		bpf_csum_update(skb, (__u16)~f->addr_delta);
}

static __always_inline void fix4(struct iphdr *ip, const struct flow *f)
{
	if (f->flags & FLOW_TTL)
		ip->ttl--;
	ip->check = csum_apply(ip->check, f->ip_delta);
	ip->saddr = f->saddr.w[3];
	ip->daddr = f->daddr.w[3];
}

static __always_inline void fix6(struct __sk_buff *skb, struct ipv6hdr *ip, __u8 summed, const struct flow *f)
{
	if (f->flags & FLOW_TTL) {
		ip->hop_limit--;
		if (summed == CHECKSUM_COMPLETE)
			bpf_csum_update(skb, (__u16)~bpf_htons(1));
	}
	addr_copy(&ip->saddr, &f->saddr);
	addr_copy(&ip->daddr, &f->daddr);
}

/* How the checksum of the header at l4 has to be changed: an inner header's is to be filled in,
 * and the outer one's is complete, but for what cuts a GSO packet into segments. */
static __noinline __u32 summed_at(struct __sk_buff *skb, __u32 l4, __u32 proto)
{
	__u32 summed = ip_summed(skb);

	if (summed == CHECKSUM_PARTIAL && !skb->gso_size && sum_misplaced(skb, l4, proto, false))
		return CHECKSUM_NONE;
	return summed;
}

/* Puts the new ports or query id, and the checksum that fits, into the transport
 * header at l4, of any protocol. False when it does not lie before end. */
static __always_inline bool rewrite_transport(struct __sk_buff *skb, void *l4, void *end, __u8 proto,
					      __u8 family, __u8 summed, const struct flow *f)
{
	struct icmphdr *icmp = l4;
	struct tcphdr *tcp = l4;
	struct udphdr *udp = l4;
	__u16 *check = &udp->check;

	if (proto == IPPROTO_SCTP) {
		/* Ports are kept, and the checksum is not of the addresses. */
		if (summed == CHECKSUM_COMPLETE && family == 6)
			bpf_csum_update(skb, f->addr_delta);
		return true;
	}
	if (proto == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > end)
			return false;
		check = &tcp->check;
	} else if ((void *)(udp + 1) > end) {
		return false;
	}
	if (proto == IPPROTO_TCP || proto == IPPROTO_UDP) {
		*(word *)l4 = *(word *)&f->sport;
	} else {
		icmp->id = f->sport | f->dport;
		check = &icmp->checksum;
		if (family == 4) {
			icmp->checksum = csum_apply(icmp->checksum, f->port_delta);
			return true;
		}
	}
	fix_transport(skb, check, proto == IPPROTO_UDP, family, summed, f);
	return true;
}

/* Sends a rewritten packet on its way; eth is its link-layer header. */
static __always_inline int send(struct __sk_buff *skb, struct ethhdr *eth, const struct flow *f, __u8 family)
{
	struct {
		__u32 pad;		/* so that addresses are aligned */
		struct bpf_redir_neigh to;
	} next __attribute__((aligned(8)));

	switch (f->verdict) {
	case VERDICT_PEER:
		macs_copy(eth, f->macs);
		/* Taken from another container it is PACKET_OTHERHOST, and stays so on older kernels. */
		if (skb->pkt_type != PACKET_HOST)
			bpf_skb_change_type(skb, PACKET_HOST);
		return bpf_redirect_peer(f->ifindex, 0);
	case VERDICT_UPLINK:
		/* IPv4 may go by an IPv6 router (RFC 8950). */
		if (addr_mapped(&f->nexthop)) {
			next.to.nh_family = AF_INET;
			((dword *)next.to.ipv6_nh)[0] = f->nexthop.w[3];
			((dword *)next.to.ipv6_nh)[1] = 0;
		} else {
			next.to.nh_family = AF_INET6;
			addr_copy((void *)next.to.ipv6_nh, &f->nexthop);
		}
		skb->mark = MARK_PASSED;
		return bpf_redirect_neigh(f->ifindex, &next.to, sizeof(next.to), 0);
	case VERDICT_EGRESS:
		macs_copy(eth, f->macs);
		return bpf_redirect(f->ifindex, 0);
	case VERDICT_HOST:
		macs_copy(eth, f->macs);
		return bpf_redirect(f->ifindex, BPF_F_INGRESS);
	case VERDICT_LO:
		__builtin_memset(eth, 0, 12);
		eth->src[0] = LO_MARK;
		return bpf_redirect(f->ifindex, BPF_F_INGRESS);
	default:
		return PASS;
	}
}

/* The same from a device without a link-layer header. In the container packet sockets
 * expect one, and the way out of an uplink makes its own. */
static __always_inline int send_headless(struct __sk_buff *skb, const struct flow *f, __u8 family)
{
	struct ethhdr *eth;

	if (f->verdict == VERDICT_STACK)
		return PASS;
	if (f->verdict != VERDICT_PEER)
		return drop(skb, REASON_ERROR);
	if (bpf_skb_change_head(skb, ETH_HLEN, 0))
		return drop(skb, REASON_ERROR);
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return drop(skb, REASON_ERROR);
	macs_copy(eth, f->macs);
	eth->proto = family == 4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	return bpf_redirect_peer(f->ifindex, 0);
}

/* [::1] to an IPv4-only container and back: the packet changes its family, and
 * can be sent. Not 0: it was dropped. Checksums: RFC 7915 section 4.4 and 5.4; the
 * pseudo header's length and protocol words are equal in both families. Every word
 * on this stack counts: it is the deepest of all, and 6.1 rounds frames up to 32. */
static __noinline int change_family(struct __sk_buff *skb, struct flow *f, __u32 proto)
{
	union {
		struct iphdr v4;
		struct ipv6hdr v6;
	} ip;
	__u32 to4 = f->flags & FLOW_TO_IPV4, len, l4;
	__be16 was[2], field;
	__u64 udp = proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;

	l4 = to4 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	if (proto != IPPROTO_TCP && proto != IPPROTO_UDP)
		return drop(skb, REASON_UNSUPPORTED);
	if (bpf_skb_load_bytes(skb, ETH_HLEN + l4, was, 4))
		return drop(skb, REASON_MALFORMED);
	/* Padding of a short frame is not of the packet. */
	if (bpf_skb_load_bytes(skb, ETH_HLEN + (to4 ? 4 : 2), &field, 2))
		return drop(skb, REASON_MALFORMED);
	len = bpf_ntohs(field) + (to4 ? sizeof(struct ipv6hdr) : 0);
	if (!skb->gso_size && skb->len > ETH_HLEN + len && bpf_skb_change_tail(skb, ETH_HLEN + len, 0))
		return drop(skb, REASON_ERROR);
	len = skb->len - ETH_HLEN;
	/* IPv6 has no datagram without a checksum, and making one takes all of it. */
	if (!to4 && udp && (bpf_skb_load_bytes(skb, ETH_HLEN + l4 + 6, &field, 2) || !field))
		return drop(skb, REASON_UNSUPPORTED);
	__builtin_memset(&ip, 0, sizeof(ip));
	if (bpf_skb_change_proto(skb, to4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6), 0))
		return drop(skb, REASON_ERROR);
	field = to4 ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	if (bpf_skb_store_bytes(skb, ETH_HLEN - 2, &field, 2, 0))
		return drop(skb, REASON_ERROR);
	if (to4) {
		ip.v4.version_ihl = 0x45;
		ip.v4.ttl = 64;
		ip.v4.frag_off = bpf_htons(0x4000);
		ip.v4.protocol = proto;
		ip.v4.tot_len = bpf_htons(len - sizeof(struct ipv6hdr) + sizeof(struct iphdr));
		ip.v4.saddr = f->saddr.w[3];
		ip.v4.daddr = f->daddr.w[3];
		ip.v4.check = ~csum_fold(bpf_csum_diff(0, 0, (__be32 *)&ip.v4, sizeof(ip.v4), 0));
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip.v4), 0))
			return drop(skb, REASON_ERROR);
		l4 = ETH_HLEN + sizeof(struct iphdr);
	} else {
		ip.v6.version_class_flow = bpf_htonl(0x60000000);
		ip.v6.payload_len = bpf_htons(len - sizeof(struct iphdr));
		ip.v6.nexthdr = proto;
		ip.v6.hop_limit = 64;
		ip.v6.saddr = f->saddr;
		ip.v6.daddr = f->daddr;
		if (bpf_skb_store_bytes(skb, ETH_HLEN, &ip, sizeof(ip.v6), 0))
			return drop(skb, REASON_ERROR);
		l4 = ETH_HLEN + sizeof(struct ipv6hdr);
	}
	__u32 check = l4 + (proto == IPPROTO_TCP ? 16 : 6);

	bpf_l4_csum_replace(skb, check, 0, f->addr_delta, BPF_F_PSEUDO_HDR | udp);
	if (was[0] != f->sport)
		bpf_l4_csum_replace(skb, check, was[0], f->sport, 2 | udp);
	if (was[1] != f->dport)
		bpf_l4_csum_replace(skb, check, was[1], f->dport, 2 | udp);
	was[0] = f->sport;
	was[1] = f->dport;
	if (bpf_skb_store_bytes(skb, l4, was, 4, 0))
		return drop(skb, REASON_ERROR);
	return 0;
}

/* Sends a packet on its way that has been rewritten by offset. */
static __always_inline int dispatch(struct __sk_buff *skb, const struct flow *f, const struct packet *p)
{
	void *data, *end;

	if (!p->l2)
		return send_headless(skb, f, p->family);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + ETH_HLEN > end)
		return drop(skb, REASON_MALFORMED);
	return send(skb, data, f, p->family);
}

/* The slow path's way out: any header length. */
static __noinline int deliver(struct __sk_buff *skb, struct flow *f, const struct packet *p)
{
	__u32 l2 = p->l2 ? ETH_HLEN : 0, l4 = p->l4, family = p->family;
	__u8 proto = p->proto, summed;
	void *data, *end;
	int verdict;

	if (f->verdict == VERDICT_STACK)
		return PASS;
	if (f->flags & (FLOW_TO_IPV4 | FLOW_TO_IPV6)) {
		/* Options, extension headers and fragments have no counterpart. */
		if (!l2 || p->more || l4 != ETH_HLEN + (family == 4 ? sizeof(struct iphdr) : sizeof(struct ipv6hdr)))
			return drop(skb, REASON_UNSUPPORTED);
		verdict = change_family(skb, f, proto);
		if (verdict)
			return verdict;
		data = (void *)(long)skb->data;
		if (data + ETH_HLEN > (void *)(long)skb->data_end)
			return drop(skb, REASON_ERROR);
		return send(skb, data, f, f->flags & FLOW_TO_IPV4 ? 4 : 6);
	}
	if (l4 > 255)
		return drop(skb, REASON_UNSUPPORTED);
	if (bpf_skb_pull_data(skb, l4 + (proto == IPPROTO_TCP ? 20 : 8)))
		return drop(skb, REASON_MALFORMED);
	summed = summed_at(skb, l4, proto);
	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	l4 &= 0xff;
	if (family == 4) {
		struct iphdr *ip = data + l2;

		if ((void *)(ip + 1) > end || !rewrite_transport(skb, data + l4, end, proto, 4, summed, f))
			return drop(skb, REASON_MALFORMED);
		fix4(ip, f);
	} else {
		struct ipv6hdr *ip = data + l2;

		if ((void *)(ip + 1) > end || !rewrite_transport(skb, data + l4, end, proto, 6, summed, f))
			return drop(skb, REASON_MALFORMED);
		fix6(skb, ip, summed, f);
	}
	return dispatch(skb, f, p);
}

#endif
