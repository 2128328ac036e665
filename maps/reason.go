// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/bpfnet/bpfnet/loader"
)

// Reason is why a packet was dropped: enum reason of bpf/lib/types.h.
type Reason uint32

// String is the enumerator's name without REASON_: "ICC_DENIED".
func (r Reason) String() string {
	if int(r) < len(reasons) && reasons[r].name != "" {
		return reasons[r].name
	}
	return fmt.Sprintf("REASON_%d", uint32(r))
}

// Text says it to users, in a few words.
func (r Reason) Text() string {
	if int(r) < len(reasons) && reasons[r].text != "" {
		return reasons[r].text
	}
	return "unknown to this version of bpfnet"
}

// ReasonNamed finds a reason by its String.
func ReasonNamed(name string) (Reason, bool) {
	for i, r := range reasons {
		if r.name == name && name != "" {
			return Reason(i), true
		}
	}
	return 0, false
}

var reasons = []struct{ name, text string }{
	loader.BPFReasonREASON_NONE:             {"NONE", "not dropped"},
	loader.BPFReasonREASON_MALFORMED:        {"MALFORMED", "malformed or truncated packet"},
	loader.BPFReasonREASON_UNKNOWN_ENDPOINT: {"UNKNOWN_ENDPOINT", "the device is not set up"},
	loader.BPFReasonREASON_UNSUPPORTED:      {"UNSUPPORTED", "protocol is not carried"},
	loader.BPFReasonREASON_FRAGMENT:         {"FRAGMENT", "fragment that belongs to nothing"},
	loader.BPFReasonREASON_SPOOFED_MAC:      {"SPOOFED_MAC", "source MAC is not the container's"},
	loader.BPFReasonREASON_SPOOFED_ARP:      {"SPOOFED_ARP", "ARP speaks for somebody else"},
	loader.BPFReasonREASON_SPOOFED_IPV4:     {"SPOOFED_IPV4", "IPv4 source is not the container's"},
	loader.BPFReasonREASON_SPOOFED_IPV6:     {"SPOOFED_IPV6", "IPv6 source is not the container's"},
	loader.BPFReasonREASON_SPOOFED_ND:       {"SPOOFED_ND", "neighbour discovery speaks for somebody else"},
	loader.BPFReasonREASON_SPOOFED_RA:       {"SPOOFED_RA", "container plays the router"},
	loader.BPFReasonREASON_DHCP_SERVER:      {"DHCP_SERVER", "container plays the DHCP server"},
	loader.BPFReasonREASON_ICC_DENIED:       {"ICC_DENIED", "icc is off on this network, and no link allows it"},
	loader.BPFReasonREASON_ISOLATED:         {"ISOLATED", "the other network is isolated"},
	loader.BPFReasonREASON_INTERNAL:         {"INTERNAL", "the network is internal"},
	loader.BPFReasonREASON_DIRECT_ACCESS:    {"DIRECT_ACCESS", "containers are reached by published ports only"},
	loader.BPFReasonREASON_LOOPBACK:         {"LOOPBACK", "loopback address outside of the host"},
	loader.BPFReasonREASON_SOURCE_DENIED:    {"SOURCE_DENIED", "source is not in the publication's from="},
	loader.BPFReasonREASON_NO_ENDPOINT:      {"NO_ENDPOINT", "nobody has that address"},
	loader.BPFReasonREASON_NO_ROUTE:         {"NO_ROUTE", "the host has no route"},
	loader.BPFReasonREASON_NO_PORT:          {"NO_PORT", "no port left for masquerade"},
	loader.BPFReasonREASON_QUOTA:            {"QUOTA", "the container has used up its flows"},
	loader.BPFReasonREASON_TABLE_FULL:       {"TABLE_FULL", "the flow table is full"},
	loader.BPFReasonREASON_NO_FLOW:          {"NO_FLOW", "middle of a connection that nobody knows"},
	loader.BPFReasonREASON_TTL_EXCEEDED:     {"TTL_EXCEEDED", "hop limit used up"},
	loader.BPFReasonREASON_TOO_BIG:          {"TOO_BIG", "larger than the way out carries"},
	loader.BPFReasonREASON_BYPASS:           {"BYPASS", "container's packet that from_endpoint did not pass"},
	loader.BPFReasonREASON_MARTIAN:          {"MARTIAN", "impossible source address"},
	loader.BPFReasonREASON_ERROR:            {"ERROR", "the kernel refused an operation"},
}
