/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Fragments. Only the first one of a datagram has the ports, so its tuple is remembered
 * under the datagram's identification, and the others follow it: they are translated one
 * by one, and put together by who receives them. One that comes before the first is kept
 * ("parked") and put back into its device's ingress behind the first.
 *
 * A datagram of which two fragments overlap is dropped from there on (RFC 5722, RFC 3128).
 * None of this touches the flow tables: a flood of fragments evicts other fragments.
 * Called by from_uplink and from_endpoint.
 */
#ifndef BPFNET_FRAGMENT_H
#define BPFNET_FRAGMENT_H

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

static __always_inline bool can_park(__u32 len)
{
	return len && len <= PARKED_BYTES;
}

/* A length for which can_park holds, so that each verifier sees it: by a mask. */
static __always_inline __u32 parked_len(__u32 len)
{
	asm volatile("" : "+r"(len));
	return ((len - 1) & (PARKED_BYTES - 1)) + 1;
}

/* Keeps the packet until the first fragment of its datagram comes. False: it cannot. */
static __noinline bool park(struct __sk_buff *skb, struct assembly *a, const struct packet *p)
{
	struct datagram *d = datagram(a);
	__u32 len = p->len;

	if (!can_park(len) || bpf_skb_load_bytes(skb, p->l2, a->parked.bytes, parked_len(len)))
		return false;
	if (!d) {
		__builtin_memset(&a->datagram, 0, sizeof(a->datagram));
		a->datagram.tick = now();
		bpf_map_update_elem(&datagrams, &a->key.datagram, &a->datagram, BPF_NOEXIST);
		d = datagram(a);
		if (!d)
			return false;
	}
	if (d->state != DATAGRAM_EARLY)
		return d->state != DATAGRAM_UNFIT; /* the first came meanwhile, on another CPU */
	if (record(d, p) == RECORDED_NEVER) {
		d->state = DATAGRAM_UNFIT;
		return false;
	}
	a->parked.len = len;
	if (bpf_map_update_elem(&parked_fragments, &a->key, &a->parked, BPF_ANY))
		return false;
	count(COUNTER_FRAGMENT_PARKED);
	return true;
}

/* Overwrites the packet from the IP header on. The link-layer header is not of its checksum. */
static __noinline long overwrite(struct __sk_buff *skb, __u32 l2, const struct parked *parked)
{
	__u32 len = parked->len;

	if (!can_park(len) || bpf_skb_change_tail(skb, l2 + len, 0))
		return -1;
	return bpf_skb_store_bytes(skb, l2, parked->bytes, parked_len(len), BPF_F_RECOMPUTE_CSUM);
}

struct replay {
	struct __sk_buff *skb;
	struct assembly *a;
	struct datagram *d;
	__u32 l2;
};

static long replay_one(__u32 i, struct replay *r)
{
	struct parked *parked;

	if (i >= PIECES)
		return 1;
	r->a->key.start = r->d->pieces[i].start;
	parked = bpf_map_lookup_elem(&parked_fragments, &r->a->key);
	if (parked && !overwrite(r->skb, r->l2, parked))
		bpf_clone_redirect(r->skb, r->skb->ifindex, BPF_F_INGRESS);
	bpf_map_delete_elem(&parked_fragments, &r->a->key);
	return 0;
}

/* Puts the parked fragments of d back into the device's ingress, where they arrive once
 * this packet, the first one, is gone. It is on its way already: translated, its redirect
 * decided; so it is set aside meanwhile. False: it could not be restored. */
static __noinline bool replay(struct __sk_buff *skb, struct assembly *a, struct datagram *d, const struct packet *p)
{
	/* On its way into a container it has a link-layer header, wherever it came from. */
	__u32 l2 = ETH_HLEN, len = skb->len - l2, mark = skb->mark;
	struct replay r = { .skb = skb, .a = a, .d = d, .l2 = l2 };
	__u8 macs[12], was[12];

	if (!can_park(len) || bpf_skb_load_bytes(skb, l2, a->parked.bytes, parked_len(len)) ||
	    bpf_skb_load_bytes(skb, 0, was, sizeof(was)))
		return true;
	a->parked.len = len;
	mac_copy(macs, p->dst_mac);
	mac_copy(macs + 6, p->src_mac);
	bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
	skb->mark = 0;
	bpf_loop(d->count, replay_one, &r, 0);
	skb->mark = mark;
	return !overwrite(skb, l2, &a->parked) && !bpf_skb_store_bytes(skb, 0, was, sizeof(was), 0);
}

/* The first fragment was treated as a packet of its own, with verdict ret: the others
 * will share its fate. What the host gets, it judges itself: it has the early ones. */
