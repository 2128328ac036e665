// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
)

func TestNetworks(t *testing.T) {
	l := newLab(t)
	list, err := l.m.Networks()
	require.NoError(t, err)
	require.Empty(t, list)
	require.NoFileExists(t, l.m.storePath(), "looking makes nothing")

	n1, err := l.m.CreateNetwork(NetworkOptions{Name: "n1"})
	require.NoError(t, err)
	require.Equal(t, "172.17.0.0/16", n1.Subnets[0].Prefix.String())
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "n1"})
	require.ErrorIs(t, err, ErrConflict)
	require.EqualError(t, err, "network with name n1 already exists")
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "n2", Subnets: prefixes("172.17.4.0/24")})
	require.ErrorContains(t, err, "Pool overlaps with other one on this address space")
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "bridge"})
	require.ErrorContains(t, err, "operation is not permitted on predefined bridge network")
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "x"})
	require.ErrorIs(t, err, ErrInvalid)

	n2, err := l.m.CreateNetwork(NetworkOptions{Name: "n2", IPv6: true, Internal: true})
	require.NoError(t, err)
	require.Equal(t, "172.18.0.0/16", n2.Subnets[0].Prefix.String())
	require.True(t, n2.Subnets[1].Prefix.Addr().IsPrivate())
	n3, err := l.m.CreateNetwork(NetworkOptions{Name: "n3", Subnets: prefixes("10.1.0.0/24", "fd00:1::/64"),
		Gateways: []netip.Addr{netip.MustParseAddr("10.1.0.254")}, Ranges: prefixes("10.1.0.128/25")})
	require.NoError(t, err)
	c, _ := l.container("web", ContainerOptions{Network: "n3"})
	require.Equal(t, "10.1.0.128", c.Endpoints[n3.ID].IPv4.Addr().String())
	require.Equal(t, "fd00:1::2", c.Endpoints[n3.ID].IPv6.Addr().String())

	got, err := l.m.Network(n1.ID[:7])
	require.NoError(t, err)
	require.Equal(t, n1.ID, got.ID)
	_, err = l.m.Network("nothing")
	require.EqualError(t, err, "network nothing not found")

	require.ErrorContains(t, l.m.RemoveNetwork("n3"), "network n3 has active endpoints (web)")
	names, err := l.m.PruneNetworks()
	require.NoError(t, err)
	require.Equal(t, []string{"n1", "n2"}, names)
	require.NoError(t, l.m.RemoveContainer("web"))
	require.NoError(t, l.m.RemoveNetwork("n3"))
	require.Equal(t, []string{"lo", "eth0"}, links(t, l.host))
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)
}

// A bridge that was there before us is used as it is, and stays.
func TestForeignBridge(t *testing.T) {
	l := newLab(t)
	h, err := l.host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br0"
	br := &netlink.Bridge{LinkAttrs: attrs}
	require.NoError(t, h.LinkAdd(br))
	addr, err := netlink.ParseAddr("10.7.0.5/24")
	require.NoError(t, err)
	require.NoError(t, h.AddrAdd(br, addr))

	hooks := func() (list []string) {
		st, err := l.m.Status()
		require.NoError(t, err)
		require.Empty(t, st.Problems)
		for _, h := range st.Hooks {
			if h.Device == "br0" {
				list = append(list, h.Program)
			}
		}
		return list
	}
	require.NoError(t, l.m.Init(nil))
	uplink := hooks()
	require.ElementsMatch(t, []string{loader.BPFProgFromUplink, loader.BPFProgToUplink}, uplink)
	n, err := l.m.CreateNetwork(NetworkOptions{Name: "own", Bridge: "br0"})
	require.NoError(t, err)
	require.Equal(t, []string{loader.BPFProgToBridge}, hooks(), "no uplink any more")
	require.Equal(t, "10.7.0.0/24", n.Subnets[0].Prefix.String())
	require.Equal(t, "10.7.0.5", n.Subnets[0].Gateway.String())
	c, _ := l.container("web", ContainerOptions{Network: "own"})
	require.Equal(t, "10.7.0.1", c.Endpoints[n.ID].IPv4.Addr().String())
	require.NoError(t, l.m.RemoveContainer("web"))
	require.NoError(t, l.m.RemoveNetwork("own"))
	require.Contains(t, links(t, l.host), "br0")
	require.ElementsMatch(t, uplink, hooks(), "one again")

	// What it lacks it gets, and loses again: with the network, or when that cannot be.
	addrs := func() (list []string) {
		have, err := h.AddrList(br, netlink.FAMILY_ALL)
		require.NoError(t, err)
		for _, a := range have {
			if !a.IP.IsLinkLocalUnicast() {
				list = append(list, a.IPNet.String())
			}
		}
		dev, err := h.LinkByName("br0")
		require.NoError(t, err)
		return append(list, dev.Attrs().Flags.String())
	}
	require.NoError(t, h.LinkSetDown(br))
	before := addrs()
	require.NoError(t, h.LinkSetMTU(br, 1000)) // no IPv6
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "own", Bridge: "br0", IPv6: true})
	require.ErrorContains(t, err, "bridge br0")
	require.Equal(t, before, addrs())
	require.NoError(t, h.LinkSetMTU(br, 1500))
	require.NoError(t, h.LinkSetUp(br))
	before = addrs()
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "own", Bridge: "br0", IPv6: true, Subnets: []netip.Prefix{netip.MustParsePrefix("10.8.0.0/24")}})
	require.NoError(t, err)
	require.Contains(t, addrs(), "10.8.0.1/24")
	addr, err = netlink.ParseAddr("10.8.0.1/24")
	require.NoError(t, err)
	require.NoError(t, h.AddrDel(br, addr))
	_, err = l.m.Reconcile()
	require.NoError(t, err)
	n, err = l.m.Network("own")
	require.NoError(t, err)
	require.Len(t, n.Added, 2, "one of each family, however often it was put back")
	require.Contains(t, addrs(), "10.8.0.1/24")
	require.NoError(t, l.m.RemoveNetwork("own"))
	require.Equal(t, before, addrs())
}

