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

#include "park.h"

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
	enum parking parking;
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
		parking = park(skb, a, p);
		if (parking == PARK_CANNOT) {
			if (early == DROP)
				drop(skb, REASON_FRAGMENT);
			return early;
		}
		/* The first one may have come meanwhile, and not have seen this one. */
		d = datagram(a);
		state = d ? __sync_val_compare_and_swap(&d->state, DATAGRAM_EARLY, DATAGRAM_EARLY) : DATAGRAM_EARLY;
		if (!d || state == DATAGRAM_EARLY || state == DATAGRAM_UNFIT)
			return early;
		/* Or it has. Else this one comes again, behind it, when it has been entered. */
		if (parking == PARK_KEPT) {
			if (unpark(a))
				bpf_clone_redirect(skb, skb->ifindex, BPF_F_INGRESS);
			return early;
		}
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
	if (!f || f->verdict == VERDICT_STACK || flow_stale(f, clock()) || !take(s, f))
		return drop(skb, REASON_NO_FLOW);
	account(skb, s, f);
	return follow_first(skb, s, &s->flow);
}

#endif
