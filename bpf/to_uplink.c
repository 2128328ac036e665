// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC egress of every uplink: host to world. The last place where a container's
 * packet that from_endpoint did not pass can be stopped; and where the host's own
 * UDP from a published port is remembered, so that the answers stay the host's.
 */
#include "lib/slow.h"

static __noinline int to_uplink_slow(struct __sk_buff *skb)
{
	struct scratch *s;

	int err = start(skb, &s, ZONE_WORLD);

	if (!s || !s->packet.family)
		return PASS;
	if (skb->ingress_ifindex) {
		if (network_of(&s->packet.saddr) && !host_addr(&s->packet.saddr))
			return drop(skb, REASON_BYPASS);
		return PASS;
	}
	if (!err && s->packet.kind == PACKET_FLOW && s->packet.proto != IPPROTO_TCP)
		remember_local(s);
	return PASS;
}

SEC("tc")
int to_uplink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ipv6hdr *v6 = data + ETH_HLEN;
	struct iphdr *v4 = data + ETH_HLEN;

	if (skb->mark == MARK_PASSED && skb->ingress_ifindex) {
		skb->mark = 0;
		return PASS;
	}
	/* Of the host's own only UDP and ICMP matter. */
	if (!skb->ingress_ifindex) {
		if (skb->protocol == bpf_htons(ETH_P_IP) && (void *)(v4 + 1) <= end &&
		    v4->protocol == IPPROTO_TCP)
			return PASS;
		if (skb->protocol == bpf_htons(ETH_P_IPV6) && (void *)(v6 + 1) <= end &&
		    v6->nexthdr == IPPROTO_TCP)
			return PASS;
	}
	return to_uplink_slow(skb);
}
