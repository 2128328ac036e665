// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC ingress of lo: the host's own connections to a published port, on any of its
 * addresses. The container sees its gateway as the source; the answer comes
 * back to lo by redirect.
 */
#include "lib/related.h"

#define LOOPBACK6 bpf_htonl(1)

static __always_inline bool is_loopback6(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2]) && a->w[3] == LOOPBACK6;
}

/* Returns a reason, or MISS: it is not for us. */
static __noinline int decide_local(struct __sk_buff *skb, struct scratch *s, __u32 rule, __u32 family)
{
	struct packet *p = &s->packet;
	struct endpoint *e;
	struct network *n;
	__u32 id;
	int err;

	begin(s, FLOW_PUBLISHED, family != p->family ? FLOW_TO_IPV4 : 0);
	if (family != p->family)
		s->reply.flags = FLOW_REPLY | FLOW_TO_IPV6;
	err = aim_publication(s, rule, family, VERDICT_PEER);
	if (err)
		return err;
	s->reply.verdict = VERDICT_LO;
	s->reply.ifindex = ZONE_LO;
	id = s->flow.dst.id;
	e = bpf_map_lookup_elem(&endpoints, &id);
	id = e ? e->network : 0;
	n = bpf_map_lookup_elem(&networks, &id);
	if (!n)
		return REASON_NO_ENDPOINT;
	s->flow.saddr = family == 4 ? n->gateway4 : n->gateway6;
	/* A child answers an address that the host has on its link, or nobody: then the host
	 * refuses, as where nothing is published. */
	if (addr_zero(&s->flow.saddr))
		return child(s->flow.dst.id) ? MISS : REASON_NO_ROUTE;
	/* lo carries 64 KiB, and so does redirect_peer: segments of TCP fit anyway
	 * (the handshake told both sides), and datagrams are the receiver's to judge. */
	s->flow.mtu = s->reply.mtu = 65535;
	return enter_with_port(skb, s, s->flow.dst.id, 0);
}

__noinline int from_lo_slow(struct __sk_buff *skb)
{
	struct scratch *s;
	struct packet *p;
	__u32 rule, family;
	int err;

	err = start(skb, &s, ZONE_LO, ETH_HLEN);
	if (!s || err)
		return PASS;
	p = &s->packet;
	/* What a container answered. */
	if (p->src_mac[0] == LO_MARK)
		return PASS;
	if (p->kind == PACKET_ICMP) {
		err = related(skb, s);
		return err != MISS ? err : PASS;
	}
	if (p->kind != PACKET_FLOW)
		return PASS;
	if (p->proto != IPPROTO_TCP && p->proto != IPPROTO_UDP && p->proto != IPPROTO_SCTP)
		return PASS;
	err = known(skb, s);
	if (err != MISS)
		return err;
	if (addr_multicast(&p->daddr) || (p->family == 4 && p->daddr.w[3] == 0xffffffff) || !opens(p))
		return PASS;
	family = p->family;
	rule = publication(&p->daddr, p->dport, p->proto, family, 1);
	if (!rule && is_loopback6(&p->daddr)) {
		/* In the place of a service of the host's by IPv6, where there is none. */
		family = 4;
		rule = slot_of_port(4, p->proto, bpf_ntohs(p->dport)) & PORT_RULE;
		if (rule && host_socket(skb, &s->tuple))
			rule = 0;
	}
	if (!rule || host_connected(skb, p)) {
		if (p->proto == IPPROTO_UDP)
			remember_local(s);
		return PASS;
	}
	err = decide_local(skb, s, rule, family);
	if (err == MISS)
		return PASS;
	return err ? drop(skb, err) : first(skb, s);
}

SEC("tc")
int from_lo(struct __sk_buff *skb)
{
	int ret;

	return fast(skb, ZONE_LO, HOOK_LO, &ret) ? ret : slow(skb, HOOK_LO, PASS);
}
