// SPDX-License-Identifier: Apache-2.0

// Package rows is the list of what bpfnet promises, a row each, and the table that says
// which of it holds. A row is tested by the functions of package conformance that are
// named after it (TestE1, TestE1Kinds), or by those that Elsewhere has; some of the former
// run in the kernel lab only, which has what other kernels may lack.
// tests/conformance/run runs them and writes the table.
package rows

import "regexp"

// Row is one promise.
type Row struct {
	ID       string
	Promise  string
	Families string // IP versions that it is tested in
	Protos   string // that it is tested by
	Missing  string // why it is not tested or does not hold; empty: it holds
}

// Elsewhere has the tests of rows that are not in package conformance: by directory and function.
var Elsewhere = map[string][]Test{
	"E5": {{"tests/datapath", "TestOptions"}, {"tests/datapath", "TestOptionsSourceRoute"}, {"tests/datapath", "TestOptionsRouting"}},
	"E6": {{"tests/oracle", "TestPrograms"}, {"tests/oracle", "TestSequences"}},
	"G4": {{"control", "TestReboot"}},
}

// Test is a function of a package in a directory.
type Test struct{ Dir, Name string }

// Dir is where the tests are that are named after rows.
const Dir = "tests/conformance"

// Lab stands for Dir in a Test that only the kernel lab builds and runs: its file has the
// lab's build tag. The result is then that of the lab's kernels.
const Lab = "tests/kernellab"

// InLab has the names of those.
var InLab = []string{"TestA17WireGuard", "TestA19", "TestA19Sums", "TestE12VLANUplink"}

var named = regexp.MustCompile(`^Test([A-G][0-9]+[a-z]?)([A-Z].*)?$`)

// Of is the row that a test is of; empty: of none.
func Of(t Test) string {
	if t.Dir == Dir || t.Dir == Lab {
		if m := named.FindStringSubmatch(t.Name); m != nil {
			return m[1]
		}
		return ""
	}
	for id, list := range Elsewhere {
		for _, x := range list {
			if x == t {
				return id
			}
		}
	}
	return ""
}

const (
	both     = "4, 6"
	tcpUDP   = "TCP, UDP"
	withICMP = "TCP, UDP, ICMP"
)

// X is another host, H the host, s and p containers of one network, o one of another.

