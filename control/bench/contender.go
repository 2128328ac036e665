// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"net/netip"

	"github.com/bpfnet/bpfnet/control/lab"
	"github.com/bpfnet/bpfnet/control/netns"
)

// Flows: who opens a connection (or sends the first datagram) to whom.
const (
	FlowPublished = "published" // client → a published port of the host's
	FlowWorld     = "world"     // container → the client
	FlowPeer      = "peer"      // container → container
	FlowLocal     = "local"     // host → 127.0.0.1:port, published
)

// Flows are all of them, in the order of the report.
var Flows = []string{FlowPublished, FlowWorld, FlowPeer, FlowLocal}

var flowTitles = map[string]string{
	FlowPublished: "client → published port",
	FlowWorld:     "container → world",
	FlowPeer:      "container → container",
	FlowLocal:     "host → 127.0.0.1:port",
	"":            "control plane",
}

// Contenders: what is compared.
const (
	BPF         = "bpf"
	IPTables    = "iptables"
	DockerProxy = "docker-proxy" // a process that copies, for the host's own connections; the rest as bridging
	HostLimit   = "host"         // the host's own limit: the server (world: the client) is in the host's namespace
	Routing     = "routing"      // forwarded by the kernel, addresses as they are
	Bridging    = "bridging"     // a Linux bridge without programs
	Loopback    = "loopback"     // server and client on the host's 127.0.0.1
)

// Contenders are all of them, in the order of the report. The first that takes part is
// what the others are compared with.
var Contenders = []string{BPF, IPTables, DockerProxy, HostLimit, Routing, Bridging, Loopback}

// limits is the contender that is the bound of a flow.
var limits = map[string]string{FlowPublished: HostLimit, FlowWorld: HostLimit, FlowPeer: Bridging, FlowLocal: Loopback}

// path is how a contender takes a flow.
type path struct {
	from, to *netns.NS
	connect  netip.AddrPort // what the client is told
	listen   netip.AddrPort
	seen     netip.Addr // whom the server must see
	// What is sent must be counted by this device of that namespace.
	device string
	at     *netns.NS
	kind   string // of the flows that the datapath must know; "": no datapath of ours

	// begin starts what the path needs besides, on these CPUs; end stops it.
	begin func(ctx context.Context, cpus []int, udp bool) (end func(), err error)
}

// contender is one side of the comparison.
type contender struct {
	name string
	*site
	paths map[string]path // by flow
}

const eth0 = "eth0" // of every container

var any4, loopback4 = netip.IPv4Unspecified(), netip.AddrFrom4([4]byte{127, 0, 0, 1})

func on(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, port) }

// contender is the datapath that runs the site.
func (s *site) contender() *contender {
	inWeb := path{to: s.web, listen: on(any4), device: eth0, at: s.web}
	published, peer, local := inWeb, inWeb, inWeb
	published.from, published.connect, published.seen, published.kind = s.Client, on(lab.HostIPv4), lab.ClientIPv4, "published"
	peer.from, peer.connect, peer.seen, peer.kind = s.peer, on(s.webAddr), s.peerAddr, "peer"
	local.from, local.connect, local.seen, local.kind = s.Host, on(loopback4), s.gateway, "published"
	return &contender{s.datapath, s, map[string]path{
		FlowPublished: published,
		FlowWorld: {from: s.web, to: s.Client, connect: on(lab.ClientIPv4), listen: on(any4), seen: lab.HostIPv4,
			device: eth0, at: s.web, kind: "masquerade"},
		FlowPeer:  peer,
		FlowLocal: local,
	}}
}

// contenders are those of a plain site.
func (s *site) contenders() []*contender {
	uplink := path{listen: on(any4), device: lab.Uplink, at: s.Host}
	hostIn, hostOut := uplink, uplink
	hostIn.from, hostIn.to, hostIn.connect, hostIn.seen = s.Client, s.Host, on(lab.HostIPv4), lab.ClientIPv4
	hostOut.from, hostOut.to, hostOut.connect, hostOut.seen = s.Host, s.Client, on(lab.ClientIPv4), lab.HostIPv4
	inWeb := path{to: s.web, listen: on(any4), device: eth0, at: s.web, connect: on(s.webAddr)}
	routed, bridged, proxied := inWeb, inWeb, inWeb
	routed.from, routed.seen = s.Client, lab.ClientIPv4
	bridged.from, bridged.seen = s.peer, s.peerAddr
	proxied.from, proxied.seen, proxied.connect = s.Host, s.gateway, netip.AddrPortFrom(loopback4, proxyPort)
	proxied.begin = s.proxy
	return []*contender{
		{DockerProxy, s, map[string]path{FlowLocal: proxied}},
		{HostLimit, s, map[string]path{FlowPublished: hostIn, FlowWorld: hostOut}},
		{Routing, s, map[string]path{
			FlowPublished: routed,
			FlowWorld: {from: s.web, to: s.Client, connect: on(lab.ClientIPv4), listen: on(any4), seen: s.webAddr,
				device: eth0, at: s.web},
		}},
		{Bridging, s, map[string]path{FlowPeer: bridged}},
		{Loopback, s, map[string]path{FlowLocal: {from: s.Host, to: s.Host, connect: on(loopback4), listen: on(loopback4),
			seen: loopback4, device: "lo", at: s.Host}}},
	}
}
