// SPDX-License-Identifier: Apache-2.0

package watch

import (
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
)

type host struct {
	t  *testing.T
	ns *netns.NS
	w  *Watcher
}

func newHost(t *testing.T, lines ...string) *host {
	t.Helper()
	ns, err := netns.New()
	require.NoError(t, err)
	t.Cleanup(func() { ns.Close() })
	h := &host{t: t, ns: ns}
	h.run("ip link set lo up")
	for _, line := range lines {
		h.run(line)
	}
	h.w, err = Open(ns, func(device string) bool { return strings.HasPrefix(device, "own") })
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, h.w.Close()) })
	return h
}

func (h *host) run(line string) {
	h.t.Helper()
	f := strings.Fields(line)
	require.NoError(h.t, h.ns.Do(func() error {
		if out, err := exec.Command(f[0], f[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, out)
		}
		return nil
	}))
}

// quiet waits until what was done before has been told: a change of a qdisc is the last.
func (h *host) quiet() (told Change) {
	h.t.Helper()
	h.run("tc qdisc add dev lo clsact")
	h.run("tc qdisc del dev lo clsact")
	for hooks := Change(0); hooks == 0; {
		select {
		case <-h.w.Notice():
			c := h.w.Take()
			told |= c
			hooks |= c & Hooks
		case <-time.After(5 * time.Second):
			require.FailNow(h.t, "no notice")
		}
	}
	return told
}

// told is whether a change is told as one of the host.
func (h *host) told(line string) bool {
	h.t.Helper()
	h.quiet()
	h.quiet()
	h.run(line)
	return h.quiet()&Host != 0
}

// up waits until the kernel has told that devices are up. It may wait for a second itself
// (net/core/link_watch.c).
func (h *host) up(devices ...string) {
	h.t.Helper()
	k, err := h.ns.Netlink()
	require.NoError(h.t, err)
	defer k.Close()
	require.Eventually(h.t, func() bool {
		return !slices.ContainsFunc(devices, func(d string) bool {
			l, err := k.LinkByName(d)
			return err != nil || l.Attrs().OperState != netlink.OperUp
		})
	}, 5*time.Second, 5*time.Millisecond)
}

// What is told, and what is not: each after all that was before it. Devices make no addresses
// of their own, which would come when they please.
func TestChanges(t *testing.T) {
	h := newHost(t, "ip link add eth0 type veth peer name far0", "ip link add own0 type veth peer name far1",
		"ip link set eth0 addrgenmode none", "ip link set far0 addrgenmode none", "ip link set own0 addrgenmode none")
	for _, c := range []struct {
		line string
		told bool
	}{
		{"ip link set far0 up", true},
		{"ip link set eth0 up", true},
		{"ip addr add 192.0.2.1/24 dev eth0", true},
		{"ip -6 addr add 2001:db8::1/64 dev eth0 nodad", true},
		{"ip route add 10.0.0.0/8 via 192.0.2.9", true},
		{"ip route change 10.0.0.0/8 via 192.0.2.8", true},
		{"ip route add 10.0.0.0/8 via 192.0.2.9 table 1000", true},
		{"ip route add unreachable 10.1.0.0/16", true},
		{"ip -6 route add 2001:db8:1::/48 via 2001:db8::9", true},
		{"ip rule add from 10.0.0.0/8 lookup 100", true},
		{"ip -6 rule add from 2001:db8::/32 lookup 100", true},
		{"ip rule del from 10.0.0.0/8 lookup 100", true},
		{"ip route del 10.0.0.0/8 via 192.0.2.8", true},
		{"ip addr del 192.0.2.1/24 dev eth0", true},
		{"ip nexthop add id 7 dev eth0", true},
		{"ip link set own0 address 02:00:00:00:00:01", false},
		{"ip link set own0 up", false},
		{"ip addr add 198.51.100.1/24 dev own0", false},
		{"ip route add 198.18.0.0/15 dev own0", false},
		{"ip -6 addr add 2001:db8:2::1/64 dev own0 nodad", false},
		{"ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:02 dev eth0", false},
		{"ip link set own0 down", false},
		{"ip link set own0 name eth1", true},
		{"ip link set eth1 up", true},
		{"ip addr add 203.0.113.1/24 dev eth1", true},
		{"ip link del eth0", true},
	} {
		require.Equal(t, c.told, h.told(c.line), c.line)
		if c.line == "ip link set eth0 up" {
			h.up("eth0", "far0")
		}
	}
}

// More than the socket holds is told, too, and the watcher goes on.
func TestOverflow(t *testing.T) {
	h := newHost(t, "ip link add eth0 type veth peer name far0")
	hl, err := h.ns.Netlink()
	require.NoError(t, err)
	defer hl.Close()
	l, err := hl.LinkByName("eth0")
	require.NoError(t, err)
	// Nobody reads the socket until the flood is over.
	var fd int
	require.NoError(t, h.ns.Do(func() (err error) { fd, err = listen(); return err }))
	for i := range 6000 {
		require.NoError(t, hl.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 1, byte(i >> 8), byte(i)}))
	}
	w := begin(fd, func(string) bool { return true })
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	select {
	case <-w.Notice():
	case <-time.After(5 * time.Second):
		require.FailNow(t, "no notice")
	}
	require.Equal(t, All, w.Take(), "though every device is ignored")
	require.NoError(t, hl.AddrAdd(l, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 1), Mask: net.CIDRMask(24, 32)}}))
	require.NoError(t, w.Err())
}

// What comes off the socket is read as far as it makes sense.
func FuzzChanges(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{20, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(_ *testing.T, raw []byte) {
		w := &Watcher{ignore: func(string) bool { return false }, ignored: map[int]bool{}}
		w.changes(raw)
	})
}
