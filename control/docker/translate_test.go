// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

// recorded are the Engines whose answers in testdata are. Those in testdata/28 are not: see its
// README.
var recorded = []string{"20.10", "26.1"}

func read[T any](t *testing.T, path string) (v T) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("testdata", path))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(raw, &v))
	return v
}

func networks(t *testing.T, path string) (byName map[string]control.AdoptedNetwork, problems map[string][]string, ids map[string]bool) {
	t.Helper()
	byName, problems, ids = make(map[string]control.AdoptedNetwork), make(map[string][]string), make(map[string]bool)
	for _, n := range read[[]network.Summary](t, path) {
		if a, lacks, ok := networkOf(&n.Network); ok {
			require.Equal(t, n.ID, a.ID)
			require.False(t, a.Created.IsZero() && !strings.HasPrefix(path, "28/"))
			byName[n.Name], problems[n.Name], ids[a.ID] = a, lacks, true
		}
	}
	return byName, problems, ids
}

func subnets(list ...string) (s []control.Subnet) {
	for i := 0; i < len(list); i += 2 {
		gw, _ := netip.ParseAddr(list[i+1])
		s = append(s, control.Subnet{Prefix: netip.MustParsePrefix(list[i]), Gateway: gw})
	}
	return s
}

func TestNetworksRecorded(t *testing.T) {
	for _, version := range recorded {
		got, problems, _ := networks(t, version+"/networks.json")
		require.Len(t, got, 4, "host and none are no networks of ours")
		gateway := map[string]string{"26.1": "172.17.0.1"}[version] // of its default network 20.10 does not say it
		for name, want := range map[string]control.AdoptedNetwork{
			"bridge": {Bridge: "docker0", Default: true, ICC: true, Isolate: true, MTU: 1500, Subnets: subnets("172.17.0.0/16", gateway)},
			"n1":     {Bridge: "br-" + got["n1"].ID[:12], Masquerade: true, Isolate: true, MTU: 1400, Subnets: subnets("172.18.0.0/16", "172.18.0.1")},
			"inner":  {Bridge: "br-" + got["inner"].ID[:12], Internal: true, ICC: true, Masquerade: true, Isolate: true, Subnets: subnets("172.19.0.0/16", "172.19.0.1")},
			"six":    {Bridge: "six0", ICC: true, Isolate: true, Subnets: subnets("172.20.0.0/16", "172.20.0.1", "fd00:6::/64", "")},
		} {
			want.ID, want.Name, want.Created = got[name].ID, name, got[name].Created
			require.Equal(t, want, got[name], version)
			require.Empty(t, problems[name])
		}
	}
}

func TestNetworks28(t *testing.T) {
	got, problems, _ := networks(t, "28/networks.json")
	require.Len(t, got, 4, "an overlay is none of the bridge driver's")
	require.True(t, got["routed"].Routed)
	require.Empty(t, problems["routed"])
	require.False(t, got["mixed"].Routed, "in doubt closed")
	require.Equal(t, []string{"network mixed: gateway mode routed: for one family only; taken for nat"}, problems["mixed"])
	require.True(t, got["alone"].Internal)
	require.Equal(t, subnets("172.29.0.0/16", ""), got["alone"].Subnets)
	require.Empty(t, problems["alone"])
	require.False(t, got["open"].Routed)
	require.Len(t, problems["open"], 2, "the mode, and the MTU")
}

func TestContainersRecorded(t *testing.T) {
	for _, version := range recorded {
		t.Run(version, func(t *testing.T) { containersOf(t, version) })
	}
}

