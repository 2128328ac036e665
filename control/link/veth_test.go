// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func testVeth(t testing.TB) Veth {
	return Veth{HostName: "veth1", Bridge: "bpfnet0", HostMAC: mac(t, "02:00:00:00:01:01"),
		ContName: "eth0", MAC: mac(t, "02:42:ac:11:00:02"), MTU: 1450,
		Addrs:    prefixes("172.17.0.2/16", "fd00:1::2/64"),
		Gateways: addrs("172.17.0.1", "fd00:1::1"), Routes: true}
}

// host is a namespace with a bridge in it.
func bridgeHost(t testing.TB) (*netns.NS, *netlink.Handle, int) {
	ns, h := newNS(t)
	ifindex, _, err := EnsureBridge(ns, Bridge{Name: "bpfnet0", MAC: mac(t, "02:42:ac:11:00:01"), MTU: 1450,
		Addrs: prefixes("172.17.0.1/16", "fd00:1::1/64")})
	require.NoError(t, err)
	return ns, h, ifindex
}

func TestCreateVeth(t *testing.T) {
	host, hh, bridge := bridgeHost(t)
	cont, ch := newNS(t)
	v := testVeth(t)
	v.GRO = true
	index, err := CreateVeth(host, cont, v)
	require.NoError(t, err)

	l := getLink(t, hh, "veth1")
	require.Equal(t, index, l.Attrs().Index)
	require.Equal(t, bridge, l.Attrs().MasterIndex)
	require.Equal(t, v.HostMAC, l.Attrs().HardwareAddr)
	require.Equal(t, v.MTU, l.Attrs().MTU)
	require.NotZero(t, l.Attrs().RawFlags&unix.IFF_UP)
	require.Empty(t, addrList(t, hh, l))
	require.Equal(t, "1", sysctlOf(t, host, "ipv6/conf/veth1/disable_ipv6"))

	l = getLink(t, ch, "eth0")
	require.Equal(t, v.MAC, l.Attrs().HardwareAddr)
	require.Equal(t, v.MTU, l.Attrs().MTU)
	require.NotZero(t, l.Attrs().RawFlags&unix.IFF_UP)
	require.ElementsMatch(t, []string{"172.17.0.2/16", "fd00:1::2/64", "fe80::42:acff:fe11:2/64"}, addrList(t, ch, l),
		"none tentative, link-local by EUI-64")
	require.NotZero(t, getLink(t, ch, "lo").Attrs().RawFlags&unix.IFF_UP)
	for _, f := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		require.Equal(t, v.Gateways[f/unix.AF_INET6].String(), defaultVia(t, ch, f))
	}
	for ns, name := range map[*netns.NS]string{host: "veth1", cont: "eth0"} {
		require.True(t, groOn(t, ns, name), name)
	}

	require.Equal(t, netlink.LinkOperState(netlink.OperUp), getLink(t, hh, "veth1").Attrs().OperState)

	// The host and the container speak at once, in both families: the kernel asks for
	// a neighbour once in these ten seconds.
	for ns, name := range map[*netns.NS]string{host: "bpfnet0", cont: "eth0"} {
		setSysctl(t, ns, "ipv4/neigh/"+name+"/retrans_time_ms", "60000")
		setSysctl(t, ns, "ipv6/neigh/"+name+"/retrans_time_ms", "60000")
	}
	for _, gw := range []string{"172.17.0.1", "fd00:1::1"} {
		exchange(t, host, cont, gw)
	}

	require.NoError(t, DeleteVeth(host, "veth1"))
	require.NoError(t, DeleteVeth(host, "veth1"), "twice is once")
	require.Equal(t, []string{"lo"}, names(t, ch))
}

func defaultVia(t testing.TB, h *netlink.Handle, family int) string {
	t.Helper()
	list, err := h.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
	require.NoError(t, err)
	if len(list) == 0 {
		return ""
	}
	require.Len(t, list, 1)
	return list[0].Gw.String()
}

