// SPDX-License-Identifier: Apache-2.0

package oracle

import "github.com/bpfnet/bpfnet/loader"

// The words of bpf/lib/types.h.
const (
	none            = loader.BPFReasonREASON_NONE
	malformed       = loader.BPFReasonREASON_MALFORMED
	unknownEndpoint = loader.BPFReasonREASON_UNKNOWN_ENDPOINT
	unsupported     = loader.BPFReasonREASON_UNSUPPORTED
	fragmentReason  = loader.BPFReasonREASON_FRAGMENT
	spoofedMAC      = loader.BPFReasonREASON_SPOOFED_MAC
	spoofedARP      = loader.BPFReasonREASON_SPOOFED_ARP
	spoofedIPv4     = loader.BPFReasonREASON_SPOOFED_IPV4
	spoofedIPv6     = loader.BPFReasonREASON_SPOOFED_IPV6
	spoofedND       = loader.BPFReasonREASON_SPOOFED_ND
	spoofedRA       = loader.BPFReasonREASON_SPOOFED_RA
	dhcpServer      = loader.BPFReasonREASON_DHCP_SERVER
	iccDenied       = loader.BPFReasonREASON_ICC_DENIED
	isolated        = loader.BPFReasonREASON_ISOLATED
	internal        = loader.BPFReasonREASON_INTERNAL
	directAccess    = loader.BPFReasonREASON_DIRECT_ACCESS
	loopback        = loader.BPFReasonREASON_LOOPBACK
	sourceDenied    = loader.BPFReasonREASON_SOURCE_DENIED
	noEndpoint      = loader.BPFReasonREASON_NO_ENDPOINT
	noRoute         = loader.BPFReasonREASON_NO_ROUTE
	noPort          = loader.BPFReasonREASON_NO_PORT
	quota           = loader.BPFReasonREASON_QUOTA
	tableFull       = loader.BPFReasonREASON_TABLE_FULL
	noFlow          = loader.BPFReasonREASON_NO_FLOW
	ttlExceeded     = loader.BPFReasonREASON_TTL_EXCEEDED
	tooBig          = loader.BPFReasonREASON_TOO_BIG
	bypass          = loader.BPFReasonREASON_BYPASS
	martian         = loader.BPFReasonREASON_MARTIAN
	failed          = loader.BPFReasonREASON_ERROR

	toStack  = loader.BPFVerdictVERDICT_STACK
	toPeer   = loader.BPFVerdictVERDICT_PEER
	toEgress = loader.BPFVerdictVERDICT_EGRESS
	toUplink = loader.BPFVerdictVERDICT_UPLINK
	toHost   = loader.BPFVerdictVERDICT_HOST
	toLo     = loader.BPFVerdictVERDICT_LO
	onward   = loader.BPFVerdictVERDICT_ONWARD

	stateNew         = loader.BPFFlowStateFLOW_NEW
	stateAnswered    = loader.BPFFlowStateFLOW_ANSWERED
	stateEstablished = loader.BPFFlowStateFLOW_ESTABLISHED
	stateClosing     = loader.BPFFlowStateFLOW_CLOSING

	published  = loader.BPFFlowKindFLOW_PUBLISHED
	masquerade = loader.BPFFlowKindFLOW_MASQUERADE
	routed     = loader.BPFFlowKindFLOW_ROUTED
	peer       = loader.BPFFlowKindFLOW_PEER
	host       = loader.BPFFlowKindFLOW_HOST
	local      = loader.BPFFlowKindFLOW_LOCAL

	isReply    = loader.BPFFlowFlagsFLOW_REPLY
	hop        = loader.BPFFlowFlagsFLOW_TTL
	sentFIN    = loader.BPFFlowFlagsFLOW_FIN
	twinFIN    = loader.BPFFlowFlagsFLOW_FIN_TWIN
	toIPv4     = loader.BPFFlowFlagsFLOW_TO_IPV4
	toIPv6     = loader.BPFFlowFlagsFLOW_TO_IPV6
	optional   = loader.BPFFlowFlagsFLOW_OPTIONAL
	listed     = loader.BPFFlowFlagsFLOW_LISTED
	hostPorts  = uint32(loader.BPFLimitsRULE_HOST_PORTS)
	maxMembers = int(loader.BPFLimitsMAX_MEMBERS)

	zoneWorld = uint32(loader.BPFZoneZONE_WORLD)
	zoneLo    = uint32(loader.BPFZoneZONE_LO)
)
