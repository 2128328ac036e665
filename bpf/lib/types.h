/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every struct and enum that crosses between the programs and Go. bpf2go turns
 * them into loader's types; package maps is the only place that fills them.
 *
 * Addresses: struct addr is 16 bytes in network order; IPv4 is written
 * v4-mapped (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2), so that one table serves
 * both families.
 *
 * Time: a tick is 2^30 ns (1.07 s) of the coarse monotonic clock. The sweep's timer
 * and the slow path keep it in struct clock; asking the kernel costs an established
 * packet 35 ns.
 */
#ifndef BPFNET_TYPES_H
#define BPFNET_TYPES_H

#include <linux/types.h>

enum limits {
	MAX_ENDPOINTS = 16384,		/* slots of the endpoints array; 0 is "none" */
	MAX_NETWORKS = 4096,		/* rule ids below this are networks; 0 is "none" */
	MAX_RULES = 131072,		/* networks, publications and links together */
	MAX_FLOWS = 131072,		/* established flows, per family (two entries each) */
	MAX_HALF_OPEN = 65536,		/* half-open entries, per family */
	MAX_MEMBERS = 1024,		/* endpoints that one broadcast reaches */
	MAX_PORT_RANGES = 8,		/* ranges of the masquerade pool */
	MAX_HOPS = 16,			/* of one route; a hop with weight counts several times */
	SEED_WORDS = 12,
	SEED = 0x5eed0000,		/* and the next: the object's seed, in whose place the loader puts a host's */
	PORTS = 65536,
	RULE_HOST_PORTS = 131071,	/* its generation counts publications made and ended */
};

/* Where a packet is seen; anything else is the ifindex of an endpoint's host
 * end, or of a bridge (the host talking to its containers). */
enum zone {
	ZONE_WORLD = 0,			/* any uplink */
	ZONE_LO = 1,			/* the host's own calls; lo's ifindex is 1 in every netns */
};

struct addr {
	__be32 w[4];
};

/* All that an established packet looks at beside its flow, in one cache line. */
struct clock {
	__u32 epoch;			/* counts the changes of endpoints and rules */
	__u32 tick;			/* now, at most a tenth of a second late */
};

/* The secret of digests: drawn when a host's tables of flows are made, and part of the programs
 * that use them. In a table it would be one more miss of an established packet. */
struct seed {
	__u32 words[12];		/* SEED_WORDS */
};

/* An object and the generation of it that a decision was based on. Id 0 always
 * has generation 0: "depends on nothing". */
struct ref {
	__u32 id;
	__u32 gen;
};

/* One direction of a flow, as the packet looks when it arrives. ICMP queries
 * put their identifier into sport (request) or dport (reply). The tables of flows have
 * its digest for a key (digest.h). */
struct tuple {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;
	__be16 dport;
	__u32 zone;
	__u8 proto;
	__u8 family;			/* 4 or 6 */
	__u8 pad[2];
};

/* How the packet leaves. */
enum verdict {
	VERDICT_STACK = 0,		/* the host's own: hand on untouched */
	VERDICT_PEER,			/* into the container behind ifindex (bpf_redirect_peer) */
	VERDICT_EGRESS,			/* out of ifindex (from an egress hook, where redirect_peer is not allowed) */
	VERDICT_UPLINK,			/* out of ifindex by way of nexthop (bpf_redirect_neigh) */
	VERDICT_HOST,			/* up the host's stack as if received on ifindex, the network's bridge or the parent of a macvlan */
	VERDICT_LO,			/* up the host's stack as if received on lo */
	VERDICT_ONWARD,			/* rewritten, out of the device that it is on */
};

enum flow_state {
	FLOW_NEW = 0,			/* the initiator spoke */
	FLOW_ANSWERED,			/* the responder answered */
	FLOW_ESTABLISHED,		/* the initiator proved that it got the answer */
	FLOW_CLOSING,			/* FIN both ways, or RST */
};