// exchange sends a datagram from cont to an address of the host's, and back.
func exchange(t *testing.T, host, cont *netns.NS, to string) {
	t.Helper()
	var server, client net.PacketConn
	require.NoError(t, host.Do(func() (err error) {
		server, err = net.ListenPacket("udp", net.JoinHostPort(to, "0"))
		return err
	}))
	defer server.Close()
	require.NoError(t, cont.Do(func() (err error) {
		client, err = net.ListenPacket("udp", ":0")
		return err
	}))
	defer client.Close()
	deadline := time.Now().Add(10 * time.Second)
	require.NoError(t, server.SetDeadline(deadline))
	require.NoError(t, client.SetDeadline(deadline))

	buf := make([]byte, 16)
	_, err := client.WriteTo([]byte("ping"), server.LocalAddr())
	require.NoError(t, err)
	n, from, err := server.ReadFrom(buf)
	require.NoError(t, err)
	require.Equal(t, "ping", string(buf[:n]))
	_, err = server.WriteTo([]byte("pong"), from)
	require.NoError(t, err)
	n, _, err = client.ReadFrom(buf)
	require.NoError(t, err)
	require.Equal(t, "pong", string(buf[:n]))
}

func TestVethIPv4Only(t *testing.T) {
	host, _, _ := bridgeHost(t)
	cont, ch := newNS(t)
	v := testVeth(t)
	v.Addrs, v.Gateways = v.Addrs[:1], v.Gateways[:1]
	_, err := CreateVeth(host, cont, v)
	require.NoError(t, err)
	require.Equal(t, "1", sysctlOf(t, cont, "ipv6/conf/eth0/disable_ipv6"))
	require.Equal(t, []string{"172.17.0.2/16"}, addrList(t, ch, getLink(t, ch, "eth0")))
	require.False(t, groOn(t, cont, "eth0"))

	// IPv6 is asked for where the namespace has it off.
	cont, ch = newNS(t)
	setSysctl(t, cont, "ipv6/conf/default/disable_ipv6", "1")
	setSysctl(t, cont, "ipv6/conf/default/addr_gen_mode", "1")
	v = testVeth(t)
	v.HostName = "veth2"
	_, err = CreateVeth(host, cont, v)
	require.NoError(t, err)
	require.Contains(t, addrList(t, ch, getLink(t, ch, "eth0")), "fe80::42:acff:fe11:2/64")
}

func TestVethGateways(t *testing.T) {
	host, _, _ := bridgeHost(t)

	t.Run("internal", func(t *testing.T) {
		cont, ch := newNS(t)
		v := testVeth(t)
		v.HostName, v.Routes = "veth2", false
		_, err := CreateVeth(host, cont, v)
		require.NoError(t, err)
		require.Empty(t, defaultVia(t, ch, netlink.FAMILY_V4))
		require.Empty(t, defaultVia(t, ch, netlink.FAMILY_V6))

		require.NoError(t, SetDefaultGateway(cont, "eth0", v.Gateways))
		require.Equal(t, "172.17.0.1", defaultVia(t, ch, netlink.FAMILY_V4))
		require.Equal(t, "fd00:1::1", defaultVia(t, ch, netlink.FAMILY_V6))

		v.HostName, v.ContName, v.MAC = "veth3", "eth1", mac(t, "02:42:ac:11:00:03")
		v.Addrs, v.Gateways = prefixes("10.5.0.2/24", "fd00:5::2/64"), addrs("10.5.0.1", "fd00:5::1")
		_, err = CreateVeth(host, cont, v)
		require.NoError(t, err)
		require.NoError(t, SetDefaultGateway(cont, "eth1", v.Gateways), "in place of the others")
		require.Equal(t, "10.5.0.1", defaultVia(t, ch, netlink.FAMILY_V4))
		require.Equal(t, "fd00:5::1", defaultVia(t, ch, netlink.FAMILY_V6))

		require.NoError(t, DelDefaultGateway(cont, "eth0"), "has none")
		require.Equal(t, "10.5.0.1", defaultVia(t, ch, netlink.FAMILY_V4))
		require.NoError(t, DelDefaultGateway(cont, "eth1"))
		require.NoError(t, DelDefaultGateway(cont, "eth1"), "twice is once")
		require.NoError(t, DelDefaultGateway(cont, "nothing"))
		require.Empty(t, defaultVia(t, ch, netlink.FAMILY_V4))
		require.Empty(t, defaultVia(t, ch, netlink.FAMILY_V6))
		require.Error(t, SetDefaultGateway(cont, "nothing", v.Gateways))
	})

	t.Run("outside the subnet", func(t *testing.T) {
		cont, ch := newNS(t)
		v := testVeth(t)
		v.HostName = "veth9"
		v.Addrs, v.Gateways = prefixes("10.6.0.2/32", "fd00:6::2/128"), addrs("10.6.0.1", "fe80::1")
		_, err := CreateVeth(host, cont, v)
		require.NoError(t, err)
		require.Equal(t, "10.6.0.1", defaultVia(t, ch, netlink.FAMILY_V4))
		require.Equal(t, "fe80::1", defaultVia(t, ch, netlink.FAMILY_V6))
	})
}

