// SPDX-License-Identifier: Apache-2.0

package rows

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Difference is a part of a row that does not hold elsewhere: on the iptables datapath, or with Docker's
// containers.
type Difference struct {
	Row   string
	What  string   // what comes of it instead
	Why   string   // in netfilter, or in the Engine
	Tests []string // that fail there: functions, or subtests as go test prints them; all below counts
	Some  []string // that fail or do not: chance or speed decides
}

// Differences is all of them. tests/conformance/run -datapath iptables runs every row on
// iptables, and fails if one fails that is not here, or one that is here does not.
var Differences = []Difference{
	{"A1", "who asks by link-local addresses is told that there is no route", "after DNAT it is one between two links", []string{"TestA1LinkLocal"}, nil},
	{"A2, A3, A3a, E9", "H is refused at [::1]", "the answer to a translated ::1 has no way back: IPv6 has no route_localnet, and an IPv4-only container needs an address of the other family. Elsewhere the tests take the refusal, too",
		[]string{"TestA3", "TestA2/beside_a_connection_from_the_gateway's_port_to_[fd00:1::2]:80", "TestE9Again/to_a_published_port,_from_H,_IPv6"}, nil},
	{"A8", "::1 on a wire is dropped, and not counted", "the kernel drops it before netfilter (ip6_rcv_core): the tests leave it out of the sum", nil, nil},
	{"A11", "the refusal of a UDP port by IPv6 may not come", "after DNAT on a bridge the kernel takes the packet for one that goes out where it came in (ip6_rcv_core, IP6CB iif): it sends redirects, which use up ICMPv6's rate limit",
		[]string{"TestA11"}, nil},
	{"A20", "a program on H that sends to where from= forbids it hears EPERM", "what netfilter drops on the way out the sender is told; the tests take that, too", nil, nil},
	{"B8, B9", "H's processes may bind a published port; it gets what comes from nowhere else", "no rule sees a bind, and nobody of ours holds a socket",
		[]string{"TestB8/8080:80_8081:80", "TestB9"}, nil},
	{"B11", "a process of H may get a port in the same moment in which it is published", "as B9: it was free when bpfnet looked", nil, []string{"TestB11"}},
	{"C2", "icc off: ARP, VLAN tags and other frames of a network's containers reach each other", "iptables sees IP only; br_netfilter hands it nothing else", []string{"TestC2"}, nil},
	{"C6, C8", "with ip_forward 0 nothing passes", "the kernel's router is netfilter's packets' path", []string{"TestC6/ip_forward_0", "TestC8/ip_forward_0", "TestC8/routed"}, nil},
	{"C9", "forged frames and sources leave", "as C2 for ARP, neighbour discovery and MACs; Docker has no rules against forged IP sources, nor have we", []string{"TestC9", "TestC9Checksum", "TestC9InnerChecksum"}, nil},
	{"C12", "another firewall's DROP in FORWARD drops broadcasts, too", "an ACCEPT of ours ends our chain, not other tables'", []string{"TestC12"}, nil},
	{"D2", "a mapping keeps its address until it times out", "conntrack asks the nat table for the first packet only; MASQUERADE forgets entries when a device goes, not when a route changes",
		[]string{"TestD2", "TestD2Rules"}, nil},
	{"D2", "while an address is away what is dropped for that is not counted", "the kernel's router drops it", []string{"TestD2AddressBack"}, nil},
	{"D2", "with two equal IPv6 routes the connections to one destination go by both", "the kernel chooses by the flow label, too (fib_multipath_hash_policy 0)", nil, []string{"TestD2Multipath/IPv6"}},
	{"D5", "masquerade's last ports are not found, and what is refused is not counted", "nf_nat tries a bounded number of ports (NF_NAT_MAX_ATTEMPTS)", []string{"TestD5"}, nil},
	{"D6", "masquerade may use a port of those that H's own connections are given; of --masquerade-ports it takes one range, and does not leave published ports out", "MASQUERADE keeps a port if the whole tuple is free, and takes one range", nil, []string{"TestD6"}},
	{"D7", "the source port stays that of the container, even of a service of H's: whom the container speaks to from there does not reach that service by the same ports", "masquerade keeps a port if the tuple is free, and knows of no listeners", []string{"TestD7"}, nil},
	{"D10", "no --full-cone; another external port for another destination if the first one's tuple is taken", "conntrack's entries are connections, with both ends", []string{"TestD10"}, nil},
	{"E1", "there are no flows that change their family, and no errors about them", "as A3", []string{"TestE1OtherFamily"}, nil},
	{"E3", "tiny and overlapping fragments are put together where the kernel does", "conntrack defragments", []string{"TestE3Hostile"}, nil},
	{"E4", "what a container segments itself leaves as it is", "the bridge's path through netfilter puts no packets together", []string{"TestE4/off_inside"}, nil},
	{"E4", "slower than plain routing", "what this datapath is there to show", nil, []string{"TestE4Rate"}},
	{"E8", "an ICMP error has another of H's addresses as source", "the kernel's router chooses it (icmp_errors_use_inbound_ifaddr)", []string{"TestE8"}, nil},
	{"E9", "a reset may end a flow that is alive, or leave it its timeout", "conntrack has its own states and timeouts (nf_conntrack_tcp_*), for the whole host", []string{"TestE9Reset"}, nil},
	{"E9", "a client that uses a few ports again and again may wait for seconds for a server in TIME_WAIT", "masquerade gives a port to whoever's tuple fits: the server remembers later sequence numbers of another client's",
		nil, []string{"TestE9Again/to_the_world,_IPv4", "TestE9Again/to_the_world,_IPv6"}},
	{"G2", "there are no programs to upgrade", "a newer bpfnet writes its rules by reconcile, in one transaction", []string{"TestG2"}, nil},
	{"G5", "a firewall's reload that flushes everything cuts off, and so does ip_forward 0", "our rules are in the tables that it flushes; the daemon or reconcile puts them back", []string{"TestG5"}, nil},
	{"G6", "a flood fills conntrack, for everybody", "one table, of a size and with timeouts that are the host's", []string{"TestG6"}, nil},
	{"G7", "no quota", "conntrack has none for a container", []string{"TestG7"}, nil},
	{"G8", "there are no programs to detach", "rules that are gone leave what they forbade open until the daemon or reconcile has them back", []string{"TestG8"}, nil},
}

