/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Choosing the source port of a translated flow. Masquerade takes its ports from the
 * pool, without those that are published or that a socket of the host holds (RFC 4787
 * section 4.2.1: no overlap with the host's own; SCTP's sockets no program can see); the
 * gateway's own, behind which the host and hairpins appear, are taken in order, so that one
 * is not used again before the server's TIME_WAIT is likely over. TCP's have a preferred
 * one, see port_offset. To enter the reply's tuple is the reservation.
 *
 * A UDP socket keeps its port for all destinations (RFC 4787 REQ-1, endpoint-independent
 * mapping) and has it for itself, as long as the pool allows: beyond that ports are
 * shared by flows to different destinations, as TCP's always are (one for each
 * connection would end at 64,512 of them).
 *
 * When all are taken, those of flows that are no more than half-open are taken from them once
 * these have been silent for seconds: who asks a name server from a new port each time would have
 * used up the pool for all.
 */
#ifndef BPFNET_PORT_H
#define BPFNET_PORT_H

#include "decide.h"

#define PORT_TRIES 16			/* random ports (RFC 6056), then all in turn */
#define SPARE_TICKS 8			/* that a half-open flow keeps its port when there is no other */
#define FEW_PORTS 1024			/* so many are looked up among the flows without care */
#define MAX_MAPPINGS 65536
#define MAX_SEARCHES 4096

/* A UDP socket of a container, as its packets arrive, behind an address of the host. */
struct inner {
	struct addr addr;
	struct addr outer;
	__u32 zone;
	__be16 port;
	__u16 pad;
};

/* The host's port behind which one is. */
struct outer {
	struct addr addr;
	__be16 port;
	__u16 pad;
};

struct mapping {
	__u32 seen;			/* tick of the last flow that used it */
	__be16 port;
	__u16 pad;
};

struct owner {
	struct inner inner;
	struct ref endpoint;
	__u32 seen;
};

/* Both are written when a flow is entered, and kept fresh by the sweep while one lives.
 * Full: the longest unused goes, and its socket gets another port for its next destination. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_MAPPINGS);
	__type(key, struct inner);
	__type(value, struct mapping);
} mappings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_MAPPINGS);
	__type(key, struct outer);
	__type(value, struct owner);
} mapping_owners SEC(".maps");

/* The search for a port towards one destination. The ports are taken up to where it
 * ended: so the next free one is near, and the pool's last is found. To see that there is
 * none takes a look at each, milliseconds: who has seen it spares the others that. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_SEARCHES);
	__type(key, struct search_key);
	__type(value, struct search);
} searches SEC(".maps");

static __always_inline bool mapping_fresh(__u32 seen)
{
	return (__s32)(now() - seen) <= (__s32)timeout(TIMEOUT_UDP);
}

static __always_inline void inner_of(struct inner *in, const struct scratch *s)
{
	in->addr = s->tuple.saddr;
	in->outer = s->flow.saddr;
	in->zone = s->tuple.zone;
	in->port = s->tuple.sport;
	in->pad = 0;
}

/* Remembers that s->flow's source has its port: exclusively, if nobody else has it. */
static __noinline void keep_mapping(struct scratch *s, bool own)
{
	struct outer out = { .addr = s->flow.saddr, .port = s->flow.sport };
	struct owner owner = { .endpoint = s->flow.src, .seen = now() };
	struct mapping m = { .seen = owner.seen, .port = s->flow.sport };

	inner_of(&owner.inner, s);
	bpf_map_update_elem(&mappings, &owner.inner, &m, BPF_ANY);
	if (own)
		bpf_map_update_elem(&mapping_owners, &out, &owner, BPF_ANY);
}

/* The port that s->flow's source has for other destinations; 0: none. */
static __noinline __be16 kept_mapping(const struct scratch *s)
{
	struct inner in;
	struct mapping *m;

	inner_of(&in, s);
	m = bpf_map_lookup_elem(&mappings, &in);
	return m && mapping_fresh(m->seen) ? m->port : 0;
}

/* Does another source have this port for itself? */
static __noinline bool mapping_taken(const struct scratch *s)
{
	struct outer out = { .addr = s->flow.saddr, .port = s->flow.sport };
	struct owner *o = bpf_map_lookup_elem(&mapping_owners, &out);

	return o && mapping_fresh(o->seen) &&
	       !(o->inner.zone == s->tuple.zone && o->inner.port == s->tuple.sport &&
		 addr_equal(&o->inner.addr, &s->tuple.saddr));
}

