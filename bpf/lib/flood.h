/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Broadcast and multicast: a copy for each member of the network. */
#ifndef BPFNET_FLOOD_H
#define BPFNET_FLOOD_H

#include "guard.h"

struct flood {
	struct __sk_buff *skb;
	__u32 network;
	__u32 except;			/* endpoint that sends; 0: the host */
};

static long flood_one(__u32 i, struct flood *flood)
{
	struct member_key key = { .network = flood->network, .index = i };
	__u32 *id = bpf_map_lookup_elem(&members, &key), slot;
	struct endpoint *e;

	if (!id)
		return 0;
	slot = *id;
	e = bpf_map_lookup_elem(&endpoints, &slot);
	if (!e || !e->ifindex || slot == flood->except)
		return 0;
	bpf_clone_redirect(flood->skb, e->ifindex, 0);
	return 0;
}

static __noinline void flood_members(struct __sk_buff *skb, __u32 network, __u32 except)
{
	struct network *n = bpf_map_lookup_elem(&networks, &network);
	struct flood flood = { .skb = skb, .network = network, .except = except };
	__u32 size = n ? n->members : 0;

	if (size > MAX_MEMBERS)
		size = MAX_MEMBERS;
	skb->mark = MARK_PASSED;
	bpf_loop(size, flood_one, &flood, 0);
	skb->mark = 0;
	count(COUNTER_FLOODED);
}

#endif
