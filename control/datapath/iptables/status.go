// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"hash/maphash"
	"maps"
	"slices"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/netns"
)

// Status says which of our chains are where, and what they dropped.
func (p *Path) Status(s *datapath.Status) error {
	t, err := p.tool()
	if err != nil {
		return err
	}
	for family, name := range families {
		have, want, err := p.compare(t, family)
		if err != nil {
			s.Problem("%v", err)
			continue
		}
		for _, j := range jumps {
			at := chain{j.table, j.at}
			ok := have.counts[at] == want[at]
			s.Hooks = append(s.Hooks, datapath.HookStatus{Device: name + " " + j.table, Program: j.at + " → " + j.to, Kind: t.flavour, OK: ok})
		}
		if !same(have, want) {
			s.Problem("%s: rules of bpfnet's have been changed or removed: run bpfnet reconcile", name)
		}
		for _, reason := range slices.Sorted(maps.Keys(have.drops)) {
			if n := have.drops[reason]; n > 0 {
				s.Drops = append(s.Drops, datapath.DropStatus{Device: name, Reason: reason, Packets: n})
			}
		}
	}
	if m, err := p.meta(); err == nil && m.Router {
		ns, err := p.host.Netns()
		if err != nil {
			return err
		}
		return ns.Do(func() error {
			if on, _ := readNet(forward4); on == "0" {
				s.Problem("net.ipv4.ip_forward is 0: containers do not reach the world: run bpfnet reconcile")
			}
			return nil
		})
	}
	return nil
}

// compare is what a family has, and how many rules of ours each chain should have.
func (p *Path) compare(t *tool, family int) (*saved, map[chain]int, error) {
	m, err := p.meta()
	if err != nil {
		return nil, nil, err
	}
	all, err := view{p, false, m}.everything(family)
	if err != nil {
		return nil, nil, err
	}
	want := make(map[chain]int)
	for c, rules := range all.rules {
		want[c] = len(rules)
	}
	for _, j := range jumps {
		want[chain{j.table, j.at}]++
	}
	have, err := t.look(family)
	return have, want, err
}

func same(have *saved, want map[chain]int) bool {
	for c, n := range want {
		if have.counts[c] != n {
			return false
		}
	}
	for c, n := range have.counts {
		if c.name != chainUser && want[c] != n {
			return false
		}
	}
	return have.chains[chain{"filter", chainUser}]
}

// Wrong says whether rules of ours are not as they were left.
func (p *Path) Wrong(datapath.Patrol) (bool, error) {
	t, err := p.tool()
	if err != nil {
		return false, err
	}
	for family := range families {
		have, want, err := p.compare(t, family)
		if err != nil {
			return false, err
		}
		if !same(have, want) {
			return true, nil
		}
	}
	return false, nil
}

// patrol compares our rules with those of its last look.
type patrol struct {
	flavour string
	seed    maphash.Seed
	last    uint64
}

// NewPatrol looks at the rules of the flavour that is in use.
func NewPatrol(h datapath.Host) datapath.Patrol {
	p := &patrol{seed: maphash.MakeSeed()}
	if m, err := New(h).meta(); err == nil {
		p.flavour = m.Flavour
	}
	return p
}

func (p *patrol) Look() (s datapath.Sight, err error) {
	ns, err := netns.Current()
	if err != nil {
		return s, err
	}
	defer ns.Close()
	t := tool{ns, p.flavour}
	var hash maphash.Hash
	hash.SetSeed(p.seed)
	for family := range families {
		have, err := t.look(family)
		if err != nil {
			return s, err
		}
		_, _ = hash.WriteString(have.text.String())
	}
	s.Changed = hash.Sum64() != p.last
	p.last = hash.Sum64()
	return s, nil
}
