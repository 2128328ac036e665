// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC ingress of every uplink: world to host. Answers to masqueraded flows and
 * packets for published ports go straight into the container; what is addressed
 * to a container is dropped; everything else is the host's and passes untouched.
 */
#include "lib/fragment.h"

#define VLAN_ID 0xfff			/* VLAN_VID_MASK of include/linux/if_vlan.h */

/* Routed networks: published container ports and ping are reached by the
 * container's own address. Returns a reason. */
static __noinline int decide_routed_in(struct scratch *s, __u32 network)
{
	struct packet *p = &s->packet;
	struct network *n = bpf_map_lookup_elem(&networks, &network);
	__u32 id = endpoint_of(network, &p->daddr), rule = 0;
	struct route *route = route_to(id, &p->saddr);
	struct rule *r;
	int err;

	if (!n || !(n->flags & NETWORK_ROUTED) || !id || !route || p->kind != PACKET_FLOW || !opens(p))
		return REASON_DIRECT_ACCESS;
	if (martian(&p->saddr))
		return REASON_MARTIAN;
	if (proto_index(p->proto) >= 0) {
		struct link_key key = { .server = id, .port = p->dport, .proto = p->proto };
		__u32 *open = bpf_map_lookup_elem(&links, &key);

		if (!open)
			return REASON_DIRECT_ACCESS;
		rule = *open;
		r = bpf_map_lookup_elem(&rules, &rule);
		if (!r || r->kind != RULE_PUBLICATION)
			return REASON_DIRECT_ACCESS;
		if (!source_allowed(r, rule, &p->saddr))
			return REASON_SOURCE_DENIED;
	}
	begin(s, FLOW_ROUTED, FLOW_TTL);
	err = aim(s, id, VERDICT_PEER);
	if (err)
		return err;
	refer_rule(&s->flow.rule, rule ? rule : network);
	aim_uplink(&s->reply, route, &p->saddr);
	s->flow.zone_twin = s->flow.ifindex;
	s->reply.zone_twin = ZONE_WORLD;
	return enter_again(s, id);
}

/* A published port: reached from the world. Returns a reason. */
static __noinline int decide_published_in(struct __sk_buff *skb, struct scratch *s, __u32 rule, __u32 local)
{
	struct packet *p = &s->packet;
	struct route *route;
	int err;

	if (martian(&p->saddr))
		return REASON_MARTIAN;
	begin(s, FLOW_PUBLISHED, FLOW_TTL);
	err = aim_publication(s, rule, p->family, VERDICT_PEER);
	if (err)
		return err;
	route = route_to(s->flow.dst.id, &p->saddr);
	if (!route)
		return REASON_NO_ROUTE;
	aim_uplink(&s->reply, route, &p->saddr);
	s->reply.zone_twin = ZONE_WORLD;
	/* An answer in the name of an address that is not the host's (any more) is judged. */
	if (!local)
		s->reply.epoch = 0;
	return enter_keeping_port(skb, s, s->flow.dst.id);
}

/* A UDP port behind which a container of a full-cone network is (RFC 4787 section 5:
 * endpoint-independent filtering): anybody may send to it. The owner, or NULL. */
static __noinline struct owner *cone(struct __sk_buff *skb, const struct packet *p)
{
	struct outer out = { .addr = p->daddr, .port = p->dport };
	struct owner *o;
	struct endpoint *e;
	struct network *n;
	struct tuple t;
	__u32 id;

	if (p->proto != IPPROTO_UDP)
		return NULL;
	o = bpf_map_lookup_elem(&mapping_owners, &out);
	if (!o || !mapping_fresh(o->seen))
		return NULL;
	id = o->endpoint.id;
	e = bpf_map_lookup_elem(&endpoints, &id);
	if (!e || e->gen != o->endpoint.gen)
		return NULL;
	id = e->network;
	n = bpf_map_lookup_elem(&networks, &id);
	if (!n || !(n->flags & NETWORK_FULL_CONE))
		return NULL;
	/* The host may have bound the port since. */
	tuple_of(&t, p);
	return host_socket(skb, &t) ? NULL : o;
}

