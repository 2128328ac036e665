// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Policy is how the host routes packets of one family that come from its containers: a
// snapshot of its rules and of the tables that they name. Rules about marks, ports,
// protocols, types of service, devices on the way out and VRFs match no such packet. Not
// looked at: suppress_ifgroup, and a goto for some destinations only.
type Policy struct {
	family int
	rules  []rule
	tables map[int]map[netip.Prefix]Route
	// Broadcast addresses of the host's networks, before all rules: the kernel forwards
	// nothing to them (net/ipv4/route.c: bc_forwarding).
	broadcast map[netip.Prefix]Route
}

// Way is which rules a packet goes by.
type Way struct {
	steps []step
}

// step is a rule that matches.
type step struct {
	table    int          // 0: no way
	to       netip.Prefix // zero: all destinations
	outside  bool         // those not in to
	suppress int
}

// UsualWay is that of a host of which nobody has changed the rules.
func (p *Policy) UsualWay() Way {
	main, other := step{table: unix.RT_TABLE_MAIN, suppress: -1}, step{table: unix.RT_TABLE_DEFAULT, suppress: -1}
	if p.family == netlink.FAMILY_V6 { // has no rule for the table named default
		return Way{[]step{main}}
	}
	return Way{[]step{main, other}}
}

// Key is equal for equal ways.
func (w Way) Key() string {
	var b strings.Builder
	for _, s := range w.steps {
		fmt.Fprintf(&b, "%d %v %v %d, ", s.table, s.to, s.outside, s.suppress)
	}
	return b.String()
}

// Policies are those of both families.
type Policies struct{ V4, V6 *Policy }

// ReadRules takes a snapshot of the rules alone: the Policies have no Routes.
func ReadRules(host *netns.NS) (p Policies, err error) {
	rules, err := readRules(host)
	return Policies{&Policy{family: netlink.FAMILY_V4, rules: rules[netlink.FAMILY_V4]},
		&Policy{family: netlink.FAMILY_V6, rules: rules[netlink.FAMILY_V6]}}, err
}

// ReadPolicies takes the snapshot.
func ReadPolicies(host *netns.NS) (p Policies, err error) {
	if p, err = ReadRules(host); err != nil {
		return p, err
	}
	err = withHandle(host, func(h *netlink.Handle) error {
		if err := p.V4.readTables(h); err != nil {
			return err
		}
		return p.V6.readTables(h)
	})
	return p, err
}

// readTables reads the tables that the rules name.
func (p *Policy) readTables(h *netlink.Handle) error {
	named := map[int]bool{unix.RT_TABLE_MAIN: true, unix.RT_TABLE_DEFAULT: true}
	for _, r := range p.rules {
		named[r.table] = r.action == actTable
	}
	read, err := newReader(h, p.family)
	if err != nil {
		return err
	}
	all, err := tableRoutes(h, p.family, unix.RT_TABLE_UNSPEC)
	if err != nil {
		return err
	}
	by := make(map[int][]netlink.Route)
	p.broadcast = make(map[netip.Prefix]Route)
	for _, r := range all {
		if r.Table == unix.RT_TABLE_LOCAL && r.Type == unix.RTN_BROADCAST {
			dst := dstOf(r, p.family)
			p.broadcast[dst] = Route{Dst: dst, Broadcast: r.LinkIndex}
		}
		if named[r.Table] && r.Table != unix.RT_TABLE_LOCAL {
			by[r.Table] = append(by[r.Table], r)
		}
	}
	p.tables = make(map[int]map[netip.Prefix]Route)
	for number, list := range by {
		p.tables[number] = read.table(list)
	}
	return nil
}

// Usual says whether every packet goes the usual way, wherever it comes from.
func (p *Policy) Usual() bool {
	for _, r := range p.rules {
		if !r.never && (r.iif != "" || r.from.IsValid() || r.invert) {
			return false
		}
	}
	return p.Way("", netip.Addr{}).Key() == p.UsualWay().Key()
}

// Way is how packets from src go that come in by the device iif.
func (p *Policy) Way(iif string, src netip.Addr) Way {
	var w Way
	var from uint32 // the target of a goto
	for i := range p.rules {
		r := &p.rules[i]
		if r.priority < from || r.table == unix.RT_TABLE_LOCAL && r.action == actTable {
			continue
		}
		yes, to, outside := r.matches(iif, src)
		if !yes {
			continue
		}
		switch r.action {
		case actTable:
			if r.table != unix.RT_TABLE_UNSPEC {
				w.steps = append(w.steps, step{r.table, to, outside, r.suppress})
			}
		case actGoto:
			// One that leads to no rule is passed over.
			if !to.IsValid() && slices.ContainsFunc(p.rules, func(t rule) bool { return t.priority == r.target }) {
				from = r.target
			}
		case unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT:
			w.steps = append(w.steps, step{0, to, outside, -1})
		}
	}
	return w
}

// Routes are the routes of a way as one table, sorted: what its longest prefix says is
// what the rules one after the other come to.
func (p *Policy) Routes(w Way) []Route {
	var out map[netip.Prefix]Route
	for _, s := range slices.Backward(w.steps) {
		out = join(p.tableOf(s), out)
	}
	out = join(p.broadcast, out)
	list := make([]Route, 0, len(out))
	for _, r := range out {
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b Route) int { return ComparePrefix(a.Dst, b.Dst) })
	return list
}

// tableOf are the routes that one step finds.
func (p *Policy) tableOf(s step) map[netip.Prefix]Route {
	all := everything(p.family)
	table := p.tables[s.table]
	if s.table == 0 {
		table = map[netip.Prefix]Route{all: {Dst: all}}
	}
	if s.suppress < 0 && !s.to.IsValid() {
		return table
	}
	out := make(map[netip.Prefix]Route)
	for dst, r := range table {
		if !s.to.IsValid() || (s.to.Overlaps(dst) && dst.Bits() >= s.to.Bits()) != s.outside {
			out[dst] = s.suppressed(r)
		}
	}
	if s.to.IsValid() {
		// The route to all of "to" that a shorter prefix gives, or none of them.
		edge, ok := covering(table, s.to)
		edge = s.suppressed(edge)
		edge.Dst = s.to
		switch {
		case s.outside:
			out[s.to] = Route{Dst: s.to, throw: true}
		case ok:
			out[s.to] = edge
		}
	}
	return out
}

// suppressed is what a route found comes to; one that refuses always counts
// (net/core/fib_rules.c, fib_rules_lookup).
func (s step) suppressed(r Route) Route {
	if len(r.Hops) > 0 && r.Dst.Bits() <= s.suppress {
		return Route{Dst: r.Dst, throw: true}
	}
	return r
}

// join gives the table that finds what first finds, and else what then finds. Of first
// it takes throw routes; then has none.
func join(first, then map[netip.Prefix]Route) map[netip.Prefix]Route {
	out := make(map[netip.Prefix]Route, len(first)+len(then))
	for dst, r := range then {
		if over, found := covering(first, dst); !found || over.throw {
			out[dst] = r
		}
	}
	for dst, r := range first {
		if r.throw {
			r, _ = covering(then, dst) // or no way
			r.Dst = dst
		}
		out[dst] = r
	}
	return out
}

// covering is the route of the longest prefix that has all of dst.
func covering(table map[netip.Prefix]Route, dst netip.Prefix) (Route, bool) {
	if len(table) == 0 {
		return Route{}, false
	}
	for bits := dst.Bits(); bits >= 0; bits-- {
		p, _ := dst.Addr().Prefix(bits)
		if r, ok := table[p]; ok {
			return r, true
		}
	}
	return Route{}, false
}
