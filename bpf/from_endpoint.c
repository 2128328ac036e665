// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC ingress of the host end of a veth: container to anything. What is not sent
 * from the endpoint's own addresses is dropped; the rest goes to a peer, the host,
 * a published port or the world, as the networks' policies say.
 */
#include "lib/flood.h"

/* To a container, on the same network or another. Returns a reason. */
static __noinline int decide_peer(struct __sk_buff *skb, struct scratch *s, __u32 network, __u32 rule, __u32 kind)
{
	__u32 id = endpoint_of(network, &s->packet.daddr);
	int err;

	if (!id)
		return REASON_NO_ENDPOINT;
	begin(s, kind, kind == FLOW_ROUTED ? FLOW_OPTIONAL | FLOW_TTL : FLOW_OPTIONAL);
	err = aim(s, id, VERDICT_PEER);
	if (!err)
		err = aim_back(s, s->endpoint);
	if (err)
		return err;
	refer_rule(&s->flow.rule, rule);
	return enter_keeping_port(skb, s, s->endpoint);
}

/* On the same network: icc or a link. Returns the rule that allows it, or 0. */
static __always_inline __u32 peer_rule(struct scratch *s, const struct network *n, __u32 id)
{
	struct link_key key = { .client = s->endpoint, .server = id, .port = s->packet.dport,
				.proto = s->packet.proto };
	__u32 *rule;

	if (n->flags & NETWORK_ICC)
		return s->network;
	if (s->packet.kind != PACKET_FLOW || !opens(&s->packet))
		return 0;
	rule = bpf_map_lookup_elem(&links, &key);
	return rule ? *rule : 0;
}

/* To a service of the host. Returns a reason, or MISS: it is there already, and nothing has
 * to be remembered. */
static __noinline int decide_host(struct __sk_buff *skb, struct scratch *s)
{
	__u32 number = s->network;
	struct network *n = bpf_map_lookup_elem(&networks, &number);
	__u32 self = s->endpoint;
	struct endpoint *e = bpf_map_lookup_elem(&endpoints, &self);

	if (!n || !e)
		return REASON_UNKNOWN_ENDPOINT;
	if (!n->bridge)
		return MISS;
	begin(s, FLOW_HOST, FLOW_OPTIONAL);
	s->flow.verdict = VERDICT_HOST;
	s->flow.ifindex = n->bridge;
	s->flow.zone_twin = n->bridge;
	mac_copy(s->flow.macs, n->mac);
	mac_copy(s->flow.macs + 6, e->mac);
	refer_rule(&s->flow.rule, RULE_HOST_PORTS);
	s->reply.verdict = VERDICT_EGRESS;
	s->reply.ifindex = e->ifindex;
	mac_copy(s->reply.macs, e->mac);
	mac_copy(s->reply.macs + 6, n->mac);
	return enter_keeping_port(skb, s, s->endpoint);
}

/* To a published port of this host, one's own included. Returns a reason. */
static __noinline int decide_published(struct __sk_buff *skb, struct scratch *s, __u32 rule)
{
	__u32 number = s->network;
	struct network *n = bpf_map_lookup_elem(&networks, &number);
	struct endpoint *e;
	__u32 server;
	int err;

	if (!n)
		return REASON_UNKNOWN_ENDPOINT;
	if (!opens(&s->packet))
		return REASON_NO_FLOW;
	begin(s, FLOW_PUBLISHED, 0);
	err = aim_publication(s, rule, s->packet.family, VERDICT_PEER);
	if (!err)
		err = aim_back(s, s->endpoint);
	if (err)
		return err;
	server = s->flow.dst.id;
	e = bpf_map_lookup_elem(&endpoints, &server);
	if (e && e->network != number) {
		s->flow.flags |= FLOW_TTL;
		s->reply.flags |= FLOW_TTL;
	}
	/* The gateway asks where the server cannot answer: a container does not answer
	 * itself (hairpin), and with icc off it cannot resolve a peer. A child may have no
	 * way to other containers, but has its host on its link. */
	if (child(server)) {
		number = e ? e->network : 0;
		n = bpf_map_lookup_elem(&networks, &number);
		if (!n || addr_zero(s->packet.family == 4 ? &n->gateway4 : &n->gateway6))
			return REASON_NO_ROUTE;
	} else if (server != s->endpoint && ((n->flags & NETWORK_ICC) || (e && e->network != number) ||
				      linked(s->endpoint, server)))
		return enter_keeping_port(skb, s, s->endpoint);
	s->flow.saddr = s->packet.family == 4 ? n->gateway4 : n->gateway6;
	return enter_with_port(skb, s, s->endpoint, 0);
}

