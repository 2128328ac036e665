// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * TC egress of the host end of a veth: the last word on what reaches a container
 * without having been redirected into it. The host itself may; what the kernel
 * would bridge or forward from elsewhere may not.
 */
#include "lib/count.h"
#include "lib/deliver.h"

SEC("tc")
int to_endpoint(struct __sk_buff *skb)
{
	if (!skb->ingress_ifindex || skb->mark == MARK_PASSED)
		return PASS;
	return drop(skb, REASON_DIRECT_ACCESS);
}
