// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/maps"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// station is where somebody is on a wire: what it takes to build frames from and to it.
type station struct {
	ns       *netns.NS
	dev      string
	mac      net.HardwareAddr
	ip4, ip6 netip.Addr
	local    netip.Addr // IPv6 link-local
}

// station is an actor's place on a network.
func (c *cast) station(a *actor, network string) station {
	c.t.Helper()
	ep := c.endpoint(a.name, network)
	mac, err := net.ParseMAC(ep.MAC)
	require.NoError(c.t, err)
	return station{ns: a.ns, dev: ep.IfName, mac: mac, ip4: ep.IPv4.Addr(), ip6: ep.IPv6.Addr(), local: maps.LinkLocal(mac)}
}

func (c *cast) endpoint(container, network string) *control.Endpoint {
	c.t.Helper()
	n := c.networkOf(network)
	record, err := c.m.Container(container)
	require.NoError(c.t, err)
	ep := record.Endpoints[n.ID]
	require.NotNil(c.t, ep, "%s is not on %s", container, network)
	return ep
}

// gateway is the host's place on a network: the bridge.
func (c *cast) gateway(network string) station {
	c.t.Helper()
	n := c.networkOf(network)
	mac, err := net.ParseMAC(n.MAC)
	require.NoError(c.t, err)
	s := station{ns: c.Host, dev: n.Bridge, mac: mac, local: maps.LinkLocal(mac)}
	for _, sub := range n.Subnets {
		if sub.Prefix.Addr().Is4() {
			s.ip4 = sub.Gateway
		} else {
			s.ip6 = sub.Gateway
		}
	}
	return s
}

// world is X's place on the uplink; the host's own is uplink.
func (c *cast) world() station {
	return station{ns: c.Client, dev: "eth0", mac: c.X.MAC, ip4: c.X.Addrs[0], ip6: c.X.Addrs[1], local: maps.LinkLocal(c.X.MAC)}
}

func (c *cast) uplink() station {
	return station{ns: c.Host, dev: c.X.Device, mac: c.X.HostMAC, ip4: c.X.HostAddrs[0], ip6: c.X.HostAddrs[1], local: maps.LinkLocal(c.X.HostMAC)}
}

// addr is the station's address of a family.
func (s station) addr(family int) netip.Addr {
	if family == 4 {
		return s.ip4
	}
	return s.ip6
}

// to begins a packet from s to d in a family.
func (s station) to(d station, family int) lab.Packet {
	return lab.Packet{SrcMAC: s.mac, DstMAC: d.mac, Src: s.addr(family), Dst: d.addr(family)}
}

// by begins a packet from s to d that takes the way by a router.
func (s station) by(via, d station, family int) lab.Packet {
	p := s.to(d, family)
	p.DstMAC = via.mac
	return p
}

// scoped is the station's link-local address as another in ns reaches it by a
// device: with the device's number, because names are of one namespace.
func (c *cast) scoped(s station, ns *netns.NS, device string) netip.Addr {
	c.t.Helper()
	return s.local.WithZone(fmt.Sprint(lab.Link(c.t, ns, device).Attrs().Index))
}

// mentions makes a filter for frames that name the station in any way.
func (s station) mentions(frame []byte) bool {
	for _, a := range []netip.Addr{s.ip4, s.ip6, s.local} {
		if a.IsValid() && bytes.Contains(frame, a.AsSlice()) {
			return true
		}
	}
	return bytes.Contains(frame, s.mac)
}

// marked makes a filter for frames that carry a text.
func marked(text string) func(frame []byte) bool {
	return func(frame []byte) bool { return bytes.Contains(frame, []byte(text)) }
}

// watch is a capture that is looked at again and again.
type watch struct {
	*lab.Capture
	seen int
}

// fresh are the frames that came since the last look.
func (w *watch) fresh() [][]byte {
	all := w.Frames()
	list := all[w.seen:]
	w.seen = len(all)
	return list
}

// soon waits for a condition that is expected within wait.
func soon(cond func() bool) bool {
	for limit := time.Now().Add(wait); !cond(); <-time.After(time.Millisecond) {
		if time.Now().After(limit) {
			return cond()
		}
	}
	return true
}

// neighbours is a namespace's neighbour cache on a device: the address with the MAC.
func (c *cast) neighbours(ns *netns.NS, device string) map[string]string {
	c.t.Helper()
	h, err := ns.Netlink()
	require.NoError(c.t, err)
	defer h.Close()
	list, err := h.NeighList(lab.Link(c.t, ns, device).Attrs().Index, 0)
	require.NoError(c.t, err)
	known := make(map[string]string)
	for _, n := range list {
		if len(n.HardwareAddr) > 0 && n.State&(unix.NUD_NOARP|unix.NUD_FAILED|unix.NUD_INCOMPLETE) == 0 {
			known[n.IP.String()] = n.HardwareAddr.String()
		}
	}
	return known
}

// knows gives a namespace a permanent neighbour: what it sends needs no ARP and no ND.
func (c *cast) knows(ns *netns.NS, device string, addr netip.Addr, mac net.HardwareAddr) {
	c.t.Helper()
	h, err := ns.Netlink()
	require.NoError(c.t, err)
	defer h.Close()
	require.NoError(c.t, h.NeighSet(&netlink.Neigh{LinkIndex: lab.Link(c.t, ns, device).Attrs().Index,
		State: unix.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac}))
}

// ipVersions are those that a row is tested in.
var ipVersions = []int{4, 6}

// tries are asks that must not get through, by what they are.
type tries map[string]func() error

// ask adds a try by TCP and one by UDP.
func (l tries) ask(from *netns.NS, to ...string) tries {
	for _, a := range to {
		for _, proto := range []string{"tcp", "udp"} {
			l[fmt.Sprintf("%s from %s to %s", proto, from, a)] = func() error {
				_, err := ask(from, proto, "", a, silence)
				return err
			}
		}
	}
	return l
}

// ping adds an echo request.
func (l tries) ping(from *netns.NS, to ...netip.Addr) tries {
	for _, a := range to {
		l[fmt.Sprintf("ping from %s to %s", from, a)] = func() error { return lab.Ping(from, a.String(), silence) }
	}
	return l
}

// allSilent is silent for many, which are tried at once.
func (c *cast) allSilent(list tries, control func() error) {
	c.t.Helper()
	require.NoError(c.t, control(), "the positive control, before")
	var mu sync.Mutex
	var running sync.WaitGroup
	errs := make(map[string]error)
	for what, do := range list {
		running.Go(func() {
			err := do()
			mu.Lock()
			defer mu.Unlock()
			errs[what] = err
		})
	}
	running.Wait()
	for what, err := range errs {
		lab.Unreachable(c.t, what, func() error { return err }, control)
	}
}

// doors are the asks for ports of all addresses, and the echo requests to them.
func doors(from *netns.NS, addrs []netip.Addr, ports ...int) tries {
	l := tries{}.ping(from, addrs...)
	for _, a := range addrs {
		for _, port := range ports {
			l.ask(from, at(a, port))
		}
	}
	return l
}
