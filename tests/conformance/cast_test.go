// SPDX-License-Identifier: Apache-2.0

// Package conformance holds bpfnet to its promises, row by row: a client, a host
// and containers in namespaces of their own, real sockets and payloads. A test is
// named after its row.
//
//	X 203.0.113.2 ──────── 203.0.113.1 H ─┬─ n1 10.1.0.0/24, fd00:1::/64 ─┬─ srv  (8080:80, 127.0.0.1:8081:80)
//	  2001:db8:113::2    2001:db8:113::1  │    gw .1, ::1                 └─ peer
//	                                      └─ n2 10.2.0.0/24, fd00:2::/64 ─── other
package conformance

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// wait bounds what must answer; an emulated machine has more of it.
var wait = 3 * time.Second

// silence bounds what must not answer.
const silence = 300 * time.Millisecond

// actor is a container of the cast. What is tested is done in its namespace, by the test.
type actor struct {
	name     string
	id       string
	ns       *netns.NS
	ip4, ip6 netip.Addr

	o      control.ContainerOptions // with which it was made
	served map[int]string           // ports, and who says he is there
}

// cast is a lab with a Manager on its host. Networks and containers are the maker's.
type cast struct {
	*lab.Lab
	t    testing.TB
	root testing.TB // the test that t is within
	m    *control.Manager
	maker
}

// newCast sets the host up; containers and networks are the test's to make.
func newCast(t testing.TB, opts ...lab.Option) *cast {
	t.Helper()
	return newCastOn(t, datapath(), opts...)
}

// newCastOn is newCast with one of the datapaths.
func newCastOn(t testing.TB, path string, opts ...lab.Option) *cast {
	t.Helper()
	if onDocker() {
		parallel(t)
		engines <- struct{}{}
		t.Cleanup(func() { <-engines })
	}
	c := &cast{Lab: lab.New(t, opts...), t: t, root: t, maker: ours{}}
	if onDocker() {
		c.maker = newTheirs(t, c.Lab)
	}
	m, err := control.Open(control.Options{Root: c.Root, BPFFS: c.BPFFS, Netns: c.NetnsPath, Cgroup: c.Cgroup, Datapath: path})
	require.NoError(t, err)
	c.m = m
	// Tables take their time to be made: half of what a host needs to be set up.
	require.NoError(t, m.Init(&control.Config{IPTables: os.Getenv("BPFNET_IPTABLES"), FlowTableSize: times(0, 32768), HalfOpenTableSize: times(0, 4096)}))
	t.Cleanup(func() {
		if t.Failed() {
			c.explain()
		}
		require.NoError(t, m.Uninstall())
		require.NoError(t, m.Close())
	})
	return c
}

// explain logs what the programs remember and dropped: for a failure's reader.
func (c *cast) explain() {
	c.t.Helper()
	if flows, err := c.m.Flows(control.FlowFilter{}); err == nil {
		for _, f := range flows {
			c.t.Logf("flow %s %s %s  %s > %s  as  %s > %s  %d packets", f.Proto, f.Kind, f.State, f.Source, f.Destination, f.NewSource, f.NewDest, f.Packets)
		}
	}
	if status, err := c.m.Status(); err == nil {
		for _, d := range status.Drops {
			c.t.Logf("dropped on %s %s: %s %d", d.Device, d.Container, d.Reason, d.Packets)
		}
		c.t.Logf("counters %v", status.Counters)
	}
}

// network makes 10.N.0.0/24 with fd00:N::/64 (v6) or without.
func (c *cast) network(name string, n int, six bool, edit ...func(*control.NetworkOptions)) *control.Network {
	c.t.Helper()
	o := subnets(name, n, six)
	for _, e := range edit {
		e(&o)
	}
	require.NoError(c.t, c.makeNetwork(c, o))
	return c.networkOf(name)
}