// covers says whether a test that failed is one of the difference's.
func (d *Difference) covers(test string) bool {
	return slices.ContainsFunc(slices.Concat(d.Tests, d.Some), func(t string) bool { return test == t || strings.HasPrefix(test, t+"/") })
}

// Unexpected compares what failed there, by full name, with a list: a line for each test
// that fails and is in no difference, and each that is in one and does not fail. Of a test that ran not
// at all nothing is said.
func Unexpected(list []Difference, results map[string]string) (lines []string) {
	failed := make(map[string]bool)
	for name, result := range results {
		if result == "fail" {
			failed[name] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(failed)) {
		below := false
		for other := range failed {
			below = below || strings.HasPrefix(other, name+"/")
		}
		known := slices.ContainsFunc(list, func(d Difference) bool { return d.covers(name) })
		if !below && !known {
			lines = append(lines, name+" fails, and is in no difference")
		}
	}
	for _, d := range list {
		for _, t := range d.Tests {
			top, _, _ := strings.Cut(t, "/")
			if _, ran := results[top]; ran && !failed[t] {
				lines = append(lines, fmt.Sprintf("%s does not fail any more: difference of %s", t, d.Row))
			}
		}
	}
	return lines
}

// DifferencesTable is a list for a reader; where is "on iptables".
func DifferencesTable(list []Difference, where string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "| row | %s | because | tests |\n|---|---|---|---|\n", where)
	for _, d := range list {
		fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", d.Row, cell(d.What), cell(d.Why), cell(strings.Join(append(slices.Clone(d.Tests), sometimes(d.Some)...), ", ")))
	}
	return b.String()
}

func sometimes(tests []string) (list []string) {
	for _, t := range tests {
		list = append(list, t+" (not always)")
	}
	return list
}
