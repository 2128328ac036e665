/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The slow path's common parts: start, a flow that is known, the first packet. */
#ifndef BPFNET_SLOW_H
#define BPFNET_SLOW_H

#include "fast.h"
#include "parse.h"
#include "port.h"
#include "icmp.h"

/* Parses into the scratch; *s is NULL or set. l2 is the length of the device's
 * link-layer header. Returns a reason. */
static __always_inline int start(struct __sk_buff *skb, struct scratch **s, __u32 zone, __u32 l2)
{
	struct clock *c = clock();
	int err;

	*s = scratch();
	if (!*s)
		return REASON_ERROR;
	(*s)->epoch = c ? *(volatile __u32 *)&c->epoch : 0;
	(*s)->tick = now();
	(*s)->contained = (*s)->asked = 0;
	(*s)->endpoint = 0;
	(*s)->network = 0;
	err = parse(skb, &(*s)->packet, l2);
	(*s)->packet.zone = zone;
	return err;
}

/* See sum_misplaced. A later fragment has no header; an error quotes what is not to be filled in. */
static __always_inline bool foreign_sum(struct __sk_buff *skb, const struct packet *p)
{
	bool inner = (p->kind == PACKET_FRAGMENT ? p->whole : p->kind) != PACKET_ICMP;

	return p->family && ip_summed(skb) == CHECKSUM_PARTIAL &&
	       sum_misplaced(skb, p->l4, p->kind == PACKET_FRAGMENT && p->frag_off ? 0 : p->proto, inner);
}

/* The address we speak from when f's packet cannot be forwarded: to a container its gateway's, to
 * others the one they asked; where that is a container's own, the host's on the way back. */
__noinline int our_address(struct scratch *s, struct flow *f)
{
	__u32 id, number;
	struct endpoint *e;
	struct network *n;
	struct route *r;

	if (!s || !f)
		return REASON_ERROR;
	s->addr = s->packet.daddr;
	id = s->endpoint ? s->endpoint : f->dst.id;
	if (s->packet.zone == ZONE_WORLD && f->kind == FLOW_ROUTED) {
		r = route_to(id, &s->packet.saddr);
		if (r && !addr_zero(&r->source)) {
			s->addr = r->source;
			return 0;
		}
	} else if (!s->endpoint) {
		return 0;
	}
	e = bpf_map_lookup_elem(&endpoints, &id);
	number = e ? e->network : 0;
	n = bpf_map_lookup_elem(&networks, &number);
	if (number && n)
		s->addr = s->packet.family == 4 ? n->gateway4 : n->gateway6;
	return 0;
}

/* Only the kernel can measure such pieces, and by the device's MTU. */
static __noinline bool pieces_too_big(struct __sk_buff *skb, __u32 ifindex)
{
	__u32 mtu = 0;

	return bpf_check_mtu(skb, ifindex, &mtu, 0, BPF_MTU_CHK_SEGS) == BPF_MTU_CHK_RET_SEGS_TOOBIG;
}

/* Sends the packet the way of f, its flow. */
__noinline int follow(struct __sk_buff *skb, struct scratch *s, struct flow *f)
{
	struct packet *p;
	bool expired, big;
	__u32 headers;
	__u8 doff;

	if (!s || !f)
		return DROP;
	p = &s->packet;
	headers = p->l4 - p->l2 + (p->proto == IPPROTO_UDP ? 8 : 20);
	/* Each segment has the options. */
	if (skb->gso_size && p->proto == IPPROTO_TCP && !bpf_skb_load_bytes(skb, p->l4 + 12, &doff, sizeof(doff)))
		headers = p->l4 - p->l2 + (doff >> 4) * 4;
	expired = (f->flags & FLOW_TTL) && p->ttl <= 1;
	big = too_big(skb, p->l2, headers, f->mtu);
	if (big && skb->gso_size == GSO_BY_FRAGS)
		big = pieces_too_big(skb, f->ifindex);
	if (expired || big) {
		our_address(s, f);
		if (addr_unspecified(&s->addr))
			return drop(skb, expired ? REASON_TTL_EXCEEDED : REASON_TOO_BIG);
		return icmp_error(skb, s, expired ? REASON_TTL_EXCEEDED : REASON_TOO_BIG,
				  expired ? 0 : f->mtu);
	}
	return deliver(skb, f, p);
}

/* A copy of f, the entry of s->tuple, in s->flow: an entry that is deleted meanwhile, by this
 * very packet or by another CPU, is used again at once. False: it has been. */
static __always_inline bool take(struct scratch *s, const struct flow *f)
{
	s->flow = *f;
	barrier();
	return tuple_equal(&s->flow.tuple, &s->tuple);
}

static __always_inline void account(struct __sk_buff *skb, const struct scratch *s, struct flow *f)
{
	f->seen = s->tick;
	f->packets++;
	f->bytes += skb->len;
}