func subnets(name string, n int, six bool) control.NetworkOptions {
	o := control.NetworkOptions{Name: name, Subnets: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.%d.0.0/24", n))}}
	if six {
		o.IPv6 = true
		o.Subnets = append(o.Subnets, netip.MustParsePrefix(fmt.Sprintf("fd00:%d::/64", n)))
	}
	return o
}

// networkOf is what bpfnet knows of a network.
func (c *cast) networkOf(name string) *control.Network {
	c.t.Helper()
	network, err := c.m.Network(c.networkName(name))
	require.NoError(c.t, err)
	return network
}

// container makes one that runs.
func (c *cast) container(name, network string, edit ...func(*control.ContainerOptions)) *actor {
	c.t.Helper()
	a := &actor{name: name, o: control.ContainerOptions{Name: name, Network: network}}
	for _, e := range edit {
		e(&a.o)
	}
	require.NoError(c.t, c.makeContainer(c, a))
	return c.refresh(a)
}

// refresh reads the actor's addresses again: of its first network.
func (c *cast) refresh(a *actor) *actor {
	c.t.Helper()
	record, err := c.m.Container(a.name)
	require.NoError(c.t, err)
	a.id = record.ID
	for _, e := range record.Endpoints {
		if e.Gateway || len(record.Endpoints) == 1 {
			a.ip4, a.ip6 = e.IPv4.Addr(), e.IPv6.Addr()
		}
	}
	return a
}

// publish is an option of container: -p for each spec.
func publish(specs ...string) func(*control.ContainerOptions) {
	return func(o *control.ContainerOptions) { o.Publish = append(o.Publish, specs...) }
}

// mainCast is the whole drawing: n1 with srv (s) and peer (p), n2 with other (o), all dual-stack, with
// servers for TCP and UDP on every container's port 80. What changes more than networks, containers and
// H's addresses by the cast's helpers asks for ownCast: an Engine's, and an emulated machine's, is shared.
func mainCast(t testing.TB, opts ...lab.Option) (c *cast, s, p, o *actor) {
	t.Helper()
	if (onDocker() || testing.Short()) && len(opts) == 0 {
		return sharedCast(t)
	}
	return ownCast(t, opts...)
}

// ownCast is a mainCast that is no other test's.
func ownCast(t testing.TB, opts ...lab.Option) (c *cast, s, p, o *actor) {
	t.Helper()
	c, s, p, o = buildCast(newCast(t, opts...))
	for _, a := range []*actor{s, p, o} {
		c.serve(a, 80)
	}
	return c, s, p, o
}

func buildCast(c *cast) (_ *cast, s, p, o *actor) {
	c.t.Helper()
	c.network("n1", 1, true)
	c.network("n2", 2, true)
	both := []string{"8080:80", "8080:80/udp", "127.0.0.1:8081:80", "127.0.0.1:8081:80/udp"}
	return c, c.container("srv", "n1", publish(both...)), c.container("peer", "n1"), c.container("other", "n2")
}

// serve answers TCP and UDP on the actor's port, in both families.
func (c *cast) serve(a *actor, port int) {
	c.t.Helper()
	c.serveAs(a.name, a, port)
}

// serveAs is serve by another name.
func (c *cast) serveAs(name string, a *actor, port int) {
	c.t.Helper()
	if a.served == nil {
		a.served = make(map[int]string)
	}
	a.served[port] = name
	addr := fmt.Sprintf(":%d", port)
	lab.ServeTCP(c.t, a.ns, name, addr)
	lab.ServeUDP(c.t, a.ns, name, addr)
}

// ask sends a payload by "tcp", "udp" (connected), "udp-unconnected" or "sctp" and
// returns the taken-apart answer. from is "" or an address to bind to.
func ask(ns *netns.NS, proto, from, to string, limit time.Duration) (lab.Reply, error) {
	payload := fmt.Sprintf("%s %d", proto, time.Now().UnixNano())
	var line string
	var err error
	switch proto {
	case "tcp":
		line, err = lab.AskTCP(ns, from, to, payload, limit)
	case "udp":
		line, err = lab.AskUDP(ns, from, to, payload, limit)
	case "udp-unconnected":
		line, err = lab.AskUDPUnconnected(ns, from, to, payload, limit)
	case "sctp":
		line, err = lab.AskSCTP(ns, from, to, payload, limit)
	default:
		panic(proto)
	}
	if err != nil {
		return lab.Reply{}, err
	}
	reply, err := lab.ParseReply(line)
	if err == nil && reply.Payload != payload {
		err = fmt.Errorf("%s: answered %q to %q", to, reply.Payload, payload)
	}
	return reply, err
}

var protos = []string{"tcp", "udp", "udp-unconnected"}

// answers requires that server answers at to, by every protocol, and saw src (""
// for any).
func (c *cast) answers(from *netns.NS, to, server, src string) {
	c.t.Helper()
	for _, proto := range protos {
		c.answersBy(proto, from, "", to, server, src)
	}
}

func (c *cast) answersBy(proto string, from *netns.NS, bind, to, server, src string) {
	c.t.Helper()
	reply, err := ask(from, proto, bind, to, wait)
	if loopback6(to) && (lab.Refused(err) || proto == "udp-unconnected" && lab.Timeout(err)) {
		return
	}
	require.NoError(c.t, err, "%s to %s", proto, to)
	require.Equal(c.t, server, reply.Server, "%s to %s", proto, to)
	if src != "" {
		require.Equal(c.t, src, reply.Remote.Addr().Unmap().String(), "%s to %s: source", proto, to)
	}
}

// silent requires that nothing answers at to while control answers.
func (c *cast) silent(from *netns.NS, to string, control func() error) {
	c.t.Helper()
	for _, proto := range []string{"tcp", "udp"} {
		lab.Unreachable(c.t, proto+" to "+to, func() error {
			_, err := ask(from, proto, "", to, silence)
			return err
		}, control)
	}
}

// works is a control for silent: the asks that must succeed, by both protocols.
func works(from *netns.NS, to ...string) func() error {
	return func() (err error) {
		for _, a := range to {
			for _, proto := range []string{"tcp", "udp"} {
				_, e := ask(from, proto, "", detour(a), wait)
				err = errors.Join(err, e)
			}
		}
		return err
	}
}

// reaches is works with a ping to each address, a control for doors.
func reaches(from *netns.NS, to ...string) func() error {
	return func() error {
		err := works(from, to...)()
		for _, a := range to {
			err = errors.Join(err, lab.Ping(from, netip.MustParseAddrPort(a).Addr().String(), wait))
		}
		return err
	}
}

// drops is how many packets were dropped for a reason so far, "" for any.
func (c *cast) drops(reason string) (n uint64) {
	c.t.Helper()
	status, err := c.m.Status()
	require.NoError(c.t, err)
	for _, d := range status.Drops {
		if reason == "" || d.Reason == reason {
			n += d.Packets
		}
	}
	return n
}

// at joins an address and a port.
func at(addr any, port int) string {
	return net.JoinHostPort(fmt.Sprint(addr), fmt.Sprint(port))
}

// datapath is which one the rows run on: BPFNET_DATAPATH, or bpf. BPFNET_IPTABLES chooses the
// flavour, nft or legacy.
func datapath() string { return os.Getenv("BPFNET_DATAPATH") }

// netfilter says whether they run on iptables; where they then promise less, rows.Differences says so.
func netfilter() bool { return datapath() == control.DatapathIPTables }

// loopback6 says of a published port that it is refused because IPv6 has no route_localnet.
func loopback6(to string) bool { return netfilter() && strings.HasPrefix(to, "[::1]:") }

// detour is another way to the same port than the one that loopback6 means.
func detour(to string) string {
	if loopback6(to) {
		return strings.Replace(to, "[::1]", "[fd00:1::1]", 1)
	}
	return to
}

// soak says whether the long counts are wanted (make soak).
func soak() bool { return os.Getenv("BPFNET_SOAK") != "" }

// times picks a count: the promise's for make soak, a reduced one else.
func times(promised, reduced int) int {
	if soak() {
		return promised
	}
	return reduced
}

// one line errors: what a command prints.
func oneLine(t testing.TB, err error) {
	t.Helper()
	require.Error(t, err)
	require.NotContains(t, strings.TrimSpace(err.Error()), "\n")
}
