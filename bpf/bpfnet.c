// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* All programs in one object, so that they share maps and types. */
#include <linux/bpf.h>
#include <bpf/bpf_core_read.h>
#include "from_uplink.c"
#include "to_uplink.c"
#include "from_endpoint.c"
#include "to_endpoint.c"
#include "to_bridge.c"
#include "from_lo.c"
#include "slow_path.c"
#include "sweep.c"
#include "post_bind.c"

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