enum flow_kind {
	FLOW_PUBLISHED = 0,		/* somebody reached a published port */
	FLOW_MASQUERADE,		/* a container reached the world by the host's address */
	FLOW_ROUTED,			/* a container reached the world by its own address, or another network */
	FLOW_PEER,			/* container to container on one network */
	FLOW_HOST,			/* container to host, or host to container */
	FLOW_LOCAL,			/* the host's own UDP from a port that is published */
};

enum flow_flags {
	FLOW_REPLY = 1,			/* this entry is the responder's direction */
	FLOW_TTL = 2,			/* crosses the host as a router: one hop less */
	FLOW_FIN = 4,			/* this direction sent FIN */
	FLOW_FIN_TWIN = 8,		/* the other direction sent FIN */
	FLOW_TO_IPV4 = 16,		/* arrives as IPv6, leaves as IPv4 ([::1] to an IPv4-only container) */
	FLOW_TO_IPV6 = 32,		/* the way back */
	FLOW_OPTIONAL = 64,		/* remembers a decision that can be taken again: no quota refuses it */
	FLOW_LISTED = 128,		/* established: has a slot of the sweep's list */
};

/*
 * Everything that the next packet of one direction needs. The order is that of
 * use: an established packet touches the first 160 bytes and no other table. With the
 * kernel's part in front it is 256 bytes, of which each of these lines begins one
 * (kernel/bpf/memalloc.c puts 8 bytes in front of the 56 of kernel/bpf/hashtab.c).
 *
 * epoch is that of the last time that the references were compared. While no
 * object has changed since, they need not be compared again.
 */
struct flow {
	struct tuple tuple;		/* as it arrives: digests can be equal */
	__u32 epoch;
	__u32 seen;			/* tick of the last packet, written once a tick */
	__u16 timeout;			/* ticks */
	__u16 mtu;			/* of the way out, bytes from the IP header on */
	__u8 verdict;			/* enum verdict */
	__u8 state;			/* enum flow_state */
	__u8 flags;			/* enum flow_flags */
	__u8 kind;			/* enum flow_kind */
	__u32 ifindex;			/* of the way out */
					/* 64 */
	__u16 ip_delta;			/* checksum deltas, RFC 1624: IPv4 header, */
	__u16 addr_delta;		/* pseudo header, */
	__u16 port_delta;		/* ports */
	__u8 sender[6];			/* MAC of the container that sends */
	__be16 sport;			/* after translation: ports */
	__be16 dport;
	__u64 packets;
	__u64 bytes;			/* as seen on the hook, link-layer header included */
	struct addr saddr;		/* and its addresses */
	struct addr daddr;
					/* 128 */
	__u8 macs[12];			/* destination, source: for VERDICT_PEER, _EGRESS, _HOST */
	__u32 zone_twin;		/* zone in which the other direction arrives */
	struct addr nexthop;		/* for VERDICT_UPLINK */
	struct ref src;			/* endpoint that sends, */
	struct ref dst;			/* endpoint that receives, */
	struct ref rule;		/* what allowed it: network, publication or link */
	union {
		__u32 slot;		/* of the sweep's list, once FLOW_LISTED; before that */
		__u32 expect;		/* of TCP: acknowledgement that proves the initiator (host order) */
	};
	__u32 owner;			/* endpoint whose quota this flow counts in */
};

/* A container's attachment to a network. */
struct endpoint {
	__u32 gen;
	__u32 ifindex;			/* host end of the veth, or the parent */
	__u32 network;			/* id of the network */
	__u32 flags;			/* enum endpoint_flags */
	__u32 flows;			/* established flows that count in its quota */
	__u8 mac[6];			/* of the container's end */
	__u16 mtu;
	struct addr ip4;		/* all zero: none */
	struct addr ip6;
	struct addr link_local;		/* EUI-64 of mac */
};

enum endpoint_flags {
	ENDPOINT_DHCP_SERVER = 1,	/* may answer DHCP */
	ENDPOINT_CHILD = 2,		/* a macvlan: its parent is ifindex, and nothing but its published ports is ours */
};

