// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/maps"
)

// An engine that is no program: the test lays the cables as an engine does.
//
//	host: br0 172.20.0.1/16 ── veth1111111 ── container: eth0 172.20.0.2/16
type engine struct {
	*lab
	network AdoptedNetwork
}

func newEngine(t testing.TB) *engine {
	l := newLab(t)
	e := &engine{lab: l, network: AdoptedNetwork{
		ID: strings.Repeat("a1", 32), Name: "net", Bridge: "br0", ICC: true, Masquerade: true, Isolate: true,
		Subnets: []Subnet{{Prefix: netip.MustParsePrefix("172.20.0.0/16")}},
	}}
	e.bridge("br0", "172.20.0.1/16")
	return e
}

func (e *engine) bridge(name, addr string) {
	h, err := e.host.Netlink()
	require.NoError(e.t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	br := &netlink.Bridge{LinkAttrs: attrs}
	require.NoError(e.t, h.LinkAdd(br))
	a, err := netlink.ParseAddr(addr)
	require.NoError(e.t, err)
	require.NoError(e.t, h.AddrAdd(br, a))
	require.NoError(e.t, h.LinkSetUp(br))
}

// run makes the namespace and the cable of a container, number n.
func (e *engine) run(name string, n int, ports ...AdoptedPort) (AdoptedContainer, *netns.NS) {
	ns := newNetns(e.t)
	h, err := e.host.Netlink()
	require.NoError(e.t, err)
	defer h.Close()
	bridge, err := h.LinkByName("br0")
	require.NoError(e.t, err)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex = fmt.Sprintf("veth%07x", n), bridge.Attrs().Index
	mac := fmt.Sprintf("02:42:ac:14:00:%02x", n)
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns.FD())}
	require.NoError(e.t, h.LinkAdd(veth))
	require.NoError(e.t, h.LinkSetUp(veth))
	return AdoptedContainer{
		ID: fmt.Sprintf("%064x", n), Name: name, Hostname: name, Netns: e.keep(ns, fmt.Sprintf("%s-%d", name, n)),
		Endpoints: []AdoptedEndpoint{{Network: e.network.ID, MAC: mac, IPv4: netip.MustParsePrefix(fmt.Sprintf("172.20.0.%d/16", n))}},
		Ports:     ports,
	}, ns
}

func (e *engine) adopt(whole bool, list ...AdoptedContainer) []string {
	e.t.Helper()
	changes, err := e.try(whole, list...)
	require.NoError(e.t, err)
	return changes
}

func (e *engine) try(whole bool, list ...AdoptedContainer) ([]string, error) {
	return e.m.Adopt(Adopted{Engine: "docker", Held: true, Devices: "^veth[0-9a-f]{7}$", Whole: whole, Networks: []AdoptedNetwork{e.network}, Containers: list})
}

func port(host, cont uint16) AdoptedPort {
	return AdoptedPort{Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: host, Port: cont}
}

func (e *engine) leadsTo(host uint16) (slot uint32) {
	e.t.Helper()
	_, err := e.m.view(func(o *op) error {
		t, err := o.tables()
		require.NoError(e.t, err)
		list, err := t.Ports.List()
		require.NoError(e.t, err)
		for _, b := range list {
			if b.Proto == maps.TCP && int(b.First) <= int(host) && int(host) < int(b.First)+b.Count {
				pub, _, err := t.Rules.Publication(b.Rule)
				require.NoError(e.t, err)
				slot = pub.Endpoint4
			}
		}
		return nil
	})
	require.NoError(e.t, err)
	return slot
}

func TestAdopt(t *testing.T) {
	e := newEngine(t)
	web, _ := e.run("web", 2, port(8080, 80), port(8081, 81), port(9000, 80))
	require.NotEmpty(t, e.adopt(true, web))

	c, err := e.m.Container("web")
	require.NoError(t, err)
	require.Equal(t, "docker/web", c.Name)
	require.Equal(t, StateRunning, c.State)
	ep := c.Endpoints[e.network.ID]
	require.Equal(t, "veth0000002", ep.HostIf)
	require.Equal(t, "eth0", ep.IfName)
	n, err := e.m.Network("docker/net")
	require.NoError(t, err)
	require.Equal(t, "172.20.0.1", n.Subnets[0].Gateway.String(), "of the bridge")
	pubs, err := e.m.Publications("docker/web")
	require.NoError(t, err)
	require.Len(t, pubs, 2, "neighbours are one range")
	require.Equal(t, ep.Slot, e.leadsTo(8081))
	require.Equal(t, ep.Slot, e.leadsTo(9000))
	require.Zero(t, e.leadsTo(8082))

	// Again changes nothing, and so does reconcile.
	require.Empty(t, e.adopt(true, web))
	steps, err := e.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, steps)
	require.Equal(t, ep.Slot, e.leadsTo(8081))

	// A port that stays keeps its rule, and so its flows.
	rule := pubs[0].Rule
	web.Ports = []AdoptedPort{port(8080, 80), port(8081, 81), port(9001, 80)}
	require.NotEmpty(t, e.adopt(false, web))
	pubs, err = e.m.Publications("docker/web")
	require.NoError(t, err)
	require.Equal(t, rule, pubs[0].Rule)
	require.Zero(t, e.leadsTo(9000))
	require.Equal(t, ep.Slot, e.leadsTo(9001))

	// Gone: nothing is left but what is the engine's.
	require.NotEmpty(t, e.adopt(true))
	require.Zero(t, e.leadsTo(8080))
	list, err := e.m.Containers()
	require.NoError(t, err)
	require.Empty(t, list)
	require.Contains(t, links(t, e.host), "veth0000002")
	_, err = e.m.Adopt(Adopted{Engine: "docker", Whole: true})
	require.NoError(t, err)
	require.Contains(t, links(t, e.host), "br0")
	nets, err := e.m.Networks()
	require.NoError(t, err)
	require.Empty(t, nets)
}

