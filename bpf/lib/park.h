/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fragments that come before their first are kept, and put back behind it. */
#ifndef BPFNET_PARK_H
#define BPFNET_PARK_H

#include "datagram.h"

static __always_inline bool can_park(__u32 len)
{
	return len && len <= PARKED_BYTES;
}

/* A length for which can_park holds, so that each verifier sees it: by a mask. */
static __always_inline __u32 parked_len(__u32 len)
{
	asm volatile("" : "+r"(len));
	return ((len - 1) & (PARKED_BYTES - 1)) + 1;
}

enum parking {
	PARK_CANNOT = 0,
	PARK_KEPT,
	PARK_TOO_LATE,			/* the first came meanwhile, on another CPU */
};

/* Keeps the packet until the first fragment of its datagram comes. */
static __noinline enum parking park(struct __sk_buff *skb, struct assembly *a, const struct packet *p)
{
	struct datagram *d = datagram(a);
	__u32 len = p->len;

	if (!can_park(len) || bpf_skb_load_bytes(skb, p->l2, a->parked.bytes, parked_len(len)))
		return PARK_CANNOT;
	if (!d) {
		__builtin_memset(&a->datagram, 0, sizeof(a->datagram));
		a->datagram.tick = now();
		bpf_map_update_elem(&datagrams, &a->key.datagram, &a->datagram, BPF_NOEXIST);
		d = datagram(a);
		if (!d)
			return PARK_CANNOT;
	}
	if (d->state != DATAGRAM_EARLY)
		return d->state != DATAGRAM_UNFIT ? PARK_TOO_LATE : PARK_CANNOT;
	if (record(d, p) == RECORDED_NEVER) {
		d->state = DATAGRAM_UNFIT;
		return PARK_CANNOT;
	}
	a->parked.len = len;
	if (bpf_map_update_elem(&parked_fragments, &a->key, &a->parked, BPF_ANY))
		return PARK_CANNOT;
	count(COUNTER_FRAGMENT_PARKED);
	return PARK_KEPT;
}

/* Who takes a parked fragment out sends it, and nobody else: a second one would wait with its
 * receiver for a first one of its own, and join that of the next datagram with this identification. */
static __always_inline bool unpark(const struct assembly *a)
{
	return !bpf_map_delete_elem(&parked_fragments, &a->key);
}

/* Overwrites the packet from the IP header on. The link-layer header is not of its checksum. */
static __noinline long overwrite(struct __sk_buff *skb, __u32 l2, const struct parked *parked)
{
	__u32 len = parked->len;

	if (!can_park(len) || bpf_skb_change_tail(skb, l2 + len, 0))
		return -1;
	return bpf_skb_store_bytes(skb, l2, parked->bytes, parked_len(len), BPF_F_RECOMPUTE_CSUM);
}

struct replay {
	struct __sk_buff *skb;
	struct assembly *a;
	struct datagram *d;
	__u32 l2;
};

static long replay_one(__u32 i, struct replay *r)
{
	struct parked *parked;

	if (i >= PIECES)
		return 1;
	r->a->key.start = r->d->pieces[i].start;
	parked = bpf_map_lookup_elem(&parked_fragments, &r->a->key);
	if (parked && !overwrite(r->skb, r->l2, parked) && unpark(r->a))
		bpf_clone_redirect(r->skb, r->skb->ifindex, BPF_F_INGRESS);
	return 0;
}

/* Puts the parked fragments of d back into the device's ingress, where they arrive once
 * this packet, the first one, is gone. It is on its way already: translated, its redirect
 * decided; so it is set aside meanwhile. False: it could not be restored. */
static __noinline bool replay(struct __sk_buff *skb, struct assembly *a, struct datagram *d, const struct packet *p)
{
	/* On its way into a container it has a link-layer header, wherever it came from. */
	__u32 l2 = ETH_HLEN, len = skb->len - l2, mark = skb->mark;
	struct replay r = { .skb = skb, .a = a, .d = d, .l2 = l2 };
	__u8 macs[12], was[12];

	if (!can_park(len) || bpf_skb_load_bytes(skb, l2, a->parked.bytes, parked_len(len)) ||
	    bpf_skb_load_bytes(skb, 0, was, sizeof(was)))
		return true;
	a->parked.len = len;
	mac_copy(macs, p->dst_mac);
	mac_copy(macs + 6, p->src_mac);
	bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
	skb->mark = 0;
	bpf_loop(d->count, replay_one, &r, 0);
	skb->mark = mark;
	return !overwrite(skb, l2, &a->parked) && !bpf_skb_store_bytes(skb, 0, was, sizeof(was), 0);
}

#endif