enum network_flags {
	NETWORK_ICC = 1,		/* containers may talk to each other */
	NETWORK_INTERNAL = 2,		/* no way out, none in */
	NETWORK_MASQUERADE = 4,
	NETWORK_ISOLATE = 8,		/* not reached from other networks */
	NETWORK_ROUTED = 16,		/* gateway-mode routed: direct access to published ports and ping */
	NETWORK_FULL_CONE = 32,
};

struct network {
	__u32 flags;			/* enum network_flags */
	__u32 bridge;			/* ifindex; 0: none, each endpoint's cable ends at the host */
	__u32 members;			/* entries of the members map */
	__u16 mtu;
	__u8 mac[6];			/* of the bridge */
	struct addr gateway4;		/* all zero: none */
	struct addr gateway6;
	struct addr link_local;		/* of the bridge */
	struct addr broadcast4;		/* subnet broadcast; all zero: none */
};

enum rule_kind {
	RULE_FREE = 0,
	RULE_NETWORK,
	RULE_PUBLICATION,
	RULE_LINK,
};

enum rule_flags {
	RULE_SOURCES = 1,		/* only sources in the sources map may connect */
	RULE_HELD = 2,			/* another engine has sockets on the ports: no bind guard */
};

struct rule {
	__u32 gen;
	__u8 kind;			/* enum rule_kind */
	__u8 flags;			/* enum rule_flags */
	__u16 host_port;		/* first port of a publication's range, host order */
	__u16 port;			/* the container's port for it, host order */
	__u16 pad;
	__u32 endpoint4;		/* of a publication: the server, reached by IPv4 */
	__u32 endpoint6;		/* and by IPv6; 0: not in that family */
};

/* ports4/ports6 (index: proto_index * 65536 + port): the publication on all
 * addresses, or 0, and how many single addresses publish the port (at most 32767). */
enum port_slot {
	PORT_RULE = 0x1ffff,
	PORT_ADDRESSES = 0xfffe0000,	/* counted in steps of 0x20000 */
};

enum proto_index {
	PROTO_TCP = 0,
	PROTO_UDP = 1,
	PROTO_SCTP = 2,
	PROTO_COUNT = 3,
};

struct port_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct device {
	__u32 kind;			/* enum device_kind */
	__u32 id;			/* endpoint or network */
};

enum device_kind {
	DEVICE_ENDPOINT = 1,
	DEVICE_BRIDGE = 2,
};

struct endpoint_key {
	struct addr addr;
	__u32 network;
};

struct member_key {
	__u32 network;
	__u32 index;			/* 0 .. members - 1 */
};

/* Longest-prefix keys: an IPv4 prefix is 96 + its length. */
struct prefix {
	__u32 prefixlen;
	struct addr addr;
};

struct source_key {
	__u32 prefixlen;		/* 32 + that of addr */
	__u32 rule;
	struct addr addr;
};

/* The host's rules may send each container another way: each result of them that
 * differs is a table, with a number of the control plane's choice; 0 is that of a
 * container that no rule is about. The hops of a route that has several are entries
 * of a table of their own, with their index for an address. */
struct route_key {
	__u32 prefixlen;		/* 32 + that of addr */
	__u32 table;
	struct addr addr;
};

struct route {
	__u32 ifindex;			/* 0: no way, and none by a shorter prefix either */
	__u16 mtu;
	__u16 hops;			/* if not 0: so many, MAX_HOPS at most, and ifindex is their table */
	struct addr nexthop;		/* all zero: on-link */
	struct addr source;		/* the host's address that masquerade uses */
};

/* link: who may talk although icc is off. port 0 and proto 0 stand for "these
 * two know each other" (ARP, ND). */
struct link_key {
	__u32 client;			/* endpoints */
	__u32 server;
	__be16 port;
	__u8 proto;
	__u8 pad;
};

struct port_range {
	__u16 first;			/* host order, both included */
	__u16 last;
};

enum timeout_kind {
	TIMEOUT_TCP_ESTABLISHED = 0,
	TIMEOUT_TCP_TRANSITORY,		/* half-open, closing, after RST */
	TIMEOUT_UDP_NEW_IN,		/* one way seen, from outside */
	TIMEOUT_UDP_NEW_OUT,		/* one way seen, from a container */
	TIMEOUT_UDP,			/* both ways seen */
	TIMEOUT_ICMP,
	TIMEOUT_COUNT,
};

