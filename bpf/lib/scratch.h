/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a slow path works on, the configuration, and the time. */
#ifndef BPFNET_SCRATCH_H
#define BPFNET_SCRATCH_H

#include "maps.h"
#include "packet.h"

/* Who looks for a port of the host's, and for which destination: see port.h. */
struct search_key {
	struct addr saddr;
	struct addr daddr;
	__be16 dport;
	__u8 proto;
	__u8 pad;
};

struct search {
	__u32 next;			/* index in the pool */
	__u32 none;			/* tick in which none of many was free */
};

/* The choice of a port under way. Here and not on the stack, where the verifier would
 * follow each value of each field through the loop. */
struct choice {
	__u32 owner;
	__u32 size;			/* of the pool */
	__u32 start;			/* index in it */
	__u32 turn;
	__u32 probes;			/* ports looked up */
	__u32 result;			/* a reason */
	__be16 first;			/* tried before all others; 0: none */
	__u8 world;
	__u8 exclusive;			/* a UDP socket's: among the random ones, not another's */
};

/* What a slow path works on. One per CPU: TC programs run with bottom halves off. */
struct scratch {
	struct packet packet;
	struct tuple tuple;		/* of packet */
	struct tuple twin;		/* of the other direction */
	struct tuple ended;		/* of a flow whose port is taken; the stack is full there */
	struct flow flow;		/* being made */
	struct flow reply;
	__u32 tick;			/* now */
	__u32 epoch;			/* from before anything was looked up */
	__u8 contained;			/* comes out of a container */
	__u8 asked;			/* known() has looked for its flow */
	__u32 endpoint;			/* that container, or 0 */
	__u32 network;			/* its network, where something is decided, or 0 */
	struct choice choice;
	struct search_key search;
	struct search searched;
	struct addr addr;		/* looked up, or spoken from */
	__u8 bytes[136];		/* quoted in an ICMP error; or its headers in both families */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct scratch);
} scratches SEC(".maps");

static __always_inline struct scratch *scratch(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&scratches, &zero);
}

static __always_inline struct config *config(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline struct clock *clock(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&clocks, &zero);
}

/* The tick, for who may take his time; keeps the clock. */
__noinline __u32 now(void)
{
	__u32 tick = bpf_ktime_get_coarse_ns() >> 30;
	struct clock *c = clock();

	if (c && c->tick != tick)
		c->tick = tick;
	return tick;
}

#endif