// The MTU that could not change waits for the next init without containers.
func TestMTULater(t *testing.T) {
	l := newLab(t)
	mtu := func() int {
		n, err := l.m.Network(DefaultNetwork)
		require.NoError(t, err)
		return n.MTU
	}
	l.container("web", ContainerOptions{})
	require.NoError(t, l.m.Init(&Config{MTU: 1400}))
	require.Equal(t, []string{"mtu: network bridge keeps 1500 while containers are on it; init again when none is"}, l.warns)
	l.warns = nil
	require.NoError(t, l.m.Init(&Config{MTU: 1500}))
	require.Empty(t, l.warns, "which it has")
	require.NoError(t, l.m.Init(&Config{MTU: 1400}))
	require.NoError(t, l.m.RemoveContainer("web"))
	require.NoError(t, l.m.Init(nil))
	l.container("again", ContainerOptions{})
	require.Equal(t, 1400, mtu())
	_, err := l.m.CreateNetwork(NetworkOptions{Name: "six", IPv6: true, MTU: 1279})
	require.ErrorContains(t, err, "mtu: 1279 is less than the 1280 that IPv6 needs")
}

// A subnet in which the host is itself is not for containers.
func TestSubnetOfHost(t *testing.T) {
	l := newLab(t)
	require.NoError(t, l.m.Init(nil))
	before := l.state()
	for _, subnet := range []string{"192.0.2.0/24", "192.0.0.0/16", "2001:db8::/64"} {
		_, err := l.m.CreateNetwork(NetworkOptions{Name: "own", Subnets: []netip.Prefix{netip.MustParsePrefix(subnet)}})
		require.ErrorIs(t, err, ErrConflict, subnet)
		require.ErrorContains(t, err, "subnet "+subnet+": this host has ")
		require.ErrorContains(t, err, " in it, on eth0: choose another")
	}
	require.ErrorContains(t, l.m.Init(&Config{BIP: "192.0.2.9/24"}), "subnet 192.0.2.0/24: this host has 192.0.2.1 in it")
	require.Equal(t, before, l.state())
	require.NoError(t, l.m.Init(&Config{BIP: "192.0.3.1/24"}))
	_, err := l.m.CreateNetwork(NetworkOptions{Name: "own", Subnets: []netip.Prefix{netip.MustParsePrefix("192.0.2.128/25")}})
	require.NoError(t, err, "a part of it where the host is not")
}

