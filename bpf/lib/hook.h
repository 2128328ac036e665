/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A hook's program is its fast path. All that is slow is one program for all hooks
 * (slow_path.c), which they end in by a tail call: what hooks have in common is
 * verified, translated and kept once, and not in each of them.
 */
#ifndef BPFNET_HOOK_H
#define BPFNET_HOOK_H

#include "count.h"

/* What fast paths know of their packets beyond the tuple, and which slow path it is. */
enum hook {
	HOOK_UPLINK,
	HOOK_TUNNEL,			/* an uplink without a link-layer header */
	HOOK_ENDPOINT,			/* the source MAC must be the endpoint's */
	HOOK_BRIDGE,
	HOOK_LO,
	HOOK_TO_UPLINK,
	HOOK_TO_TUNNEL,
	HOOK_TO_PARENT,			/* its fast path is as an endpoint's */
};

static __always_inline __u32 l2_of(enum hook hook)
{
	return hook == HOOK_TUNNEL || hook == HOOK_TO_TUNNEL ? 0 : ETH_HLEN;
}

int slow_path(struct __sk_buff *skb);

/* Holds slow_path while this table is pinned. Each load of the programs has one
 * of its own. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__array(values, int(struct __sk_buff *));
} slow_paths SEC(".maps") = { .values = { [0] = slow_path } };

/* Goes on in slow_path. If somebody has removed the pin there is none: then otherwise, PASS
 * for what may be the host's, DROP, counted, for what may be a container's. */
static __always_inline int slow(struct __sk_buff *skb, enum hook hook, int otherwise)
{
	skb->cb[0] = hook;
	bpf_tail_call(skb, &slow_paths, 0);
	return otherwise == DROP ? drop(skb, REASON_ERROR) : otherwise;
}

#endif
