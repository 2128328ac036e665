#!/bin/sh
# Refreshes the vendored headers from Debian's libbpf-dev and linux-libc-dev
# packages, so that compiling the C needs clang and nothing else of the system.
# linux/types.h is ours: the few typedefs that linux/bpf.h wants.
set -eu
cd "$(dirname "$0")"
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(cd "$tmp" && apt-get download libbpf-dev linux-libc-dev && for deb in ./*.deb; do dpkg-deb -x "$deb" root; done)
for h in bpf_helpers.h bpf_helper_defs.h bpf_endian.h bpf_core_read.h; do
	cp "$tmp/root/usr/include/bpf/$h" bpf/
done
for h in bpf.h bpf_common.h; do
	cp "$tmp/root/usr/include/linux/$h" linux/
done