func containersOf(t *testing.T, version string) {
	nets, _, bridges := networks(t, version+"/networks.json")
	db := read[container.InspectResponse](t, version+"/db.json")
	names := func(name string) string { return map[string]string{"db": db.ID}[name] }
	translate := func(name string) (control.AdoptedContainer, bool) {
		c := read[container.InspectResponse](t, version+"/"+name+".json")
		return containerOf(&c, bridges, names)
	}
	web, ok := translate("web")
	require.True(t, ok)
	require.Equal(t, "web", web.Name)
	require.Positive(t, web.PID)
	require.Equal(t, []string{"sleep", "100000"}, web.Args)
	require.False(t, web.Started.IsZero() || web.Created.IsZero())
	require.Equal(t, []control.AdoptedEndpoint{{Network: nets["bridge"].ID, MAC: "02:42:ac:11:00:03", IPv4: netip.MustParsePrefix("172.17.0.3/16")}}, web.Endpoints)
	require.ElementsMatch(t, []control.AdoptedPort{
		{Proto: "tcp", HostIP: netip.MustParseAddr("0.0.0.0"), HostPort: 8080, Port: 80},
		{Proto: "udp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, Port: 53},
	}, web.Ports)
	require.Equal(t, []control.Link{{Target: db.ID, Name: "db", Alias: "database"}}, web.Links)

	six, ok := translate("six")
	require.True(t, ok)
	require.Len(t, six.Endpoints, 2)
	require.Equal(t, netip.MustParsePrefix("fd00:6::2/64"), six.Endpoints[1].IPv6)
	require.Len(t, six.Ports, 5)

	got, ok := translate("db")
	require.True(t, ok)
	require.Equal(t, []string{"5432/tcp"}, got.Exposed)
	for _, none := range []string{"made", "hosted", "shared"} {
		_, ok := translate(none)
		require.False(t, ok, none)
	}
}

func TestContainers28(t *testing.T) {
	_, _, bridges := networks(t, "28/networks.json")
	c := read[container.InspectResponse](t, "28/two.json")
	two, ok := containerOf(&c, bridges, nil)
	require.True(t, ok)
	require.Len(t, two.Endpoints, 2)
	require.False(t, two.Endpoints[0].Gateway)
	require.True(t, two.Endpoints[1].Gateway, "by its priority")
	require.Len(t, two.Ports, 2, "and none that is not bound")
}

// Whatever the Engine says, it is read or left out.
func FuzzTranslate(f *testing.F) {
	for _, p := range []string{"20.10/web.json", "20.10/six.json", "26.1/six.json", "28/two.json"} {
		raw, err := os.ReadFile(filepath.Join("testdata", p))
		require.NoError(f, err)
		f.Add(raw)
	}
	for _, p := range []string{"20.10/networks.json", "26.1/networks.json", "28/networks.json"} {
		raw, err := os.ReadFile(filepath.Join("testdata", p))
		require.NoError(f, err)
		var list []json.RawMessage
		require.NoError(f, json.Unmarshal(raw, &list))
		for _, n := range list {
			f.Add([]byte(n))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var c container.InspectResponse
		if json.Unmarshal(raw, &c) == nil {
			containerOf(&c, map[string]bool{"": true}, func(string) string { return "x" })
		}
		var n network.Network
		if json.Unmarshal(raw, &n) == nil {
			networkOf(&n)
		}
	})
}

// What is known before the start: ports by number, on an address or on all.
func TestFixed(t *testing.T) {
	any4, any6 := netip.IPv4Unspecified(), netip.IPv6Unspecified()
	for name, want := range map[string][]control.AdoptedPort{
		"made": {{Proto: "tcp", HostIP: any4, HostPort: 1, Port: 1}, {Proto: "tcp", HostIP: any6, HostPort: 1, Port: 1}},
		"web": {
			{Proto: "tcp", HostIP: any4, HostPort: 8080, Port: 80}, {Proto: "tcp", HostIP: any6, HostPort: 8080, Port: 80},
			{Proto: "udp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, Port: 53},
		},
		"hosted": nil,
		"db":     nil,
	} {
		for _, version := range recorded {
			c := read[container.InspectResponse](t, version+"/"+name+".json")
			got := fixed(&c)
			require.ElementsMatch(t, want, got.Ports, version, name)
			require.Equal(t, c.ID, got.ID)
			require.Equal(t, name, got.Name)
			require.Empty(t, got.Netns)
		}
	}
	require.True(t, ownBinding(map[string]string{optBinding: "127.0.0.1"}))
	require.False(t, ownBinding(map[string]string{optBinding: "0.0.0.0"}))
}