/* Returns a reason. */
static __noinline int decide_cone_in(struct scratch *s, const struct owner *o)
{
	__u32 id = o->endpoint.id;
	struct route *route;
	struct endpoint *e;
	int err;

	if (martian(&s->packet.saddr))
		return REASON_MARTIAN;
	begin(s, FLOW_MASQUERADE, FLOW_TTL);
	err = aim(s, id, VERDICT_PEER);
	if (err)
		return err;
	s->flow.daddr = o->inner.addr;
	s->flow.dport = o->inner.port;
	e = bpf_map_lookup_elem(&endpoints, &id);
	if (!e)
		return REASON_NO_ENDPOINT;
	refer_rule(&s->flow.rule, e->network);
	route = route_to(id, &s->packet.saddr);
	if (!route)
		return REASON_NO_ROUTE;
	aim_uplink(&s->reply, route, &s->packet.saddr);
	s->reply.zone_twin = ZONE_WORLD;
	s->reply.epoch = 0; /* the address may not be the host's any more */
	return enter_again(s, id);
}

static __always_inline bool routed(const struct addr *a)
{
	__u32 network = network_of(a);
	struct network *n = bpf_map_lookup_elem(&networks, &network);

	return network && n && (n->flags & NETWORK_ROUTED);
}

/* A packet with a tuple, an error, or neither. */
static __always_inline int world_packet(struct __sk_buff *skb, struct scratch *s, __u32 local)
{
	struct packet *p = &s->packet;
	__u32 rule, network;
	struct owner *o;
	int err;

	err = p->kind == PACKET_ICMP ? related(skb, s) : known(skb, s);
	if (err != MISS)
		return err;
	network = local ? 0 : network_of(&p->daddr);
	if (network) {
		err = decide_routed_in(s, network);
		return err ? drop(skb, err) : first(skb, s);
	}
	if (p->kind != PACKET_FLOW || !opens(p))
		return PASS;
	rule = publication(&p->daddr, p->dport, p->proto, p->family, local);
	if (!rule) {
		o = cone(skb, p);
		if (!o)
			return PASS;
		err = decide_cone_in(s, o);
		return err ? drop(skb, err) : first(skb, s);
	}
	/* A link-local client is on a link that the container is not on: the host refuses it. */
	if (host_connected(skb, p) || addr_link_local6(&p->saddr))
		return PASS;
	err = decide_published_in(skb, s, rule, local);
	return err ? drop(skb, err) : first(skb, s);
}

__noinline int from_uplink_slow(struct __sk_buff *skb, __u32 l2)
{
	struct scratch *s;
	struct packet *p;
	bool fragmented;
	__u32 local;
	int err;

	err = start(skb, &s, ZONE_WORLD, l2);
	if (!s || err)
		return PASS;
	p = &s->packet;
	err = known(skb, s);
	if (err != MISS)
		return err;
	if (!p->family)
		return PASS;
	if (addr_loopback(&p->daddr))
		return drop(skb, REASON_LOOPBACK);
	local = host_addr(&p->daddr);
	fragmented = p->kind == PACKET_FRAGMENT && followed(p);
	if (fragmented && p->frag_off) {
		/* The host's own stack gets what may be its, and forgets what is not. */
		err = local ? later_fragment(skb, s, PASS) :
		      routed(&p->daddr) ? later_fragment(skb, s, DROP) : MISS;
		if (err != MISS)
			return err;
		fragmented = false;
	} else if (fragmented) {
		p->kind = p->whole;
	}
	err = world_packet(skb, s, local);
	return fragmented && (local || err != PASS) ? first_fragment(skb, s, err) : err;
}

SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	int ret;

	/* Another VLAN's frames (not those that have a priority only), other hosts' in promiscuous
	 * mode, broadcasts. */
	if ((skb->vlan_present && (skb->vlan_tci & VLAN_ID)) || skb->pkt_type != PACKET_HOST)
		return PASS;
	return fast(skb, ZONE_WORLD, HOOK_UPLINK, &ret) ? ret : slow(skb, HOOK_UPLINK, PASS);
}

/* The same for a device without a link-layer header (tun, WireGuard, ipip). */
SEC("tc")
int from_tunnel(struct __sk_buff *skb)
{
	int ret;

	return fast(skb, ZONE_WORLD, HOOK_TUNNEL, &ret) ? ret : slow(skb, HOOK_TUNNEL, PASS);
}