// What is another engine's is refused, in one line that says whose it is.
func TestAdoptedIsTheEngines(t *testing.T) {
	e := newEngine(t)
	web, _ := e.run("web", 2, port(8080, 80))
	e.adopt(true, web)
	e.container("own", ContainerOptions{})
	before := e.state()
	for what, do := range map[string]func() error{
		"rm":         func() error { return e.m.RemoveContainer("web") },
		"start":      func() error { _, err := e.m.PrepareStart("web"); return err },
		"publish":    func() error { _, err := e.m.Publish("web", "1:1"); return err },
		"unpublish":  func() error { return e.m.Unpublish("web", "8080:80") },
		"link":       func() error { return e.m.Link("web", "own") },
		"link to":    func() error { return e.m.Link("own", "web") },
		"unlink":     func() error { return e.m.Unlink("web", "own") },
		"connect":    func() error { return e.m.Connect("net", "own", EndpointOptions{}) },
		"connect it": func() error { return e.m.Connect("bridge", "web", EndpointOptions{}) },
		"disconnect": func() error { return e.m.Disconnect("net", "web") },
		"network rm": func() error { return e.m.RemoveNetwork("net") },
		"join it": func() error {
			_, err := e.m.CreateContainer(ContainerOptions{Name: "joins", Network: "container:docker/web", Args: []string{"x"}})
			return err
		},
		"switch": func() error { m := *e.m; m.o.Datapath = DatapathIPTables; return m.Init(nil) },
	} {
		err := do()
		require.ErrorIs(t, err, ErrConflict, what)
		require.Contains(t, err.Error(), "docker", what)
		require.NotContains(t, err.Error(), "\n", what)
		require.Equal(t, before, e.state(), what)
	}
	names, err := e.m.PruneNetworks()
	require.NoError(t, err)
	require.NotContains(t, names, "docker/net")
}

// What was published before stays; the rest of the range opens, and status says so.
func TestAdoptClash(t *testing.T) {
	e := newEngine(t)
	e.container("own", ContainerOptions{Publish: []string{"8081:80"}})
	var ports []AdoptedPort
	for p := uint16(8080); p < 8084; p++ {
		ports = append(ports, port(p, p))
	}
	web, _ := e.run("web", 2, ports...)
	_, err := e.try(true, web)
	require.ErrorContains(t, err, "0.0.0.0:8081")
	c, err := e.m.Container("docker/web")
	require.NoError(t, err)
	slot := c.Endpoints[e.network.ID].Slot
	own := e.leadsTo(8081)
	require.NotZero(t, own)
	require.NotEqual(t, slot, own)
	for _, p := range []uint16{8080, 8082, 8083} {
		require.Equal(t, slot, e.leadsTo(p))
	}
	s, err := e.m.Status()
	require.NoError(t, err)
	require.Contains(t, strings.Join(s.Problems, "\n"), "8081")

	require.NoError(t, e.m.RemoveContainer("own"))
	e.adopt(false, web)
	require.Equal(t, slot, e.leadsTo(8081))
	s, err = e.m.Status()
	require.NoError(t, err)
	require.NotContains(t, strings.Join(s.Problems, "\n"), "8081")
}

// Started anew, it is in another namespace under the same ID.
func TestAdoptRestarted(t *testing.T) {
	e := newEngine(t)
	web, _ := e.run("web", 2, port(8080, 80))
	e.adopt(true, web)
	was := e.leadsTo(8080)
	again, _ := e.run("web", 3, port(8080, 80))
	again.ID = web.ID
	e.adopt(false, again)
	c, err := e.m.Container("web")
	require.NoError(t, err)
	require.Equal(t, "veth0000003", c.Endpoints[e.network.ID].HostIf)
	require.Equal(t, c.Endpoints[e.network.ID].Slot, e.leadsTo(8080))
	require.NotEqual(t, was, e.leadsTo(8080))
}

