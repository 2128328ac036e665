// SPDX-License-Identifier: Apache-2.0

package oracle

import (
	"maps"
	"net/netip"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
)

// replace makes a table what it should be, key by key.
func replace[K comparable, V any](k *kernel, m *ebpf.Map, want map[K]V) {
	k.t.Helper()
	had := k.filled[m]
	now := map[string]bool{}
	for key, value := range want {
		require.NoError(k.t, m.Put(raw(&key), raw(&value)), m.String())
		now[string(raw(&key))] = true
	}
	for key := range had {
		if now[key] {
			continue
		}
		if m.Type() == ebpf.Array {
			require.NoError(k.t, m.Put([]byte(key), make([]byte, m.ValueSize())))
		} else {
			require.NoError(k.t, m.Delete([]byte(key)))
		}
	}
	k.filled[m] = now
}

// fill writes the model's tables into the programs'.
func (k *kernel) fill(t *Tables) {
	o := &k.objs
	endpoints, addrs, devices := map[uint32]loader.BPFEndpoint{}, map[loader.BPFEndpointKey]uint32{}, map[uint32]loader.BPFDevice{}
	for slot, e := range t.Endpoints {
		v := loader.BPFEndpoint{Gen: e.Gen, Ifindex: e.Ifindex, Network: e.Network, Flows: uint32(e.Flows), Mac: e.MAC, Mtu: e.MTU,
			Ip4: native(e.IP4), Ip6: native(e.IP6), LinkLocal: native(e.LinkLocal)}
		if e.DHCPServer {
			v.Flags = uint32(loader.BPFEndpointFlagsENDPOINT_DHCP_SERVER)
		}
		if e.Child {
			v.Flags |= uint32(loader.BPFEndpointFlagsENDPOINT_CHILD)
		}
		endpoints[slot] = v
		if e.Ifindex == 0 {
			continue
		}
		if !e.Child {
			devices[e.Ifindex] = loader.BPFDevice{Kind: uint32(loader.BPFDeviceKindDEVICE_ENDPOINT), Id: slot}
		}
		for _, a := range []netip.Addr{e.IP4, e.IP6, e.LinkLocal} {
			if a.IsValid() {
				addrs[loader.BPFEndpointKey{Addr: native(a), Network: e.Network}] = slot
			}
		}
	}
	networks, members, subnets := map[uint32]loader.BPFNetwork{}, map[loader.BPFMemberKey]uint32{}, map[loader.BPFPrefix]uint32{}
	for number, n := range t.Networks {
		v := loader.BPFNetwork{Bridge: n.Bridge, Members: uint32(len(n.Members)), Mac: n.MAC, Gateway4: native(n.Gateway4), Gateway6: native(n.Gateway6),
			LinkLocal: native(n.LinkLocal), Broadcast4: native(n.Broadcast4)}
		for flag, on := range map[loader.BPFNetworkFlags]bool{
			loader.BPFNetworkFlagsNETWORK_ICC: n.ICC, loader.BPFNetworkFlagsNETWORK_INTERNAL: n.Internal, loader.BPFNetworkFlagsNETWORK_MASQUERADE: n.Masquerade,
			loader.BPFNetworkFlagsNETWORK_ISOLATE: n.Isolate, loader.BPFNetworkFlagsNETWORK_ROUTED: n.Routed, loader.BPFNetworkFlagsNETWORK_FULL_CONE: n.FullCone,
		} {
			if on {
				v.Flags |= uint32(flag)
			}
		}
		networks[number] = v
		for i, slot := range n.Members {
			members[loader.BPFMemberKey{Network: number, Index: uint32(i)}] = slot
		}
		for _, p := range []netip.Prefix{n.Subnet4, n.Subnet6} {
			if p.IsValid() {
				subnets[prefixOf(p)] = number
			}
		}
		if n.Bridge != 0 {
			devices[n.Bridge] = loader.BPFDevice{Kind: uint32(loader.BPFDeviceKindDEVICE_BRIDGE), Id: number}
		}
	}
	rules, sources := map[uint32]loader.BPFRule{}, map[loader.BPFSourceKey]uint32{}
	for id, r := range t.Rules {
		v := loader.BPFRule{Gen: r.Gen, Kind: uint8(r.Kind), HostPort: r.HostPort, Port: r.Port, Endpoint4: r.Endpoint4, Endpoint6: r.Endpoint6}
		if r.Sources != nil {
			v.Flags = uint8(loader.BPFRuleFlagsRULE_SOURCES)
		}
		rules[id] = v
		for _, p := range r.Sources {
			q := prefixOf(p)
			sources[loader.BPFSourceKey{Prefixlen: 32 + q.Prefixlen, Rule: id, Addr: q.Addr}] = 1
		}
	}
	ports4, ports6, single := map[uint32]uint32{}, map[uint32]uint32{}, map[loader.BPFPortKey]uint32{}
	for p, id := range t.Ports {
		slots := ports4
		if p.Six {
			slots = ports6
		}
		at := uint32(map[uint8]int{tcp: 0, udp: 1, sctp: 2}[p.Proto])<<16 + uint32(p.Port)
		if p.Addr.IsValid() {
			slots[at] += 0x20000
			single[loader.BPFPortKey{Addr: native(p.Addr), Port: net16(p.Port), Proto: p.Proto}] = id
		} else {
			slots[at] += id
		}
	}
	hosts := map[loader.BPFAddr]uint32{}
	for a := range t.Host {
		hosts[native(a)] = 1
	}
	routes := map[loader.BPFRouteKey]loader.BPFRoute{}
	for i, r := range t.Routes {
		p := prefixOf(r.To)
		key := loader.BPFRouteKey{Prefixlen: 32 + p.Prefixlen, Table: r.Table, Addr: p.Addr}
		hops := make([]loader.BPFRoute, len(r.Hops))
		for j, h := range r.Hops {
			hops[j] = loader.BPFRoute{Ifindex: h.Ifindex, Mtu: h.MTU, Nexthop: native(h.Next), Source: native(h.Source)}
		}
		switch len(hops) {
		case 0:
			routes[key] = loader.BPFRoute{}
		case 1:
			routes[key] = hops[0]
		default:
			table := uint32(1<<31 + i)
			routes[key] = loader.BPFRoute{Ifindex: table, Hops: uint16(len(hops))}
			for j, h := range hops {
				hop := loader.BPFRouteKey{Prefixlen: 32 + 128, Table: table}
				hop.Addr.W[3] = uint32(j)
				routes[hop] = h
			}
		}
	}
	links := map[loader.BPFLinkKey]uint32{}
	for l, id := range t.Links {
		links[loader.BPFLinkKey{Client: l.Client, Server: l.Server, Port: net16(l.Port), Proto: l.Proto}] = id
	}
	settings := loader.BPFConfig{Quota: t.Settings.Quota, IcmpRate: t.Settings.ICMPRate, Slots: t.Settings.Slots, SweepMs: 100, Timeouts: t.Settings.Timeouts,
		PoolCount: uint32(len(t.Settings.Pool))}
	for i, r := range t.Settings.Pool {
		settings.Pool[i] = loader.BPFPortRange{First: r.First, Last: r.Last}
		settings.PoolSize += uint32(r.Last-r.First) + 1
	}
	replace(k, o.Endpoints, endpoints)
	replace(k, o.EndpointAddrs, addrs)
	replace(k, o.Devices, devices)
	replace(k, o.Networks, networks)
	replace(k, o.Members, members)
	replace(k, o.Subnets, subnets)
	replace(k, o.BPFMaps.Rules, rules)
	replace(k, o.Sources, sources)
	replace(k, o.Ports4, ports4)
	replace(k, o.Ports6, ports6)
	replace(k, o.PortsAddr, single)
	replace(k, o.HostAddrs, hosts)
	replace(k, o.Routes, routes)
	replace(k, o.RouteTables, maps.Clone(t.RouteTables))
	replace(k, o.Links, links)
	replace(k, o.BPFMaps.Settings, map[uint32]loader.BPFConfig{0: settings})
}
