// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC egress of a network's bridge: host to container. Redirects to the veth, so
 * that neither the bridge's tables nor netfilter have a say.
 */
#include "lib/flood.h"

/* The bridge's frame for one endpoint, without a flow. */
static __always_inline int emit(struct __sk_buff *skb, __u32 id)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &id);

	if (!id || !e || !e->ifindex)
		return drop(skb, REASON_NO_ENDPOINT);
	return bpf_redirect(e->ifindex, 0);
}

__noinline int to_bridge_slow(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, number, id;
	struct device *device = bpf_map_lookup_elem(&devices, &ifindex);
	struct endpoint *e;
	struct network *n;
	struct scratch *s;
	struct packet *p;
	int err;

	if (!device || device->kind != DEVICE_BRIDGE)
		return PASS;
	number = device->id;
	n = bpf_map_lookup_elem(&networks, &number);
	err = start(skb, &s, ifindex, ETH_HLEN);
	if (!n || !s || err)
		return PASS;
	p = &s->packet;
	if (p->kind == PACKET_ARP) {
		if (bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct arp, tpa), &s->addr.w[3], 4))
			return PASS;
		addr_set4(&s->addr, s->addr.w[3]);
		return emit(skb, endpoint_of(number, &s->addr));
	}
	if (!p->family)
		return PASS;
	if (addr_multicast(&p->daddr) || (p->family == 4 && (p->daddr.w[3] == 0xffffffff ||
	    addr_equal(&p->daddr, &n->broadcast4)))) {
		/* A question about one neighbour goes to that one. */
		if (p->family == 6 && p->kind == PACKET_ICMP && p->icmp_type == ICMPV6_NS &&
		    !bpf_skb_load_bytes(skb, p->l4 + 8, &s->addr, sizeof(s->addr)))
			return emit(skb, addr_mapped(&s->addr) ? 0 : endpoint_of(number, &s->addr));
		flood_members(skb, number, 0);
		return DROP;
	}
	id = endpoint_of(number, &p->daddr);
	if (!id)
		return drop(skb, REASON_NO_ENDPOINT);
	err = p->kind == PACKET_ICMP ? related(skb, s) : known(skb, s);
	if (err != MISS)
		return err;
	if (p->kind != PACKET_FLOW)
		return emit(skb, id);
	begin(s, FLOW_HOST, FLOW_OPTIONAL);
	err = aim(s, id, VERDICT_EGRESS);
	if (err)
		return drop(skb, err);
	refer_rule(&s->flow.rule, number);
	s->reply.verdict = VERDICT_HOST;
	s->reply.ifindex = ifindex;
	e = bpf_map_lookup_elem(&endpoints, &id);
	mac_copy(s->reply.macs, n->mac);
	if (e)
		mac_copy(s->reply.macs + 6, e->mac);
	err = enter_keeping_port(skb, s, id);
	return err ? drop(skb, err) : first(skb, s);
}

SEC("tc")
int to_bridge(struct __sk_buff *skb)
{
	int ret;

	/* Forwarded by the kernel from another device: nobody reaches a container so. */
	if (skb->ingress_ifindex)
		return drop(skb, REASON_DIRECT_ACCESS);
	return fast(skb, skb->ifindex, HOOK_BRIDGE, &ret) ? ret : slow(skb, HOOK_BRIDGE, DROP);
}
