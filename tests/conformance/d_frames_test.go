// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// tcpOf is the frame's TCP header, or nil.
func tcpOf(frame []byte) *layers.TCP {
	tcp, _ := lab.Decode(frame).Layer(layers.LayerTypeTCP).(*layers.TCP)
	return tcp
}

func isEchoRequest(p gopacket.Packet) bool {
	if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		return icmp.TypeCode.Type() == layers.ICMPv4TypeEchoRequest
	}
	icmp, ok := p.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6)
	return ok && icmp.TypeCode.Type() == layers.ICMPv6TypeEchoRequest
}

// echoID is the identifier of an echo request or reply.
func echoID(frame []byte) uint16 {
	p := lab.Decode(frame)
	if icmp, ok := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); ok {
		return icmp.Id
	}
	if echo, ok := p.Layer(layers.LayerTypeICMPv6Echo).(*layers.ICMPv6Echo); ok {
		return echo.Identifier
	}
	return 0
}
