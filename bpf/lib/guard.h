/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a container may say about itself, and ask about others: ARP (RFC 826,
 * 5227), neighbour discovery (RFC 4861, 4862), DHCP. Nothing that a neighbour or
 * the host would believe passes unless it is true.
 */
#ifndef BPFNET_GUARD_H
#define BPFNET_GUARD_H

#include "fragment.h"

#define ICMPV6_MLD_FIRST 130
#define ICMPV6_MLD_LAST 132
#define ICMPV6_RS 133
#define ICMPV6_RA 134
#define ICMPV6_NS 135
#define ICMPV6_NA 136
#define ICMPV6_REDIRECT 137
#define ICMPV6_MLD2 143

#define ND_OPTIONS 8			/* looked at in one message; more is refused */

/* May these two endpoints of one network know each other? Either may be the client. */
static __noinline bool linked(__u32 a, __u32 b)
{
	struct link_key key = { .client = a, .server = b };

	if (bpf_map_lookup_elem(&links, &key))
		return true;
	key.client = b;
	key.server = a;
	return bpf_map_lookup_elem(&links, &key) != NULL;
}

/* Hands a whole frame to the endpoint, without a flow. */
static __always_inline int hand_to(struct __sk_buff *skb, __u32 id)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &id);

	if (!e || !e->ifindex)
		return drop(skb, REASON_NO_ENDPOINT);
	if (skb->pkt_type == 3) /* PACKET_OTHERHOST */
		bpf_skb_change_type(skb, PACKET_HOST);
	return bpf_redirect_peer(e->ifindex, 0);
}

/* Up the host's stack: by the bridge, or where a cable without one ends already. */
static __always_inline int hand_to_host(struct __sk_buff *skb, const struct network *n)
{
	return n->bridge ? bpf_redirect(n->bridge, BPF_F_INGRESS) : PASS;
}

/* Is it an address of the host's, as n's containers see it? On a cable that ends at the
 * host nobody else is link-local. */
static __always_inline bool is_host(const struct addr *a, const struct network *n)
{
	return host_addr(a) || (n->bridge ? addr_equal(a, &n->link_local) : addr_link_local6(a));
}

/* A question or an answer about `about`, from s->endpoint: to the host, to the one
 * whose address it is, or (unsolicited) to all. */
static __noinline int neighbour(struct __sk_buff *skb, struct scratch *s, const struct addr *about)
{
	__u32 number = s->network, id;
	struct network *n = bpf_map_lookup_elem(&networks, &number);

	if (!n)
		return drop(skb, REASON_UNKNOWN_ENDPOINT);
	/* Nobody's, though it is what a network without IPv6 has for a gateway. */
	if (addr_zero(about))
		return drop(skb, REASON_NO_ENDPOINT);
	if (is_host(about, n) || addr_equal(about, &n->gateway4) || addr_equal(about, &n->gateway6))
		return hand_to_host(skb, n);
	id = endpoint_of(number, about);
	if (!id)
		return drop(skb, REASON_NO_ENDPOINT);
	if (!(n->flags & NETWORK_ICC) && !linked(s->endpoint, id))
		return drop(skb, REASON_ICC_DENIED);
	return hand_to(skb, id);
}

static __noinline int guard_arp(struct __sk_buff *skb, struct scratch *s, struct endpoint *e)
{
	struct arp arp;
	struct addr target;
	bool probe;

	if (bpf_skb_load_bytes(skb, ETH_HLEN, &arp, sizeof(arp)))
		return drop(skb, REASON_MALFORMED);
	if (arp.htype != bpf_htons(1) || arp.ptype != bpf_htons(ETH_P_IP) || arp.hlen != 6 || arp.plen != 4 ||
	    (arp.op != bpf_htons(1) && arp.op != bpf_htons(2)))
		return drop(skb, REASON_SPOOFED_ARP);
	probe = arp.op == bpf_htons(1) && !arp.spa && arp.tpa == e->ip4.w[3];
	if (!mac_equal(arp.sha, e->mac) || (!probe && (!arp.spa || arp.spa != e->ip4.w[3])))
		return drop(skb, REASON_SPOOFED_ARP);
	/* Announcements and probes ask nobody: the address is ours to give. */
	if (probe || arp.tpa == e->ip4.w[3])
		return DROP;
	addr_set4(&target, arp.tpa);
	return neighbour(skb, s, &target);
}

