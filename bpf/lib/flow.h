/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The life of a flow. It is born half-open (two entries in half4/half6, an LRU),
 * moves to flows4/flows6 when its initiator has proved itself, goes back to the
 * LRU when both sides have closed, and dies by its timeout.
 *
 * TCP proves itself by the ACK that answers the responder's SYN-ACK; everything
 * else by a second packet after an answer. An answer alone proves nothing: an
 * open port answers every spoofed SYN.
 */
#ifndef BPFNET_FLOW_H
#define BPFNET_FLOW_H

#include "count.h"
#include "route.h"
#include "table.h"

static __always_inline bool endpoint_current(const struct ref *r)
{
	__u32 id = r->id;
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &id);

	return e && e->gen == r->gen;
}

/* Do the endpoints and the rule behind f still say what they said, and is its way
 * still there? As flow_way. */
__noinline int flow_judge(struct flow *f)
{
	struct rule *rule;
	__u32 id;

	if (!f)
		return REASON_ERROR;
	if (!endpoint_current(&f->src) || !endpoint_current(&f->dst))
		return REASON_NO_FLOW;
	id = f->rule.id;
	rule = bpf_map_lookup_elem(&rules, &id);
	if (!rule || rule->gen != f->rule.gen)
		return REASON_NO_FLOW;
	return flow_way(f);
}

/* 0 if f may go on, else as flow_judge, which is asked when the epoch has moved: it is
 * read before what is judged by, and written after that by who changes it. */
static __always_inline int flow_stale(struct flow *f, const struct clock *c)
{
	__u32 at;
	int err;

	if (!c)
		return REASON_ERROR;
	at = *(volatile __u32 *)&c->epoch;
	if (f->epoch == at)
		return 0;
	err = flow_judge(f);
	if (!err)
		f->epoch = at;
	return err;
}

/* The clock may be a little behind who saw the flow last. */
static __always_inline bool flow_idle(const struct flow *f, __u32 tick)
{
	return (__s32)(tick - f->seen) > (__s32)f->timeout;
}

__noinline __u32 timeout(enum timeout_kind kind)
{
	struct config *c = config();
	__u32 i = kind;

	if (!c || i >= TIMEOUT_COUNT)
		return 60;
	return c->timeouts[i];
}

/* The timeout of a flow in the state it is in (RFC 4787 REQ-5, 5382 REQ-5, 5508 REQ-2). */
static __always_inline __u16 flow_timeout(const struct flow *f, __u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return timeout(f->state == FLOW_ESTABLISHED ? TIMEOUT_TCP_ESTABLISHED :
							      TIMEOUT_TCP_TRANSITORY);
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		return timeout(TIMEOUT_ICMP);
	default:
		if (f->state != FLOW_NEW)
			return timeout(TIMEOUT_UDP);
		return timeout(f->kind == FLOW_PUBLISHED ? TIMEOUT_UDP_NEW_IN : TIMEOUT_UDP_NEW_OUT);
	}
}

/* The sweep's list. A slot's family word is family + a count of its uses, so
 * that of two who free it exactly one succeeds. */
#define SLOT_FAMILY 7
#define SLOT_USE 8

/* An endpoint of a new generation starts to count anew. */
static __always_inline void quota_add(struct ref owner, __s32 n)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &owner.id);

	if (owner.id && e && owner.gen == e->gen)
		__sync_fetch_and_add(&e->flows, n);
}

/* Signed: an upgrade that moves the tables may count a flow out twice. */
static __always_inline bool quota_left(const struct endpoint *e, const struct config *c)
{
	return (__s32)e->flows < (__s32)c->quota;
}

/* For what others open to e: an eighth is left for its own. */
static __always_inline bool quota_left_for_others(const struct endpoint *e, const struct config *c)
{
	return (__s32)e->flows < (__s32)(c->quota - c->quota / 8);
}

/* The endpoint whose quota f counts in. */
static __always_inline struct ref owner_of(const struct flow *f)
{
	return f->src.id == f->owner ? f->src : f->dst;
}

static __always_inline void slot_free(__u32 index, __u32 word)
{
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);
	__u32 zero = 0;
	struct sweeper *sweeper;
	struct ref owner;

	if (!slot || !(word & SLOT_FAMILY))
		return;
	owner = slot->owner;
	if (__sync_val_compare_and_swap(&slot->family, word, (word & ~SLOT_FAMILY) + SLOT_USE) != word)
		return;
	quota_add(owner, -1);
	bpf_map_push_elem(&free_slots, &index, BPF_ANY);
	sweeper = bpf_map_lookup_elem(&sweepers, &zero);
	if (sweeper)
		__sync_fetch_and_sub((word & SLOT_FAMILY) == 4 ? &sweeper->used4 : &sweeper->used6, 1);
}

