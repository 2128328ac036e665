// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"regexp"
	"strconv"
	"strings"
)

// saved is what iptables-save says of our rules.
type saved struct {
	chains  map[chain]bool    // ours
	counts  map[chain]int     // rules in them
	leading []leading         // rules of the kernel's chains that lead to ours
	others  map[string]bool   // chains of ours that somebody else's rules lead to
	foreign int               // somebody else's rules for what the host forwards
	drops   map[string]uint64 // packets, by reason
	text    strings.Builder   // all of it, without counters
}

type leading struct{ table, rule string }

var reasonOf = regexp.MustCompile(`--comment "bpfnet ([A-Z_]+)"`)

// parse reads "[packets:bytes] -A CHAIN rule" lines.
func parse(text string) *saved {
	s := &saved{chains: make(map[chain]bool), counts: make(map[chain]int), others: make(map[string]bool), drops: make(map[string]uint64)}
	table := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			table = line[1:]
		case strings.HasPrefix(line, ":"+prefixOurs):
			name, _, _ := strings.Cut(line[1:], " ")
			s.chains[chain{table, name}] = true
			s.text.WriteString(table + " " + name + "\n")
		case strings.HasPrefix(line, "["):
			counters, rule, ok := strings.Cut(line, "] -A ")
			if ok {
				s.rule(table, counters[1:], rule)
			}
		}
	}
	return s
}

func (s *saved) rule(table, counters, rule string) {
	name, rest, _ := strings.Cut(rule, " ")
	fields := strings.Fields(rest)
	target := ""
	for i, f := range fields {
		if (f == "-j" || f == "-g") && i+1 < len(fields) {
			target = fields[i+1]
		}
	}
	switch {
	case strings.HasPrefix(name, prefixOurs):
		s.counts[chain{table, name}]++
		if m := reasonOf.FindStringSubmatch(rest); m != nil {
			packets, _, _ := strings.Cut(counters, ":")
			n, _ := strconv.ParseUint(packets, 10, 64)
			s.drops[m[1]] += n
		}
	case strings.HasPrefix(target, prefixOurs) && strings.Contains(rest, "--comment bpfnet"):
		s.leading = append(s.leading, leading{table, rule})
		s.counts[chain{table, name}]++
	default:
		if strings.HasPrefix(target, prefixOurs) {
			s.others[target] = true
		}
		if name == "FORWARD" || name == "POSTROUTING" {
			s.foreign++
		}
		return
	}
	s.text.WriteString(table + " " + rule + "\n")
}

// look reads the rules of a family.
func (t *tool) look(family int) (*saved, error) {
	text, err := t.save(family)
	if err != nil {
		return nil, err
	}
	return parse(text), nil
}

// purge takes all of our rules away; none is fine.
func (t *tool) purge() error {
	for family := range families {
		have, err := t.look(family)
		if err != nil {
			return err
		}
		if script := none(have); script != "" {
			if err := t.restore(family, script); err != nil {
				return err
			}
		}
	}
	return nil
}