__noinline int first_fragment(struct __sk_buff *skb, struct scratch *s, int ret)
{
	struct datagram *d, *n;
	struct assembly *a;
	struct packet *p;

	if (!s)
		return ret;
	p = &s->packet;
	a = assembly(p);
	if (!a)
		return ret;
	n = &a->datagram;
	__builtin_memset(n, 0, sizeof(*n));
	tuple_of(&n->tuple, p);
	n->tick = now();
	n->state = ret == PASS || p->whole != PACKET_FLOW ? DATAGRAM_HOST :
		   ret == DROP || p->refused ? DATAGRAM_DROPPED : DATAGRAM_FLOW;
	record(n, p);
	d = datagram(a);
	if (!d) {
		if (!bpf_map_update_elem(&datagrams, &a->key.datagram, n, BPF_NOEXIST))
			return ret;
		d = datagram(a); /* an early one came meanwhile, on another CPU */
		if (!d)
			return ret;
	}
	if (ret == PASS && d->state == DATAGRAM_EARLY) {
		d->state = DATAGRAM_HOST;
		if (record(d, p) == RECORDED_LAST)
			bpf_map_delete_elem(&datagrams, &a->key.datagram);
		return ret;
	}
	if (ret != PASS && d->state != DATAGRAM_EARLY) {
		if (d->state == DATAGRAM_FLOW && tuple_equal(&d->tuple, &n->tuple) &&
		    record(d, p) == RECORDED_AGAIN)
			return ret;
		/* A second first one, with other ports or of another length. */
		d->state = DATAGRAM_DROPPED;
		return drop(skb, REASON_FRAGMENT);
	}
	if (d->state == DATAGRAM_EARLY && ret == REDIRECT && !p->refused) {
		/* In this order: who parks one looks at the state again afterwards. */
		d->tuple = n->tuple;
		if (__sync_val_compare_and_swap(&d->state, DATAGRAM_EARLY, n->state) == DATAGRAM_EARLY &&
		    !replay(skb, a, d, p)) {
			n->state = DATAGRAM_DROPPED;
			ret = drop(skb, REASON_ERROR);
		}
	}
	bpf_map_update_elem(&datagrams, &a->key.datagram, n, BPF_ANY);
	return ret;
}

/* Translates the addresses of a later fragment and sends it after the first. */
static __noinline int follow_first(struct __sk_buff *skb, struct scratch *s, struct flow *f)
{
	const struct packet *p = &s->packet;

	if ((f->flags & FLOW_TTL) && p->ttl <= 1)
		return drop(skb, REASON_TTL_EXCEEDED);
	if (too_big(skb, p->l2, 0, f->mtu))
		return drop(skb, REASON_TOO_BIG);
	if (f->flags & (FLOW_TO_IPV4 | FLOW_TO_IPV6))
		return drop(skb, REASON_UNSUPPORTED);
	if (p->family == 4) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, p->l2, &ip, sizeof(ip)))
			return drop(skb, REASON_MALFORMED);
		if (f->flags & FLOW_TTL)
			ip.ttl--;
		ip.check = csum_apply(ip.check, f->ip_delta);
		ip.saddr = f->saddr.w[3];
		ip.daddr = f->daddr.w[3];
		bpf_skb_store_bytes(skb, p->l2, &ip, sizeof(ip), 0);
	} else {
		struct ipv6hdr ip;

		if (bpf_skb_load_bytes(skb, p->l2, &ip, sizeof(ip)))
			return drop(skb, REASON_MALFORMED);
		if (f->flags & FLOW_TTL)
			ip.hop_limit--;
		ip.saddr = f->saddr;
		ip.daddr = f->daddr;
		bpf_skb_store_bytes(skb, p->l2, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
	return dispatch(skb, f, p);
}

/* A fragment that is not the first one. MISS: it goes the way that packets without a
 * flow go. It is parked if its first has not come, and then the verdict is early. */
__noinline int later_fragment(struct __sk_buff *skb, struct scratch *s, int early)
{
	struct assembly *a;
	struct datagram *d;
	struct packet *p;
	struct flow *f;
	__u32 state;
	int err;

	if (!s)
		return MISS;
	p = &s->packet;
	a = assembly(p);
	if (!a)
		return MISS;
	d = datagram(a);
	if (!d || d->state == DATAGRAM_EARLY || d->state == DATAGRAM_UNFIT) {
		if (!park(skb, a, p)) {
			if (early == DROP)
				drop(skb, REASON_FRAGMENT);
			return early;
		}
		/* The first one may have come meanwhile, and not have seen this one. */
		d = datagram(a);
		state = d ? __sync_val_compare_and_swap(&d->state, DATAGRAM_EARLY, DATAGRAM_EARLY) : DATAGRAM_EARLY;
		if (!d || state == DATAGRAM_EARLY || state == DATAGRAM_UNFIT)
			return early;
	}
	if (d->state == DATAGRAM_HOST) {
		if (record(d, p) == RECORDED_LAST)
			bpf_map_delete_elem(&datagrams, &a->key.datagram);
		return MISS;
	}
	if (d->state == DATAGRAM_DROPPED)
		return drop(skb, REASON_FRAGMENT);
	s->tuple = d->tuple;
	err = record(d, p);
	if (err == RECORDED_NEVER) {
		d->state = DATAGRAM_DROPPED;
		return drop(skb, REASON_FRAGMENT);
	}
	if (err == RECORDED_LAST)
		bpf_map_delete_elem(&datagrams, &a->key.datagram);
	f = find(&s->tuple);
	if (!f || f->verdict == VERDICT_STACK || flow_stale(f, clock()))
		return drop(skb, REASON_NO_FLOW);
	return follow_first(skb, s, take(skb, s, f));
}

#endif
