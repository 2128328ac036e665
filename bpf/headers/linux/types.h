/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The types that linux/bpf.h needs, without the C library's headers behind them. */
#ifndef BPFNET_LINUX_TYPES_H
#define BPFNET_LINUX_TYPES_H

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u16 __sum16;
typedef __u32 __wsum;
#define __bitwise

#define bool _Bool
#define true 1
#define false 0
#define NULL ((void *)0)

#define __aligned_u64 __u64 __attribute__((aligned(8)))

#endif