/* Lists the flow of t; false when the list, and so the table, is full. */
static __noinline bool slot_take(const struct tuple *t, const struct flow *f, __u32 *index)
{
	__u32 zero = 0, i;
	struct sweeper *sweeper = bpf_map_lookup_elem(&sweepers, &zero);
	struct config *c = config();
	struct slot *slot;

	if (!sweeper)
		return false;
	if (bpf_map_pop_elem(&free_slots, &i)) {
		if (!c || sweeper->fresh >= c->slots)
			return false;
		i = __sync_fetch_and_add(&sweeper->fresh, 1);
		if (i >= c->slots)
			return false;
	}
	slot = bpf_map_lookup_elem(&slots, &i);
	if (!slot)
		return false;
	slot->digest = digest(t);
	slot->owner = owner_of(f);
	slot->missing = 0;
	slot->family = (slot->family & ~SLOT_FAMILY) + t->family;
	quota_add(slot->owner, 1);
	__sync_fetch_and_add(t->family == 4 ? &sweeper->used4 : &sweeper->used6, 1);
	*index = i;
	return true;
}

/* Takes the established entries of f away; whoever deletes the initiator's
 * entry gives back the slot, and with it the quota. */
static __noinline void flow_unlist(const struct tuple *t, const struct flow *f, const struct tuple *twin)
{
	const struct tuple *first = f->flags & FLOW_REPLY ? twin : t;
	const struct tuple *second = f->flags & FLOW_REPLY ? t : twin;
	__u32 index = f->slot;
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);
	__u32 word = slot ? slot->family : 0;

	if (!(f->flags & FLOW_LISTED))
		return;
	if (!delete_established(first))
		slot_free(index, word);
	delete_established(second);
}

/* Both directions are gone afterwards; f points into a table and is dead. */
static __noinline void flow_end(const struct tuple *t, struct flow *f, struct tuple *twin)
{
	twin_of(twin, t, f);
	if (f->flags & FLOW_LISTED) {
		flow_unlist(t, f, twin);
	} else {
		delete_half_open(t);
		delete_half_open(twin);
	}
}

/* Both sides have closed: the flow waits out its time among the half-open, where
 * pressure may evict it, and no longer counts against anybody. */
static __noinline void flow_retire(struct tuple *t, struct flow *f, struct tuple *twin)
{
	struct scratch *s = scratch();
	struct flow *other;

	if (!s || !(f->flags & FLOW_LISTED))
		return;
	other = find_established(twin);
	if (!other)
		return;
	s->flow = *f;
	s->reply = *other;
	s->flow.flags &= ~FLOW_LISTED;
	s->reply.flags &= ~FLOW_LISTED;
	s->flow.state = s->reply.state = FLOW_CLOSING;
	s->flow.expect = s->reply.expect = 0;
	put_half_open(&s->flow, BPF_ANY);
	put_half_open(&s->reply, BPF_ANY);
	flow_unlist(t, f, twin);
	count(COUNTER_FLOW_CLOSED);
}

/* Its packets may be on two CPUs at once: only the first may list the flow. */
static __always_inline bool claim(struct flow *f)
{
	union {
		struct {
			__u8 verdict, state, flags, kind;
		};
		__u32 word;
	} was, is;

	was.word = *(volatile __u32 *)&f->verdict;
	is = was;
	is.state = FLOW_ESTABLISHED;
	return was.state == FLOW_ANSWERED && __sync_val_compare_and_swap((__u32 *)&f->verdict, was.word, is.word) == was.word;
}

/* The initiator has proved itself. f is its half-open entry. */
static __noinline void flow_promote(struct tuple *t, struct flow *f, struct tuple *twin)
{
	struct flow *other = find_half_open(twin);
	__u32 owner = f->owner, expect = f->expect, index = 0;
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &owner);
	struct config *c = config();
	__u8 proto = t->proto;
	long err;

	if (!other || !c)
		return;
	if (owner && e && !(f->src.id == owner ? quota_left(e, c) : quota_left_for_others(e, c)))
		return;
	if (!claim(f))
		return;
	if (!tuple_equal(&f->tuple, t)) { /* used again meanwhile */
		f->state = FLOW_ANSWERED;
		return;
	}
	if (!slot_take(t, f, &index)) {
		f->state = FLOW_ANSWERED;
		count(t->family == 4 ? COUNTER_FULL_FLOWS4 : COUNTER_FULL_FLOWS6);
		return;
	}
	other->state = FLOW_ESTABLISHED;
	f->timeout = other->timeout = flow_timeout(f, proto);
	f->slot = other->slot = index;
	f->flags |= FLOW_LISTED;
	other->flags |= FLOW_LISTED;
	/* The reply first: who finds the initiator's entry finds both. */
	err = put_established(other);
	if (!err) {
		err = put_established(f);
		if (!err) {
			delete_half_open(t);
			delete_half_open(twin);
			count(COUNTER_FLOW_ESTABLISHED);
			return;
		}
		delete_established(twin);
	}
	/* Its tuple is taken, or memory is short: still half-open. */
	if (err != -17 /* EEXIST */)
		count(t->family == 4 ? COUNTER_FULL_FLOWS4 : COUNTER_FULL_FLOWS6);
	f->flags &= ~FLOW_LISTED;
	other->flags &= ~FLOW_LISTED;
	f->expect = expect;
	other->expect = 0;
	f->state = other->state = FLOW_ANSWERED;
	struct slot *slot = bpf_map_lookup_elem(&slots, &index);
	if (slot)
		slot_free(index, slot->family);
}

