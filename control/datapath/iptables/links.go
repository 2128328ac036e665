// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/maps"
)

// link opens the ports of a server to a client; the entry without a port lets the two find
// each other (IPv6: neighbour discovery passes netfilter).
func (v view) link(r *ruleset, family int, x *rule) error {
	ports := make(map[[2]uint32]map[maps.Proto][]uint16)
	for _, l := range x.Links {
		if l.Client == 0 {
			continue
		}
		pair := [2]uint32{l.Client, l.Server}
		if ports[pair] == nil {
			ports[pair] = make(map[maps.Proto][]uint16)
		}
		ports[pair][l.Proto] = append(ports[pair][l.Proto], l.Port)
	}
	for pair, by := range ports {
		client, err := v.endpoint(pair[0])
		if err != nil {
			return err
		}
		server, err := v.endpoint(pair[1])
		if err != nil {
			return err
		}
		from, to := slotAddr(client, family), slotAddr(server, family)
		if !from.IsValid() || !to.IsValid() {
			continue
		}
		name := numbered(prefixLink, server.Network)
		for proto, list := range by {
			if proto == 0 {
				if family == v6 {
					discovery(r, name, client, server)
					discovery(r, name, server, client)
				}
				continue
			}
			for _, s := range spans(list) {
				r.add("filter", name, "-s", host(from), "-d", host(to), "-p", proto.String(), "-m", proto.String(), "--dport", s, "-j ACCEPT")
			}
		}
	}
	return nil
}

// spans makes ranges of ports.
func spans(ports []uint16) (list []string) {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	for i := 0; i < len(ports); {
		j := i + 1
		for j < len(ports) && int(ports[j]) == int(ports[i])+j-i {
			j++
		}
		list = append(list, span(ports[i], j-i))
		i = j
	}
	return list
}

// discovery lets one endpoint ask for another, and the other answer: RFC 4861, 7.2.
func discovery(r *ruleset, name string, asks, is *endpoint) {
	for _, src := range []netip.Addr{asks.IPv6, asks.LinkLocal} {
		for _, dst := range []netip.Addr{is.IPv6, is.LinkLocal} {
			if !src.IsValid() || !dst.IsValid() {
				continue
			}
			for _, at := range []netip.Addr{dst, solicited(dst)} {
				r.add("filter", name, "-s", host(src), "-d", host(at), "-p ipv6-icmp -m icmp6 --icmpv6-type 135 -j ACCEPT")
			}
			r.add("filter", name, "-s", host(dst), "-d", host(src), "-p ipv6-icmp -m icmp6 --icmpv6-type 136 -j ACCEPT")
		}
	}
}

// solicited is the solicited-node multicast address: RFC 4291, 2.7.1.
func solicited(a netip.Addr) netip.Addr {
	b := a.As16()
	m := netip.MustParseAddr("ff02::1:ff00:0").As16()
	copy(m[13:], b[13:])
	return netip.AddrFrom16(m)
}
