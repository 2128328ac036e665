/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Packets: headers as on the wire, what is known of one, addresses. */
#ifndef BPFNET_PACKET_H
#define BPFNET_PACKET_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "types.h"

#define ETH_HLEN 14
#define ETH_P_IP 0x0800
#define ETH_P_ARP 0x0806
#define ETH_P_IPV6 0x86dd

#define IPPROTO_ICMP 1
#define IPPROTO_IGMP 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPPROTO_ICMPV6 58
#define IPPROTO_SCTP 132

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8
#define ICMPV6_ECHO 128
#define ICMPV6_ECHO_REPLY 129

#define GSO_BY_FRAGS 0xffff		/* gso_size of SCTP's: pieces of any size (include/linux/skbuff.h) */
#define IP_FRAGMENT 0x3fff		/* more-fragments and offset */
#define IPV6_MAX_EXTENSIONS 8

struct ethhdr {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
} __attribute__((packed));

struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__sum16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	struct addr saddr;
	struct addr daddr;
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff;			/* high nibble: header length in words */
	__u8 flags;
	__be16 window;
	__sum16 check;
	__be16 urg_ptr;
};

struct udphdr {
	__be16 source;
	__be16 dest;
	__be16 len;
	__sum16 check;
};

struct icmphdr {
	__u8 type;
	__u8 code;
	__sum16 checksum;
	__be16 id;
	__be16 sequence;
};

/* RFC 9260 section 3: the common header, and the first chunk's type. */
struct sctphdr {
	__be16 source;
	__be16 dest;
	__be32 tag;
	__be32 checksum;		/* CRC32c of the whole packet, without addresses */
	__u8 chunk;
	__u8 chunk_flags;
	__be16 chunk_len;
};

#define SCTP_INIT 1

struct arp {
	__be16 htype;
	__be16 ptype;
	__u8 hlen;
	__u8 plen;
	__be16 op;
	__u8 sha[6];
	__be32 spa;
	__u8 tha[6];
	__be32 tpa;
} __attribute__((packed));

enum packet_kind {
	PACKET_FLOW = 0,		/* TCP, UDP, SCTP, ICMP query: has a tuple */
	PACKET_FRAGMENT,
	PACKET_ICMP,			/* any other ICMP or ICMPv6 */
	PACKET_OTHER,			/* any other IP protocol */
	PACKET_ARP,
	PACKET_FOREIGN,			/* neither IP nor ARP */
};

struct packet {
	struct addr saddr;
	struct addr daddr;
	__be16 sport;			/* see struct tuple */
	__be16 dport;
	__u32 zone;
	__u32 len;			/* from the IP header on, as the device gave it */
	__u32 seq;			/* TCP, host order */
	__u32 ack;
	__u32 id;			/* of a fragment, as on the wire */
	__u16 payload;			/* bytes behind the IP header, or behind the fragment header */
	__u16 frag_off;			/* bytes; of a fragment's payload in the whole */
	__u16 l4;			/* offset of the transport header */
	__u8 more;			/* a fragment, and not the last one */
	__u8 whole;			/* enum packet_kind of what a first fragment begins */
	__u8 family;			/* 4, 6, or 0 */
	__u8 kind;			/* enum packet_kind */
	__u8 proto;
	__u8 ttl;
	__u8 tcp_flags;			/* SCTP: TCP_SYN for INIT */
	__u8 icmp_type;
	__u8 l2;			/* length of the link-layer header: ETH_HLEN, or 0 (tun, WireGuard) */
	__u8 dst_mac[6];		/* zero where there is none */
	__u8 src_mac[6];
	__u8 refused;			/* an error about it is sent in its place */
};

#define V4_MAPPED bpf_htonl(0xffff)

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

/* Several bytes at once, where clang knows of no alignment and would move each. On the
 * stack the verifier insists on it. */
typedef __u64 __attribute__((may_alias)) dword;
typedef __u32 __attribute__((may_alias)) word;
typedef __u16 __attribute__((may_alias)) half;

static __always_inline void addr_set4(struct addr *a, __be32 v4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = V4_MAPPED;
	a->w[3] = v4;
}

/* From or to a packet, or the stack where it is aligned to 8 bytes. */
static __always_inline void addr_copy(struct addr *to, const struct addr *from)
{
	((dword *)to)[0] = ((dword *)from)[0];
	((dword *)to)[1] = ((dword *)from)[1];
}

static __always_inline bool addr_equal(const struct addr *a, const struct addr *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline bool addr_zero(const struct addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

/* The unspecified address of either family. */
static __always_inline bool addr_unspecified(const struct addr *a)
{
	return !a->w[3] && !a->w[0] && !a->w[1] && (!a->w[2] || a->w[2] == V4_MAPPED);
}

static __always_inline bool addr_loopback(const struct addr *a)
{
	if (a->w[0] | a->w[1])
		return false;
	if (a->w[2] == V4_MAPPED)
		return (a->w[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
	return !a->w[2] && a->w[3] == bpf_htonl(1);
}

static __always_inline bool addr_multicast(const struct addr *a)
{
	if (!(a->w[0] | a->w[1]) && a->w[2] == V4_MAPPED)
		return (a->w[3] & bpf_htonl(0xf0000000)) == bpf_htonl(0xe0000000);
	return (a->w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000);
}

static __always_inline bool addr_link_local6(const struct addr *a)
{
	return (a->w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* On the wire a v4-mapped address would read as IPv4 in our tables (RFC 4942 section 2.2). */
static __always_inline bool addr_mapped(const struct addr *a)
{
	return !(a->w[0] | a->w[1]) && a->w[2] == V4_MAPPED;
}

static __always_inline bool mac_equal(const __u8 *a, const __u8 *b)
{
	const half *x = (const half *)a, *y = (const half *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2];
}

/* Destination and source. */
static __always_inline void macs_copy(void *to, const __u8 *from)
{
	*(word *)to = *(word *)from;
	*(word *)(to + 4) = *(word *)(from + 4);
	*(word *)(to + 8) = *(word *)(from + 8);
}

static __always_inline void mac_copy(__u8 *to, const __u8 *from)
{
	__builtin_memcpy(to, from, 6);
}

#endif