/* What may change while the programs run; one entry. */
struct config {
	__u64 netns_cookie;		/* of the host: the bind guard acts in it alone */
	__u32 quota;			/* established flows per endpoint */
	__u32 pool_size;		/* ports in pool[] */
	__u32 pool_count;		/* ranges in pool[] */
	struct port_range pool[8];	/* MAX_PORT_RANGES: what masquerade may use */
	__u16 timeouts[6];		/* TIMEOUT_COUNT, ticks */
	__u32 icmp_rate;		/* errors a second that we send */
	__u32 sweep_ms;			/* between two ticks of the sweep */
	__u32 slots;			/* entries of slots and free_slots */
};

/* Why a packet was dropped: the test's expectation, the metric's label and the
 * text the user reads. Order is ABI: append only. */
enum reason {
	REASON_NONE = 0,
	REASON_MALFORMED,
	REASON_UNKNOWN_ENDPOINT,	/* the device is not set up */
	REASON_UNSUPPORTED,		/* ethertype or protocol that we do not carry */
	REASON_FRAGMENT,
	REASON_SPOOFED_MAC,
	REASON_SPOOFED_ARP,
	REASON_SPOOFED_IPV4,
	REASON_SPOOFED_IPV6,
	REASON_SPOOFED_ND,
	REASON_SPOOFED_RA,
	REASON_DHCP_SERVER,
	REASON_ICC_DENIED,
	REASON_ISOLATED,
	REASON_INTERNAL,
	REASON_DIRECT_ACCESS,
	REASON_LOOPBACK,		/* 127.0.0.0/8 or ::1 on a wire */
	REASON_SOURCE_DENIED,		/* ,from= */
	REASON_NO_ENDPOINT,		/* nobody has that address */
	REASON_NO_ROUTE,
	REASON_NO_PORT,			/* masquerade's pool is exhausted */
	REASON_QUOTA,
	REASON_TABLE_FULL,
	REASON_NO_FLOW,			/* middle of a connection that nobody knows */
	REASON_TTL_EXCEEDED,
	REASON_TOO_BIG,
	REASON_BYPASS,			/* a container's packet that from_endpoint did not pass */
	REASON_MARTIAN,			/* impossible source address */
	REASON_ERROR,			/* a helper failed */
	REASON_COUNT,
};

struct drop_key {
	__u32 ifindex;			/* of the hook's device */
	__u32 reason;
};

/* Events that are no drops; per-CPU array. */
enum counter {
	COUNTER_FLOW_NEW = 0,		/* half-open flows made */
	COUNTER_FLOW_ESTABLISHED,	/* promoted */
	COUNTER_FLOW_CLOSED,
	COUNTER_FLOW_EXPIRED,		/* found by the sweep */
	COUNTER_FLOW_STALE,		/* ended because its policy or endpoint changed */
	COUNTER_ICMP_SENT,		/* time exceeded, frag needed, packet too big */
	COUNTER_ICMP_LIMITED,
	COUNTER_BIND_REFUSED,		/* the bind guard */
	COUNTER_FLOODED,
	COUNTER_SWEEP_TICKS,
	COUNTER_FULL_FLOWS4,		/* stayed half-open: no room among the established */
	COUNTER_FULL_FLOWS6,
	COUNTER_FULL_HALF4,		/* no room among the half-open either: packet dropped */
	COUNTER_FULL_HALF6,
	COUNTER_FRAGMENT_PARKED,	/* kept until the first fragment came */
	COUNTER_COUNT,
};

/* A slot of the sweep's list: the initiator's direction of an established flow. */
struct slot {
	__u64 digest;			/* of its tuple */
	__u32 family;			/* 4, 6; 0: free */
	struct ref owner;		/* endpoint whose quota the flow counts in */
	__u32 missing;			/* the sweep found no such flow, once */
};

#endif
