// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"slices"
	"strings"
)

// Our chains. PUB, LINK, TO and S have a number behind them.
const (
	chainRaw      = "BPFNET-RAW"
	chainDirect   = "BPFNET-DIRECT"
	chainDNAT     = "BPFNET-DNAT"
	chainPorts    = "BPFNET-PORTS"
	chainPost     = "BPFNET-POSTROUTING"
	chainHairpin  = "BPFNET-HAIRPIN"
	chainUser     = "BPFNET-USER"
	chainForward  = "BPFNET-FORWARD"
	chainRouter   = "BPFNET-ROUTER"
	chainSources  = "BPFNET-SOURCES"
	chainDenied   = "BPFNET-DENIED"
	prefixOurs    = "BPFNET-"
	prefixTo      = "BPFNET-TO-"
	prefixPublish = "BPFNET-PUB-"
	prefixLink    = "BPFNET-LINK-"
	prefixSource  = "BPFNET-S-"
)

// tables is the order in which they are written: what is raw protects, so it comes first.
var tables = []string{"raw", "nat", "filter"}

type chain struct{ table, name string }

// grows says that a chain's rules are added and removed one by one; their order does not matter.
// The others are written as a whole.
func (c chain) grows() bool {
	switch c.name {
	case chainDirect, chainPorts, chainHairpin, chainSources, "OUTPUT", "FORWARD":
		return true
	}
	return strings.HasPrefix(c.name, prefixPublish) || strings.HasPrefix(c.name, prefixLink)
}

func (c chain) builtin() bool { return !strings.HasPrefix(c.name, prefixOurs) }

// ruleset is rules of one family, or some of them.
type ruleset struct {
	rules    map[chain][]string
	declared map[chain]bool // chains that begin to exist with these rules
}

func newRuleset() *ruleset {
	return &ruleset{make(map[chain][]string), make(map[chain]bool)}
}

func (r *ruleset) declare(table string, names ...string) {
	for _, n := range names {
		r.declared[chain{table, n}] = true
	}
}

// add takes the words of a rule; empty ones are left out.
func (r *ruleset) add(table, name string, words ...string) {
	words = slices.DeleteFunc(words, func(w string) bool { return w == "" })
	c := chain{table, name}
	r.rules[c] = append(r.rules[c], strings.Join(words, " "))
}

// because is the comment of a rule that drops.
func because(reason string) string { return `-m comment --comment "bpfnet ` + reason + `"` }

const ours = `-m comment --comment bpfnet`

// manyDeletions is from where on it is faster to write all rules anew than to look each one
// up in its chain, as iptables-restore does.
const manyDeletions = 64

// delta is the script that makes was, rules that are in force, to now; empty: they are the same.
// deletions is how many rules it takes out one by one.
func delta(was, now *ruleset) (script string, deletions int) {
	var b strings.Builder
	for _, table := range tables {
		var head, body, tail []string
		for _, c := range chainsOf(table, was, now) {
			old, next := was.rules[c], now.rules[c]
			fresh, gone := now.declared[c] && !was.declared[c], was.declared[c] && !now.declared[c]
			switch {
			case gone:
				head, tail = append(head, ":"+c.name+" - [0:0]"), append(tail, "-X "+c.name)
			case fresh, !c.grows() && !slices.Equal(old, next):
				head = append(head, ":"+c.name+" - [0:0]")
				for _, r := range next {
					body = append(body, "-A "+c.name+" "+r)
				}
			case !c.grows():
			default:
				gone, fresh := difference(old, next)
				deletions += len(gone)
				for _, r := range gone {
					body = append(body, "-D "+c.name+" "+r)
				}
				for _, r := range fresh {
					body = append(body, "-A "+c.name+" "+r)
				}
			}
		}
		write(&b, table, head, body, tail)
	}
	return b.String(), deletions
}

func write(b *strings.Builder, table string, parts ...[]string) {
	if len(slices.Concat(parts...)) == 0 {
		return
	}
	b.WriteString("*" + table + "\n")
	for _, part := range parts {
		for _, line := range part {
			b.WriteString(line + "\n")
		}
	}
	b.WriteString("COMMIT\n")
}

func chainsOf(table string, sets ...*ruleset) (list []chain) {
	seen := make(map[chain]bool)
	for _, s := range sets {
		for c := range s.rules {
			seen[c] = true
		}
		for c := range s.declared {
			seen[c] = true
		}
	}
	for c := range seen {
		if c.table == table {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b chain) int { return strings.Compare(a.name, b.name) })
	return list
}

// difference of two bags of rules.
func difference(was, now []string) (gone, fresh []string) {
	n := make(map[string]int, len(was))
	for _, r := range was {
		n[r]++
	}
	for _, r := range now {
		if n[r] > 0 {
			n[r]--
		} else {
			fresh = append(fresh, r)
		}
	}
	for _, r := range was {
		if n[r] > 0 {
			n[r]--
			gone = append(gone, r)
		}
	}
	return gone, fresh
}

// jumps lead from the kernel's chains into ours; in this order each becomes the first of its chain.
var jumps = []struct{ table, at, to, match string }{
	{"raw", "PREROUTING", chainRaw, ""},
	{"nat", "PREROUTING", chainDNAT, "-m addrtype --dst-type LOCAL"},
	{"nat", "OUTPUT", chainDNAT, "-m addrtype --dst-type LOCAL"},
	{"nat", "POSTROUTING", chainPost, ""},
	{"filter", "FORWARD", chainForward, ""},
	{"filter", "FORWARD", chainUser, ""},
}

// whole is the script that makes now the rules, whatever has been there of ours.
func whole(now *ruleset, have *saved) string {
	var b strings.Builder
	for _, table := range tables {
		var head, body, tail []string
		if table == "filter" && !have.chains[chain{table, chainUser}] {
			head = append(head, "-N "+chainUser)
		}
		// Rules of the kernel's chains that lead to ours.
		for _, r := range have.leading {
			if r.table == table {
				body = append(body, "-D "+r.rule)
			}
		}
		for _, j := range jumps {
			if j.table == table {
				body = append(body, strings.Join(strings.Fields("-I "+j.at+" 1 "+j.match+" "+ours+" -j "+j.to), " "))
			}
		}
		for _, c := range chainsOf(table, now) {
			if !c.builtin() {
				head = append(head, ":"+c.name+" - [0:0]")
			}
			for _, r := range now.rules[c] {
				body = append(body, "-A "+c.name+" "+r)
			}
		}
		for c := range have.chains {
			if c.table == table && c.name != chainUser && !now.declared[c] {
				head, tail = append(head, ":"+c.name+" - [0:0]"), append(tail, "-X "+c.name)
			}
		}
		write(&b, table, head, body, tail)
	}
	return b.String()
}

// none is the script that takes away what is ours; the administrator's chain only if it is empty.
func none(have *saved) string {
	var b strings.Builder
	for _, table := range tables {
		var head, body, tail []string
		for _, r := range have.leading {
			if r.table == table {
				body = append(body, "-D "+r.rule)
			}
		}
		for c := range have.chains {
			switch {
			case c.table != table:
			case c.name != chainUser:
				head, tail = append(head, ":"+c.name+" - [0:0]"), append(tail, "-X "+c.name)
			case have.counts[c] == 0 && !have.others[c.name]:
				tail = append(tail, "-X "+c.name)
			}
		}
		write(&b, table, head, body, tail)
	}
	return b.String()
}
