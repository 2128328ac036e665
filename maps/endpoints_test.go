// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"net"
	"testing"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/stretchr/testify/require"
)

func testEndpoint() Endpoint {
	mac := net.HardwareAddr{2, 0x42, 10, 9, 0, 2}
	return Endpoint{
		Ifindex: 7, Network: 3, MAC: mac, MTU: 1500,
		IPv4: ip("10.9.0.2"), IPv6: ip("fd00::2"), LinkLocal: LinkLocal(mac), DHCPServer: true,
	}
}

func TestEndpoint(t *testing.T) {
	tables := newTables(t)
	e, ep := tables.Endpoints, testEndpoint()
	gen := func() uint32 {
		s, err := e.Get(5)
		require.NoError(t, err)
		return s.Gen
	}
	require.NoError(t, e.Set(5, ep))
	s, err := e.Get(5)
	require.NoError(t, err)
	require.Equal(t, EndpointState{Endpoint: ep, Gen: 1, Live: true}, s)
	for _, a := range []string{"10.9.0.2", "fd00::2", ep.LinkLocal.String()} {
		slot, err := e.At(3, ip(a))
		require.NoError(t, err)
		require.EqualValues(t, 5, slot)
		slot, err = e.At(4, ip(a))
		require.NoError(t, err)
		require.Zero(t, slot, "another network")
	}
	devices, err := tables.Devices.List()
	require.NoError(t, err)
	require.Equal(t, map[int]Device{7: {Endpoint: 5}}, devices)

	require.NoError(t, e.addrs.del(keysOf(mustWire(t, ep))[0]))
	require.NoError(t, e.Set(5, ep))
	require.EqualValues(t, 1, gen(), "the same again is a change")
	slot, err := e.At(3, ep.IPv4)
	require.NoError(t, err)
	require.EqualValues(t, 5, slot, "not repaired")

	ep.IPv4, ep.Ifindex = ip("10.9.0.9"), 8
	require.NoError(t, e.Set(5, ep))
	require.EqualValues(t, 2, gen())
	slot, err = e.At(3, ip("10.9.0.2"))
	require.NoError(t, err)
	require.Zero(t, slot, "the old address stays behind")
	devices, err = tables.Devices.List()
	require.NoError(t, err)
	require.Equal(t, map[int]Device{8: {Endpoint: 5}}, devices)

	require.NoError(t, e.Clear(5))
	s, err = e.Get(5)
	require.NoError(t, err)
	require.False(t, s.Live)
	require.EqualValues(t, 3, s.Gen)
	n, err := e.addrs.count()
	require.NoError(t, err)
	require.Zero(t, n)
	devices, err = tables.Devices.List()
	require.NoError(t, err)
	require.Empty(t, devices)
	require.NoError(t, e.Clear(5))
	require.EqualValues(t, 3, gen(), "cleared twice")
	list, err := e.List()
	require.NoError(t, err)
	require.Empty(t, list)
}

func mustWire(t *testing.T, ep Endpoint) loader.BPFEndpoint {
	t.Helper()
	w, err := ep.wire()
	require.NoError(t, err)
	return w
}

// The programs count flows in the entry; the same again leaves the count alone.
func TestEndpointFlows(t *testing.T) {
	e, ep := newTables(t).Endpoints, testEndpoint()
	require.NoError(t, e.Set(5, ep))
	w, _, err := e.endpoints.get(5)
	require.NoError(t, err)
	w.Flows = 12
	require.NoError(t, e.endpoints.put(5, w))
	require.NoError(t, e.Set(5, ep))
	s, err := e.Get(5)
	require.NoError(t, err)
	require.Equal(t, 12, s.Flows)
	ep.MTU = 1400
	require.NoError(t, e.Set(5, ep))
	s, err = e.Get(5)
	require.NoError(t, err)
	require.Zero(t, s.Flows)
}

// A slot that took over an address keeps it when the former one is cleared.
func TestEndpointTakesOver(t *testing.T) {
	e, ep := newTables(t).Endpoints, testEndpoint()
	require.NoError(t, e.Set(5, ep))
	require.ErrorContains(t, e.Set(6, ep), "10.9.0.2 on network 3 belongs to endpoint 5")
	s, err := e.Get(6)
	require.NoError(t, err)
	require.Zero(t, s.Gen, "half done")
	require.NoError(t, e.addrs.put(keysOf(mustWire(t, ep))[0], 6))
	require.NoError(t, e.Clear(5))
	slot, err := e.At(3, ep.IPv4)
	require.NoError(t, err)
	require.EqualValues(t, 6, slot)
}

func TestEndpointRefuses(t *testing.T) {
	e := newTables(t).Endpoints
	for name, change := range map[string]func(*Endpoint){
		"ifindex": func(ep *Endpoint) { ep.Ifindex = 0 },
		"network": func(ep *Endpoint) { ep.Network = MaxNetworks },
		"mac":     func(ep *Endpoint) { ep.MAC = nil },
		"mtu":     func(ep *Endpoint) { ep.MTU = 65536 },
		"IPv4":    func(ep *Endpoint) { ep.IPv4 = ip("::1") },
		"IPv6":    func(ep *Endpoint) { ep.IPv6 = ip("::ffff:1.2.3.4") },
	} {
		ep := testEndpoint()
		change(&ep)
		require.ErrorContains(t, e.Set(1, ep), name)
	}
	require.Error(t, e.Set(0, testEndpoint()))
	require.Error(t, e.Set(MaxEndpoints, testEndpoint()))
	require.Error(t, e.Clear(0))
}
