/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Datagrams in fragments that are under way: which of their bytes have come, and what
 * became of the first fragment.
 */
#ifndef BPFNET_DATAGRAM_H
#define BPFNET_DATAGRAM_H

#include "related.h"

#define MAX_DATAGRAMS 4096		/* that are under way */
#define MAX_PARKED 1024			/* fragments that came before their first */
#define PARKED_BYTES 2048		/* of one; a longer one is not kept */
#define PIECES 64			/* fragments of one datagram: 64 KiB at IPv6's least MTU take 54 */
#define FRAGMENT_TICKS 30		/* net/ipv4/ip_fragment.c, IP_FRAG_TIME */

/* RFC 791 section 3.2, RFC 8200 section 4.5. */
struct datagram_key {
	struct addr saddr;
	struct addr daddr;
	__u32 id;
	__u32 zone;
	__u8 proto;			/* IPv6: 0, a later fragment may show another one */
	__u8 family;
	__u8 pad[2];
};

enum datagram_state {
	DATAGRAM_EARLY = 0,		/* no first fragment yet, */
	DATAGRAM_UNFIT,			/* and those that came do not make one datagram that we could follow */
	DATAGRAM_FLOW,			/* the others follow the flow of tuple */
	DATAGRAM_HOST,			/* the host's, or of no flow: they go the way of the first */
	DATAGRAM_DROPPED,		/* as the first was */
};

struct piece {
	__u16 start;			/* bytes of the whole, */
	__u16 end;			/* not included */
};

struct datagram {
	struct tuple tuple;
	__u32 tick;			/* of its first packet */
	__u32 state;			/* enum datagram_state */
	__u16 total;			/* bytes, once the last fragment came */
	__u16 got;			/* bytes */
	__u8 count;			/* of pieces */
	__u8 pad[3];
	struct piece pieces[PIECES];
};

struct parked_key {
	struct datagram_key datagram;
	__u32 start;
};

struct parked {
	__u32 len;			/* from the IP header on */
	__u8 bytes[PARKED_BYTES];
};

/* Full: the longest unused goes, and its datagram with it. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_DATAGRAMS);
	__type(key, struct datagram_key);
	__type(value, struct datagram);
} datagrams SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_PARKED);
	__type(key, struct parked_key);
	__type(value, struct parked);
} parked_fragments SEC(".maps");

/* What the work on one fragment needs beside the scratch. */
struct assembly {
	struct parked_key key;
	struct datagram datagram;
	struct parked parked;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct assembly);
} assemblies SEC(".maps");

/* Whether the fragments of p's protocol are followed: others stay on their network.
 * IPv6's later ones need not show it. */
static __always_inline bool followed(const struct packet *p)
{
	return p->family == 6 || p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP || p->proto == IPPROTO_ICMP ||
	       p->proto == IPPROTO_SCTP;
}

static __always_inline struct assembly *assembly(const struct packet *p)
{
	__u32 zero = 0;
	struct assembly *a = bpf_map_lookup_elem(&assemblies, &zero);
	struct datagram_key *key;

	if (!a)
		return NULL;
	key = &a->key.datagram;
	key->saddr = p->saddr;
	key->daddr = p->daddr;
	key->id = p->id;
	key->zone = p->zone;
	key->proto = p->family == 4 ? p->proto : 0;
	key->family = p->family;
	key->pad[0] = key->pad[1] = 0;
	a->key.start = p->frag_off;
	return a;
}

/* The datagram of a fragment, if it is known and its time is not over. */
static __always_inline struct datagram *datagram(struct assembly *a)
{
	struct datagram *d = bpf_map_lookup_elem(&datagrams, &a->key.datagram);

	if (!d || now() - d->tick <= FRAGMENT_TICKS)
		return d;
	bpf_map_delete_elem(&datagrams, &a->key.datagram);
	return NULL;
}

enum recorded {
	RECORDED = 0,
	RECORDED_LAST,			/* nothing is missing any more */
	RECORDED_AGAIN,			/* the very piece was there */
	RECORDED_NEVER,			/* overlaps another, or lies behind the end */
};

struct comparison {
	struct datagram *d;
	struct piece piece;
	bool last;			/* nothing lies behind it */
	enum recorded result;
};

static long compare_piece(__u32 i, struct comparison *c)
{
	struct piece piece;

	if (i >= PIECES)
		return 1;
	piece = c->d->pieces[i];
	if (piece.start == c->piece.start && piece.end == c->piece.end)
		c->result = RECORDED_AGAIN;
	else if (c->piece.start < piece.end && (c->last || c->piece.end > piece.start))
		c->result = RECORDED_NEVER;
	return c->result == RECORDED_NEVER;
}

/* Notes that p has come. */
static __noinline enum recorded record(struct datagram *d, const struct packet *p)
{
	struct comparison c = { .d = d, .piece = { .start = p->frag_off, .end = p->frag_off + p->payload },
				.last = !p->more };
	__u32 n = d->count;

	bpf_loop(n, compare_piece, &c, 0);
	if (c.result != RECORDED)
		return c.result;
	if (n >= PIECES || (d->total && (c.piece.end > d->total || !p->more)))
		return RECORDED_NEVER;
	if (!p->more)
		d->total = c.piece.end;
	asm volatile("" : "+r"(n)); /* the verifier knows the bound by the mask, which clang would drop */
	d->pieces[n & (PIECES - 1)] = c.piece;
	d->count = n + 1;
	d->got += p->payload;
	if (d->total && d->got > d->total)
		return RECORDED_NEVER;
	return d->total && d->got == d->total ? RECORDED_LAST : RECORDED;
}

#endif
