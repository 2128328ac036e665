// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// onDocker says whether a Docker Engine makes the networks and containers: BPFNET_CAST=docker.
func onDocker() bool { return os.Getenv("BPFNET_CAST") == "docker" }

// theirs is a Docker Engine on the cast's host, with bpfnet's daemon beside it. It is started by
// the first network or container: its settings may depend on the test.
type theirs struct {
	*dockerd.Engine
	up       bool
	actors   map[string]*actor
	first    map[*actor][]string // what they published at first
	networks map[string]string   // the Engine's names for the tests'
}

func newTheirs(t testing.TB, l *lab.Lab) *theirs {
	t.Helper()
	e := dockerd.On(t, l, "--iptables=false", "--ip6tables=false", "--userland-proxy=false", "--ip-forward=false")
	return &theirs{Engine: e, actors: make(map[string]*actor), first: make(map[*actor][]string), networks: make(map[string]string)}
}

// on is the Engine for a test, running.
func (d *theirs) on(c *cast) *dockerd.Engine {
	c.t.Helper()
	e := d.In(c.t)
	if !d.up {
		d.up = true
		lab.Sysctl(c.t, c.Host, "ipv6/conf/default/accept_dad", "0") // gateways are there at once
		e.StartEngine()
		d.Process = e.Process
		e.ImportImage()
		e.StartDaemon("--docker", "--docker-host", e.Socket())
		d.Daemon = e.Daemon
		e.Says("following docker ")
	}
	return e
}

// networkOptions are flags of docker network create; what Docker has no flag for is an error.
func networkOptions(o control.NetworkOptions) (args []string, err error) {
	flag := func(key string, value any) {
		args = append(args, "-o", fmt.Sprintf("com.docker.network.%s=%v", key, value))
	}
	for _, s := range o.Subnets {
		args = append(args, "--subnet", s.String())
	}
	if o.IPv6 {
		args = append(args, "--ipv6")
	}
	if o.Internal {
		args = append(args, "--internal")
	}
	if o.ICC != nil {
		flag("bridge.enable_icc", *o.ICC)
	}
	if o.Masquerade != nil {
		flag("bridge.enable_ip_masquerade", *o.Masquerade)
	}
	if o.Routed { // of newer Engines; 20.10 hands it on
		flag("bridge.gateway_mode_ipv4", "routed")
		flag("bridge.gateway_mode_ipv6", "routed")
	}
	if o.BindAddress != "" {
		flag("bridge.host_binding_ipv4", o.BindAddress)
	}
	for what, wanted := range map[string]bool{"isolation to turn off": o.Isolate != nil, "full cone": o.FullCone, "leave for DHCP servers": o.AllowDHCPServer} {
		if wanted {
			return nil, fmt.Errorf("Docker has no %s", what)
		}
	}
	return args, nil
}

func (d *theirs) makeNetwork(c *cast, o control.NetworkOptions) error {
	args, err := networkOptions(o)
	if err != nil {
		return err
	}
	e := d.on(c)
	if _, err := e.TryDocker(append(append([]string{"network", "create"}, args...), o.Name)...); err != nil {
		return err
	}
	d.names(c, o.Name, o.Name)
	return nil
}

// makeDefault makes docker0, with flags of dockerd's.
func (d *theirs) makeDefault(c *cast, o control.NetworkOptions, flags ...string) error {
	c.t.Helper()
	require.False(c.t, d.up, "the default network comes first")
	d.Flags = append(d.Flags, "--bip", netip.PrefixFrom(o.Subnets[0].Addr().Next(), o.Subnets[0].Bits()).String())
	if o.IPv6 {
		d.Flags = append(d.Flags, "--ipv6", "--fixed-cidr-v6", o.Subnets[1].String())
	}
	d.Flags = append(d.Flags, flags...)
	d.on(c)
	d.names(c, o.Name, "bridge")
	return nil
}

// makeLinkable: Docker's links are of the default network. The Engine cannot have icc off there
// without its iptables, so that bpfnet's own configuration says it.
func (d *theirs) makeLinkable(c *cast, o control.NetworkOptions) error {
	if err := c.m.Init(&control.Config{ICC: o.ICC}); err != nil {
		return err
	}
	return d.makeDefault(c, o)
}

