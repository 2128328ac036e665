// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Gives back the memory of flows that have timed out, without a process: a timer
 * walks the list of established flows, some slots a tick. Run once by the loader
 * to arm it; an armed timer lives as long as its map is pinned.
 */
#include "lib/port.h"

#define SWEEP_AGAIN 4			/* no timer yet: loader/sweep.go */
#define SWEEP_SLOTS 1024		/* a tick: about 100 µs of one softirq */
#define CLOCK_MONOTONIC 1

/* A flow that has no way now may have one again. */
static __always_inline bool flow_lives(struct flow *f)
{
	int err = flow_stale(f, clock());

	return !err || err == REASON_NO_ROUTE;
}

/* A UDP flow of masquerade keeps its socket's port from being another's. t is the
 * initiator's tuple: of the container, or of the world. */
static __noinline void mapping_touch(const struct tuple *t, const struct flow *f)
{
	bool out = t->zone != ZONE_WORLD;
	struct outer outer = { .addr = out ? f->saddr : t->daddr, .port = out ? f->sport : t->dport };
	struct owner *o = bpf_map_lookup_elem(&mapping_owners, &outer);
	struct mapping *m;

	if (!o)
		return;
	if ((__s32)(f->seen - o->seen) > 0)
		o->seen = f->seen;
	m = bpf_map_lookup_elem(&mappings, &o->inner);
	if (m && (__s32)(f->seen - m->seen) > 0)
		m->seen = f->seen;
}

struct walk {
	__u32 cursor;
	__u32 size;
	__u32 tick;
};

/* Looks at one slot. Global, so that the verifier sees it once and not per turn. */
__noinline int sweep_one(__u32 index, __u32 tick)
{
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);
	struct tuple t, twin;
	struct flow *f, *other;
	__u64 key;
	__u32 word;

	if (!slot)
		return 0;
	word = slot->family;
	if (!(word & SLOT_FAMILY))
		return 0;
	key = slot->digest;
	f = (word & SLOT_FAMILY) == 4 ? bpf_map_lookup_elem(&flows4, &key) : bpf_map_lookup_elem(&flows6, &key);
	if (!f || f->slot != index) {
		/* Deleted from outside (flush), or about to be entered: seen twice, it is gone. */
		if (slot->missing)
			slot_free(index, word);
		else
			slot->missing = 1;
		return 0;
	}
	t = f->tuple;
	twin_of(&twin, &t, f);
	other = find_established(&twin);
	if (flow_lives(f) && (!other || flow_lives(other)) &&
	    (!flow_idle(f, tick) || (other && !flow_idle(other, tick)))) {
		if (f->kind == FLOW_MASQUERADE && t.proto == IPPROTO_UDP)
			mapping_touch(&t, f);
		return 0;
	}
	flow_unlist(&t, f, &twin);
	count(COUNTER_FLOW_EXPIRED);
	return 1;
}

static long sweep_slot(__u32 n, struct walk *walk)
{
	sweep_one(walk->cursor, walk->tick);
	walk->cursor = walk->cursor + 1 < walk->size ? walk->cursor + 1 : 0;
	return 0;
}

static int sweep_tick(void *map, __u32 *key, struct sweeper *sweeper)
{
	struct config *c = config();
	struct walk walk = { .cursor = sweeper->cursor, .tick = now() };
	__u32 n;

	if (!c)
		return 0;
	walk.size = sweeper->fresh < c->slots ? sweeper->fresh : c->slots;
	if (walk.cursor >= walk.size)
		walk.cursor = 0;
	n = walk.size < SWEEP_SLOTS ? walk.size : SWEEP_SLOTS;
	bpf_loop(n, sweep_slot, &walk, 0);
	sweeper->cursor = walk.cursor;
	sweeper->last = walk.tick;
	count(COUNTER_SWEEP_TICKS);
	bpf_timer_start(&sweeper->timer, (__u64)(c->sweep_ms ? c->sweep_ms : 100) * 1000000, 0);
	return 0;
}

SEC("tc")
int sweep(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &zero);

	if (!sweeper)
		return 1;
	/* Armed before by an older program: only the callback is replaced. Linux
	 * 6.18 allocates it without waiting for a lock (kmalloc_nolock), and so may fail. */
	if (bpf_timer_init(&sweeper->timer, &sweepers, CLOCK_MONOTONIC) == -12 /* ENOMEM */)
		return SWEEP_AGAIN;
	if (bpf_timer_set_callback(&sweeper->timer, sweep_tick))
		return 2;
	sweeper->armed = 1;
	return bpf_timer_start(&sweeper->timer, 0, 0) ? 3 : 0;
}
