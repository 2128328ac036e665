/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Whose an address is, the way to one, and whether the way of a flow still
 * holds. The tables are the control plane's copy of what the host knows.
 */
#ifndef BPFNET_ROUTE_H
#define BPFNET_ROUTE_H

#include "maps.h"
#include "packet.h"

static __always_inline __u32 host_addr(const struct addr *a)
{
	/* Before 6.2 a map takes no key from a global function's argument. */
	struct addr key = *a;
	__u32 *ifindex = bpf_map_lookup_elem(&host_addrs, &key);

	return ifindex ? *ifindex : 0;
}

/* One of a route's hops, or NULL. */
static __always_inline struct route *route_hop(const struct route *r, __u32 index)
{
	struct route_key key = { .prefixlen = 32 + 128, .table = r->ifindex, .addr.w[3] = index };

	return bpf_map_lookup_elem(&routes, &key);
}

/* The sender and the receiver, mixed so that each bit of both counts (MurmurHash3's end). */
static __always_inline __u32 route_hash(__u32 endpoint, const struct addr *a)
{
	__u32 h = (a->w[0] ^ a->w[1] ^ a->w[2] ^ a->w[3]) + endpoint * 0x9e3779b1;

	h = (h ^ h >> 16) * 0x85ebca6b;
	h = (h ^ h >> 13) * 0xc2b2ae35;
	return h ^ h >> 16;
}

/* The way of an endpoint's packets to an address, as the host's rules and routes
 * have it for them; NULL: there is none. Of several hops the flow's sender and
 * receiver decide, as with fib_multipath_hash_policy=0. */
static __always_inline struct route *route_to(__u32 endpoint, const struct addr *a)
{
	__u32 *table = bpf_map_lookup_elem(&route_tables, &endpoint);
	struct route_key key = { .prefixlen = 32 + 128, .table = table ? *table : 0, .addr = *a };
	struct route *r = bpf_map_lookup_elem(&routes, &key);

	if (r && r->hops)
		r = route_hop(r, route_hash(endpoint, a) % r->hops);
	return r && r->ifindex ? r : NULL;
}

/* The hop that f uses, if the route that leads to a still has it, else route_to. */
static __always_inline struct route *route_kept(__u32 endpoint, const struct addr *a, const struct flow *f)
{
	__u32 *table = bpf_map_lookup_elem(&route_tables, &endpoint);
	struct route_key key = { .prefixlen = 32 + 128, .table = table ? *table : 0, .addr = *a };
	struct route *r = bpf_map_lookup_elem(&routes, &key), *hop;
	__u32 i;

	if (!r || !r->hops)
		return r && r->ifindex ? r : NULL;
	for (i = 0; i < MAX_HOPS; i++) {
		if (i >= r->hops)
			break;
		hop = route_hop(r, i);
		if (hop && hop->ifindex == f->ifindex && addr_equal(addr_zero(&hop->nexthop) ? a : &hop->nexthop, &f->nexthop))
			return hop;
	}
	return route_to(endpoint, a);
}

/*
 * Brings f up to date with the host's addresses and routes. A flow follows its
 * route to another gateway, and to another uplink if its source address stays
 * right there. 0, or:
 * REASON_NO_ROUTE	there is no way now, or the host's address in it is gone; the flow
 *			goes on when they are there again (a lease that is renewed)
 * REASON_NO_FLOW	it is over: the address it is sent to is not the host's any more, or
 *			is now; or its route has another source for it
 */
__noinline int flow_way(struct flow *f)
{
	bool lost = false;
	struct route *r;

	if (!f)
		return REASON_ERROR;
	/* Sent in the host's name. */
	if ((f->kind == FLOW_MASQUERADE && f->verdict == VERDICT_UPLINK) ||
	    (f->kind == FLOW_PUBLISHED && (f->flags & FLOW_REPLY) && f->verdict != VERDICT_LO))
		lost = !host_addr(&f->saddr);
	if (lost && f->kind == FLOW_PUBLISHED)
		return REASON_NO_ROUTE;
	/* Sent to the host. */
	if (f->kind == FLOW_HOST && f->verdict == VERDICT_HOST && !(f->flags & FLOW_REPLY)) {
		if (!host_addr(&f->daddr) && !addr_link_local6(&f->daddr))
			return REASON_NO_FLOW;
	}
	if (f->verdict != VERDICT_UPLINK)
		return 0;
	if (host_addr(&f->daddr))
		return REASON_NO_FLOW;
	r = route_kept(f->src.id, &f->daddr, f);
	if (!r || (lost && addr_zero(&r->source)))
		return REASON_NO_ROUTE;
	if (f->kind == FLOW_MASQUERADE && (lost || r->ifindex != f->ifindex) && !addr_equal(&r->source, &f->saddr))
		return REASON_NO_FLOW;
	if (lost)
		return REASON_NO_ROUTE;
	f->ifindex = r->ifindex;
	f->mtu = r->mtu ? r->mtu : 65535;
	f->nexthop = addr_zero(&r->nexthop) ? f->daddr : r->nexthop;
	return 0;
}

#endif