// All is every row, in order.
var All = []Row{
	{"A1", "X reaches a published port; the server sees X", both, tcpUDP, ""},
	{"A2", "H reaches it by 127.0.0.1, and shows as the gateway", both, tcpUDP, ""},
	{"A3", "H reaches it by [::1], the container with or without IPv6", both, tcpUDP, ""},
	{"A3a", "as A2, by a socket that is bound to an address first", both, tcpUDP, ""},
	{"A3b", "X is refused by IPv6 where the container has none; port says so", both, tcpUDP, ""},
	{"A4", "H reaches it by its uplink's address", both, tcpUDP, ""},
	{"A5", "H reaches it by the gateway's address", both, tcpUDP, ""},
	{"A6", "H reaches what is published on loopback only", both, tcpUDP, ""},
	{"A7", "what is published on loopback only is refused elsewhere", both, tcpUDP, ""},
	{"A8", "loopback addresses on a wire are dropped and counted", both, tcpUDP, ""},
	{"A9", "p reaches s by its published port, seen as p", both, tcpUDP, ""},
	{"A10", "s reaches its own published port", both, tcpUDP, ""},
	{"A11", "o reaches it by any of H's addresses, seen as o", both, tcpUDP, ""},
	{"A12", "UDP answers leave from the address that was asked", both, "UDP", ""},
	{"A13", "published on one of three addresses: on that only", both, tcpUDP, ""},
	{"A14", "one port of two addresses: each its own container", both, tcpUDP, ""},
	{"A15", "a range maps one to one, by one command", both, tcpUDP, ""},
	{"A16", "one container port published twice: both answer", both, tcpUDP, ""},
	{"A17", "published over a device without an Ethernet header", both, tcpUDP, ""},
	{"A18", "an uplink or address that comes later works", both, tcpUDP, ""},
	{"A19", "SCTP, with equal ports", both, "SCTP", ""},
	{"A20", "from=: others are refused, and counted", both, tcpUDP, ""},

	{"B1", "-p PORT and -P choose a free port, one for both families", both, tcpUDP, ""},
	{"B2", "a free port of one address", both, tcpUDP, ""},
	{"B3", "the first free one of a range", both, tcpUDP, ""},
	{"B4", "a range without a free one is an error", both, tcpUDP, ""},
	{"B5", "taken by a container: Docker's words, nothing changed", both, tcpUDP, ""},
	{"B6", "taken by a process of H: address already in use", both, tcpUDP, ""},
	{"B7", "an address that H does not have: cannot assign", both, tcpUDP, ""},
	{"B8", "the second of two fails: the first is free again", both, tcpUDP, ""},
	{"B9", "H's processes cannot bind what is published, containers can", both, tcpUDP, ""},
	{"B10", "all addresses conflict with each, protocols do not", both, tcpUDP, ""},
	{"B11", "64 at once and a rival: no port twice", both, tcpUDP, ""},
	{"B12", "malformed: one line that names the piece", both, tcpUDP, ""},
	{"B13", "removed and published again at once", both, tcpUDP, ""},
	{"B14", "the default binding address", both, tcpUDP, ""},

	{"C1", "p reaches any port of s", both, withICMP, ""},
	{"C2", "icc off: nothing of any kind gets from p to s", both, "Ethernet, ARP, ND, " + withICMP, ""},
	{"C3", "icc off: published ports, the world and H go on", both, withICMP, ""},
	{"C4", "a link opens exactly the exposed ports, by alias", both, tcpUDP, ""},
	{"C5", "o does not reach s", both, withICMP, ""},
	{"C6", "an internal network has no way out and none in", both, withICMP, ""},
	{"C7", "H reaches every port of s", both, tcpUDP, ""},
	{"C8", "X with a route to s gets nothing; in routed networks what is published", both, withICMP, ""},
	{"C9", "forged frames of a container: none leaves, each is counted", both, "ARP, ND, RA, DHCP, TCP, UDP", ""},
	{"C10", "a cable between two containers", "", "", "not built yet: wire p2p"},
	{"C11", "joining and leaving networks while running", both, tcpUDP, ""},
	{"C12", "broadcast, multicast and DHCP within a network", both, "UDP, DHCP", ""},
	{"C13", "--net none, host, container:NAME", both, tcpUDP, ""},

	{"D1", "X sees H's address of the uplink that the route chose", both, withICMP, ""},
	{"D2", "several uplinks; an address changes: new flows follow", both, tcpUDP, ""},
	{"D3", "other networks by H's address", both, tcpUDP, ""},
	{"D4", "masquerade off: X sees s", both, withICMP, ""},
	{"D5", "masquerade's ports to the last one; the next is refused, none is lost", both, tcpUDP, ""},
	{"D6", "no cross-talk with H's own connections on ten ports", both, tcpUDP, ""},
	{"D7", "a source port that is H's service's does not shadow it", both, tcpUDP, ""},
	{"D8", "simultaneous open through masquerade", both, "TCP", ""},
	{"D9", "one ICMP id of many: each gets its own answers", both, "ICMP", ""},
	{"D10", "one external port for one source port; --full-cone", both, "UDP", ""},

	{"E1", "ICMP errors about translated flows", both, withICMP, ""},
	{"E2", "path MTU, in every direction", both, tcpUDP, ""},
	{"E3", "fragments in any order", both, "UDP", ""},
	{"E4", "GSO and checksum offload, on and off", both, tcpUDP, ""},
	{"E5", "IP options and extension headers: parsed or dropped by rule", both, tcpUDP, ""},
	{"E6", "1,000,000 mutated packets per program against a model", both, "all", ""},
	{"E7", "traceroute shows the hops", both, "UDP, ICMP", ""},
	{"E8", "TTL and hop limit: one less through H", both, withICMP, ""},
	{"E9", "TIME_WAIT, and resets that prove nothing", both, "TCP", ""},
	{"E10", "published while clients retry: the next packet gets in", both, tcpUDP, ""},
	{"E11", "a container with a new address: the next packet reaches it", both, "UDP", ""},
	{"E12", "ECN, DSCP, TCP options, no UDP checksum, VLAN tags: unharmed", both, tcpUDP, ""},

	{"F1", "names and aliases of a network", "", "", "not built yet: names"},
	{"F2", "other names are forwarded", "", "", "not built yet: names"},
	{"F3", "an internal network's questions never leave H", "", "", "not built yet: names"},
	{"F4", "the default network: names by link only", "", "", "not tested yet"},
	{"F5", "hosts, hostname and resolv.conf of a container", "", "", "not tested yet"},
	{"F6", "names never cross networks", "", "", "not built yet: names"},
	{"F7", "the resolver takes no port of H", "", "", "not built yet: names"},

	{"G1", "every process of bpfnet killed: traffic does not notice", both, tcpUDP, ""},
	{"G2", "upgrades under traffic lose nothing; other layouts are carried over or refused", both, tcpUDP, ""},
	{"G3", "a command killed at any step leaves no litter", both, "-", ""},
	{"G4", "after a reboot what can be is restored, the rest cleaned", "-", "-", ""},
	{"G5", "firewalls, their reloads and ip_forward change nothing", both, withICMP, ""},
	{"G6", "floods of ten times the table's size harm no connection", both, withICMP, ""},
	{"G7", "a quota holds one container, and harms no other", both, tcpUDP, ""},
	{"G8", "a program detached by hand: closed, not open, and soon back", both, withICMP, ""},
	{"G9", "a netns path that is swapped, or none, or H's", "-", "-", ""},
	{"G10", "an unprivileged user can do nothing", "-", "-", ""},
	{"G11", "10,000 rounds leave nothing behind", "", "", "not tested yet"},
	{"G12", "a full disk, a damaged store: traffic goes on", "", "", "control/store tests the errors; traffic beside them is not tested yet"},
}
