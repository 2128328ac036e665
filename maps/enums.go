// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/bpfnet/bpfnet/loader"
)

// FlowKind says what a flow is about; its String is what users see.
type FlowKind uint8

const (
	FlowPublished  = FlowKind(loader.BPFFlowKindFLOW_PUBLISHED)
	FlowMasquerade = FlowKind(loader.BPFFlowKindFLOW_MASQUERADE)
	FlowRouted     = FlowKind(loader.BPFFlowKindFLOW_ROUTED)
	FlowPeer       = FlowKind(loader.BPFFlowKindFLOW_PEER)
	FlowHost       = FlowKind(loader.BPFFlowKindFLOW_HOST)
	FlowLocal      = FlowKind(loader.BPFFlowKindFLOW_LOCAL)
)

var flowKinds = names{
	int(FlowPublished): "published", int(FlowMasquerade): "masquerade", int(FlowRouted): "routed",
	int(FlowPeer): "peer", int(FlowHost): "host", int(FlowLocal): "local",
}

func (k FlowKind) String() string { return flowKinds.of("kind", int(k)) }

// FlowState is how far a flow has come.
type FlowState uint8

const (
	FlowNew         = FlowState(loader.BPFFlowStateFLOW_NEW)
	FlowAnswered    = FlowState(loader.BPFFlowStateFLOW_ANSWERED)
	FlowEstablished = FlowState(loader.BPFFlowStateFLOW_ESTABLISHED)
	FlowClosing     = FlowState(loader.BPFFlowStateFLOW_CLOSING)
)

var flowStates = names{
	int(FlowNew): "new", int(FlowAnswered): "answered", int(FlowEstablished): "established", int(FlowClosing): "closing",
}

func (s FlowState) String() string { return flowStates.of("state", int(s)) }

// Verdict is how a flow's packets leave.
type Verdict uint8

const (
	VerdictStack  = Verdict(loader.BPFVerdictVERDICT_STACK)
	VerdictPeer   = Verdict(loader.BPFVerdictVERDICT_PEER)
	VerdictEgress = Verdict(loader.BPFVerdictVERDICT_EGRESS)
	VerdictUplink = Verdict(loader.BPFVerdictVERDICT_UPLINK)
	VerdictHost   = Verdict(loader.BPFVerdictVERDICT_HOST)
	VerdictLo     = Verdict(loader.BPFVerdictVERDICT_LO)
	VerdictOnward = Verdict(loader.BPFVerdictVERDICT_ONWARD)
)

var verdicts = names{
	int(VerdictStack): "stack", int(VerdictPeer): "peer", int(VerdictEgress): "egress",
	int(VerdictUplink): "uplink", int(VerdictHost): "host", int(VerdictLo): "lo", int(VerdictOnward): "onward",
}

func (v Verdict) String() string { return verdicts.of("verdict", int(v)) }

// names of an enum's values.
type names []string

func (n names) of(what string, i int) string {
	if i >= 0 && i < len(n) && n[i] != "" {
		return n[i]
	}
	return fmt.Sprintf("%s-%d", what, i)
}
