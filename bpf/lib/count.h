/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Drops with their reason, and event counters. */
#ifndef BPFNET_COUNT_H
#define BPFNET_COUNT_H

#include "maps.h"

/* What a TC program returns; TCX and clsact agree on the numbers
 * (include/uapi/linux/bpf.h enum tcx_action_base, pkt_cls.h TC_ACT_*). */
#define PASS (-1)			/* TCX_NEXT: others on the hook may look */
#define DROP 2
#define REDIRECT 7
#define MISS (-2)			/* ours: not decided yet */

/* A call, as each lookup is a place that the kernel rewrites when it loads a program; global,
 * so that it is verified once. */
__noinline int count(enum counter what)
{
	__u32 key = what;
	__u64 *value = bpf_map_lookup_elem(&counters, &key);

	if (value)
		*value += 1;
	return 0;
}

__noinline int drop(struct __sk_buff *skb, __u32 reason)
{
	struct drop_key key = { .ifindex = skb->ifindex, .reason = reason };
	__u64 *value = bpf_map_lookup_elem(&drops, &key), one = 1;

	if (value)
		*value += 1;
	else
		bpf_map_update_elem(&drops, &key, &one, BPF_ANY);
	return DROP;
}

#endif
