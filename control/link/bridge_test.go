// SPDX-License-Identifier: Apache-2.0

package link

import (
	"io/fs"
	"os/exec"
	"strings"
	"testing"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func testBridge(t *testing.T) Bridge {
	return Bridge{Name: "bpfnet0", MAC: mac(t, "02:42:ac:11:00:01"), MTU: 1450,
		Addrs: prefixes("172.17.0.1/16", "fd00:1::1/64")}
}

// The state of a bridge as it has to be, however it came about.
func checkBridge(t *testing.T, h *netlink.Handle, b Bridge, ifindex int) {
	t.Helper()
	l := getLink(t, h, b.Name)
	require.Equal(t, "bridge", l.Type())
	require.Equal(t, ifindex, l.Attrs().Index)
	require.Equal(t, b.MAC.String(), l.Attrs().HardwareAddr.String())
	require.Equal(t, b.MTU, l.Attrs().MTU)
	require.NotZero(t, l.Attrs().RawFlags&unix.IFF_UP)
	require.False(t, *l.(*netlink.Bridge).MulticastSnooping)
	require.ElementsMatch(t, []string{"172.17.0.1/16", "fd00:1::1/64", "fe80::42:acff:fe11:1/64"}, addrList(t, h, l))
}

func TestEnsureBridge(t *testing.T) {
	ns, h := newNS(t)
	forwarding := sysctlOf(t, ns, "ipv6/conf/all/forwarding") + sysctlOf(t, ns, "ipv4/ip_forward")
	b := testBridge(t)
	ifindex, _, err := EnsureBridge(ns, b)
	require.NoError(t, err)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v", HardwareAddr: mac(t, "02:00:00:00:00:01")}, PeerName: "w"}
	require.NoError(t, h.LinkAdd(veth))
	require.NoError(t, h.LinkSetMasterByIndex(veth, ifindex))
	require.NoError(t, h.LinkSetUp(veth))
	require.NoError(t, h.LinkSetUp(getLink(t, h, "w")))
	checkBridge(t, h, b, ifindex) // a port with a lower MAC and a larger MTU changed nothing

	require.Equal(t, "0", sysctlOf(t, ns, "ipv6/conf/bpfnet0/accept_dad"))
	require.Equal(t, "0", sysctlOf(t, ns, "ipv6/conf/bpfnet0/accept_ra"))
	require.Equal(t, forwarding, sysctlOf(t, ns, "ipv6/conf/all/forwarding")+sysctlOf(t, ns, "ipv4/ip_forward"))

	again, _, err := EnsureBridge(ns, b)
	require.NoError(t, err)
	require.Equal(t, ifindex, again)
	checkBridge(t, h, b, ifindex)

	require.NoError(t, DeleteBridge(ns, b.Name))
	require.NoError(t, DeleteBridge(ns, b.Name), "twice is once")
	require.NotContains(t, names(t, h), b.Name)
	require.Contains(t, names(t, h), "v", "its port is left")
}

func TestEnsureBridgeRepairs(t *testing.T) {
	for name, breakIt := range map[string]func(t *testing.T, h *netlink.Handle, l netlink.Link) error{
		"down":            func(t *testing.T, h *netlink.Handle, l netlink.Link) error { return h.LinkSetDown(l) },
		"mtu":             func(t *testing.T, h *netlink.Handle, l netlink.Link) error { return h.LinkSetMTU(l, 1300) },
		"no IPv6 by mtu":  func(t *testing.T, h *netlink.Handle, l netlink.Link) error { return h.LinkSetMTU(l, 1000) },
		"address missing": func(t *testing.T, h *netlink.Handle, l netlink.Link) error { return delAddr(h, l, "172.17.0.1/16") },
		"old address, first of its subnet": func(t *testing.T, h *netlink.Handle, l netlink.Link) error {
			require.NoError(t, delAddr(h, l, "172.17.0.1/16"))
			require.NoError(t, addAddr(h, l, prefixes("172.17.0.9/16")[0]))
			return addAddr(h, l, prefixes("172.17.0.1/16")[0])
		},
		"old IPv6 address": func(t *testing.T, h *netlink.Handle, l netlink.Link) error {
			return addAddr(h, l, prefixes("fd00:2::1/64")[0])
		},
	} {
		t.Run(name, func(t *testing.T) {
			ns, h := newNS(t)
			b := testBridge(t)
			ifindex, _, err := EnsureBridge(ns, b)
			require.NoError(t, err)
			require.NoError(t, breakIt(t, h, getLink(t, h, b.Name)))

			again, _, err := EnsureBridge(ns, b)
			require.NoError(t, err)
			require.Equal(t, ifindex, again)
			checkBridge(t, h, b, ifindex)
		})
	}

	t.Run("made by somebody else", func(t *testing.T) {
		ns, h := newNS(t)
		b := testBridge(t)
		setSysctl(t, ns, "ipv6/conf/default/disable_ipv6", "1")
		require.NoError(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: b.Name}}))
		ifindex, _, err := EnsureBridge(ns, b)
		require.NoError(t, err)
		checkBridge(t, h, b, ifindex)
	})

	t.Run("mac", func(t *testing.T) {
		ns, h := newNS(t)
		b := testBridge(t)
		b.MAC = mac(t, "02:42:ac:11:00:99")
		_, _, err := EnsureBridge(ns, b)
		require.NoError(t, err)
		b.MAC = testBridge(t).MAC
		ifindex, _, err := EnsureBridge(ns, b)
		require.NoError(t, err)
		checkBridge(t, h, b, ifindex)
	})

	t.Run("stp and snooping", func(t *testing.T) {
		ns, h := newNS(t)
		b := testBridge(t)
		ifindex, _, err := EnsureBridge(ns, b)
		require.NoError(t, err)
		require.NoError(t, ns.Do(func() error {
			return SetBridgeData(ifindex, nl.NewRtAttr(nl.IFLA_BR_STP_STATE, nl.Uint32Attr(1)), nl.NewRtAttr(nl.IFLA_BR_MCAST_SNOOPING, nl.Uint8Attr(1)))
		}))
		require.NoError(t, ns.Do(func() error {
			data, err := BridgeData(ifindex)
			require.Equal(t, nl.Uint32Attr(1), data[nl.IFLA_BR_STP_STATE])
			require.Equal(t, nl.Uint8Attr(1), data[nl.IFLA_BR_MCAST_SNOOPING])
			return err
		}))
		require.Equal(t, "1", stpState(t, ns, b.Name))
		require.True(t, *getLink(t, h, b.Name).(*netlink.Bridge).MulticastSnooping)
		_, _, err = EnsureBridge(ns, b)
		require.NoError(t, err)
		require.Equal(t, "0", stpState(t, ns, b.Name))
		checkBridge(t, h, b, ifindex)
	})
}

