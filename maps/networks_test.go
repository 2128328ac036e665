// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func testNetwork() Network {
	return Network{
		ICC: true, Masquerade: true, Isolate: true, Bridge: 4, MTU: 1500,
		MAC:      net.HardwareAddr{2, 0x42, 0, 0, 0, 1},
		Gateway4: ip("10.9.0.1"), Gateway6: ip("fd00::1"), LinkLocal: ip("fe80::1"), Broadcast4: ip("10.9.255.255"),
		Subnets: []netip.Prefix{prefix("10.9.0.0/16"), prefix("fd00::/64")},
	}
}

func TestNetwork(t *testing.T) {
	tables := newTables(t)
	n, nw := tables.Networks, testNetwork()
	gen := func() uint32 {
		g, err := tables.Rules.Gen(3)
		require.NoError(t, err)
		return g
	}
	_, ok, err := n.Get(3)
	require.NoError(t, err)
	require.False(t, ok)
	require.NoError(t, n.Set(3, nw))
	got, ok, err := n.Get(3)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, nw, got)
	require.EqualValues(t, 1, gen())
	require.NoError(t, n.Set(3, nw))
	require.EqualValues(t, 1, gen(), "the same again is a change")

	require.NoError(t, n.AddMember(3, 9))
	nw.ICC = false
	require.NoError(t, n.Set(3, nw))
	require.EqualValues(t, 2, gen())
	members, err := n.Members(3)
	require.NoError(t, err)
	require.Equal(t, []uint32{9}, members, "members are lost")

	nw.Subnets, nw.Bridge = nw.Subnets[:1], 5
	require.NoError(t, n.Set(3, nw))
	got, _, err = n.Get(3)
	require.NoError(t, err)
	require.Equal(t, nw, got)
	devices, err := tables.Devices.List()
	require.NoError(t, err)
	require.Equal(t, map[int]Device{5: {Network: 3}}, devices)
	other := testNetwork()
	other.Bridge, other.Subnets = 6, []netip.Prefix{prefix("10.10.0.0/16")}
	require.NoError(t, n.Set(4, other))
	nums, err := n.List()
	require.NoError(t, err)
	require.Equal(t, []uint32{3, 4}, nums)

	require.NoError(t, n.Clear(3))
	require.NoError(t, n.Clear(3))
	require.EqualValues(t, 4, gen())
	_, ok, err = n.Get(3)
	require.NoError(t, err)
	require.False(t, ok)
	members, err = n.Members(3)
	require.NoError(t, err)
	require.Empty(t, members)
	left, err := n.members.count()
	require.NoError(t, err)
	require.Zero(t, left)
	got, _, err = n.Get(4)
	require.NoError(t, err)
	require.Equal(t, other, got, "another network suffers")

	require.NoError(t, n.Set(3, testNetwork()))
	require.EqualValues(t, 5, gen(), "a number that is used again needs a new generation")
}

func TestNetworkFlags(t *testing.T) {
	seen := make(map[uint32]bool)
	var nw Network
	for _, f := range nw.flags() {
		one := testNetwork()
		one.ICC, one.Masquerade, one.Isolate = false, false, false
		*f.on = true
		one.ICC, one.Internal, one.Masquerade = nw.ICC, nw.Internal, nw.Masquerade
		one.Isolate, one.Routed, one.FullCone = nw.Isolate, nw.Routed, nw.FullCone
		w, err := one.wire()
		require.NoError(t, err)
		require.Equal(t, uint32(f.bit), w.Flags)
		require.False(t, seen[w.Flags])
		seen[w.Flags] = true
		back := fromNetwork(w)
		back.Subnets = one.Subnets
		require.Equal(t, one, back)
		*f.on = false
	}
	require.Len(t, seen, 6)
}

// The list against a plain set, at random; it has no holes at any time.
func TestMembers(t *testing.T) {
	n := newTables(t).Networks
	require.NoError(t, n.Set(3, testNetwork()))
	other := testNetwork()
	other.Bridge, other.Subnets = 6, nil
	require.NoError(t, n.Set(4, other))
	require.NoError(t, n.AddMember(4, 1))
	rng := rand.New(rand.NewPCG(1, 2))
	want := make(map[uint32]bool)
	for range 500 {
		slot := 1 + rng.Uint32N(20)
		switch rng.IntN(5) {
		case 0, 1:
			require.NoError(t, n.AddMember(3, slot))
			want[slot] = true
		case 2, 3:
			require.NoError(t, n.RemoveMember(3, slot))
			delete(want, slot)
		default:
			clear(want)
			var slots []uint32
			for range rng.IntN(20) {
				if slot := 1 + rng.Uint32N(20); !want[slot] {
					want[slot] = true
					slots = append(slots, slot)
				}
			}
			require.NoError(t, n.SetMembers(3, slots))
		}
		have, err := n.Members(3)
		require.NoError(t, err)
		var wanted []uint32
		for slot := range want {
			wanted = append(wanted, slot)
		}
		slices.Sort(wanted)
		slices.Sort(have)
		require.Equal(t, wanted, append([]uint32(nil), have...))
		count, err := n.members.count()
		require.NoError(t, err)
		require.Equal(t, len(want)+1, count, "entries beyond the list")
	}
	require.Error(t, n.AddMember(3, 0))
	require.Error(t, n.AddMember(0, 1))
}

// Cables that end at the host, and macvlans: no device is a bridge's, and a parent is nobody's.
func TestNetworkWithoutBridge(t *testing.T) {
	tables := newTables(t)
	nw, ep, child := testNetwork(), testEndpoint(), testEndpoint()
	nw.Bridge = 0
	require.NoError(t, tables.Networks.Set(3, nw))
	got, ok, err := tables.Networks.Get(3)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, nw, got)
	require.NoError(t, tables.Endpoints.Set(5, ep))
	child.Network, child.Ifindex, child.Child = 4, 9, true
	require.NoError(t, tables.Endpoints.Set(6, child))
	s, err := tables.Endpoints.Get(6)
	require.NoError(t, err)
	require.Equal(t, child, s.Endpoint)
	devices, err := tables.Devices.List()
	require.NoError(t, err)
	require.Equal(t, map[int]Device{7: {Endpoint: 5}}, devices)
	nums, err := tables.Networks.List()
	require.NoError(t, err)
	require.Equal(t, []uint32{3}, nums)
	require.NoError(t, tables.Endpoints.Clear(6))
	require.NoError(t, tables.Networks.Clear(3))
	nums, err = tables.Networks.List()
	require.NoError(t, err)
	require.Empty(t, nums)
}