func TestCreateVethAtomic(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*testing.T, *Veth, *netlink.Handle, *netlink.Handle)
		is     error
		text   string
	}{
		"name taken in the container": {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) {
			require.NoError(t, ch.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "w"}))
		}, fs.ErrExist, "device eth0: file already exists in the container"},
		"name taken in the host": {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) {
			require.NoError(t, hh.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "veth1"}, PeerName: "w"}))
		}, fs.ErrExist, "device veth1: file already exists"},
		"no bridge": {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.Bridge = "none" }, nil, "bridge none: "},
		"bridge is none": {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) {
			v.Bridge = "lo"
		}, nil, "device veth1: port of lo: "},
		"bad host name":        {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.HostName = "a/b" }, nil, `device name "a/b"`},
		"bad name":             {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.ContName = "" }, nil, "device name: empty"},
		"multicast mac":        {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.MAC = mac(t, "01:00:5e:00:00:01") }, nil, "device veth1: "},
		"mtu":                  {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.MTU = 66000 }, nil, "device veth1: "},
		"mtu small for IPv6":   {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.MTU = 1000 }, nil, "device eth0: "},
		"zero address":         {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.Addrs = make([]netip.Prefix, 1) }, nil, "device eth0: "},
		"multicast address":    {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.Addrs = prefixes("ff02::1/64") }, nil, "device eth0: address ff02::1/64: "},
		"same address twice":   {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.Addrs = append(v.Addrs, v.Addrs[0]) }, unix.EEXIST, "device eth0: address 172.17.0.2/16: "},
		"gateway is multicast": {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.Gateways = addrs("172.17.0.1", "ff02::1") }, nil, "default route via ff02::1: "},
		"two default gateways": {func(t *testing.T, v *Veth, hh, ch *netlink.Handle) { v.Gateways = addrs("172.17.0.1", "172.17.0.3") }, unix.EEXIST, "default route via 172.17.0.3: "},
	} {
		t.Run(name, func(t *testing.T) {
			host, hh, _ := bridgeHost(t)
			cont, ch := newNS(t)
			v := testVeth(t)
			c.change(t, &v, hh, ch)
			hostNames, contNames := names(t, hh), names(t, ch)

			_, err := CreateVeth(host, cont, v)
			require.ErrorContains(t, err, c.text)
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
			require.Equal(t, hostNames, names(t, hh))
			require.Equal(t, contNames, names(t, ch))

			// And what was left is no obstacle.
			clean, _ := newNS(t)
			v = testVeth(t)
			v.HostName = "veth7"
			_, err = CreateVeth(host, clean, v)
			require.NoError(t, err)
		})
	}
}

// A default route that somebody else made in the container is not replaced.
func TestCreateVethKeepsDefaultRoute(t *testing.T) {
	host, _, _ := bridgeHost(t)
	cont, ch := newNS(t)
	first := testVeth(t)
	_, err := CreateVeth(host, cont, first)
	require.NoError(t, err)

	second := testVeth(t)
	second.HostName, second.ContName, second.MAC = "veth2", "eth1", mac(t, "02:42:ac:11:00:03")
	second.Addrs, second.Gateways = prefixes("10.5.0.2/24", "fd00:5::2/64"), addrs("10.5.0.1", "fd00:5::1")
	_, err = CreateVeth(host, cont, second)
	require.ErrorIs(t, err, unix.EEXIST)
	require.Equal(t, "172.17.0.1", defaultVia(t, ch, netlink.FAMILY_V4))
	require.Equal(t, "fd00:1::1", defaultVia(t, ch, netlink.FAMILY_V6))
	require.NotContains(t, names(t, ch), "eth1")
}

