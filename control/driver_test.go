// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

const testDriver = "test-driver"

func digits(c string) string { return strings.Repeat(c, 64) }

func published(specs ...string) DriverPorts { return DriverPorts{Specs: specs} }

func driverEndpoint(network, id, v4, v6 string) DriverEndpoint {
	e := DriverEndpoint{Driver: testDriver, Network: network, ID: id, IPv4: netip.MustParsePrefix(v4)}
	if v6 != "" {
		e.IPv6 = netip.MustParsePrefix(v6)
	}
	return e
}

// take plays the engine: it moves the end of a cable into its sandbox.
func (l *lab) take(device string, ns *netns.NS) {
	l.t.Helper()
	h, err := l.host.Netlink()
	require.NoError(l.t, err)
	defer h.Close()
	dev, err := h.LinkByName(device)
	require.NoError(l.t, err)
	require.Zero(l.t, dev.Attrs().RawFlags&1, "is up already")
	require.NoError(l.t, h.LinkSetNsFd(dev, ns.FD()))
}

// hostDevices are the cables and bridges of the host that are ours.
func (l *lab) hostDevices() (names []string) {
	for _, name := range links(l.t, l.host) {
		if strings.HasPrefix(name, vethPrefix) || strings.HasPrefix(name, bridgePrefix) {
			names = append(names, name)
		}
	}
	return names
}

// driverRecords counts what the store has of endpoints, and of their addresses.
func (l *lab) driverRecords() (n int) {
	_, err := l.m.view(func(o *op) error {
		count := func(string, any) error { n++; return nil }
		if err := store.Each(o.tx, bucketDriver, count); err != nil {
			return err
		}
		return store.Each(o.tx, bucketAddresses, count)
	})
	require.NoError(l.t, err)
	return n
}

