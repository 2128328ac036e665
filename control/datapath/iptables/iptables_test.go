// SPDX-License-Identifier: Apache-2.0

package iptables

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/maps"
)

// Without the programs, or with those of another flavour only, the error is one line that names
// what is missing and what would help.
func TestMissing(t *testing.T) {
	old := sbin
	t.Cleanup(func() { sbin = old })
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	sbin = nil
	for _, asked := range []string{"", NFT, Legacy} {
		_, err := findFlavour(asked)
		require.ErrorIs(t, err, os.ErrNotExist)
		require.Regexp(t, `^iptables(-nft|-legacy)?-restore: .*install the package iptables, or choose --datapath bpf$`, err.Error())
	}
	for name, says := range map[string]string{"iptables": "v1.8.9 (legacy)", "ip6tables": "v1.8.9 (legacy)"} {
		for _, verb := range []string{"restore", "save"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name+"-"+verb), []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755))
		}
	}
	found, err := findFlavour("")
	require.NoError(t, err)
	require.Equal(t, Legacy, found)
	path, err := (&tool{flavour: Legacy}).path(v6, "save")
	require.NoError(t, err)
	require.Equal(t, filepath.Join(dir, "ip6tables-save"), path)
	_, err = (&tool{flavour: NFT}).path(v4, "save")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestOneLine(t *testing.T) {
	require.Equal(t, "host/network `x' not found Error occurred at line: 2",
		oneLine("iptables-restore v1.8.9 (legacy): host/network `x' not found\nError occurred at line: 2\nTry `iptables-restore -h' or 'iptables-restore --help' for more information.\n"))
	require.Equal(t, "line 3: RULE_APPEND failed (No such file)", oneLine("ip6tables-nft-restore v1.8.9 (nf_tables): \nline 3: RULE_APPEND failed (No such file)\n"))
}

// A range is one rule, whatever its offset.
func TestTarget(t *testing.T) {
	for _, x := range []struct {
		addr        string
		port, first uint16
		count       int
		to, span    string
	}{
		{"10.1.0.2", 80, 8080, 1, "10.1.0.2:80", "8080"},
		{"10.1.0.2", 80, 80, 1, "10.1.0.2", "80"},
		{"10.1.0.2", 80, 7000, 3, "10.1.0.2:80-82/7000", "7000:7002"},
		{"10.1.0.2", 2000, 2000, 60000, "10.1.0.2", "2000:61999"},
		{"fd00::2", 80, 8080, 1, "[fd00::2]:80", "8080"},
		{"fd00::2", 80, 7000, 3, "[fd00::2]:80-82/7000", "7000:7002"},
		{"fd00::2", 80, 80, 2, "fd00::2", "80:81"},
	} {
		require.Equal(t, x.to, target(netip.MustParseAddr(x.addr), x.port, maps.Binding{First: x.first, Count: x.count}))
		require.Equal(t, x.span, span(x.first, x.count))
	}
	require.Equal(t, []string{"1", "5:7", "9"}, spans([]uint16{9, 7, 5, 6, 1, 5}))
}

func TestSolicited(t *testing.T) {
	require.Equal(t, "ff02::1:ff28:9c5a", solicited(netip.MustParseAddr("fe80::2aa:ff:fe28:9c5a")).String()) // RFC 4291, 2.7.1
}

// Chains that grow change by the rules that differ; the others are written as a whole; new ones are
// made first and old ones removed last.
func TestDelta(t *testing.T) {
	set := func(fill func(r *ruleset)) *ruleset {
		r := newRuleset()
		fill(r)
		return r
	}
	empty := set(func(*ruleset) {})
	one := set(func(r *ruleset) {
		r.declare("filter", chainForward, "BPFNET-PUB-1")
		r.add("filter", chainForward, "-o a", "-j ACCEPT")
		r.add("filter", "BPFNET-PUB-1", "-d x", "", "-j ACCEPT")
		r.add("filter", "BPFNET-PUB-1", "-d x", "-j ACCEPT")
	})
	two := set(func(r *ruleset) {
		r.declare("filter", chainForward, "BPFNET-PUB-1")
		r.add("filter", chainForward, "-o b", "-j ACCEPT")
		r.add("filter", "BPFNET-PUB-1", "-d x", "-j ACCEPT")
		r.add("filter", "BPFNET-PUB-1", "-d y", "-j ACCEPT")
		r.add("raw", chainDirect, "-j DROP")
	})
	lines := func(s ...string) string { return strings.Join(s, "\n") + "\n" }
	change := func(was, now *ruleset) string {
		script, _ := delta(was, now)
		return script
	}
	require.Empty(t, change(one, one))
	require.Equal(t, lines("*filter", ":BPFNET-FORWARD - [0:0]", ":BPFNET-PUB-1 - [0:0]",
		"-A BPFNET-FORWARD -o a -j ACCEPT", "-A BPFNET-PUB-1 -d x -j ACCEPT", "-A BPFNET-PUB-1 -d x -j ACCEPT", "COMMIT"), change(empty, one))
	require.Equal(t, lines("*raw", "-A BPFNET-DIRECT -j DROP", "COMMIT", "*filter", ":BPFNET-FORWARD - [0:0]",
		"-A BPFNET-FORWARD -o b -j ACCEPT", "-D BPFNET-PUB-1 -d x -j ACCEPT", "-A BPFNET-PUB-1 -d y -j ACCEPT", "COMMIT"), change(one, two))
	require.Equal(t, lines("*filter", ":BPFNET-FORWARD - [0:0]", ":BPFNET-PUB-1 - [0:0]", "-X BPFNET-FORWARD", "-X BPFNET-PUB-1", "COMMIT"), change(one, empty))
}

// What iptables-save says of others' rules is none of ours, unless they lead to a chain of ours.
func TestParse(t *testing.T) {
	s := parse(strings.Join([]string{
		"*filter", ":FORWARD DROP [0:0]", ":BPFNET-USER - [0:0]", ":BPFNET-FORWARD - [0:0]", ":DOCKER - [0:0]",
		"[1:60] -A FORWARD -m comment --comment bpfnet -j BPFNET-FORWARD",
		"[1:60] -A FORWARD -s 10.0.0.1/32 -j BPFNET-USER",
		"[2:60] -A FORWARD -j DOCKER",
		`[7:420] -A BPFNET-FORWARD -m comment --comment "bpfnet ICC_DENIED" -j DROP`,
		`[3:420] -A BPFNET-FORWARD -m comment --comment "bpfnet ICC_DENIED" -j DROP`,
		"COMMIT"}, "\n"))
	require.Equal(t, []leading{{"filter", "FORWARD -m comment --comment bpfnet -j BPFNET-FORWARD"}}, s.leading)
	require.Equal(t, map[chain]int{{"filter", "FORWARD"}: 1, {"filter", chainForward}: 2}, s.counts)
	require.Equal(t, map[string]uint64{"ICC_DENIED": 10}, s.drops)
	require.NotContains(t, none(s), "-X BPFNET-USER", "somebody's rule leads there")
	require.Contains(t, none(s), "-X BPFNET-FORWARD")
}
