// SPDX-License-Identifier: Apache-2.0

package link

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// newNS is a namespace of the test's own, with a handle in it.
func newNS(t testing.TB) (*netns.NS, *netlink.Handle) {
	t.Helper()
	ns, err := netns.New()
	require.NoError(t, err)
	t.Cleanup(func() { ns.Close() })
	h, err := ns.Netlink()
	require.NoError(t, err)
	t.Cleanup(h.Close)
	return ns, h
}

func mac(t testing.TB, s string) net.HardwareAddr {
	t.Helper()
	m, err := net.ParseMAC(s)
	require.NoError(t, err)
	return m
}

func prefixes(list ...string) (p []netip.Prefix) {
	for _, s := range list {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}

func addrs(list ...string) (a []netip.Addr) {
	for _, s := range list {
		a = append(a, netip.MustParseAddr(s))
	}
	return a
}

func getLink(t testing.TB, h *netlink.Handle, name string) netlink.Link {
	t.Helper()
	l, err := h.LinkByName(name)
	require.NoError(t, err)
	return l
}

func sysctlOf(t testing.TB, ns *netns.NS, key string) string {
	t.Helper()
	var text []byte
	require.NoError(t, ns.Do(func() (err error) {
		text, err = os.ReadFile("/proc/sys/net/" + key)
		return err
	}))
	return strings.TrimSpace(string(text))
}

func setSysctl(t testing.TB, ns *netns.NS, key, value string) {
	t.Helper()
	require.NoError(t, ns.Do(func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) }))
}

// addrList gives "prefix" or "prefix tentative", sorted as the kernel has them.
func addrList(t testing.TB, h *netlink.Handle, l netlink.Link) (list []string) {
	t.Helper()
	all, err := h.AddrList(l, netlink.FAMILY_ALL)
	require.NoError(t, err)
	for _, a := range all {
		p, ok := prefixOf(a.IPNet)
		require.True(t, ok)
		s := p.String()
		if a.Flags&0x40 != 0 { // IFA_F_TENTATIVE
			s += " tentative"
		}
		list = append(list, s)
	}
	return list
}

func names(t testing.TB, h *netlink.Handle) (list []string) {
	t.Helper()
	links, err := h.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		list = append(list, l.Attrs().Name)
	}
	return list
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"a", "eth0", "br-0123456789ab", "x.100", "veth_1"} {
		require.NoError(t, CheckName(good), good)
	}
	for _, bad := range []string{"", ".", "..", "all", "default", "br-0123456789abc", "a/b", "a b", "a:b", "eth%d", "ä", "a\n", "\x00"} {
		require.Error(t, CheckName(bad), bad)
	}
}