// Whatever the engine's end, reconcile lets go what is gone, and keeps the rest.
func TestAdoptedGone(t *testing.T) {
	for what, end := range map[string]func(e *engine, h *netlink.Handle){
		"veth": func(e *engine, h *netlink.Handle) {
			l, err := h.LinkByName("veth0000002")
			require.NoError(e.t, err)
			require.NoError(e.t, h.LinkDel(l))
		},
		"netns": func(e *engine, _ *netlink.Handle) {
			c, err := e.m.Container("web")
			require.NoError(e.t, err)
			require.NoError(e.t, netns.Unpersist(c.Netns))
		},
		"bridge": func(e *engine, h *netlink.Handle) {
			l, err := h.LinkByName("br0")
			require.NoError(e.t, err)
			require.NoError(e.t, h.LinkDel(l))
		},
	} {
		t.Run(what, func(t *testing.T) {
			e := newEngine(t)
			web, _ := e.run("web", 2, port(8080, 80))
			other, _ := e.run("other", 3, port(8081, 80))
			e.adopt(true, web, other)
			h, err := e.host.Netlink()
			require.NoError(t, err)
			defer h.Close()
			end(e, h)
			_, err = e.m.Reconcile()
			require.NoError(t, err)
			require.Zero(t, e.leadsTo(8080))
			_, err = e.m.Container("web")
			require.ErrorIs(t, err, ErrNotFound)
			require.Equal(t, what != "bridge", e.leadsTo(8081) != 0)
			steps, err := e.m.Reconcile()
			require.NoError(t, err)
			require.Empty(t, steps)
		})
	}
}

// An engine says what it likes; what is not so in the host is not done.
func TestAdoptRefuses(t *testing.T) {
	e := newEngine(t)
	e.bridge("br1", "172.21.0.1/16")
	web, _ := e.run("web", 2, port(8080, 80))
	e.adopt(true)
	for what, change := range map[string]func(c *AdoptedContainer){
		"no netns":         func(c *AdoptedContainer) { c.Netns = "/proc/self/status" },
		"the host's":       func(c *AdoptedContainer) { c.Netns = e.o.Netns },
		"no such path":     func(c *AdoptedContainer) { c.Netns = "/nonexistent" },
		"unknown network":  func(c *AdoptedContainer) { c.Endpoints[0].Network = strings.Repeat("b", 64) },
		"ID":               func(c *AdoptedContainer) { c.ID = "../../x" },
		"MAC":              func(c *AdoptedContainer) { c.Endpoints[0].MAC = "ff:ff:ff:ff:ff:ff" },
		"address":          func(c *AdoptedContainer) { c.Endpoints[0].IPv4 = netip.MustParsePrefix("192.0.2.1/24") },
		"no cable to here": func(c *AdoptedContainer) { c.Netns = e.keep(newNetns(t), "empty") },
		"process":          func(c *AdoptedContainer) { c.PID = 1 << 22 },
	} {
		bad := web
		bad.Endpoints = append([]AdoptedEndpoint(nil), web.Endpoints...)
		change(&bad)
		_, err := e.try(false, bad)
		require.Error(t, err, what)
		require.NotContains(t, err.Error(), "\n", what)
		require.Zero(t, e.leadsTo(8080), what)
	}
	e.adopt(false, web)
	require.NotZero(t, e.leadsTo(8080), "as it is it is adopted")
}

// Of thousands of ports and of many containers, one change costs what that one is.
func BenchmarkAdoptOne(b *testing.B) {
	e := newEngine(b)
	var all []AdoptedContainer
	for n := range 40 {
		var ports []AdoptedPort
		for p := range 200 {
			ports = append(ports, port(uint16(10000+n*200+p), uint16(1000+p*2)))
		}
		c, _ := e.run(fmt.Sprintf("c%d", n), n+2, ports...)
		all = append(all, c)
	}
	e.adopt(true, all...)
	var ports []AdoptedPort
	for p := range 206 {
		ports = append(ports, port(uint16(20000+p*2), uint16(1000+p)))
	}
	one, _ := e.run("one", 200, ports...)
	b.ResetTimer()
	for b.Loop() {
		_, err := e.m.Adopt(Adopted{Engine: "docker", Held: true, Containers: []AdoptedContainer{one}})
		require.NoError(b, err)
		_, err = e.m.Adopt(Adopted{Engine: "docker", Held: true, Gone: []string{one.ID}})
		require.NoError(b, err)
	}
}

