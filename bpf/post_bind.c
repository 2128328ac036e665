// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The bind guard, on a cgroup: with no process of ours running nobody holds a
 * socket on a published port, so binding one is refused here. It runs for every
 * process of the cgroup, containers' included: the netns cookie tells the host's.
 *
 * A socket that asked for any port (bind to port 0) may keep a published one: the
 * kernel does not try another when the guard refuses its choice, and with most of
 * ip_local_port_range published the host would be out of ports. Its peers' answers
 * are its own all the same (remember_local, host_connected).
 *
 * A publication of another engine's is none of the guard's (RULE_HELD): the engine has
 * sockets on its ports, and binds them again when it is restarted.
 */
#include "lib/decide.h"

#define EADDRINUSE 98

/* Sockets that asked for any port, from bind to post_bind. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC_);
	__type(key, int);
	__type(value, __u32);
} any_port SEC(".maps");

static __always_inline int note_bind(struct bpf_sock_addr *ctx)
{
	if (!ctx->sk)
		return 1;
	if (ctx->user_port)
		bpf_sk_storage_delete(&any_port, ctx->sk);
	else
		bpf_sk_storage_get(&any_port, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	return 1;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	return note_bind(ctx);
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	return note_bind(ctx);
}

static __always_inline int refuse(void)
{
	count(COUNTER_BIND_REFUSED);
	bpf_set_retval(-EADDRINUSE);
	return 0;
}

static __always_inline bool held(__u32 number)
{
	struct rule *r = bpf_map_lookup_elem(&rules, &number);

	return r && (r->flags & RULE_HELD);
}

static __always_inline bool taken(const struct addr *addr, __u32 port, __u32 proto, __u32 family, bool any)
{
	__u32 slot = slot_of_port(family, proto, port);
	struct port_key key = { .addr = *addr, .port = bpf_htons(port), .proto = proto };

	__u32 *rule;

	if (!slot)
		return false;
	if (slot & PORT_RULE)
		return !held(slot & PORT_RULE);
	if (any)
		return true;
	rule = bpf_map_lookup_elem(&ports_addr, &key);
	return rule && !held(*rule);
}

static __always_inline bool guarded(struct bpf_sock *sk)
{
	struct config *c = config();

	return c && bpf_get_netns_cookie(sk) == c->netns_cookie &&
	       !bpf_sk_storage_get(&any_port, sk, NULL, 0);
}

SEC("cgroup/post_bind4")
int post_bind4(struct bpf_sock *sk)
{
	struct addr addr;

	if (!guarded(sk))
		return 1;
	addr_set4(&addr, sk->src_ip4);
	return taken(&addr, sk->src_port, sk->protocol, 4, !sk->src_ip4) ? refuse() : 1;
}

SEC("cgroup/post_bind6")
int post_bind6(struct bpf_sock *sk)
{
	struct addr addr = { { sk->src_ip6[0], sk->src_ip6[1], sk->src_ip6[2], sk->src_ip6[3] } };
	bool any = addr_zero(&addr);

	if (!guarded(sk))
		return 1;
	/* A socket on :: takes the port in IPv4 too; one on [::1] would hide an
	 * IPv4-only container's port that answers there. */
	if (taken(&addr, sk->src_port, sk->protocol, 6, any))
		return refuse();
	if (any || addr_loopback(&addr)) {
		struct addr any4;

		addr_set4(&any4, 0);
		if (taken(&any4, sk->src_port, sk->protocol, 4, any))
			return refuse();
	}
	/* A v4-mapped address binds in IPv4. */
	if (!addr.w[0] && !addr.w[1] && addr.w[2] == V4_MAPPED &&
	    taken(&addr, sk->src_port, sk->protocol, 4, !addr.w[3]))
		return refuse();
	return 1;
}