// An engine's network from its creation to its removal: what is asked, in the engine's order,
// and what becomes of it when nobody says goodbye.
func TestDriver(t *testing.T) {
	l := newLab(t)
	id, e1, e2 := digits("a"), digits("1"), digits("2")
	opts := NetworkOptions{Subnets: prefixes("10.1.0.0/24", "fd00:1::/64")}
	n, err := l.m.AddDriverNetwork(testDriver, id, opts)
	require.NoError(t, err)
	require.Equal(t, id, n.ID)
	require.Equal(t, id[:12], n.Name)
	_, err = l.m.AddDriverNetwork(testDriver, id, opts)
	require.NoError(t, err, "asked again")
	_, err = l.m.AddDriverNetwork(testDriver, id, NetworkOptions{Subnets: prefixes("10.9.0.0/24")})
	require.ErrorIs(t, err, ErrConflict)
	_, err = l.m.AddDriverNetwork(testDriver, digits("b"), NetworkOptions{Subnets: prefixes("fd00:9::/64")})
	require.ErrorContains(t, err, "no IPv4 subnet")

	for _, bad := range []DriverEndpoint{
		driverEndpoint(id, e1, "10.1.0.1/24", "fd00:1::2/64"), // the gateway's
		driverEndpoint(id, e1, "10.2.0.2/24", "fd00:1::2/64"),
		driverEndpoint(id, e1, "10.1.0.2/16", "fd00:1::2/64"),
		driverEndpoint(id, e1, "10.1.0.2/24", ""),
		driverEndpoint(digits("c"), e1, "10.1.0.2/24", ""),
		driverEndpoint(id, "1234", "10.1.0.2/24", "fd00:1::2/64"),
	} {
		_, err = l.m.AddDriverEndpoint(bad)
		require.Error(t, err, "%+v", bad)
	}
	require.Zero(t, l.driverRecords())

	mac, err := l.m.AddDriverEndpoint(driverEndpoint(id, e1, "10.1.0.2/24", "fd00:1::2/64"))
	require.NoError(t, err)
	require.Equal(t, "02:42:0a:01:00:02", mac)
	sandbox := filepath.Join(t.TempDir(), "0123456789ab") // not there
	for _, bad := range []string{"", "x", "/a/../b", "/a b", "/a\n"} {
		_, err = l.m.Plug(testDriver, id, e1, bad, nil)
		require.ErrorIs(t, err, ErrInvalid, "%q", bad)
	}
	p, err := l.m.Plug(testDriver, id, e1, sandbox, []string{"99/tcp"})
	require.NoError(t, err)
	require.Equal(t, []netip.Addr{netip.MustParseAddr("10.1.0.1"), netip.MustParseAddr("fd00:1::1")}, p.Gateways)
	again, err := l.m.Plug(testDriver, id, e1, sandbox, []string{"99/tcp"})
	require.NoError(t, err, "asked again: the answer was lost")
	require.Equal(t, p, again)
	require.NoError(t, l.m.SetDriverPorts(testDriver, id, e1, published("8080:80")))
	steps, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, steps, "the end that waits is nobody's leftover")
	ns := newNetns(t)
	l.take(p.Device, ns)

	c, err := l.m.Container("0123456789ab")
	require.NoError(t, err)
	require.Equal(t, StateRunning, c.State)
	require.Equal(t, sandbox, c.Netns)
	require.Equal(t, []string{"99/tcp"}, c.Exposed)
	pubs, err := l.m.Publications(c.ID)
	require.NoError(t, err)
	require.Len(t, pubs, 2)

	// Nobody else puts anything there, or touches the container.
	other := newNetns(t)
	_, err = l.m.CreateContainer(ContainerOptions{Network: n.Name, Attach: "netns:" + l.keep(other, "other")})
	require.ErrorContains(t, err, "belongs to test: use test")
	require.ErrorIs(t, l.m.RemoveContainer(c.Name), ErrConflict)
	_, err = l.m.Publish(c.Name, "81")
	require.ErrorIs(t, err, ErrConflict)
	require.ErrorContains(t, l.m.RemoveNetwork(n.Name), "has active endpoints (0123456789ab)")

	// A port that is taken keeps the container without ports, and the first one its own.
	_, err = l.m.AddDriverEndpoint(driverEndpoint(id, e2, "10.1.0.3/24", "fd00:1::3/64"))
	require.NoError(t, err)
	_, err = l.m.Plug(testDriver, id, e2, sandbox+"2", nil)
	require.NoError(t, err)
	require.ErrorContains(t, l.m.SetDriverPorts(testDriver, id, e2, published("8081:80", "8080:80")), "Bind for 0.0.0.0:8080 failed: port is already allocated")
	require.NoError(t, l.m.SetDriverPorts(testDriver, id, e2, published("8081:80")))
	require.NoError(t, l.m.ClearDriverPorts(testDriver, id, e2))
	require.NoError(t, l.m.Unplug(testDriver, id, e2))
	require.NoError(t, l.m.RemoveDriverEndpoint(testDriver, id, e2))
	require.NoError(t, l.m.RemoveDriverEndpoint(testDriver, id, e2), "asked again")
	list, err := l.m.Containers()
	require.NoError(t, err)
	require.Len(t, list, 1)

	// The sandbox goes, and nobody says so; the address and the port are another's then.
	l.gone(ns, c)
	c, err = l.m.Container(c.ID)
	require.NoError(t, err)
	require.Equal(t, StateExited, c.State)
	_, err = l.m.AddDriverEndpoint(driverEndpoint(id, e2, "10.1.0.2/24", "fd00:1::2/64"))
	require.NoError(t, err)
	_, err = l.m.Plug(testDriver, id, e2, sandbox+"3", nil)
	require.NoError(t, err)
	require.NoError(t, l.m.SetDriverPorts(testDriver, id, e2, published("8080:80")))
	require.NoError(t, l.m.Unplug(testDriver, id, e1), "the engine has come round to it")
	require.NoError(t, l.m.RemoveDriverEndpoint(testDriver, id, e1))
	pubs, err = l.m.Publications(sandboxID(testDriver, sandbox+"3"))
	require.NoError(t, err)
	require.Len(t, pubs, 2)
	require.Equal(t, 3, l.driverRecords(), "an endpoint with two addresses")

	// What is on it goes with the network.
	require.NoError(t, l.m.RemoveDriverNetwork(testDriver, id))
	require.NoError(t, l.m.RemoveDriverNetwork(testDriver, id), "asked again")
	require.Zero(t, l.driverRecords())
	require.Empty(t, l.hostDevices())
	list, err = l.m.Containers()
	require.NoError(t, err)
	require.Empty(t, list)
	steps, err = l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, steps)
}

