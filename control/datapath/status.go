// SPDX-License-Identifier: Apache-2.0

package datapath

import (
	"fmt"
	"net/netip"
	"time"
)

// FlowInfo is one flow, both directions, with the names of what it touches.
type FlowInfo struct {
	Proto       string         `json:"proto"`
	Kind        string         `json:"kind"`        // published, masquerade, routed, peer, host, local
	State       string         `json:"state"`       // new, answered, established, closing
	Source      netip.AddrPort `json:"source"`      // as the initiator sent it
	Destination netip.AddrPort `json:"destination"` //
	NewSource   netip.AddrPort `json:"newSource"`   // as the responder got it
	NewDest     netip.AddrPort `json:"newDestination"`
	Container   string         `json:"container,omitempty"` // names
	Peer        string         `json:"peer,omitempty"`
	Idle        time.Duration  `json:"idle"`
	Expires     time.Duration  `json:"expires"`
	Packets     uint64         `json:"packets"` // both ways
	Bytes       uint64         `json:"bytes"`
}

// Flow is one flow, and how to end it: its next packet is judged anew.
type Flow struct {
	FlowInfo
	End func() error
}

// Status is what bpfnet status prints.
type Status struct {
	Datapath string            `json:"datapath"`
	Netns    string            `json:"netns"`
	Root     string            `json:"root"`
	BPFFS    string            `json:"bpffs"`
	Cgroup   string            `json:"cgroup"`
	FastPath bool              `json:"fastPath"`
	Hooks    []HookStatus      `json:"hooks"`
	Tables   []TableStatus     `json:"tables"`
	Counters map[string]uint64 `json:"counters"`
	Drops    []DropStatus      `json:"drops"`
	Problems []string          `json:"problems"` // one line each, with what mends it
	Kernel   string            `json:"kernel"`
	Features map[string]bool   `json:"features"` // tcx, …
}

// HookStatus is a place in the kernel where the datapath acts.
type HookStatus struct {
	Device  string `json:"device"`
	Program string `json:"program"`
	Kind    string `json:"kind"` // tcx, clsact, cgroup; nft, legacy; empty: it is not there
	OK      bool   `json:"ok"`
}

// TableStatus is of a table of the programs'. Refused are new flows that found it
// full: of flows4 and flows6 those that stayed half-open, of half4 and half6 those
// of which the packet was dropped.
type TableStatus struct {
	Name    string `json:"name"`
	Used    int    `json:"used"` // entries
	Size    int    `json:"size"`
	Refused uint64 `json:"refused"`
}

// DropStatus is how many packets were dropped for one reason.
type DropStatus struct {
	Device    string `json:"device"` // GoneDevice: all that have been removed since
	Container string `json:"container,omitempty"`
	Reason    string `json:"reason"`
	Packets   uint64 `json:"packets"`
}

// GoneDevice stands for all devices that are there no more: their names went with
// them, and what they dropped stays in the sums.
const GoneDevice = "(gone)"

// Problem adds a line to what is wrong.
func (s *Status) Problem(format string, a ...any) {
	s.Problems = append(s.Problems, fmt.Sprintf(format, a...))
}
