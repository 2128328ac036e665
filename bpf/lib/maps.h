/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Every map: who writes it, who reads it, what happens when it is full. All but
 * scratch are pinned under their names; Go fills them through package maps.
 */
#ifndef BPFNET_MAPS_H
#define BPFNET_MAPS_H

#include <bpf/bpf_helpers.h>
#include "types.h"

#define BPF_F_NO_PREALLOC_ (1U << 0)
#define BPF_F_MMAPABLE_ (1U << 10)

#define PINNED __uint(pinning, LIBBPF_PIN_BY_NAME)

/* Established flows, two entries each, by the digests of their tuples. Written by the
 * programs; the slots and the quotas bound them. Full: a new flow stays half-open, a live one
 * is never lost. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MAX_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, __u64);
	__type(value, struct flow);
	PINNED;
} flows4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MAX_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, __u64);
	__type(value, struct flow);
	PINNED;
} flows6 SEC(".maps");

/* Half-open flows: what a flood fills. Full: the oldest goes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_HALF_OPEN);
	__type(key, __u64);
	__type(value, struct flow);
	PINNED;
} half4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_HALF_OPEN);
	__type(key, __u64);
	__type(value, struct flow);
	PINNED;
} half6 SEC(".maps");

/* The sweep's list of established flows of both families, and the slots of it that were given
 * back; slots above sweeper.fresh were never used. Only the sweep frees a slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2 * MAX_FLOWS);
	__type(key, __u32);
	__type(value, struct slot);
	PINNED;
} slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 2 * MAX_FLOWS);
	__type(value, __u32);
	PINNED;
} free_slots SEC(".maps");

struct sweeper {
	struct bpf_timer timer;
	__u32 cursor;			/* next slot to look at */
	__u32 fresh;			/* slots ever handed out */
	__u32 used4;			/* slots in use, by family */
	__u32 used6;
	__u32 armed;
	__u64 last;			/* tick of the last run, to see that it lives */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sweeper);
	PINNED;
} sweepers SEC(".maps");

/* The control plane's tables; the programs read them (and count in endpoints.flows). */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, struct endpoint);
	PINNED;
} endpoints SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_NETWORKS);
	__type(key, __u32);
	__type(value, struct network);
	PINNED;
} networks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_RULES);
	__uint(map_flags, BPF_F_MMAPABLE_);
	__type(key, __u32);
	__type(value, struct rule);
	PINNED;
} rules SEC(".maps");

/* Publications by port, for all addresses of the host. Mapped into the control
 * plane's memory: publishing 60,000 ports is 60,000 stores. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PROTO_COUNT * PORTS);
	__uint(map_flags, BPF_F_MMAPABLE_);
	__type(key, __u32);
	__type(value, __u32);
	PINNED;
} ports4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, PROTO_COUNT * PORTS);
	__uint(map_flags, BPF_F_MMAPABLE_);
	__type(key, __u32);
	__type(value, __u32);
	PINNED;
} ports6 SEC(".maps");

/* Publications on one address of the host; value: rule. Preallocated: entering
 * 60,000 takes half the time. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 131072);
	__type(key, struct port_key);
	__type(value, __u32);
	PINNED;
} ports_addr SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, __u32);
	__type(value, struct device);
	PINNED;
} devices SEC(".maps");

/* Who has an address: IPv4, IPv6 and link-local of every endpoint; value: endpoint. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, struct endpoint_key);
	__type(value, __u32);
	PINNED;
} endpoint_addrs SEC(".maps");

/* The endpoints of a network, numbered without holes; value: endpoint. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ENDPOINTS);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, struct member_key);
	__type(value, __u32);
	PINNED;
} members SEC(".maps");

/* The subnets of all networks; value: network. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 4 * MAX_NETWORKS);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, struct prefix);
	__type(value, __u32);
	PINNED;
} subnets SEC(".maps");

/* The host's own addresses; value: ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, struct addr);
	__type(value, __u32);
	PINNED;
} host_addrs SEC(".maps");

/* The host's routes by way of uplinks, for each table, a snapshot: bpf_fib_lookup answers only
 * where the kernel forwards, and a write to ip_forward switches that off on
 * every device (net/ipv4/devinet.c, inet_forward_change). */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, struct route_key);
	__type(value, struct route);
	PINNED;
} routes SEC(".maps");

/* By which table of routes an endpoint's packets leave. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_ENDPOINTS);
	__type(key, __u32);
	__type(value, __u32);
	PINNED;
} route_tables SEC(".maps");

/* Who may use a publication that has RULE_SOURCES. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, struct source_key);
	__type(value, __u32);
	PINNED;
} sources SEC(".maps");

/* Who may talk although icc is off; value: rule. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, struct link_key);
	__type(value, __u32);
	PINNED;
} links SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
	PINNED;
} settings SEC(".maps");

/* The epoch is written by the control plane, after the generation that changed, so
 * that an established packet need not look at each; the tick by the programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_MMAPABLE_);
	__type(key, __u32);
	__type(value, struct clock);
	PINNED;
} clocks SEC(".maps");

/* What digests are made with. Written once, by the loader, who plants it into the programs; read by
 * who looks flows up from outside. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct seed);
	PINNED;
} seeds SEC(".maps");

/* Drops by device and reason. Full: the longest unused goes. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_PERCPU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct drop_key);
	__type(value, __u64);
	PINNED;
} drops SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, COUNTER_COUNT);
	__type(key, __u32);
	__type(value, __u64);
	PINNED;
} counters SEC(".maps");

#endif