// stpState reads /sys as it is in the namespace.
func stpState(t *testing.T, ns *netns.NS, bridge string) string {
	t.Helper()
	var out []byte
	require.NoError(t, ns.Do(func() (err error) {
		script := "mount -t sysfs none /sys && cat /sys/class/net/" + bridge + "/bridge/stp_state"
		out, err = exec.Command("unshare", "--mount", "sh", "-c", script).Output()
		return err
	}))
	return strings.TrimSpace(string(out))
}

func delAddr(h *netlink.Handle, l netlink.Link, prefix string) error {
	return h.AddrDel(l, &netlink.Addr{IPNet: ipNet(prefixes(prefix)[0])})
}

func TestAdoptBridge(t *testing.T) {
	ns, h := newNS(t)
	b := Bridge{Name: "br0", Adopt: true, MTU: 1400, MAC: mac(t, "02:00:00:00:00:09"), Addrs: prefixes("10.0.0.1/24")}
	_, _, err := EnsureBridge(ns, b)
	require.ErrorIs(t, err, fs.ErrNotExist)

	on := true
	attrs := netlink.LinkAttrs{Name: "br0", HardwareAddr: mac(t, "02:00:00:00:00:01"), MTU: 1500}
	require.NoError(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &on}))
	l := getLink(t, h, "br0")
	require.NoError(t, addAddr(h, l, prefixes("192.168.7.1/24")[0]))

	for range 2 {
		ifindex, _, err := EnsureBridge(ns, b)
		require.NoError(t, err)
		l = getLink(t, h, "br0")
		require.Equal(t, ifindex, l.Attrs().Index)
		require.Equal(t, attrs.HardwareAddr, l.Attrs().HardwareAddr)
		require.Equal(t, 1500, l.Attrs().MTU)
		require.True(t, *l.(*netlink.Bridge).MulticastSnooping)
		require.Subset(t, addrList(t, h, l), []string{"192.168.7.1/24", "10.0.0.1/24"})
	}
}

func TestBridgeNameOfAnotherDevice(t *testing.T) {
	ns, h := newNS(t)
	require.NoError(t, h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v"}, PeerName: "w"}))
	before := addrList(t, h, getLink(t, h, "v"))
	for _, adopt := range []bool{false, true} {
		_, _, err := EnsureBridge(ns, Bridge{Name: "v", Adopt: adopt, Addrs: prefixes("10.0.0.1/24")})
		require.ErrorIs(t, err, fs.ErrExist)
		require.ErrorContains(t, err, "veth")
	}
	require.Error(t, DeleteBridge(ns, "v"))
	require.Error(t, DeleteVeth(ns, "lo"))
	require.Equal(t, before, addrList(t, h, getLink(t, h, "v")))
	_, _, err := EnsureBridge(ns, Bridge{Name: "../x"})
	require.Error(t, err)
}

// A new bridge that cannot be finished is not left half done.
func TestEnsureBridgeAtomic(t *testing.T) {
	ns, h := newNS(t)
	before := names(t, h)
	b := testBridge(t)
	b.Addrs = append(b.Addrs, prefixes("ff02::1/64")...)
	_, _, err := EnsureBridge(ns, b)
	require.Error(t, err)
	require.Equal(t, before, names(t, h))
}