// makeBound: dockerd's --ip is of the default network, too.
func (d *theirs) makeBound(c *cast, o control.NetworkOptions, addr string) error {
	return d.makeDefault(c, o, "--ip", addr)
}

// names waits until bpfnet carries a network.
func (d *theirs) names(c *cast, name, theirs string) {
	c.t.Helper()
	d.networks[name] = theirs
	eventually(c.t, "network "+name, func() bool { _, err := c.m.Network(d.networkName(name)); return err == nil })
}

func (d *theirs) networkName(name string) string {
	if theirs, ok := d.networks[name]; ok {
		return "docker/" + theirs
	}
	return name
}

// containerOptions are flags of docker run.
func (d *theirs) containerOptions(o control.ContainerOptions) []string {
	var args []string
	if d.networks[o.Network] != "bridge" { // else it would have no links
		args = append(args, "--net", o.Network)
		if o.Endpoint.IPv4.IsValid() {
			args = append(args, "--ip", o.Endpoint.IPv4.String())
		}
		if o.Endpoint.IPv6.IsValid() {
			args = append(args, "--ip6", o.Endpoint.IPv6.String())
		}
	}
	for flag, list := range map[string][]string{"-p": o.Publish, "--expose": o.Expose, "--link": o.Links} {
		for _, x := range list {
			args = append(args, flag, x)
		}
	}
	if o.PublishAll {
		args = append(args, "-P")
	}
	return args
}

func (d *theirs) makeContainer(c *cast, a *actor) error {
	e := d.on(c)
	id, err := e.TryStart(a.name, d.containerOptions(a.o)...)
	if err != nil {
		e.Docker("rm", "-f", a.name) // it was made, and did not start
		return err
	}
	var record *control.Container
	eventually(c.t, "container "+a.name, func() bool {
		record, err = c.m.Container(id)
		return err == nil && record.PID != 0 // known before, but with its ports since it has started
	})
	a.ns = d.namespace(c, record.PID)
	for _, ep := range record.Endpoints {
		d.settled(c, a, ep)
	}
	d.actors[a.name] = a
	if _, again := d.first[a]; !again {
		d.first[a] = a.o.Publish
	}
	return nil
}

func (d *theirs) namespace(c *cast, pid int) *netns.NS {
	c.t.Helper()
	ns, err := netns.OfPID(pid)
	require.NoError(c.t, err)
	d.T.Cleanup(func() { ns.Close() })
	return ns
}

// settled has a container's addresses of a network usable at once.
func (d *theirs) settled(c *cast, a *actor, ep *control.Endpoint) {
	c.t.Helper()
	if ep.IPv6.IsValid() {
		lab.EndDetection(c.t, a.ns, ep.IfName)
	}
}

// again makes a container anew, with other options and the same addresses: of one that there is
// the Engine changes nothing. Its servers are there again, too.
func (d *theirs) again(c *cast, a *actor, change func(*control.ContainerOptions)) error {
	c.t.Helper()
	if err := d.removeContainer(c, a.name); err != nil {
		return err
	}
	o := a.o
	a.o.Endpoint.IPv4, a.o.Endpoint.IPv6 = a.ip4, a.ip6
	change(&a.o)
	err := d.makeContainer(c, a)
	if err != nil { // as it was
		a.o = o
		require.NoError(c.t, d.makeContainer(c, a))
	}
	c.refresh(a)
	for port, name := range a.served {
		c.in(c.root).serveAs(name, a, port)
	}
	return err
}

func (d *theirs) changePorts(c *cast, a *actor, add, remove []string) error {
	c.t.Helper()
	return d.again(c, a, func(o *control.ContainerOptions) {
		o.Publish = append(lacking(o.Publish, remove), add...)
	})
}

// lacking are those of a list that are not in the other.
func lacking(list, other []string) []string {
	return slices.DeleteFunc(slices.Clone(list), func(s string) bool { return slices.Contains(other, s) })
}

func (d *theirs) makeLink(c *cast, client, server *actor, alias string) error {
	c.t.Helper()
	return d.again(c, client, func(o *control.ContainerOptions) { o.Links = append(o.Links, server.name+":"+alias) })
}