/* Enters s->reply, half-open: its tuple, s->twin, is the reservation of a port. -EEXIST
 * when somebody has it. */
static __always_inline long flow_reserve(struct scratch *s)
{
	long err;

	err = put_half_open(&s->reply, BPF_NOEXIST);
	if (err)
		return err;
	if (find_established(&s->twin)) {
		delete_half_open(&s->twin);
		return -17; /* EEXIST */
	}
	return 0;
}

/* Is f closed, so that a SYN on its tuple opens a new connection (RFC 6191)? Of an established
 * flow a reset alone does not say that, which anybody on the way may have made up. */
static __always_inline bool flow_closed(const struct flow *f)
{
	if (f->state != FLOW_CLOSING)
		return false;
	return ((f->flags & FLOW_FIN) && (f->flags & FLOW_FIN_TWIN)) || !(f->flags & (FLOW_LISTED | FLOW_REPLY));
}

#define FOR_ITS_TIME 0x7fffffff

/* Has neither direction of f been used for its time, or for so many ticks if that is less?
 * t is f's tuple; twin becomes the other's. */
__noinline int flow_over(struct tuple *t, struct flow *f, struct tuple *twin, __u32 ticks)
{
	__u32 tick = now();
	struct flow *other;

	if (!t || !f || !twin)
		return false;
	twin_of(twin, t, f);
	if (!flow_idle(f, tick) && (__s32)(tick - f->seen) <= (__s32)ticks)
		return false;
	other = find(twin);
	return !other || flow_idle(other, tick) || (__s32)(tick - other->seen) > (__s32)ticks;
}

static __always_inline bool seq_within(__u32 seq, __u32 from, __u32 window)
{
	return seq - from <= window;
}

/* Follows the state of a flow by one packet. s->packet is it, s->tuple its
 * tuple, f the entry, s->twin the twin's. May promote or retire the flow: f
 * stays readable until the program ends. */
static __noinline void flow_track(struct scratch *s, struct flow *f)
{
	__u8 flags = s->packet.tcp_flags, proto = s->packet.proto;
	bool tcp = proto == IPPROTO_TCP, reply = f->flags & FLOW_REPLY;
	struct flow *other;

	if (tcp && (flags & (TCP_RST | TCP_FIN))) {
		other = f->flags & FLOW_LISTED ? find_established(&s->twin) : find_half_open(&s->twin);
		if (flags & TCP_FIN) {
			f->flags |= FLOW_FIN;
			if (other)
				other->flags |= FLOW_FIN_TWIN;
		}
		if ((flags & TCP_RST) || (f->flags & FLOW_FIN_TWIN)) {
			f->state = FLOW_CLOSING;
			f->timeout = flow_timeout(f, proto);
			if (other) {
				other->state = FLOW_CLOSING;
				other->timeout = f->timeout;
			}
		}
		return;
	}
	if (f->state == FLOW_CLOSING) {
		if ((f->flags & FLOW_FIN) && (f->flags & FLOW_FIN_TWIN)) {
			if (f->flags & FLOW_LISTED)
				flow_retire(&s->tuple, f, &s->twin);
			return;
		}
		/* A reset that nobody obeyed (RFC 5961 section 3). */
		if (f->flags & FLOW_LISTED)
			f->state = FLOW_ESTABLISHED;
		else
			f->state = !reply && f->expect ? FLOW_ANSWERED : FLOW_NEW;
		f->timeout = flow_timeout(f, proto);
	}
	if (f->flags & FLOW_LISTED)
		return;
	if (reply) {
		if (f->state != FLOW_NEW)
			return;
		if (tcp && !(f->flags & FLOW_OPTIONAL) && (flags & (TCP_SYN | TCP_ACK)) != (TCP_SYN | TCP_ACK))
			return;
		f->state = FLOW_ANSWERED;
		f->timeout = flow_timeout(f, proto);
		other = find_half_open(&s->twin);
		if (other) {
			other->state = FLOW_ANSWERED;
			other->timeout = f->timeout;
			other->expect = flags & TCP_SYN ? s->packet.seq + 1 : 0;
		}
		return;
	}
	if (f->state != FLOW_ANSWERED)
		return;
	if (tcp && !(f->flags & FLOW_OPTIONAL)) {
		/* What the responder has sent can be acknowledged, and nothing else (RFC 5961
		 * section 5.2): who guesses has to guess one of 2^32. */
		other = find_half_open(&s->twin);
		if (!other || !(flags & TCP_ACK) || (flags & TCP_SYN) ||
		    !seq_within(s->packet.ack, f->expect, other->bytes < 0x7fffffff ? other->bytes : 0x7fffffff))
			return;
	}
	flow_promote(&s->tuple, f, &s->twin);
}

#endif