/* The packet of a flow that is known, or MISS, and MISS if asked again. */
__noinline int known(struct __sk_buff *skb, struct scratch *s)
{
	struct flow *f, *was, *other;
	__u32 tick;
	bool syn;
	int err;

	if (!s)
		return DROP;
	tick = s->tick;
	if (s->packet.kind != PACKET_FLOW || s->asked)
		return MISS;
	s->asked = 1;
	tuple_of(&s->tuple, &s->packet);
	syn = s->packet.proto == IPPROTO_TCP && (s->packet.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	f = find(&s->tuple);
	if (!f && !syn)
		f = find_promoted(&s->tuple);
	if (!f)
		return MISS;
	if (s->contained) {
		/* The fast path asks for no more either. */
		if (!mac_equal(s->packet.src_mac, f->sender))
			return MISS;
		s->endpoint = f->src.id;
	}
	err = flow_stale(f, clock());
	if (err == REASON_NO_ROUTE && !flow_over(&s->tuple, f, &s->twin, FOR_ITS_TIME))
		return drop(skb, err);
	if (err) {
		count(COUNTER_FLOW_STALE);
		flow_end(&s->tuple, f, &s->twin);
		return MISS;
	}
	if (!take(s, f))
		return drop(skb, REASON_NO_FLOW);
	was = &s->flow;
	twin_of(&s->twin, &s->tuple, was);
	if (was->kind != FLOW_LOCAL && (syn || !(was->flags & FLOW_LISTED) || flow_idle(was, tick))) {
		other = find(&s->twin);
		if (!other)
			other = find_promoted(&s->twin);
		/* A flow whose other half was evicted cannot be answered. */
		if (!other || (syn && flow_closed(was)) ||
		    (flow_idle(was, tick) && flow_idle(other, tick))) {
			flow_end(&s->tuple, was, &s->twin);
			return MISS;
		}
	} else if (flow_idle(was, tick)) {
		delete_half_open(&s->tuple);
		return MISS;
	}
	if (was->kind == FLOW_LOCAL) {
		f->seen = tick;
		return PASS;
	}
	account(skb, s, f);
	flow_track(s, f);
	return follow(skb, s, &s->flow);
}

/* Sends the first packet of the flow that a decision has just entered. */
static __always_inline int first(struct __sk_buff *skb, struct scratch *s)
{
	return follow(skb, s, &s->flow);
}

/* The packet would be the first of a flow that may start in the middle of a
 * connection only where nothing is translated. */
static __always_inline bool opens(const struct packet *p)
{
	switch (p->proto) {
	case IPPROTO_TCP:
	case IPPROTO_SCTP:
		return (p->tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST)) == TCP_SYN;
	case IPPROTO_ICMP:
		return p->icmp_type == ICMP_ECHO;
	case IPPROTO_ICMPV6:
		return p->icmp_type == ICMPV6_ECHO;
	default:
		return true;
	}
}

/* Is there a socket of the host that is connected to the sender? Then the
 * packet is an answer to the host, published port or not. */
static __noinline bool host_connected(struct __sk_buff *skb, const struct packet *p)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	struct tuple t;
	bool connected;
	__u32 size;

	if (p->proto != IPPROTO_UDP)
		return false;
	tuple_of(&t, p);
	size = socket_tuple(&tuple, &t);
	sk = bpf_sk_lookup_udp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	connected = sk->state == BPF_TCP_ESTABLISHED;
	bpf_sk_release(sk);
	return connected;
}

/* The host's own UDP leaves from a port that is published (its choice was not
 * the bind guard's to refuse), or the host pings, with an identifier that masquerade
 * may have given to a container: answers to it are the host's. */
static __noinline void remember_local(struct scratch *s)
{
	struct packet *p = &s->packet;
	struct flow *f = &s->flow;
	struct tuple other;
	struct flow *taken;

	if (p->proto == IPPROTO_SCTP)
		return;
	if (p->proto == IPPROTO_UDP ? !slot_of_port(p->family, p->proto, bpf_ntohs(p->sport)) : !p->sport)
		return;
	begin(s, FLOW_LOCAL, FLOW_OPTIONAL);
	f->verdict = VERDICT_STACK;
	f->timeout = timeout(p->proto == IPPROTO_UDP ? TIMEOUT_UDP : TIMEOUT_ICMP);
	s->twin.saddr = p->daddr;
	s->twin.daddr = p->saddr;
	s->twin.sport = p->dport;
	s->twin.dport = p->sport;
	s->twin.zone = p->zone;
	s->twin.proto = p->proto;
	s->twin.family = p->family;
	s->twin.pad[0] = s->twin.pad[1] = 0;
	taken = p->proto == IPPROTO_UDP ? NULL : find(&s->twin);
	if (taken && taken->kind != FLOW_LOCAL)
		flow_end(&s->twin, taken, &other);
	f->tuple = s->twin;
	put_half_open(f, BPF_ANY);
}

#endif