func (d *theirs) endLink(c *cast, client, server *actor) error {
	c.t.Helper()
	return d.again(c, client, func(o *control.ContainerOptions) {
		o.Links = slices.DeleteFunc(slices.Clone(o.Links), func(s string) bool { return strings.HasPrefix(s, server.name+":") })
	})
}

func (d *theirs) join(c *cast, network string, a *actor) error {
	if _, err := d.on(c).TryDocker("network", "connect", network, a.name); err != nil {
		return err
	}
	n := c.networkOf(network)
	var ep *control.Endpoint
	eventually(c.t, a.name+" on "+network, func() bool { ep = d.endpoint(c, n, a); return ep != nil && ep.Slot != 0 })
	d.settled(c, a, ep)
	return nil
}

func (d *theirs) leave(c *cast, network string, a *actor) error {
	if _, err := d.on(c).TryDocker("network", "disconnect", network, a.name); err != nil {
		return err
	}
	n := c.networkOf(network)
	eventually(c.t, a.name+" off "+network, func() bool { return d.endpoint(c, n, a) == nil })
	return nil
}

func (d *theirs) endpoint(c *cast, n *control.Network, a *actor) *control.Endpoint {
	c.t.Helper()
	record, err := c.m.Container(a.name)
	require.NoError(c.t, err)
	return record.Endpoints[n.ID]
}

func (d *theirs) removeContainer(c *cast, name string) error {
	if _, err := d.on(c).TryDocker("rm", "-f", name); err != nil {
		return err
	}
	delete(d.actors, name)
	eventually(c.t, name+" is gone", func() bool { _, err := c.m.Container(name); return err != nil })
	return nil
}

func (d *theirs) makeMode(c *cast, name, mode string) *netns.NS {
	c.t.Helper()
	e := d.on(c)
	_, err := e.TryStart(name, "--net", mode)
	require.NoError(c.t, err)
	return d.namespace(c, e.Inspect(name).State.Pid)
}

func (d *theirs) hostsFile(c *cast, name string) string {
	c.t.Helper()
	return d.on(c).Inspect(name).HostsPath
}

func (d *theirs) startDaemon(c *cast) *lab.Process {
	c.t.Helper()
	d.on(c)
	return d.Daemon
}

func (d *theirs) endDaemon(c *cast) {
	c.t.Helper()
	d.on(c).StopDaemon()
}

// handOut starts eight containers at once that each ask for eight ports.
func (d *theirs) handOut(c *cast) (list []handed, takeBack func()) {
	c.t.Helper()
	e := d.on(c)
	name := func(i int) string { return fmt.Sprint("asks", i) }
	when := make([]int64, 8)
	require.NoError(c.t, dockerd.Many(len(when), func(i int) error {
		_, err := e.TryStart(name(i), "--net", "n1", "-p", "80-83", "-p", "84-87/udp")
		when[i] = monotonic()
		return err
	}))
	for i := range when {
		for line := range strings.Lines(e.Docker("port", name(i))) { // 80/tcp -> 0.0.0.0:40000
			cont, host, _ := strings.Cut(strings.TrimSpace(line), " -> ")
			_, proto, _ := strings.Cut(cont, "/")
			at := netip.MustParseAddrPort(strings.Replace(host, ":::", "[::]:", 1))
			family := map[bool]string{true: "4", false: "6"}[at.Addr().Is4()]
			list = append(list, handed{network: proto + family, port: int(at.Port()), when: when[i]})
		}
	}
	require.Len(c.t, list, 2*8*len(when), "of both families")
	return list, func() {
		for i := range when {
			require.NoError(c.t, d.removeContainer(c, name(i)))
		}
	}
}

func (d *theirs) restore(c *cast, main ...*actor) {
	c.t.Helper()
	for _, a := range main {
		a.served = nil
		if first := d.first[a]; !slices.Equal(first, a.o.Publish) {
			require.NoError(c.t, d.changePorts(c, a, nil, lacking(a.o.Publish, first)))
		}
	}
	for name, a := range d.actors {
		if !slices.Contains(main, a) {
			require.NoError(c.t, d.removeContainer(c, name))
		}
	}
	for name := range d.networks {
		if name != "n1" && name != "n2" {
			d.on(c).Docker("network", "rm", name)
			delete(d.networks, name)
			eventually(c.t, name+" is gone", func() bool { _, err := c.m.Network("docker/" + name); return err != nil })
		}
	}
}