/* To the world. Returns a reason. */
static __noinline int decide_world(struct __sk_buff *skb, struct scratch *s)
{
	__u32 number = s->network;
	struct network *n = bpf_map_lookup_elem(&networks, &number);
	struct route *route = route_to(s->endpoint, &s->packet.daddr);

	if (!n)
		return REASON_UNKNOWN_ENDPOINT;
	if (n->flags & NETWORK_INTERNAL)
		return REASON_INTERNAL;
	if (!route || addr_link_local6(&s->packet.daddr))
		return REASON_NO_ROUTE;
	if (!opens(&s->packet))
		return REASON_NO_FLOW;
	begin(s, FLOW_MASQUERADE, FLOW_TTL);
	aim_uplink(&s->flow, route, &s->packet.daddr);
	if (aim_back(s, s->endpoint))
		return REASON_NO_ENDPOINT;
	refer_rule(&s->flow.rule, number);
	if (!(n->flags & NETWORK_MASQUERADE) || (n->flags & NETWORK_ROUTED)) {
		s->flow.kind = s->reply.kind = FLOW_ROUTED;
		return enter_again(s, s->endpoint);
	}
	if (addr_zero(&route->source))
		return REASON_NO_ROUTE;
	s->flow.saddr = route->source;
	return enter_with_port(skb, s, s->endpoint, 1);
}

/* Where a unicast packet with a tuple may go. Returns a reason, or MISS: up the host's stack. */
static __always_inline int decide(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	__u32 number = s->network, other, rule, host;
	struct network *n = bpf_map_lookup_elem(&networks, &number), *m;

	if (!n)
		return REASON_UNKNOWN_ENDPOINT;
	host = is_host(&p->daddr, n);
	if (host) {
		if (n->flags & NETWORK_INTERNAL) {
			if (!addr_equal(&p->daddr, &n->gateway4) && !addr_equal(&p->daddr, &n->gateway6) &&
			    !addr_equal(&p->daddr, &n->link_local))
				return REASON_INTERNAL;
			return decide_host(skb, s);
		}
		rule = publication(&p->daddr, p->dport, p->proto, p->family, 1);
		if (rule && opens(p))
			return decide_published(skb, s, rule);
		return decide_host(skb, s);
	}
	if (addr_link_local6(&p->daddr))
		other = number;
	else
		other = network_of(&p->daddr);
	if (other == number) {
		__u32 id = endpoint_of(number, &p->daddr);

		if (!id)
			return REASON_NO_ENDPOINT;
		rule = peer_rule(s, n, id);
		if (!rule)
			return REASON_ICC_DENIED;
		return decide_peer(skb, s, number, rule, FLOW_PEER);
	}
	if (other) {
		m = bpf_map_lookup_elem(&networks, &other);
		if (!m || ((n->flags | m->flags) & (NETWORK_ISOLATE | NETWORK_INTERNAL)))
			return REASON_ISOLATED;
		return decide_peer(skb, s, other, number, FLOW_ROUTED);
	}
	return decide_world(skb, s);
}

/* Unicast without a tuple: ICMP errors about no flow, other protocols and their
 * fragments. They stay on the network or go to the host. */
static __noinline int pass_untracked(struct __sk_buff *skb, struct scratch *s)
{
	struct packet *p = &s->packet;
	__u32 number = s->network, id;
	struct network *n = bpf_map_lookup_elem(&networks, &number);

	if (!n)
		return drop(skb, REASON_UNKNOWN_ENDPOINT);
	if (is_host(&p->daddr, n)) {
		if ((n->flags & NETWORK_INTERNAL) && !addr_equal(&p->daddr, &n->gateway4) &&
		    !addr_equal(&p->daddr, &n->gateway6) && !addr_equal(&p->daddr, &n->link_local))
			return drop(skb, REASON_INTERNAL);
		return hand_to_host(skb, n);
	}
	if (addr_link_local6(&p->daddr) || network_of(&p->daddr) == number) {
		id = endpoint_of(number, &p->daddr);
		if (!id)
			return drop(skb, REASON_NO_ENDPOINT);
		if (!(n->flags & NETWORK_ICC))
			return drop(skb, REASON_ICC_DENIED);
		return hand_to(skb, id);
	}
	if (network_of(&p->daddr))
		return drop(skb, REASON_ISOLATED);
	if (n->flags & NETWORK_INTERNAL)
		return drop(skb, REASON_INTERNAL);
	return drop(skb, REASON_UNSUPPORTED);
}

/* Broadcast and multicast: to the host, and with icc on to all members. */
static __noinline int spread(struct __sk_buff *skb, struct scratch *s)
{
	__u32 number = s->network;
	struct network *n = bpf_map_lookup_elem(&networks, &number);

	if (!n)
		return drop(skb, REASON_UNKNOWN_ENDPOINT);
	/* Group membership is between a host and its router (RFC 3376, 3810). */
	if (s->packet.proto != IPPROTO_IGMP && !(s->packet.family == 6 && s->packet.kind == PACKET_ICMP &&
	    (s->packet.icmp_type == ICMPV6_MLD2 ||
	     (s->packet.icmp_type >= ICMPV6_MLD_FIRST && s->packet.icmp_type <= ICMPV6_MLD_LAST)))) {
		if (!(n->flags & NETWORK_ICC))
			drop(skb, REASON_ICC_DENIED);
		else if (n->bridge)
			flood_members(skb, number, s->endpoint);
	}
	return hand_to_host(skb, n);
}