/* All link-layer address options of an ND message must be the endpoint's own. */
static __always_inline bool nd_options_true(struct __sk_buff *skb, __u32 off, const __u8 *mac)
{
	struct {
		__u8 type;
		__u8 len;
		__u8 mac[6];
	} opt;
	int i;

	for (i = 0; i < ND_OPTIONS; i++) {
		if (off >= skb->len)
			return true;
		if (bpf_skb_load_bytes(skb, off, &opt, sizeof(opt)) || !opt.len)
			return false;
		if ((opt.type == 1 || opt.type == 2) && (opt.len != 1 || !mac_equal(opt.mac, mac)))
			return false;
		off += opt.len * 8;
	}
	return off >= skb->len;
}

static __noinline int guard_nd(struct __sk_buff *skb, struct scratch *s, struct endpoint *e)
{
	struct packet *p = &s->packet;
	struct addr target;
	__u32 number = s->network;
	struct network *n = bpf_map_lookup_elem(&networks, &number);
	bool own;

	if (!n)
		return drop(skb, REASON_UNKNOWN_ENDPOINT);
	switch (p->icmp_type) {
	case ICMPV6_RA:
	case ICMPV6_REDIRECT:
		return drop(skb, REASON_SPOOFED_RA);
	case ICMPV6_RS:
		if (!nd_options_true(skb, p->l4 + 8, e->mac))
			return drop(skb, REASON_SPOOFED_ND);
		return hand_to_host(skb, n);
	case ICMPV6_NS:
	case ICMPV6_NA:
		break;
	default:
		return MISS;
	}
	if (bpf_skb_load_bytes(skb, p->l4 + 8, &target, sizeof(target)))
		return drop(skb, REASON_MALFORMED);
	if (!nd_options_true(skb, p->l4 + 24, e->mac))
		return drop(skb, REASON_SPOOFED_ND);
	own = (!addr_zero(&e->ip6) && addr_equal(&target, &e->ip6)) || addr_equal(&target, &e->link_local);
	if (p->icmp_type == ICMPV6_NA) {
		if (!own)
			return drop(skb, REASON_SPOOFED_ND);
		if (addr_multicast(&p->daddr))
			return DROP;
		return neighbour(skb, s, &p->daddr);
	}
	/* Duplicate address detection asks nobody: the address is ours to give. */
	if (own)
		return DROP;
	if (addr_unspecified(&p->saddr))
		return drop(skb, REASON_SPOOFED_ND);
	if (addr_mapped(&target))
		return drop(skb, REASON_NO_ENDPOINT);
	return neighbour(skb, s, &target);
}

/* Is the IP source the endpoint's own? Returns a reason. */
static __always_inline int guard_source(const struct packet *p, const struct endpoint *e)
{
	if (p->family == 4) {
		if (!addr_zero(&e->ip4) && addr_equal(&p->saddr, &e->ip4))
			return 0;
		/* A DHCP client that has no address yet (RFC 2131 section 4.1). */
		if (addr_unspecified(&p->saddr) && p->proto == IPPROTO_UDP && p->kind == PACKET_FLOW &&
		    p->sport == bpf_htons(68) && p->dport == bpf_htons(67) &&
		    p->daddr.w[3] == 0xffffffff)
			return 0;
		return REASON_SPOOFED_IPV4;
	}
	if (addr_equal(&p->saddr, &e->link_local) || (!addr_zero(&e->ip6) && addr_equal(&p->saddr, &e->ip6)))
		return 0;
	if (addr_unspecified(&p->saddr) && p->kind == PACKET_ICMP &&
	    (p->icmp_type == ICMPV6_NS || p->icmp_type == ICMPV6_RS || p->icmp_type == ICMPV6_MLD2 ||
	     (p->icmp_type >= ICMPV6_MLD_FIRST && p->icmp_type <= ICMPV6_MLD_LAST)))
		return 0;
	return REASON_SPOOFED_IPV6;
}

/* Answers of a DHCP server (RFC 2131, 8415). Clients look at their own port only. */
static __always_inline bool dhcp_server(const struct packet *p)
{
	if (p->proto != IPPROTO_UDP || (p->kind == PACKET_FRAGMENT && p->frag_off))
		return false;
	return p->dport == bpf_htons(p->family == 4 ? 68 : 546);
}

#endif
