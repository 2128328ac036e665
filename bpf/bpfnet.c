// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* All programs in one object, so that they share maps and types. */
#include <linux/bpf.h>
#include "lib/maps.h"

SEC("tc") int from_uplink(struct __sk_buff *skb) { return -1; }
SEC("tc") int to_uplink(struct __sk_buff *skb) { return -1; }
SEC("tc") int from_endpoint(struct __sk_buff *skb) { return -1; }
SEC("tc") int to_endpoint(struct __sk_buff *skb) { return -1; }
SEC("tc") int to_bridge(struct __sk_buff *skb) { return -1; }
SEC("tc") int from_lo(struct __sk_buff *skb) { return -1; }
SEC("tc") int sweep(struct __sk_buff *skb) { return 0; }
SEC("cgroup/post_bind4") int post_bind4(struct bpf_sock *sk) { return 1; }
SEC("cgroup/post_bind6") int post_bind6(struct bpf_sock *sk) { return 1; }
char _license[] SEC("license") = "Dual BSD/GPL";

/* bpf2go finds an enum in the debug information only if something has its type. */
#define EXPORT(name) const enum name *export_##name __attribute__((unused))
EXPORT(limits);
EXPORT(zone);
EXPORT(verdict);
EXPORT(flow_state);
EXPORT(flow_kind);
EXPORT(flow_flags);
EXPORT(endpoint_flags);
EXPORT(network_flags);
EXPORT(rule_kind);
EXPORT(rule_flags);
EXPORT(port_slot);
EXPORT(proto_index);
EXPORT(device_kind);
EXPORT(timeout_kind);
EXPORT(reason);
EXPORT(counter);
