// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// streams are UDP clients of H's port everywhere: X, H itself, a peer, a container of
// another network, the server.
func (c *cast) streams(port int, containers ...*actor) (list []*stream) {
	c.t.Helper()
	for _, to := range []string{lab.HostIPv4, lab.HostIPv6} {
		list = append(list, c.streaming(c.Client, at(to, port)), c.streaming(c.Host, at(to, port)))
		for _, a := range containers {
			list = append(list, c.streaming(a.ns, at(to, port)))
		}
	}
	return append(list, c.streaming(c.Host, at("127.0.0.1", port)), c.streaming(c.Host, at("::1", port)))
}

// E10: a port is published while clients keep trying: their next packet gets in.
func TestE10(t *testing.T) {
	c, s, p, o := ownCast(t)
	streams := c.streams(8090, s, p, o)
	// A client that is not told that the port is closed sends its SYN again.
	var syns []<-chan error
	for _, ns := range []*netns.NS{c.Client, p.ns, o.ns} {
		deaf(c, ns)
		for _, to := range []string{lab.HostIPv4, lab.HostIPv6} {
			lost := lab.CaptureIn(t, ns, "eth0", func(f []byte) bool { return resetFrom(f, 8090) })
			done := make(chan error, 1)
			go func() {
				_, err := ask(ns, "tcp", "", at(to, 8090), 2*wait)
				done <- err
			}()
			syns = append(syns, done)
			require.True(t, lost.Wait(1, wait), "a SYN was refused")
		}
	}
	for _, k := range streams {
		k.flows(20)
		k.unanswered()
	}
	_, err := c.m.Publish("srv", "8090:80", "8090:80/udp")
	require.NoError(t, err)
	for _, k := range streams {
		k.answered(k.next(), 50, "srv")
	}
	for _, done := range syns {
		require.NoError(t, <-done)
	}
}

// deaf makes a namespace not hear that a port of H's is closed.
func deaf(c *cast, ns *netns.NS) {
	c.t.Helper()
	_, err := c.Run(ns, "nft", "table inet deaf { chain input { type filter hook input priority 0; tcp sport 8090 tcp flags rst / syn,rst drop; }; }")
	require.NoError(c.t, err)
}

// resetFrom finds TCP resets without options, from a port.
func resetFrom(f []byte, port int) bool {
	l4 := 34
	if len(f) > 13 && f[12] == 0x86 {
		l4 = 54
	}
	return len(f) >= l4+20 && (l4 == 34 && f[23] == 6 || l4 == 54 && f[20] == 6) &&
		int(f[l4])<<8|int(f[l4+1]) == port && f[l4+13]&4 != 0
}

// E11: a container goes and comes again with a new address, or with the old one in a new
// namespace, while UDP clients keep sending: the next packet reaches the new one.
func TestE11(t *testing.T) {
	c, _, p, o := ownCast(t)
	streams := c.streams(8080, p, o)
	for _, k := range streams {
		k.answered(k.next(), 20, "srv")
	}
	old := c.station(&actor{name: "srv"}, "n1")
	for round, name := range []string{"new address", "old address"} {
		ns, path := c.AddNetns(t, name)
		again := &actor{name: name, ns: ns}
		c.serve(again, 80) // before it is attached: nothing but the network is waited for
		opts := control.ContainerOptions{Name: "srv", Network: "n1", Attach: "netns:" + path, Publish: []string{"8080:80", "8080:80/udp"}}
		if round == 1 {
			opts.Endpoint.IPv4, opts.Endpoint.IPv6 = old.ip4, old.ip6
		} else {
			opts.Endpoint.IPv4, opts.Endpoint.IPv6 = addrs("10.1.0.77")[0], addrs("fd00:1::77")[0]
		}
		require.NoError(t, c.m.RemoveContainer("srv"))
		for _, k := range streams {
			k.flows(5)
		}
		_, err := c.m.CreateContainer(opts)
		require.NoError(t, err)
		for _, k := range streams {
			k.answered(k.next(), 50, name)
		}
		c.answers(c.Client, at(lab.HostIPv4, 8080), name, lab.ClientIPv4)
		c.answers(c.Client, at(lab.HostIPv6, 8080), name, lab.ClientIPv6)
	}
}