/* A tuple as the socket lookups take it; its size tells them the family. */
static __always_inline __u32 socket_tuple(struct bpf_sock_tuple *to, const struct tuple *t)
{
	if (t->family == 4) {
		to->ipv4.saddr = t->saddr.w[3];
		to->ipv4.daddr = t->daddr.w[3];
		to->ipv4.sport = t->sport;
		to->ipv4.dport = t->dport;
		return sizeof(to->ipv4);
	}
	__builtin_memcpy(to->ipv6.saddr, t->saddr.w, 16);
	__builtin_memcpy(to->ipv6.daddr, t->daddr.w, 16);
	to->ipv6.sport = t->sport;
	to->ipv6.dport = t->dport;
	return sizeof(to->ipv6);
}

/* Is there a socket of the host's that would get a packet of t? */
__noinline int host_socket(struct __sk_buff *skb, const struct tuple *t)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 size;

	if (!t)
		return false;
	size = socket_tuple(&tuple, t);
	if (t->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else if (t->proto == IPPROTO_UDP)
		sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		return false;
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* The index-th port of the pool, host order; 0: none. */
__noinline __u32 pool_port(__u32 index)
{
	struct config *c = config();
	int i;

	if (!c)
		return 0;
	for (i = 0; i < MAX_PORT_RANGES; i++) {
		__u32 first = c->pool[i].first, size = c->pool[i].last - first + 1;

		if (i >= c->pool_count)
			return 0;
		if (index < size)
			return first + index;
		index -= size;
	}
	return 0;
}

struct port_search {
	struct __sk_buff *skb;
	struct scratch *s;		/* s->choice is what it works with */
};

/* Enters s->flow with s->flow.sport, if that port is free. Returns a reason; NO_PORT: it
 * is not. */
static __always_inline int enter_at(struct port_search *search)
{
	struct scratch *s = search->s;
	struct choice *c = &s->choice;
	struct flow *other;

	twin_of(&s->twin, &s->tuple, &s->flow);
	other = find(&s->twin);
	if (other) {
		__u32 ticks = c->world && c->turn >= PORT_TRIES + c->size ? SPARE_TICKS : FOR_ITS_TIME;

		/* Free if it has timed out both ways (who only sends keeps it, too); or if both
		 * sides have closed it, and every other port of the pool was used since. */
		if ((other->flags & FLOW_LISTED) ||
		    (!flow_over(&s->twin, other, &s->ended, ticks) &&
		     (c->world || c->turn < PORT_TRIES || other->state != FLOW_CLOSING)))
			return REASON_NO_PORT;
		flow_end(&s->twin, other, &s->ended);
	}
	if (c->world && host_socket(search->skb, &s->twin))
		return REASON_NO_PORT;
	return enter(s, c->owner);
}

/* Does somebody publish s->flow's source port? SCTP's cannot be another: of a server's own
 * published port associations go out, too. */
static __noinline bool port_published(const struct scratch *s, __u32 port)
{
	struct rule *rule;
	__u32 id;

	if (s->packet.proto != IPPROTO_SCTP)
		return slot_of_port(s->packet.family, s->packet.proto, port);
	id = publication(&s->flow.saddr, bpf_htons(port), s->packet.proto, s->packet.family, 1);
	rule = bpf_map_lookup_elem(&rules, &id);
	return id && !(rule && (s->packet.family == 4 ? rule->endpoint4 : rule->endpoint6) == s->flow.src.id);
}

static long try_port(__u32 n, struct port_search *search)
{
	struct scratch *s = search->s;
	struct choice *c = &s->choice;
	__u32 port;

	if (!c->size || n >= PORT_TRIES + c->size * (c->world ? 2 : 1))
		return 1;
	c->turn = n;
	if (c->first)
		port = bpf_ntohs(c->first);
	else
		port = pool_port((c->world && n < PORT_TRIES ? bpf_get_prandom_u32() : c->start + n) % c->size);
	if (!port)
		return 1;
	s->flow.sport = bpf_htons(port);
	if (c->world) {
		if (port_published(s, port))
			goto next;
		if (c->exclusive && !c->first && n < PORT_TRIES && mapping_taken(s))
			return 0;
	}
	if (!c->world && c->probes++ == FEW_PORTS)
		return 1;
	c->result = enter_at(search);
next:
	c->first = 0;
	return c->result != REASON_NO_PORT;
}

struct cursor {
	__u32 next;			/* of the gateway's */
	__u32 secret;			/* of port_offset; 0: not drawn yet */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cursor);
} port_cursor SEC(".maps");

static __always_inline __u32 mix(__u32 hash, __u32 word)
{
	hash = (hash ^ word) * 0x9e3779b1;
	return hash ^ (hash >> 15);
}

/* The distance of a TCP client's own port from the one that it gets in the pool: RFC 6056
 * section 3.3.3. So a client that uses its port again gets the same one, and whoever is in
 * TIME_WAIT on the other side sees timestamps and sequence numbers that go on. By another
 * of its ports they would go back, and the new connection would wait for seconds (RFC 6191).
 * The secret keeps the ports of different clients apart; that nobody guesses one is owed
 * to the client's own choice, and so the hash need not be a cryptographic one. */
