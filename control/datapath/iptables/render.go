// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/bpfnet/bpfnet/maps"
)

// view is the model before or after this command.
type view struct {
	p   *Path
	was bool
	m   *meta
}

func pick[T any](v view, i *item[T]) *T {
	if v.was {
		return i.was
	}
	return i.now
}

func (v view) endpoint(slot uint32) (*endpoint, error) {
	if slot == 0 {
		return nil, nil
	}
	i, err := v.p.endpoints.item(slot)
	if err != nil {
		return nil, err
	}
	return pick(v, i), nil
}

func (v view) network(number uint32) (*network, error) {
	i, err := v.p.networks.item(number)
	if err != nil {
		return nil, err
	}
	return pick(v, i), nil
}

func numbered(prefix string, n uint32) string { return prefix + strconv.FormatUint(uint64(n), 10) }

// structure is the chains that do not grow, and the first words of those that do.
func (v view) structure(r *ruleset, family int) error {
	s := v.m.Pool
	var nets []*network
	var numbers []uint32
	if err := v.p.networks.read(); err != nil {
		return err
	}
	for _, number := range sortedKeys(v.p.networks.items) {
		if n := pick(v, v.p.networks.items[number]); n != nil {
			nets, numbers = append(nets, n), append(numbers, number)
		}
	}
	r.declare("raw", chainRaw, chainDirect)
	r.declare("nat", chainDNAT, chainPorts, chainPost, chainHairpin)
	r.declare("filter", chainForward, chainSources, chainDenied)
	loopback, local, echo := "127.0.0.0/8", "", "-p icmp -m icmp --icmp-type 8"
	one := "-m addrtype ! --dst-type MULTICAST -m addrtype ! --dst-type BROADCAST" // of a single device
	if family == v6 {
		loopback, local, echo = "::1/128", "fe80::/10", "-p ipv6-icmp -m icmp6 --icmpv6-type 128"
		one = "-m addrtype ! --dst-type MULTICAST"
	}
	r.add("raw", chainRaw, "-d", loopback, "! -i lo", because("LOOPBACK"), "-j DROP")
	r.add("nat", chainPost, "-j", chainHairpin)
	for _, n := range nets {
		if n.Internal {
			if local != "" {
				r.add("raw", chainRaw, "-i", n.Device, "-d", local, "-j RETURN")
			}
			r.add("raw", chainRaw, not("-d", subnetOf(n, family)), "-i", n.Device, one, because("INTERNAL"), "-j DROP")
			r.add("nat", chainDNAT, "-i", n.Device, "-j RETURN")
		}
		r.add("nat", chainPost, "-o", n.Device, "-m addrtype --src-type LOCAL -j MASQUERADE")
		if subnet := subnetOf(n, family); !n.ICC && !n.Internal && subnet != "" {
			// The server cannot find the client on its network (neighbour discovery), but the gateway.
			r.add("nat", chainPost, "-s", subnet, "-o", n.Device, "-m conntrack --ctstate DNAT -j MASQUERADE")
		}
	}
	for _, n := range nets { // what a container sends is judged by what may begin to talk: FORWARD
		r.add("raw", chainRaw, "-i", n.Device, "-j RETURN")
	}
	r.add("raw", chainRaw, "-j", chainDirect)
	if family == v6 {
		// The answer would not get back: there is no route_localnet for IPv6. Refused is better than silent.
		r.add("nat", chainDNAT, "-d", loopback, "-j RETURN")
	}
	r.add("nat", chainDNAT, "-j", chainPorts)
	for _, n := range nets {
		r.add("nat", chainPost, "-o", n.Device, "-j RETURN")
		r.add("filter", chainForward, "-o", n.Device, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT")
	}
	for _, n := range nets {
		subnet := subnetOf(n, family)
		if n.Internal || !n.Masquerade || n.Routed || subnet == "" {
			continue
		}
		for _, proto := range s.protos() {
			r.add("nat", chainPost, "-s", subnet, proto, "-j MASQUERADE", s.ports(proto))
		}
	}
	r.add("filter", chainForward, "-j", chainSources)
	for i, n := range nets {
		r.add("filter", chainForward, "-o", n.Device, "-j", numbered(prefixTo, numbers[i]))
	}
	for i, n := range nets {
		if n.Internal {
			r.add("filter", chainForward, "-i", n.Device, because("INTERNAL"), "-j DROP")
		} else {
			r.add("filter", chainForward, "-i", n.Device, "-m conntrack --ctstate INVALID", because("NO_FLOW"), "-j DROP")
			r.add("filter", chainForward, "-i", n.Device, "-j ACCEPT")
		}
		v.to(r, n, numbers[i], nets, echo)
	}
	for _, n := range nets {
		r.add("filter", chainDenied, "-i", n.Device, because("ISOLATED"), "-j DROP")
	}
	r.add("filter", chainDenied, because("DIRECT_ACCESS"), "-j DROP")
	if v.m.Router {
		r.declare("filter", chainRouter)
		r.add("filter", chainRouter, "-m physdev --physdev-is-bridged -j RETURN")
		r.add("filter", chainRouter, because("NO_ROUTE"), "-j DROP")
		r.add("filter", "FORWARD", ours, "-j", chainRouter)
	}
	if v.m.Sources > 0 {
		r.add("filter", "OUTPUT", "-m conntrack --ctstate DNAT", ours, "-j", chainSources)
	}
	return nil
}

// to is who may begin to talk to a network.
func (v view) to(r *ruleset, n *network, number uint32, nets []*network, echo string) {
	name := numbered(prefixTo, number)
	publish, link := numbered(prefixPublish, number), numbered(prefixLink, number)
	r.declare("filter", name, publish, link)
	switch {
	case n.Internal:
	case n.Routed:
		r.add("filter", name, "-j", publish)
		r.add("filter", name, "! -i", n.Device, echo, "-j ACCEPT")
	default:
		r.add("filter", name, "-m conntrack --ctstate DNAT -j", publish)
	}
	if n.ICC {
		r.add("filter", name, "-i", n.Device, "-j ACCEPT")
	} else {
		r.add("filter", name, "-i", n.Device, "-j", link)
		r.add("filter", name, "-i", n.Device, because("ICC_DENIED"), "-j DROP")
	}
	if open(n) {
		for _, other := range nets {
			if other != n && open(other) {
				r.add("filter", name, "-i", other.Device, "-j ACCEPT")
			}
		}
	}
	r.add("filter", name, "-j", chainDenied)
}

// open says whether other networks that are open too may reach a network.
func open(n *network) bool { return !n.Isolate && !n.Internal }

// guarded says whether nobody outside has business with a container's own address, answers
// included: then it is protected before anything else is asked.
func guarded(n *network) bool {
	return n != nil && (n.Internal || n.Masquerade && !n.Routed && n.Isolate)
}

func subnetOf(n *network, family int) string {
	for _, s := range n.Subnets {
		if s.Addr().Is6() == (family == v6) {
			return s.Masked().String()
		}
	}
	return ""
}

func not(flag, value string) string {
	if value == "" {
		return ""
	}
	return "! " + flag + " " + value
}

// pool is the source ports of masquerade; empty: the kernel chooses.
type pool string

func (s pool) protos() []string {
	if s == "" {
		return []string{""}
	}
	return []string{"-p tcp", "-p udp", ""}
}

func (s pool) ports(proto string) string {
	if s == "" || proto == "" {
		return ""
	}
	return "--to-ports " + string(s)
}

// direct protects an endpoint's addresses.
func (v view) direct(r *ruleset, family int, e *endpoint) error {
	addr := slotAddr(e, family)
	if !addr.IsValid() {
		return nil
	}
	n, err := v.network(e.Network)
	if err != nil || !guarded(n) {
		return err
	}
	r.add("raw", chainDirect, "-d", host(addr), "! -i", e.Bridge, because("DIRECT_ACCESS"), "-j DROP")
	return nil
}

func host(a netip.Addr) string { return netip.PrefixFrom(a, a.BitLen()).String() }

// rule is a publication or a link.
func (v view) rule(r *ruleset, family int, number uint32, x *rule) error {
	if x.Publication != nil {
		if err := v.publication(r, family, number, x); err != nil {
			return err
		}
	}
	if x.Link {
		return v.link(r, family, x)
	}
	return nil
}

func (v view) publication(r *ruleset, family int, number uint32, x *rule) error {
	pub := x.Publication
	slot := pub.Endpoint4
	if family == v6 {
		slot = pub.Endpoint6
	}
	e, err := v.endpoint(slot)
	if err != nil {
		return err
	}
	addr := slotAddr(e, family)
	if !addr.IsValid() {
		return nil
	}
	done := make(map[string]bool)
	source := numbered(prefixSource, number)
	for _, b := range x.Bindings {
		if b.Addr.Is6() != (family == v6) {
			continue
		}
		port := pub.Port + (b.First - pub.HostPort)
		proto := "-p " + b.Proto.String() + " -m " + b.Proto.String() + " --dport "
		one := ""
		if !b.Addr.IsUnspecified() {
			one = "-d " + host(b.Addr)
		}
		r.add("nat", chainPorts, one, proto+span(b.First, b.Count), "-j DNAT --to-destination", target(addr, port, b))
		inside := proto + span(port, b.Count)
		if !done[inside] {
			done[inside] = true
			r.add("nat", chainHairpin, "-s", host(addr), "-d", host(addr), inside, "-j MASQUERADE")
			r.add("filter", numbered(prefixPublish, e.Network), "-d", host(addr), inside, "-j ACCEPT")
		}
		if len(pub.Sources) == 0 {
			continue
		}
		asked := "-m conntrack --ctstate DNAT --ctorigdstport " + span(b.First, b.Count)
		if !b.Addr.IsUnspecified() {
			asked += " --ctorigdst " + b.Addr.String()
		}
		r.add("filter", chainSources, "-d", host(addr), inside, "-m conntrack --ctstate NEW", asked, "-j", source)
		n, err := v.network(e.Network)
		if err != nil {
			return err
		}
		if n != nil && n.Routed {
			r.add("filter", chainSources, "-d", host(addr), "! -i", n.Device, inside, "-m conntrack --ctstate NEW -m conntrack ! --ctstate DNAT -j", source)
		}
	}
	if len(done) == 0 || len(pub.Sources) == 0 {
		return nil
	}
	r.declare("filter", source)
	for _, s := range pub.Sources {
		if s.Addr().Is6() == (family == v6) {
			r.add("filter", source, "-s", s.Masked().String(), "-j RETURN")
		}
	}
	r.add("filter", source, because("SOURCE_DENIED"), "-j DROP")
	return nil
}

func span(first uint16, count int) string {
	if count == 1 {
		return strconv.Itoa(int(first))
	}
	return fmt.Sprintf("%d:%d", first, int(first)+count-1)
}

// target is where a range goes: one rule, with the offset that the first port has (xt_DNAT,
// revision 2).
func target(a netip.Addr, port uint16, b maps.Binding) string {
	text := a.String()
	if a.Is6() {
		text = "[" + text + "]"
	}
	switch {
	case port == b.First:
		if a.Is6() {
			return a.String()
		}
		return text
	case b.Count == 1:
		return fmt.Sprintf("%s:%d", text, port)
	default:
		return fmt.Sprintf("%s:%d-%d/%d", text, port, int(port)+b.Count-1, b.First)
	}
}

func joinPool(ranges []maps.PortRange, asked bool) pool {
	if !asked || len(ranges) == 0 {
		return ""
	}
	widest := slices.MaxFunc(ranges, func(a, b maps.PortRange) int { return int(a.Last-a.First) - int(b.Last-b.First) })
	return pool(strings.Join([]string{strconv.Itoa(int(widest.First)), strconv.Itoa(int(widest.Last))}, "-"))
}