func TestConfiguration(t *testing.T) {
	l := newLab(t)
	require.NoError(t, l.m.Init(&Config{BIP: "10.9.0.1/24", FixedCIDR: "10.9.0.64/26"}))
	c, _ := l.container("web", ContainerOptions{})
	n, err := l.m.Network("bridge")
	require.NoError(t, err)
	require.Equal(t, "10.9.0.1", n.Subnets[0].Gateway.String())
	require.Equal(t, "10.9.0.64", c.Endpoints[n.ID].IPv4.Addr().String())

	no := false
	require.NoError(t, l.m.Init(&Config{ICC: &no}))
	n, err = l.m.Network("bridge")
	require.NoError(t, err)
	require.False(t, n.ICC)
	require.ErrorContains(t, l.m.Init(&Config{BIP: "10.10.0.1/24"}), "bip: cannot change from 10.9.0.1/24 to 10.10.0.1/24 now: network bridge has active endpoints (web)")
	require.ErrorIs(t, l.m.Init(&Config{MasqueradePorts: "5-4"}), ErrInvalid)

	// Live.
	settings := func() (c maps.Config) {
		src, err := loader.OpenMaps(loader.Options{BPFFS: l.o.BPFFS})
		require.NoError(t, err)
		defer src.Close()
		c, err = maps.New(src).Settings.Get()
		require.NoError(t, err)
		return c
	}
	require.Equal(t, defaultFlows/4, settings().Quota)
	require.NoError(t, l.m.Init(&Config{Quota: 7, TimeoutUDP: "90s", TimeoutTCP: "10h", MasqueradePorts: "5000-5999"}))
	live := settings()
	require.Equal(t, 7, live.Quota)
	require.Equal(t, []maps.PortRange{{First: 5000, Last: 5999}}, live.Pool)
	require.InDelta(t, 90*time.Second, live.Timeouts.UDP, float64(2*time.Second))
	require.InDelta(t, 10*time.Hour, live.Timeouts.TCPEstablished, float64(2*time.Second))
	require.InDelta(t, time.Minute, live.Timeouts.ICMP, float64(2*time.Second))
	require.NoError(t, l.m.Init(&Config{FlowTableSize: 2048, HalfOpenTableSize: 512}))
	require.Equal(t, live, settings())
	st, err := l.m.Status()
	require.NoError(t, err)
	require.Empty(t, st.Problems)
	for _, table := range st.Tables {
		if size, ok := map[string]int{"flows4": 4096, "flows6": 4096, "half4": 1024, "half6": 1024}[table.Name]; ok {
			require.Equal(t, size, table.Size, table.Name)
		}
	}
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)

	require.NoError(t, l.m.RemoveContainer("web"))
	require.NoError(t, l.m.Init(&Config{BIP: "10.10.0.1/24", FixedCIDR: "10.10.0.128/25"}))
	c, _ = l.container("web2", ContainerOptions{})
	n, err = l.m.Network("bridge")
	require.NoError(t, err)
	require.Equal(t, "10.10.0.128", c.Endpoints[n.ID].IPv4.Addr().String())

	other := l.o
	other.Cgroup = "/sys/fs/cgroup/elsewhere"
	m, err := Open(other)
	require.NoError(t, err)
	_, err = m.Networks()
	require.ErrorContains(t, err, "--cgroup")
}

func TestConfigFile(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		`{"bridge": "x", "nope": 1}`:     `unknown field "nope"`,
		`{"bip": "10.0.0.1"}`:            `bip: "10.0.0.1" is not ADDRESS/LENGTH`,
		``:                               ": is empty; {} sets nothing",
		`{"mtu": 20`:                     ": ends too early",
		`{"mtu": 20}}`:                   "more than one value",
		"{\n\n\"mtu\" 20}":               `: line 3: invalid character '2' after object key`,
		`{"bip": 5}`:                     ": bip: is a number, wants text",
		`{"mtu": "x"}`:                   ": mtu: is text, wants a whole number",
		`{"mtu": 1.5}`:                   ": mtu: is number 1.5, wants a whole number",
		`{"icc": "x"}`:                   ": icc: is text, wants true or false",
		`{"dns": "192.0.2.1"}`:           ": dns: is text, wants a list",
		`{"dns": [5]}`:                   ": dns: is a number, wants text",
		`{"default-address-pools": [5]}`: ": default-address-pools: is a number, wants an object",
		`{"default-address-pools": [{"base": 5}]}`: ": default-address-pools.base: is a number, wants text",
		`[]`:                                 ": is a list, wants an object",
		`{"mtu": 20}`:                        "mtu: 20 is not in 68-65535",
		`{"mtu": 1000, "ipv6": true}`:        "mtu: 1000 is less than the 1280 that IPv6 needs",
		`{"ip": "x"}`:                        `ip: "x" is not an address`,
		`{} {}`:                              "more than one value",
		`{"masquerade-ports": "100-50"}`:     `masquerade-ports: "100-50" is no range of ports`,
		`{"default-address-pools": [{}]}`:    "default-address-pools",
		`{"icc": false, "flow-quota": -1}`:   "flow-quota",
		`{"dns": ["a"]}`:                     `dns: "a" is not an address`,
		`{"fixed-cidr-v6": "10.0.0.0/8"}`:    "wrong family",
		`{"uplinks": ["a/b"]}`:               "no device name",
		`{"dns-search": ["a b"]}`:            "no word",
		`{"flow-table-size": 5}`:             "flow-table-size",
		`{"half-open-table-size": 5}`:        "half-open-table-size: 5 is not in",
		`{"timeout-udp": "5"}`:               `timeout-udp: "5" is no duration`,
		`{"timeout-tcp": "20h"}`:             "timeout-tcp: 20h is not in 1s-19h",
		`{"timeout-icmp": "0s"}`:             "timeout-icmp: 0s is not in",
		`{"bridge": "0123456789abcdef"}`:     "no device name",
		`{"default-gateway": "fd00::1"}`:     "wrong family",
		`{"masquerade-ports": "1,2,2"}`:      "overlaps",
		`{"masquerade-ports": "70000"}`:      "no range",
		`{"masquerade-ports": "1-2-3"}`:      "no range",
		`{"masquerade-ports": "9,8,7,6,5,"}`: "overlaps",
	} {
		path := dir + "/c.json"
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := ReadConfig(path)
		require.ErrorContains(t, err, want, text)
		require.ErrorContains(t, err, path)
	}
	_, err := ReadConfig(dir + "/missing")
	require.ErrorIs(t, err, os.ErrNotExist)
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}
