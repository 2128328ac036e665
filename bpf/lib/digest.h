/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The key of a flow: 64 bits of its tuple. The kernel hashes a key in rounds of 12 bytes
 * (kernel/bpf/hashtab.c: jhash2), one after the other: with an IPv6 tuple for a key that,
 * and comparing it, took 10 of the 40 ns of a packet.
 *
 * It is NH (UMAC: Black and others, CRYPTO 1999; RFC 4418 section 5.2.2) with a secret
 * of the host's: without it nobody can look for tuples of equal digests, which would
 * keep each other's flows out. By chance two have equal ones once in 2^32 secrets; then one
 * of the flows is refused as if its port were taken, so each entry has its tuple.
 */
#ifndef BPFNET_DIGEST_H
#define BPFNET_DIGEST_H

#include "scratch.h"

/* A constant that the compiler does not know: see SEED. */
static __always_inline __u32 seed_word(const int i)
{
	__u32 word;

	asm("%0 = %1" : "=r"(word) : "i"(SEED + i));
	return word;
}

static __always_inline __u64 nh(__u32 x, __u32 y, const int i)
{
	return (__u64)(__u32)(x + seed_word(i)) * (__u32)(y + seed_word(i + 1));
}

/* kind is proto | family << 8; addresses and both ports as on the wire. */
static __always_inline __u64 digest4(__be32 saddr, __be32 daddr, __u32 ports, __u32 zone, __u32 kind)
{
	return nh(ports, zone, 0) + nh(saddr, daddr, 2) + nh(kind, 0, 4);
}

static __always_inline __u64 digest6(const struct addr *saddr, const struct addr *daddr, __u32 ports, __u32 zone,
				     __u32 kind)
{
	return digest4(saddr->w[3], daddr->w[3], ports, zone, kind) + nh(saddr->w[0], saddr->w[1], 6) +
	       nh(saddr->w[2], daddr->w[2], 8) + nh(daddr->w[0], daddr->w[1], 10);
}

/* Global, so that it is verified once. */
__noinline __u64 digest(const struct tuple *t)
{
	__u32 ports, kind;

	if (!t)
		return 0;
	ports = *(const word *)&t->sport;
	kind = *(const half *)&t->proto;
	return t->family == 4 ? digest4(t->saddr.w[3], t->daddr.w[3], ports, t->zone, kind) :
				digest6(&t->saddr, &t->daddr, ports, t->zone, kind);
}

#endif