static __noinline __u32 port_offset(const struct scratch *s, __u32 secret)
{
	__u32 hash = secret;
	int i;

	for (i = 0; i < 4; i++) {
		hash = mix(hash, s->tuple.saddr.w[i]);
		hash = mix(hash, s->flow.daddr.w[i]);
	}
	return mix(hash, s->flow.dport);
}

static __always_inline void search_key_of(struct search_key *key, const struct scratch *s)
{
	key->saddr = s->flow.saddr;
	key->daddr = s->flow.daddr;
	key->dport = s->flow.dport;
	key->proto = s->tuple.proto;
	key->pad = 0;
}

/* Chooses a port for s->flow's source address and enters the flow. world: it is
 * masquerade's, else the gateway's. Returns a reason. */
__noinline int enter_with_port(struct __sk_buff *skb, struct scratch *s, __u32 owner, __u32 world)
{
	struct scratch *same = scratch(); /* see enter */
	struct port_search search = { .skb = skb, .s = same };
	__u32 zero = 0, turns = PORT_TRIES + 2 * PORTS;
	struct config *conf = config();
	struct cursor *cursor;
	struct search *last;
	struct choice *c;

	if (!s || !same || !conf)
		return REASON_ERROR;
	c = &same->choice;
	__builtin_memset(c, 0, sizeof(*c));
	c->owner = owner;
	c->world = world;
	c->size = conf->pool_size;
	c->result = REASON_NO_PORT;
	/* An echo reply's identifier is the asker's, not its sender's to choose. */
	if ((same->tuple.proto == IPPROTO_ICMP || same->tuple.proto == IPPROTO_ICMPV6) && same->tuple.dport)
		return REASON_NO_PORT;
	cursor = bpf_map_lookup_elem(&port_cursor, &zero);
	if (same->tuple.proto == IPPROTO_TCP && cursor && c->size) {
		if (!cursor->secret)
			cursor->secret = bpf_get_prandom_u32() | 1;
		c->first = bpf_htons(pool_port((bpf_ntohs(same->tuple.sport) +
						port_offset(same, cursor->secret)) % c->size));
	}
	/* SCTP's ports are in a checksum of the whole packet: they stay as they are. */
	if (same->tuple.proto == IPPROTO_SCTP) {
		c->first = same->tuple.sport;
		c->size = turns = 1;
	} else if (world) {
		if (same->tuple.proto == IPPROTO_UDP) {
			c->exclusive = 1;
			c->first = kept_mapping(same);
		}
		search_key_of(&same->search, same);
		last = bpf_map_lookup_elem(&searches, &same->search);
		if (last && last->none && last->none == now())
			return REASON_NO_PORT;
		c->start = last ? last->next : bpf_get_prandom_u32();
		if (c->size)
			c->start %= c->size;
	} else if (cursor) {
		c->start = __sync_fetch_and_add(&cursor->next, 1);
	}
	bpf_loop(turns, try_port, &search, 0);
	if (world && c->turn >= PORT_TRIES) {
		/* The next one begins where this one ended, its random ones not counted. */
		same->searched.next = c->start + c->turn + 1 - PORT_TRIES;
		same->searched.none = c->result == REASON_NO_PORT && c->size > FEW_PORTS ? now() : 0;
		bpf_map_update_elem(&searches, &same->search, &same->searched, BPF_ANY);
	}
	if (c->exclusive && !c->result)
		keep_mapping(same, c->turn < PORT_TRIES && !mapping_taken(same));
	return c->result;
}

/* What has the reply's tuple of s->flow: the flow's own twin that was left over, which
 * is ended, or a live flow that was translated into this very tuple. 0: it is free now. */
__noinline int make_way(struct scratch *s)
{
	struct tuple t, other;
	struct flow *f;

	if (!s)
		return REASON_ERROR;
	t = s->twin;
	f = find(&t);
	if (!f)
		return 0;
	if (!flow_over(&t, f, &other, FOR_ITS_TIME) && !tuple_equal(&other, &s->tuple))
		return REASON_NO_PORT;
	flow_end(&t, f, &other);
	return 0;
}

/* Enters a flow of which nothing can be chosen; its own left-over twin may be in
 * the way, its first half having been evicted. */
static __always_inline int enter_again(struct scratch *s, __u32 owner)
{
	int err = enter(s, owner);

	return err == REASON_NO_PORT && !make_way(s) ? enter(s, owner) : err;
}

/* Enters a flow whose source port stays, unless the client's tuple is taken
 * towards the server (one container port published twice, one client port). */
static __always_inline int enter_keeping_port(struct __sk_buff *skb, struct scratch *s, __u32 owner)
{
	int err = enter_again(s, owner);

	return err == REASON_NO_PORT ? enter_with_port(skb, s, owner, 0) : err;
}

#endif