/* A unicast packet with a tuple, an error, or neither. */
static __always_inline int unicast_packet(struct __sk_buff *skb, struct scratch *s)
{
	int err;

	err = s->packet.kind == PACKET_ICMP ? related(skb, s) : known(skb, s);
	if (err != MISS)
		return err;
	if (s->packet.kind != PACKET_FLOW)
		return pass_untracked(skb, s);
	err = decide(skb, s);
	if (err == MISS)
		return PASS;
	return err ? drop(skb, err) : first(skb, s);
}

__noinline int from_endpoint_slow(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, slot, number;
	struct device *device;
	struct endpoint *e;
	struct network *n;
	struct scratch *s;
	struct packet *p;
	bool cannot_be, fragmented;
	int err, verdict;

	err = start(skb, &s, ifindex, ETH_HLEN);
	if (!s)
		return drop(skb, REASON_ERROR);
	p = &s->packet;
	s->contained = 1;
	if (!err && foreign_sum(skb, p))
		return drop(skb, REASON_MALFORMED);
	/* A flow was decided with all that follows. */
	if (!err) {
		verdict = known(skb, s);
		if (verdict != MISS)
			return verdict;
	}
	device = bpf_map_lookup_elem(&devices, &ifindex);
	if (!device || device->kind != DEVICE_ENDPOINT)
		return drop(skb, REASON_UNKNOWN_ENDPOINT);
	slot = device->id;
	e = bpf_map_lookup_elem(&endpoints, &slot);
	if (!e || e->ifindex != ifindex)
		return drop(skb, REASON_UNKNOWN_ENDPOINT);
	number = e->network;
	n = bpf_map_lookup_elem(&networks, &number);
	if (!n)
		return drop(skb, REASON_UNKNOWN_ENDPOINT);
	s->endpoint = slot;
	s->network = number;
	if (!mac_equal(p->src_mac, e->mac))
		return drop(skb, REASON_SPOOFED_MAC);
	/* A fragment that cannot be has a source all the same. */
	cannot_be = err == REASON_FRAGMENT;
	if (err && !cannot_be)
		return drop(skb, err);
	if (p->kind == PACKET_ARP)
		return guard_arp(skb, s, e);
	if (!p->family)
		return drop(skb, n->flags & NETWORK_ICC ? REASON_UNSUPPORTED : REASON_ICC_DENIED);
	err = guard_source(p, e);
	if (err)
		return drop(skb, err);
	/* RFC 6980: neighbour discovery is never in fragments. */
	if (p->family == 6 && p->kind == PACKET_FRAGMENT && p->icmp_type >= ICMPV6_RS &&
	    p->icmp_type <= ICMPV6_REDIRECT)
		return drop(skb, REASON_SPOOFED_ND);
	if (p->family == 6 && p->kind == PACKET_ICMP) {
		err = guard_nd(skb, s, e);
		if (err != MISS)
			return err;
	}
	if (dhcp_server(p) && !(e->flags & ENDPOINT_DHCP_SERVER))
		return drop(skb, REASON_DHCP_SERVER);
	if (cannot_be)
		return drop(skb, REASON_FRAGMENT);
	if (addr_multicast(&p->daddr) || (p->family == 4 && (p->daddr.w[3] == 0xffffffff ||
	    addr_equal(&p->daddr, &n->broadcast4))))
		return spread(skb, s);
	if (addr_loopback(&p->daddr))
		return drop(skb, REASON_LOOPBACK);
	if (addr_unspecified(&p->daddr))
		return drop(skb, REASON_MALFORMED);
	if (p->kind == PACKET_FRAGMENT && p->frag_off) {
		/* The host's own stack gets what may be its, as from an uplink. */
		err = !followed(p) ? MISS : later_fragment(skb, s, !n->bridge && is_host(&p->daddr, n) ? PASS : DROP);
		return err != MISS ? err : pass_untracked(skb, s);
	}
	fragmented = p->kind == PACKET_FRAGMENT;
	if (fragmented)
		p->kind = p->whole;
	err = unicast_packet(skb, s);
	return fragmented ? first_fragment(skb, s, err) : err;
}

SEC("tc")
int from_endpoint(struct __sk_buff *skb)
{
	int ret;

	if (skb->vlan_present)
		return drop(skb, REASON_UNSUPPORTED);
	return fast(skb, skb->ifindex, HOOK_ENDPOINT, &ret) ? ret : slow(skb, HOOK_ENDPOINT, DROP);
}