// gone ends a sandbox's namespace, and waits until its cable has gone with it.
func (l *lab) gone(ns *netns.NS, c *Container) {
	l.t.Helper()
	h, err := l.host.Netlink()
	require.NoError(l.t, err)
	defer h.Close()
	for _, ep := range c.Endpoints {
		dev, err := h.LinkByName(ep.HostIf)
		require.NoError(l.t, err)
		require.NoError(l.t, ns.Close())
		require.Eventually(l.t, func() bool {
			_, err := h.LinkByIndex(dev.Attrs().Index)
			return err != nil
		}, 10*time.Second, time.Millisecond)
	}
}

// A container on two networks; the engine moves its ports from one to the other, and one
// network's bridge is lost and comes back.
func TestDriverTwoNetworks(t *testing.T) {
	l := newLab(t)
	n1, n2, e1, e2 := digits("a"), digits("b"), digits("1"), digits("2")
	sandbox := filepath.Join(t.TempDir(), "box")
	ns := newNetns(t)
	for _, x := range []struct{ network, endpoint, subnet, addr string }{{n1, e1, "10.1.0.0/24", "10.1.0.2/24"}, {n2, e2, "10.2.0.0/24", "10.2.0.2/24"}} {
		_, err := l.m.AddDriverNetwork(testDriver, x.network, NetworkOptions{Subnets: prefixes(x.subnet)})
		require.NoError(t, err)
		_, err = l.m.AddDriverEndpoint(driverEndpoint(x.network, x.endpoint, x.addr, ""))
		require.NoError(t, err)
		p, err := l.m.Plug(testDriver, x.network, x.endpoint, sandbox, nil)
		require.NoError(t, err)
		l.take(p.Device, ns)
	}
	id := sandboxID(testDriver, sandbox)
	gateway := func() string {
		c, err := l.m.Container(id)
		require.NoError(t, err)
		if ep := gatewayEndpoint(c, false); ep != nil {
			return ep.Network
		}
		return ""
	}
	doors := func() int {
		pubs, err := l.m.Publications(id)
		require.NoError(t, err)
		return len(pubs)
	}
	require.NoError(t, l.m.SetDriverPorts(testDriver, n1, e1, published("8080:80")))
	require.Equal(t, n1, gateway())
	require.NoError(t, l.m.ClearDriverPorts(testDriver, n2, e2), "not the one that has them")
	require.Equal(t, 1, doors())
	require.NoError(t, l.m.ClearDriverPorts(testDriver, n1, e1))
	require.Zero(t, doors())
	require.NoError(t, l.m.SetDriverPorts(testDriver, n2, e2, published("8080:80")))
	require.Equal(t, n2, gateway())

	h, err := l.host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	c, err := l.m.Container(id)
	require.NoError(t, err)
	n, err := l.m.Network(n2)
	require.NoError(t, err)
	bridge, err := h.LinkByName(n.Bridge)
	require.NoError(t, err)
	require.NoError(t, h.LinkDel(bridge))
	_, err = l.m.Reconcile()
	require.NoError(t, err)
	bridge, err = h.LinkByName(n.Bridge)
	require.NoError(t, err)
	dev, err := h.LinkByName(c.Endpoints[n2].HostIf)
	require.NoError(t, err)
	require.Equal(t, bridge.Attrs().Index, dev.Attrs().MasterIndex)

	// It leaves one: the cable stays until the engine takes it back, and carries nothing.
	require.NoError(t, l.m.Unplug(testDriver, n2, e2))
	require.Zero(t, doors())
	dev, err = h.LinkByName(c.Endpoints[n2].HostIf)
	require.NoError(t, err)
	require.Zero(t, dev.Attrs().MasterIndex)
	require.Zero(t, dev.Attrs().RawFlags&1)
	require.NoError(t, l.m.RemoveDriverEndpoint(testDriver, n2, e2))
	_, err = h.LinkByName(c.Endpoints[n2].HostIf)
	require.ErrorAs(t, err, &netlink.LinkNotFoundError{})
	c, err = l.m.Container(id)
	require.NoError(t, err)
	require.Len(t, c.Endpoints, 1)
	require.Equal(t, StateRunning, c.State)
}

