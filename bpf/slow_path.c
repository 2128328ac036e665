// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* What the hooks' programs leave: see lib/hook.h. */
#include "lib/hook.h"

SEC("tc")
int slow_path(struct __sk_buff *skb)
{
	enum hook hook = skb->cb[0];

	switch (hook) {
	case HOOK_UPLINK:
	case HOOK_TUNNEL:
		return from_uplink_slow(skb, l2_of(hook));
	case HOOK_ENDPOINT:
		return from_endpoint_slow(skb);
	case HOOK_BRIDGE:
		return to_bridge_slow(skb);
	case HOOK_LO:
		return from_lo_slow(skb);
	case HOOK_TO_UPLINK:
	case HOOK_TO_TUNNEL:
		return to_uplink_slow(skb, l2_of(hook));
	case HOOK_TO_PARENT:
		return to_parent_slow(skb);
	}
	return drop(skb, REASON_ERROR);
}
