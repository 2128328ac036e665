/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The decisions: what becomes of a packet that belongs to no flow yet. Each
 * decide_* fills s->flow (this direction) and s->reply (the other), enters both
 * as half-open, and returns 0, or an enum reason. Family-blind.
 */
#ifndef BPFNET_DECIDE_H
#define BPFNET_DECIDE_H

#include "deliver.h"

#define BPF_TCP_ESTABLISHED 1

static __always_inline __u32 network_of(const struct addr *a)
{
	struct prefix key = { .prefixlen = 128, .addr = *a };
	__u32 *id = bpf_map_lookup_elem(&subnets, &key);

	return id ? *id : 0;
}

static __always_inline __u32 endpoint_of(__u32 network, const struct addr *a)
{
	struct endpoint_key key = { .addr = *a, .network = network };
	__u32 *id = bpf_map_lookup_elem(&endpoint_addrs, &key);

	return id ? *id : 0;
}

static __always_inline void refer_endpoint(struct ref *r, __u32 id)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &id);

	r->id = id;
	r->gen = e ? e->gen : 0;
}

static __always_inline void refer_rule(struct ref *r, __u32 id)
{
	struct rule *rule = bpf_map_lookup_elem(&rules, &id);

	r->id = id;
	r->gen = rule ? rule->gen : 0;
}

/* Precomputes what the checksums of a direction change by. */
static __always_inline void seal(struct flow *f, const struct tuple *t)
{
	int out = f->flags & FLOW_TO_IPV4 ? 4 : f->flags & FLOW_TO_IPV6 ? 6 : t->family;
	__u32 was = csum_addr_words(&t->saddr, t->family) + csum_addr_words(&t->daddr, t->family);
	__u32 is = csum_addr_words(&f->saddr, out) + csum_addr_words(&f->daddr, out);

	f->addr_delta = csum_delta(was, is);
	f->port_delta = csum_delta((__u32)t->sport + t->dport, (__u32)f->sport + f->dport);
	f->ip_delta = f->addr_delta;
	if (f->flags & FLOW_TTL)
		f->ip_delta = csum_fold((__u32)f->ip_delta + (__u16)~bpf_htons(0x0100));
}

/* s->flow starts as the packet itself, s->reply as its mirror image. */
__noinline int begin(struct scratch *s, __u32 kind, __u32 flags)
{
	struct flow *f, *r;

	if (!s)
		return REASON_ERROR;
	f = &s->flow;
	r = &s->reply;
	__builtin_memset(f, 0, sizeof(*f));
	__builtin_memset(r, 0, sizeof(*r));
	tuple_of(&s->tuple, &s->packet);
	f->kind = r->kind = kind;
	f->flags = flags;
	r->flags = flags | FLOW_REPLY;
	f->saddr = s->packet.saddr;
	f->daddr = s->packet.daddr;
	f->sport = s->packet.sport;
	f->dport = s->packet.dport;
	r->saddr = s->packet.daddr;
	r->daddr = s->packet.saddr;
	r->sport = s->packet.dport;
	r->dport = s->packet.sport;
	f->seen = r->seen = s->tick;
	f->epoch = r->epoch = s->epoch;
	f->mtu = r->mtu = 65535;
	r->zone_twin = s->packet.zone;
	if (s->endpoint) {
		refer_endpoint(&f->src, s->endpoint);
		r->dst = f->src;
		mac_copy(f->sender, s->packet.src_mac);
	}
	return 0;
}

/* The flow goes to endpoint id, and what comes back starts there. */
__noinline int aim(struct scratch *s, __u32 id, __u32 verdict)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &id);
	__u32 number = e ? e->network : 0;
	struct network *n = bpf_map_lookup_elem(&networks, &number);
	struct flow *f;

	if (!s || !e || !n || !e->ifindex)
		return REASON_NO_ENDPOINT;
	f = &s->flow;
	/* Its parent's receive handler finds a child by the MAC. */
	f->verdict = e->flags & ENDPOINT_CHILD ? VERDICT_HOST : verdict;
	f->ifindex = e->ifindex;
	f->mtu = e->mtu ? e->mtu : 65535;
	mac_copy(f->macs, e->mac);
	mac_copy(f->macs + 6, n->mac);
	mac_copy(s->reply.sender, e->mac);
	refer_endpoint(&f->dst, id);
	f->zone_twin = e->ifindex;
	s->reply.src = f->dst;
	return 0;
}

/* The reply goes back to the container that asked. */
__noinline int aim_back(struct scratch *s, __u32 id)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &id);
	__u32 number = e ? e->network : 0;
	struct network *n = bpf_map_lookup_elem(&networks, &number);

	if (!s || !e || !n)
		return REASON_NO_ENDPOINT;
	s->reply.verdict = VERDICT_PEER;
	s->reply.ifindex = e->ifindex;
	s->reply.mtu = e->mtu;
	mac_copy(s->reply.macs, e->mac);
	mac_copy(s->reply.macs + 6, n->mac);
	return 0;
}

static __always_inline int aim_uplink(struct flow *f, const struct route *r, const struct addr *to)
{
	f->verdict = VERDICT_UPLINK;
	f->ifindex = r->ifindex;
	f->mtu = r->mtu ? r->mtu : 65535;
	f->nexthop = addr_zero(&r->nexthop) ? *to : r->nexthop;
	f->zone_twin = ZONE_WORLD;
	return 0;
}

/* May a flow that counts in owner's quota begin? own: it is its own. What others open stays half-open
 * beyond the quota (flow_promote): the world is not to decide who reaches a server, or what the server
 * may ask. A quota of 0 stops all, while an upgrade moves the tables. */
