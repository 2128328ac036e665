/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The tables of flows, family-blind: by tuples. A flow of another tuple that has the same
 * digest is in its way as if it had the tuple, and never found by it. Only deleting does not
 * look at the tuple: what is deleted has just been found, or is the other direction of that.
 */
#ifndef BPFNET_TABLE_H
#define BPFNET_TABLE_H

#include "digest.h"

struct bpf_htab {			/* kernel/bpf/hashtab.c */
	__u32 n_buckets;
} __attribute__((preserve_access_index));

/* A lookup waits for memory three times, for the table, the bucket and the entry, one after
 * the other. Only the first is where it always is: asked for early, it comes while other
 * things are done. */
static __always_inline void touch(const void *map)
{
	const struct bpf_htab *table = map;
	__u32 n = table->n_buckets;

	asm volatile("" : : "r"(n));
}

static __always_inline bool tuple_equal(const struct tuple *a, const struct tuple *b)
{
	return addr_equal(&a->saddr, &b->saddr) && addr_equal(&a->daddr, &b->daddr) && a->sport == b->sport &&
	       a->dport == b->dport && a->zone == b->zone && a->proto == b->proto && a->family == b->family;
}

static __always_inline struct flow *find_established(const struct tuple *t)
{
	__u64 key = digest(t);
	struct flow *f = t->family == 4 ? bpf_map_lookup_elem(&flows4, &key) : bpf_map_lookup_elem(&flows6, &key);

	return f && tuple_equal(&f->tuple, t) ? f : NULL;
}

static __always_inline struct flow *find_half_open(const struct tuple *t)
{
	__u64 key = digest(t);
	struct flow *f = t->family == 4 ? bpf_map_lookup_elem(&half4, &key) : bpf_map_lookup_elem(&half6, &key);

	return f && tuple_equal(&f->tuple, t) ? f : NULL;
}

/* A flow that goes to the other table is put there before it is deleted here. So one that both
 * sides have closed is found by this, while one that is promoted at this very moment, by another
 * CPU, may be missed: see find_promoted. */
static __always_inline struct flow *find(const struct tuple *t)
{
	struct flow *f = find_established(t);

	return f ? f : find_half_open(t);
}

/* After find has missed, where a flow is likely to exist: is it established by now? */
static __always_inline struct flow *find_promoted(const struct tuple *t)
{
	return find_established(t);
}

static __always_inline long put_established(const struct flow *f)
{
	__u64 key = digest(&f->tuple);

	return f->tuple.family == 4 ? bpf_map_update_elem(&flows4, &key, f, BPF_NOEXIST) :
				      bpf_map_update_elem(&flows6, &key, f, BPF_NOEXIST);
}

static __always_inline long put_half_open(const struct flow *f, __u64 flags)
{
	__u64 key = digest(&f->tuple);

	return f->tuple.family == 4 ? bpf_map_update_elem(&half4, &key, f, flags) :
				      bpf_map_update_elem(&half6, &key, f, flags);
}

static __always_inline long delete_established(const struct tuple *t)
{
	__u64 key = digest(t);

	return t->family == 4 ? bpf_map_delete_elem(&flows4, &key) : bpf_map_delete_elem(&flows6, &key);
}

static __always_inline long delete_half_open(const struct tuple *t)
{
	__u64 key = digest(t);

	return t->family == 4 ? bpf_map_delete_elem(&half4, &key) : bpf_map_delete_elem(&half6, &key);
}

static __always_inline void tuple_of(struct tuple *t, const struct packet *p)
{
	t->saddr = p->saddr;
	t->daddr = p->daddr;
	t->sport = p->sport;
	t->dport = p->dport;
	t->zone = p->zone;
	t->proto = p->proto;
	t->family = p->family;
	t->pad[0] = t->pad[1] = 0;
}

/* The tuple in which the other direction of f arrives, f's own being t. */
static __always_inline void twin_of(struct tuple *twin, const struct tuple *t, const struct flow *f)
{
	twin->saddr = f->daddr;
	twin->daddr = f->saddr;
	twin->sport = f->dport;
	twin->dport = f->sport;
	twin->zone = f->zone_twin;
	twin->proto = t->proto;
	twin->family = f->flags & FLOW_TO_IPV4 ? 4 : f->flags & FLOW_TO_IPV6 ? 6 : t->family;
	twin->pad[0] = twin->pad[1] = 0;
}

#endif
