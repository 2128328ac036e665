/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Incremental checksums, RFC 1624: new = ~(~old + delta), delta = sum of ~was + is. */
#ifndef BPFNET_CSUM_H
#define BPFNET_CSUM_H

#include "packet.h"

#define CHECKSUM_NONE 0			/* include/linux/skbuff.h */
#define CHECKSUM_COMPLETE 2
#define CHECKSUM_PARTIAL 3

static __always_inline __u16 csum_fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static __always_inline __u32 csum_addr(const struct addr *a)
{
	__u32 sum = 0;
	int i;

#pragma unroll
	for (i = 0; i < 4; i++)
		sum += (a->w[i] & 0xffff) + (a->w[i] >> 16);
	return sum;
}

/* Delta of replacing address was by is; the v4-mapped prefix counts only when
 * the family changes, and then the pseudo header has no such words. */
static __always_inline __u32 csum_addr_words(const struct addr *a, int family)
{
	if (family == 4)
		return (a->w[3] & 0xffff) + (a->w[3] >> 16);
	return csum_addr(a);
}

static __always_inline __u16 csum_delta(__u32 was, __u32 is)
{
	return csum_fold((__u32)(__u16)~csum_fold(was) + csum_fold(is));
}

/* delta may be a sum of two. */
static __always_inline __u16 csum_apply(__u16 check, __u32 delta)
{
	return ~csum_fold((__u32)(__u16)~check + delta);
}

/* The part of struct sk_buff that a program cannot see in __sk_buff. */
struct sk_buff {
	__u8 ip_summed:2;
	__u16 csum_start;		/* of CHECKSUM_PARTIAL, from head on */
	__u16 csum_offset;		/* of the field, from there on */
	__u16 network_header;		/* from head on */
	unsigned char *head;
	unsigned char *data;
} __attribute__((preserve_access_index));

void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak;

#endif