// Newer engines ask for the ports of the next endpoint before they take back the last one's,
// and for two when each family has its own. No port is left leading to a slot that is free.
func TestDriverGateways(t *testing.T) {
	l := newLab(t)
	n1, n2, n3 := digits("a"), digits("b"), digits("c")
	sandbox := "/run/docker/netns/0000000000ab"
	id := sandboxID(testDriver, sandbox)
	plug := func(network, v4, v6 string, subnets ...string) {
		t.Helper()
		_, err := l.m.AddDriverNetwork(testDriver, network, NetworkOptions{Subnets: prefixes(subnets...)})
		require.NoError(t, err)
		_, err = l.m.AddDriverEndpoint(driverEndpoint(network, network, v4, v6))
		require.NoError(t, err)
		_, err = l.m.Plug(testDriver, network, network, sandbox, nil)
		require.NoError(t, err)
	}
	set := func(network string, only4 bool) {
		t.Helper()
		require.NoError(t, l.m.SetDriverPorts(testDriver, network, network, DriverPorts{Specs: []string{"8080:80"}, IPv4: only4}))
	}
	clear := func(network string) {
		t.Helper()
		require.NoError(t, l.m.ClearDriverPorts(testDriver, network, network))
	}
	// leads says to which networks the kernel's tables lead IPv4 and IPv6.
	leads := func() string {
		t.Helper()
		got := ""
		require.NoError(t, l.m.change(nil, func(o *op) error {
			c, err := containerByID(o.tx, id)
			if err != nil {
				return err
			}
			name := func(slot uint32) string {
				for network, ep := range c.Endpoints {
					if ep.Slot == slot {
						return network[:1]
					}
				}
				require.Zero(t, slot, "a port leads to nobody's slot")
				return "-"
			}
			tables, err := o.tables()
			if err != nil {
				return err
			}
			bindings, err := tables.Ports.List()
			if err != nil {
				return err
			}
			for _, b := range bindings {
				pub, _, err := tables.Rules.Publication(b.Rule)
				if err != nil {
					return err
				}
				family := "4"
				if b.Addr.Is6() {
					family, pub.Endpoint4 = "6", pub.Endpoint6
				}
				got += family + name(pub.Endpoint4)
			}
			return nil
		}))
		return got
	}
	rule := func() uint32 {
		t.Helper()
		pubs, err := l.m.Publications(id)
		require.NoError(t, err)
		return pubs[0].Rule
	}
	plug(n1, "10.1.0.2/24", "", "10.1.0.0/24")
	plug(n2, "10.2.0.2/24", "fd00:2::2/64", "10.2.0.0/24", "fd00:2::/64")
	set(n1, false)
	require.Equal(t, "4a6b", leads())
	was := rule()
	set(n2, false) // by IPv6, as IPv4 has n1 still
	require.Equal(t, "4a6b", leads())
	require.Equal(t, was, rule(), "connections go on")
	clear(n2)
	set(n2, false)
	clear(n1) // the last is taken back after the next was asked for
	require.Equal(t, "4b6b", leads())
	set(n1, true)
	require.Equal(t, "4a6b", leads())
	was = rule()
	require.NoError(t, l.m.Unplug(testDriver, n2, n2))
	require.Equal(t, "4a", leads())
	require.Equal(t, was, rule(), "connections go on")

	plug(n3, "10.3.0.2/24", "fd00:3::2/64", "10.3.0.0/24", "fd00:3::/64")
	_, err := l.m.Plug(testDriver, n2, n2, sandbox, nil)
	require.NoError(t, err)
	set(n3, false)
	require.Equal(t, "4a6c", leads())
	require.NoError(t, l.m.Unplug(testDriver, n3, n3)) // IPv6 goes on by n2
	require.Equal(t, "4a6b", leads())
	require.NoError(t, l.m.RemoveDriverEndpoint(testDriver, n1, n1))
	require.Equal(t, "", leads(), "n2 was not asked for")
	set(n2, false)
	require.Equal(t, "4b6b", leads())
	_, err = l.m.AddDriverEndpoint(driverEndpoint(n1, n1, "10.1.0.2/24", ""))
	require.NoError(t, err)
	_, err = l.m.Plug(testDriver, n1, n1, sandbox, nil)
	require.NoError(t, err)
	set(n1, true)
	require.Equal(t, "4a6b", leads())
}