func TestNeighbors(t *testing.T) {
	host, h, bridge := bridgeHost(t)
	m := mac(t, "02:42:ac:11:00:02")
	list := addrs("172.17.0.2", "fd00:1::2")
	for range 2 {
		require.NoError(t, SetNeighbors(host, bridge, m, list))
	}
	neighs := func() (found []string) {
		all, err := h.NeighList(bridge, netlink.FAMILY_ALL)
		require.NoError(t, err)
		for _, n := range all {
			if n.State == netlink.NUD_PERMANENT {
				found = append(found, fmt.Sprint(n.IP, " ", n.HardwareAddr))
			}
		}
		return found
	}
	require.ElementsMatch(t, []string{"172.17.0.2 " + m.String(), "fd00:1::2 " + m.String()}, neighs())
	// Somebody else's is not ours, until we say it too.
	theirs := addrs("172.17.0.3")
	require.NoError(t, h.NeighSet(&netlink.Neigh{LinkIndex: bridge, State: netlink.NUD_PERMANENT, IP: theirs[0].AsSlice(), HardwareAddr: m}))
	own := func() (found []netip.Addr) {
		all, err := OwnNeighbors(host)
		require.NoError(t, err)
		for _, n := range all {
			require.Equal(t, bridge, n.Ifindex)
			found = append(found, n.Addr)
		}
		return found
	}
	require.ElementsMatch(t, list, own())
	require.NoError(t, SetNeighbors(host, bridge, m, theirs))
	require.ElementsMatch(t, append(theirs, list...), own())
	require.NoError(t, DelNeighbors(host, bridge, theirs))
	for range 2 {
		require.NoError(t, DelNeighbors(host, bridge, list))
	}
	require.Empty(t, neighs())
	require.NoError(t, DeleteBridge(host, "bpfnet0"))
	require.NoError(t, DelNeighbors(host, bridge, list), "no bridge either")
	require.Error(t, SetNeighbors(host, bridge, m, list))
}

// A bridge takes 1,023 ports: veths beyond are made as ports of nothing. The work for one does not grow.
func TestPastPortLimit(t *testing.T) {
	const count, limit = 1100, 1023
	host, hh, bridge := bridgeHost(t)
	cont, _ := newNS(t)
	var took []time.Duration
	for i := range count {
		v := Veth{HostName: fmt.Sprintf("veth%d", i), Bridge: "bpfnet0", ContName: fmt.Sprintf("eth%d", i)}
		start := cpuTime(t)
		_, err := CreateVeth(host, cont, v)
		require.NoError(t, err)
		took = append(took, cpuTime(t)-start)
	}
	ports := 0
	links, err := hh.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		require.True(t, l.Type() != "veth" || l.Attrs().RawFlags&unix.IFF_UP != 0, l.Attrs().Name)
		if l.Attrs().MasterIndex == bridge {
			ports++
		}
	}
	require.Equal(t, limit, ports)
	require.Zero(t, getLink(t, hh, fmt.Sprintf("veth%d", count-1)).Attrs().MasterIndex)
	first, last := median(took[:50]), median(took[count-50:])
	t.Logf("median of the first 50: %v, of the last 50: %v", first, last)
	require.Less(t, last, 4*first)
}

// cpuTime is what the process has used, in the kernel too: what others do on the
// machine does not count.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var ts unix.Timespec
	require.NoError(t, unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &ts))
	return time.Duration(ts.Nano())
}

func BenchmarkCreateVeth(b *testing.B) {
	host, _, _ := bridgeHost(b)
	var took []time.Duration
	for i := range min(b.N, 60) {
		cont, err := netns.New()
		require.NoError(b, err)
		v := testVeth(b)
		v.HostName = fmt.Sprintf("veth%d", i)
		start := time.Now()
		_, err = CreateVeth(host, cont, v)
		took = append(took, time.Since(start))
		require.NoError(b, err)
		cont.Close()
	}
	b.ReportMetric(float64(median(took).Microseconds())/1000, "ms/veth")
}
