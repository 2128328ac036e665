// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// maker makes the networks and containers of a cast: bpfnet does by itself, or with
// BPFNET_CAST=docker an unmodified Docker Engine does, whose packets bpfnet carries. What the Engine
// cannot make fails; rows.OnDocker lists it.
type maker interface {
	makeNetwork(c *cast, o control.NetworkOptions) error
	makeLinkable(c *cast, o control.NetworkOptions) error           // one on which links open ports
	networkName(name string) string                                 // as the Manager finds it
	makeBound(c *cast, o control.NetworkOptions, addr string) error // one whose ports are on the host's default address
	makeContainer(c *cast, a *actor) error                          // a.o; gives it its namespace
	changePorts(c *cast, a *actor, add, remove []string) error
	makeLink(c *cast, client, server *actor, alias string) error
	endLink(c *cast, client, server *actor) error
	join(c *cast, network string, a *actor) error
	leave(c *cast, network string, a *actor) error
	removeContainer(c *cast, name string) error
	makeMode(c *cast, name, mode string) *netns.NS // a container without a network of its own, or any other
	hostsFile(c *cast, name string) string         // path of its /etc/hosts
	startDaemon(c *cast) *lab.Process              // bpfnet's; the Engine's containers have it from the first on
	endDaemon(c *cast)                             // if there is one
	restore(c *cast, main ...*actor)               // takes back what a test has made and changed beside the main cast
}

// ours is bpfnet: containers are namespaces of the test's, attached.
type ours struct{}

func (ours) makeNetwork(c *cast, o control.NetworkOptions) error {
	_, err := c.m.CreateNetwork(o)
	return err
}

func (m ours) makeLinkable(c *cast, o control.NetworkOptions) error { return m.makeNetwork(c, o) }

func (m ours) makeBound(c *cast, o control.NetworkOptions, addr string) error {
	if err := c.m.Init(&control.Config{IP: addr}); err != nil {
		return err
	}
	return m.makeNetwork(c, o)
}

func (ours) networkName(name string) string { return name }

func (ours) makeContainer(c *cast, a *actor) error {
	ns, path := c.AddNetns(c.t, a.name)
	a.ns, a.o.Attach = ns, "netns:"+path
	_, err := c.m.CreateContainer(a.o)
	return err
}

func (ours) changePorts(c *cast, a *actor, add, remove []string) error {
	if len(remove) > 0 {
		if err := c.m.Unpublish(a.name, remove...); err != nil {
			return err
		}
	}
	if len(add) == 0 {
		return nil
	}
	_, err := c.m.Publish(a.name, add...)
	return err
}

func (ours) makeLink(c *cast, client, server *actor, alias string) error {
	return c.m.Link(client.name, server.name+":"+alias)
}

func (ours) endLink(c *cast, client, server *actor) error {
	return c.m.Unlink(client.name, server.name)
}

func (ours) join(c *cast, network string, a *actor) error {
	return c.m.Connect(network, a.name, control.EndpointOptions{})
}

func (ours) leave(c *cast, network string, a *actor) error { return c.m.Disconnect(network, a.name) }

// removeContainer ends and removes one; one that is of the test's namespaces has no end.
func (ours) removeContainer(c *cast, name string) error {
	record, err := c.m.Container(name)
	if err != nil {
		return err
	}
	if !record.Attached {
		if err := c.m.Finished(record.ID, 0, 0); err != nil {
			return err
		}
	}
	return c.m.RemoveContainer(name)
}

func (ours) makeMode(c *cast, name, mode string) *netns.NS {
	c.t.Helper()
	return c.modeOf(control.ContainerOptions{Name: name, Network: mode})
}

func (ours) hostsFile(c *cast, name string) string {
	c.t.Helper()
	record, err := c.m.Container(name)
	require.NoError(c.t, err)
	return c.m.ContainerDir(record.ID) + "/hosts"
}

func (ours) startDaemon(c *cast) *lab.Process { return c.start("daemon") }

func (ours) endDaemon(*cast) {}

func (o ours) restore(c *cast, main ...*actor) {
	c.t.Helper()
	for _, a := range main {
		a.served = nil
		pubs, err := c.m.Publications(a.name)
		require.NoError(c.t, err)
		var more []string
		for _, p := range pubs { // one of each family, by the same words
			if !slices.Contains(a.o.Publish, p.Spec) && !slices.Contains(more, p.Spec) {
				more = append(more, p.Spec)
			}
		}
		require.NoError(c.t, c.m.Unpublish(a.name, more...))
	}
	containers, err := c.m.Containers()
	require.NoError(c.t, err)
	for _, k := range containers {
		if !slices.ContainsFunc(main, func(a *actor) bool { return a.id == k.ID }) {
			require.NoError(c.t, o.removeContainer(c, k.ID))
		}
	}
	networks, err := c.m.Networks()
	require.NoError(c.t, err)
	for _, n := range networks {
		if n.Name != "n1" && n.Name != "n2" && n.Name != control.DefaultNetwork {
			require.NoError(c.t, c.m.RemoveNetwork(n.Name))
		}
	}
}

// linkable makes a network with icc off, on which links open ports.
func (c *cast) linkable(name string, n int, six bool) {
	c.t.Helper()
	o := subnets(name, n, six)
	iccOff(&o)
	require.NoError(c.t, c.makeLinkable(c, o))
}

// bound makes a network, and says by which address ports are published if -p names none.
func (c *cast) bound(name string, n int, six bool, addr string) {
	c.t.Helper()
	require.NoError(c.t, c.makeBound(c, subnets(name, n, six), addr))
}

// publish opens more doors of a container's.
func (c *cast) publish(a *actor, specs ...string) {
	c.t.Helper()
	require.NoError(c.t, c.changePorts(c, a, specs, nil))
}

func (c *cast) unpublish(a *actor, specs ...string) {
	c.t.Helper()
	require.NoError(c.t, c.changePorts(c, a, nil, specs))
}

// link gives a client a link, and unlink ends it.
func (c *cast) link(client, server *actor, alias string) {
	c.t.Helper()
	require.NoError(c.t, c.makeLink(c, client, server, alias))
}

func (c *cast) unlink(client, server *actor) {
	c.t.Helper()
	require.NoError(c.t, c.endLink(c, client, server))
}

// connect puts a running container on another network, and disconnect takes it off.
func (c *cast) connect(network string, a *actor) {
	c.t.Helper()
	require.NoError(c.t, c.join(c, network, a))
}

func (c *cast) disconnect(network string, a *actor) {
	c.t.Helper()
	require.NoError(c.t, c.leave(c, network, a))
}

// remove ends and removes a container.
func (c *cast) remove(name string) {
	c.t.Helper()
	require.NoError(c.t, c.removeContainer(c, name))
}

// few are the first n of a list where the Engine makes the containers, which takes a while each
// time, and the whole elsewhere.
func few[T any](list []T, n int) []T {
	if onDocker() {
		return list[:min(len(list), n)]
	}
	return list
}

// onlyOurs ends a test of what is no part of Docker's.
func onlyOurs(t testing.TB, what string) {
	t.Helper()
	if onDocker() {
		t.Fatalf("Docker has no %s", what)
	}
}