// A network that its engine has forgotten while nobody listened can be removed by hand.
func TestDriverNetworkByHand(t *testing.T) {
	l := newLab(t)
	n, err := l.m.AddDriverNetwork(testDriver, digits("a"), NetworkOptions{Name: "shop", Subnets: prefixes("10.1.0.0/24")})
	require.NoError(t, err)
	_, err = l.m.AddDriverEndpoint(driverEndpoint(n.ID, digits("1"), "10.1.0.2/24", ""))
	require.NoError(t, err)
	names, err := l.m.PruneNetworks()
	require.NoError(t, err)
	require.Empty(t, names, "the engine may still have it")
	_, err = l.m.AddDriverNetwork(testDriver, digits("b"), NetworkOptions{Subnets: prefixes("10.1.0.0/25")})
	require.ErrorContains(t, err, "bpfnet network rm shop")
	require.NoError(t, l.m.RemoveNetwork("shop"))
	require.Zero(t, l.driverRecords())
	require.Empty(t, l.hostDevices())
	_, err = l.m.AddDriverEndpoint(driverEndpoint(n.ID, digits("1"), "10.1.0.2/24", ""))
	require.ErrorIs(t, err, ErrNotFound)
}

// After a reboot the network is made again, its containers are gone, and the engine, which
// takes back what it had, is given new ones.
func TestDriverReboot(t *testing.T) {
	l := newLab(t)
	id, e1 := digits("a"), digits("1")
	n, err := l.m.AddDriverNetwork(testDriver, id, NetworkOptions{Subnets: prefixes("10.1.0.0/24")})
	require.NoError(t, err)
	up := func(sandbox string) {
		t.Helper()
		_, err = l.m.AddDriverEndpoint(driverEndpoint(id, e1, "10.1.0.2/24", ""))
		require.NoError(t, err)
		_, err := l.m.Plug(testDriver, id, e1, sandbox, nil)
		require.NoError(t, err)
		require.NoError(t, l.m.SetDriverPorts(testDriver, id, e1, published("8080:80")))
	}
	up("/run/docker/netns/000000000001")
	require.NoError(t, l.m.change(nil, func(o *op) error {
		o.host.Boot = "another"
		return o.putHost()
	}))
	h, err := l.host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	for _, name := range l.hostDevices() {
		if dev, err := h.LinkByName(name); err == nil { // not the other end of one
			require.NoError(t, h.LinkDel(dev))
		}
	}
	_, err = l.m.Reconcile()
	require.NoError(t, err)
	require.Equal(t, []string{n.Bridge}, l.hostDevices())
	list, err := l.m.Containers()
	require.NoError(t, err)
	require.Empty(t, list)
	require.NoError(t, l.m.Unplug(testDriver, id, e1))
	require.NoError(t, l.m.RemoveDriverEndpoint(testDriver, id, e1))
	up("/run/docker/netns/000000000002")
	require.Len(t, l.hostDevices(), 3)
	require.NoError(t, l.m.RemoveDriverNetwork(testDriver, id))
	require.Empty(t, l.hostDevices())
}