// A cable that nobody has said anything of lets nothing pass; it is found by its MAC.
func TestFindNetns(t *testing.T) {
	e := newEngine(t)
	e.adopt(true)
	web, ns := e.run("web", 2)
	h, err := ns.Netlink()
	require.NoError(t, err)
	defer h.Close()
	mac, err := net.ParseMAC(web.Endpoints[0].MAC)
	require.NoError(t, err)
	dev, err := h.LinkByName("eth0")
	require.NoError(t, err)

	shut := make(map[int]bool)
	require.NoError(t, e.m.ShutPorts("docker", shut))
	require.Len(t, shut, 1)
	steps, err := e.m.Adopt(Adopted{Engine: "docker", Held: true, Devices: "^veth[0-9a-f]{7}$"})
	require.NoError(t, err)
	require.Empty(t, steps)

	place := web.Netns
	web.Netns = ""
	found, err := e.m.FindNetns("docker", []AdoptedContainer{web})
	require.NoError(t, err)
	require.Empty(t, found, "not that MAC yet")
	require.NoError(t, h.LinkSetHardwareAddr(dev, mac))
	found, err = e.m.FindNetns("docker", []AdoptedContainer{web})
	require.NoError(t, err)
	require.Len(t, found, 1)
	require.Equal(t, place, found[0].Netns)
	for _, line := range e.adopt(false, found...) {
		require.NotContains(t, line, "attached (", "the programs are there already")
	}
	found, err = e.m.FindNetns("docker", []AdoptedContainer{web})
	require.NoError(t, err)
	require.Empty(t, found, "it is somebody's")
}

// Ports that the engine holds itself are its own to keep from others; those of an engine
// that holds none are kept as ours are.
func TestAdoptHeld(t *testing.T) {
	for _, held := range []bool{true, false} {
		t.Run(fmt.Sprint(held), func(t *testing.T) { adoptHeld(t, held) })
	}
}

func adoptHeld(t *testing.T, held bool) {
	e := newEngine(t)
	lists := func() string {
		var raw []byte
		require.NoError(t, e.host.Do(func() (err error) {
			raw, err = os.ReadFile("/proc/sys/net/ipv4/ip_local_reserved_ports")
			return err
		}))
		return strings.TrimSpace(string(raw))
	}
	web, _ := e.run("web", 2, port(40000, 80))
	a := Adopted{Engine: "other", Held: held, Whole: true, Networks: []AdoptedNetwork{e.network}, Containers: []AdoptedContainer{web}}
	for range 2 {
		_, err := e.m.Adopt(a)
		require.NoError(t, err)
		require.Equal(t, map[bool]string{true: "", false: "40000"}[held], lists())
	}
	_, err := e.m.Reconcile()
	require.NoError(t, err)
	require.Equal(t, map[bool]string{true: "", false: "40000"}[held], lists())
	_, err = e.m.Adopt(Adopted{Engine: "other", Whole: true})
	require.NoError(t, err)
	require.Empty(t, lists())
}

// The other datapath carries no engine's packets, and says so in one line.
func TestAdoptIPTables(t *testing.T) {
	e := newEngine(t)
	e.m.o.Datapath = DatapathIPTables
	_, err := e.try(true)
	require.ErrorIs(t, err, ErrConflict)
	require.ErrorContains(t, err, "bpfnet init --datapath bpf")
	require.NotContains(t, err.Error(), "\n")
}

// One that is only being started holds its ports back from leading anywhere; with its
// namespace they lead there.
func TestAdoptExpected(t *testing.T) {
	e := newEngine(t)
	e.adopt(true)
	web, _ := e.run("web", 2, port(8080, 80))
	expected := web
	expected.Netns, expected.Endpoints = "", nil
	e.adopt(false, expected)
	pubs := func() (n int) {
		_, err := e.m.view(func(o *op) error {
			t, err := o.tables()
			require.NoError(e.t, err)
			list, err := t.Ports.List()
			n = len(list)
			return err
		})
		require.NoError(t, err)
		return n
	}
	require.Equal(t, 1, pubs())
	require.Zero(t, e.leadsTo(8080))
	list, err := e.m.Containers()
	require.NoError(t, err)
	require.Equal(t, StateExited, list[0].State, "it does not run")
	e.adopt(false, web)
	c, err := e.m.Container("web")
	require.NoError(t, err)
	require.Equal(t, c.Endpoints[e.network.ID].Slot, e.leadsTo(8080))
	e.adopt(false, expected)
	require.Equal(t, c.Endpoints[e.network.ID].Slot, e.leadsTo(8080), "it runs already")

	_, err = e.m.Adopt(Adopted{Engine: "docker", Gone: []string{web.ID}})
	require.NoError(t, err)
	e.adopt(false, expected)
	_, err = e.m.Reconcile()
	require.NoError(t, err)
	require.Zero(t, pubs(), "reconcile knows of no start")
}
