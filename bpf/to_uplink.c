// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC egress of every uplink: host to world. The last place where a container's
 * packet that from_endpoint did not pass can be stopped; and where the host's own
 * UDP from a published port is remembered, so that the answers stay the host's; and
 * where the answers of the device's macvlan children are caught.
 */
#include "lib/fragment.h"

__noinline int to_uplink_slow(struct __sk_buff *skb, __u32 l2)
{
	struct scratch *s;

	int err = start(skb, &s, ZONE_WORLD, l2);

	if (!s || !s->packet.family)
		return PASS;
	/* What the kernel forwards for others in the host's name is as the host's own. */
	if (skb->ingress_ifindex && !host_addr(&s->packet.saddr))
		return network_of(&s->packet.saddr) ? drop(skb, REASON_BYPASS) : PASS;
	if (s->packet.kind == PACKET_FRAGMENT && !s->packet.frag_off)
		s->packet.kind = s->packet.whole;
	if (!err && s->packet.kind == PACKET_FLOW && s->packet.proto != IPPROTO_TCP)
		remember_local(s);
	return PASS;
}

/* Nothing that to_uplink_slow would want to see. */
static __always_inline bool passes(struct __sk_buff *skb, __u32 l2)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *v6 = data + l2;
	struct iphdr *v4 = data + l2;

	if (skb->ingress_ifindex) {
		if (skb->mark != MARK_PASSED)
			return false;
		/* An Ethernet device may send by another uplink (VLAN, macvlan), whose
		 * to_uplink has to know, too. A tunnel sends packets of the host's own. */
		if (!l2)
			skb->mark = 0;
		return true;
	}
	/* Of the host's own only UDP and ICMP matter. */
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return (void *)(v4 + 1) <= end && v4->protocol == IPPROTO_TCP;
	return skb->protocol == bpf_htons(ETH_P_IPV6) && (void *)(v6 + 1) <= end && v6->nexthdr == IPPROTO_TCP;
}

/* Without the slow path the host's own passes, and nothing else. */
static __always_inline int to_world(struct __sk_buff *skb, enum hook hook)
{
	return passes(skb, l2_of(hook)) ? PASS : slow(skb, hook, skb->ingress_ifindex ? DROP : PASS);
}

SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	return to_world(skb, HOOK_TO_UPLINK);
}

/* to_uplink for a device without a link-layer header. */
SEC("tc")
int to_tunnel(struct __sk_buff *skb)
{
	return to_world(skb, HOOK_TO_TUNNEL);
}

/* Of a published port of a child's: an answer, or an error about it. MISS: neither. */
static __noinline int from_child(struct __sk_buff *skb)
{
	struct assembly *a;
	struct scratch *s;
	struct packet *p;
	bool fragmented;
	struct flow *f;
	int err;

	err = start(skb, &s, skb->ifindex, ETH_HLEN);
	if (!s || err || foreign_sum(skb, &s->packet))
		return MISS;
	p = &s->packet;
	if (p->kind == PACKET_FRAGMENT && p->frag_off) {
		/* None comes before the first: they are of a stack of this machine. */
		a = assembly(p);
		return followed(p) && a && datagram(a) ? later_fragment(skb, s, PASS) : MISS;
	}
	fragmented = p->kind == PACKET_FRAGMENT;
	if (fragmented)
		p->kind = p->whole;
	if (p->kind == PACKET_ICMP)
		return related(skb, s);
	if (p->kind != PACKET_FLOW)
		return MISS;
	tuple_of(&s->tuple, p);
	f = find(&s->tuple);
	if (!f || !mac_equal(p->src_mac, f->sender))
		return MISS;
	err = known(skb, s);
	if (!fragmented || err == MISS)
		return err;
	/* Translated is not the host's, though it passes. */
	return first_fragment(skb, s, err == PASS ? REDIRECT : err) == DROP ? DROP : err;
}

/* In place of to_uplink, where published ports lead to the device's macvlan children. */
SEC("tc")
int to_parent(struct __sk_buff *skb)
{
	int ret;

	if (fast(skb, skb->ifindex, HOOK_ENDPOINT, &ret))
		return ret;
	return slow(skb, HOOK_TO_PARENT, skb->ingress_ifindex ? DROP : PASS);
}

__noinline int to_parent_slow(struct __sk_buff *skb)
{
	int ret = from_child(skb);

	if (ret != MISS)
		return ret;
	return passes(skb, ETH_HLEN) ? PASS : to_uplink_slow(skb, ETH_HLEN);
}