static __noinline bool may_open(__u32 owner, bool own)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &owner);
	struct config *c = config();

	return e && c && c->quota && (!own || quota_left(e, c));
}

static __always_inline bool child(__u32 id)
{
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &id);

	return e && (e->flags & ENDPOINT_CHILD);
}

static __always_inline int table_full(__u8 family)
{
	count(family == 4 ? COUNTER_FULL_HALF4 : COUNTER_FULL_HALF6);
	return REASON_TABLE_FULL;
}

/* Seals both directions and enters them, this direction with its first packet; s->flow
 * is what holds for that one. The reply's tuple must be final. */
__noinline int enter(struct scratch *s, __u32 owner)
{
	/* s again: before 6.2 a map takes no value from a global function's argument. */
	struct scratch *same = scratch();
	struct flow *f, *r;
	long err;

	if (!s || !same)
		return REASON_ERROR;
	f = &same->flow;
	r = &same->reply;
	if (!(f->flags & FLOW_OPTIONAL) && owner && !may_open(owner, s->endpoint))
		return REASON_QUOTA;
	f->packets = 1;
	f->bytes = s->packet.len + s->packet.l2;
	f->owner = r->owner = owner;
	r->rule = f->rule;
	f->timeout = flow_timeout(f, s->packet.proto);
	r->timeout = f->timeout;
	/* A child's answers are seen where its parent sends, with a next hop of its choice. */
	if (child(f->dst.id))
		r->verdict = r->verdict == VERDICT_UPLINK ? VERDICT_ONWARD :
			     r->verdict == VERDICT_PEER ? VERDICT_EGRESS : r->verdict;
	twin_of(&s->twin, &s->tuple, f);
	seal(f, &s->tuple);
	seal(r, &s->twin);
	f->tuple = s->tuple;
	r->tuple = s->twin;
	err = flow_reserve(same);
	if (err)
		return err == -17 ? REASON_NO_PORT : table_full(s->twin.family);
	if (put_half_open(f, BPF_NOEXIST)) {
		/* Another CPU decided on a packet of the same flow: its decision holds. */
		struct flow *other = find(&s->tuple);

		if (other) {
			if (other->sport != f->sport || !addr_equal(&other->saddr, &f->saddr))
				delete_half_open(&s->twin);
			other->packets++;
			other->bytes += f->bytes;
			*f = *other;
			return 0;
		}
		delete_half_open(&s->twin);
		return table_full(s->tuple.family);
	}
	count(COUNTER_FLOW_NEW);
	return 0;
}

static __always_inline int proto_index(__u8 proto)
{
	switch (proto) {
	case IPPROTO_TCP:
		return PROTO_TCP;
	case IPPROTO_UDP:
		return PROTO_UDP;
	case IPPROTO_SCTP:
		return PROTO_SCTP;
	default:
		return -1;
	}
}

/* ports4/ports6 of a port, as they are: PORT_RULE | PORT_ADDRESSES. */
__noinline __u32 slot_of_port(__u32 family, __u32 proto, __u32 port)
{
	int index = proto_index(proto);
	__u32 key, *slot;

	if (index < 0)
		return 0;
	key = index * PORTS + (port & 0xffff);
	slot = family == 4 ? bpf_map_lookup_elem(&ports4, &key) : bpf_map_lookup_elem(&ports6, &key);
	return slot ? *slot : 0;
}

/* The publication that a packet to addr:port is for, or 0. A publication on all
 * addresses counts for the host's own only; local says that addr is known to be. */
static __noinline __u32 publication(const struct addr *addr, __be16 port, __u32 proto, __u32 family,
				    __u32 local)
{
	__u32 slot = slot_of_port(family, proto, bpf_ntohs(port)), *rule;

	if (!slot)
		return 0;
	if (slot & PORT_ADDRESSES) {
		struct port_key key = { .addr = *addr, .port = port, .proto = proto };

		rule = bpf_map_lookup_elem(&ports_addr, &key);
		if (rule)
			return *rule;
	}
	if (!(slot & PORT_RULE) || (!local && !host_addr(addr)))
		return 0;
	return slot & PORT_RULE;
}

/* May this source use the publication? */
static __always_inline bool source_allowed(const struct rule *rule, __u32 id, const struct addr *from)
{
	struct source_key key = { .prefixlen = 32 + 128, .rule = id, .addr = *from };

	return !(rule->flags & RULE_SOURCES) || bpf_map_lookup_elem(&sources, &key);
}

/* Points s->flow at the server behind publication id. family is the one in
 * which the container is reached. Returns a reason. */
__noinline int aim_publication(struct scratch *s, __u32 id, __u32 family, __u32 verdict)
{
	struct rule *rule = bpf_map_lookup_elem(&rules, &id);
	__u32 server;
	struct endpoint *e;
	int err;

	if (!s || !rule || rule->kind != RULE_PUBLICATION)
		return REASON_NO_ENDPOINT;
	server = family == 4 ? rule->endpoint4 : rule->endpoint6;
	e = bpf_map_lookup_elem(&endpoints, &server);
	if (!server || !e)
		return REASON_NO_ENDPOINT;
	if (!source_allowed(rule, id, &s->packet.saddr))
		return REASON_SOURCE_DENIED;
	err = aim(s, server, verdict);
	if (err)
		return err;
	s->flow.daddr = family == 4 ? e->ip4 : e->ip6;
	s->flow.dport = bpf_htons(rule->port + (bpf_ntohs(s->packet.dport) - rule->host_port));
	refer_rule(&s->flow.rule, id);
	return 0;
}

#endif
