// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// Published ports are answered by the container, to whom it may, and it sees who asks.
func TestPublished(t *testing.T) {
	r := newRuntime(t)
	web, peer := r.pod("web"), r.pod("peer")
	c := mapped(r.pods(), "8080:80/tcp", "8080:80/udp", "127.0.0.1:8081:80/tcp", lab.HostIPv4+":8082:80/tcp", "[::1]:8083:80/tcp",
		"9000:7000/tcp", "9001:7001/tcp", "9002:7002/tcp", "9000:7000/udp")
	a := r.must(web.call("ADD", c))
	r.must(peer.call("ADD", r.pods()))
	for _, port := range []int{80, 7000, 7001, 7002} {
		r.serve(web, port)
	}
	ip := addresses(a)[0]

	for _, proto := range []string{"tcp", "udp"} {
		r.asks(r.Client, proto, lab.HostIPv4+":8080", "web", lab.ClientIPv4)
		r.asks(r.Client, proto, "["+lab.HostIPv6+"]:8080", "web", lab.ClientIPv6)
		r.asks(r.Host, proto, "127.0.0.1:8080", "web", "10.88.0.1")
		r.asks(r.Host, proto, lab.HostIPv4+":8080", "web", "10.88.0.1")
		r.asks(peer.ns, proto, lab.HostIPv4+":8080", "web", "10.88.0.3")
		r.asks(peer.ns, proto, ip+":80", "web", "10.88.0.3")
		r.asks(web.ns, proto, lab.HostIPv4+":8080", "web", "")
	}
	for host := 9000; host <= 9002; host++ {
		r.asks(r.Client, "tcp", fmt.Sprintf("%s:%d", lab.HostIPv4, host), "web", lab.ClientIPv4)
	}
	r.asks(r.Client, "udp", lab.HostIPv4+":9000", "web", lab.ClientIPv4)

	// The address of the host's counts.
	r.asks(r.Host, "tcp", "127.0.0.1:8081", "web", "")
	r.asks(r.Client, "tcp", lab.HostIPv4+":8082", "web", lab.ClientIPv4)
	if !netfilter() { // IPv6 has no route_localnet
		r.asks(r.Host, "tcp", "[::1]:8083", "web", "")
	}
	works := func() error {
		_, err := lab.AskTCP(r.Client, "", lab.HostIPv4+":8080", "x", wait)
		return err
	}
	for _, to := range []string{lab.HostIPv4 + ":8081", "[" + lab.HostIPv6 + "]:8082", lab.HostIPv4 + ":8083", lab.HostIPv4 + ":9003"} {
		lab.Unreachable(t, to, func() error {
			_, err := lab.AskTCP(r.Client, "", to, "x", silence)
			return err
		}, works)
	}

	// Neighbours came expanded, and are ranges again.
	list, err := r.m.Publications("web")
	require.NoError(t, err)
	counts := make(map[string]uint32)
	for _, p := range list {
		counts[p.Spec] = p.Count
	}
	require.Equal(t, map[string]uint32{"8080:80/tcp": 1, "8080:80/udp": 1, "127.0.0.1:8081:80/tcp": 1, lab.HostIPv4 + ":8082:80/tcp": 1,
		"[::1]:8083:80/tcp": 1, "9000-9002:7000-7002/tcp": 3, "9000:7000/udp": 1}, counts)

	// Nobody of the host's binds them; and the world is reached.
	if !netfilter() {
		_, err = r.Bind(r.Host, "tcp", "0.0.0.0:8080")
		require.Error(t, err)
	}
	lab.ServeTCP(t, r.Client, "world", lab.ClientIPv4+":80")
	r.asks(web.ns, "tcp", lab.ClientIPv4+":80", "world", lab.HostIPv4)

	for _, p := range []pod{web, peer} {
		r.must(p.call("DEL", c))
	}
	r.empty()
	free, err := r.Bind(r.Host, "tcp", "0.0.0.0:8080")
	require.NoError(t, err)
	free.Close()
}

// A runtime that has sockets on published ports itself is not kept from that, and the ports
// lead to the container all the same.
func TestPortsHeld(t *testing.T) {
	r := newRuntime(t)
	web := r.pod("web")
	c := mapped(r.pods().with(conf{"portsHeld": true}), "8080:80/tcp", "8081:81/tcp")
	r.MustBind(t, r.Host, "tcp", "0.0.0.0:8081") // before
	r.must(web.call("ADD", c))
	r.MustBind(t, r.Host, "tcp", "0.0.0.0:8080") // after
	r.serve(web, 80)
	r.serve(web, 81)
	for _, to := range []string{":8080", ":8081"} {
		r.asks(r.Client, "tcp", lab.HostIPv4+to, "web", lab.ClientIPv4)
		r.asks(r.Host, "tcp", "127.0.0.1"+to, "web", "")
	}
	// What moves ports to another network finds them held by their own runtime.
	other := web.call("ADD", mapped(r.pods().with(conf{"name": "other", "subnets": []string{"10.89.0.0/16"}, "portsHeld": true}), "8080:80/tcp", "8081:81/tcp"))
	other.ifName = "eth1"
	r.must(other)
	r.must(web.call("DEL", c))
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	r.must(call{command: "DEL", conf: other.conf, id: "web", ifName: "eth1"})
	r.empty()
}

// A container on two networks publishes once, and its ports move when one goes.
func TestTwoNetworks(t *testing.T) {
	r := newRuntime(t)
	web := r.pod("web")
	front := mapped(r.pods(), "8080:80/tcp")
	back := mapped(r.pods().with(conf{"name": "back", "subnets": []string{"10.89.0.0/16"}}), "8080:80/tcp")
	first, second := web.call("ADD", front), web.call("ADD", back)
	second.ifName = "eth1"
	require.Len(t, r.must(first).result.Routes, 2)
	a := r.must(second)
	require.Empty(t, a.result.Routes, "the default route is the first network's")
	require.Equal(t, "eth1", a.result.Interfaces[2].Name)
	require.Len(t, r.containers(), 1)
	r.serve(web, 80)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)

	third := web.call("ADD", front)
	third.ifName = "eth2"
	r.fails(third, 100, "already exists in network pods")

	first.command = "DEL"
	r.must(first)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	second.command, second.conf = "CHECK", a.prev(t, back)
	r.must(second)
	second.command = "DEL"
	r.must(second)
	r.empty()
}

// What somebody has torn out comes back by reconcile, with all that was asked for.
func TestReconcile(t *testing.T) {
	r := newRuntime(t)
	web := r.pod("web")
	c := mapped(r.pods().with(conf{"portsHeld": true}), "8080:80/tcp")
	line := web.call("ADD", c)
	line.args = "IP=10.88.0.9;MAC=02:11:22:33:44:55"
	a := r.must(line)
	r.MustBind(t, r.Host, "tcp", "0.0.0.0:8080")
	r.serve(web, 80)
	h, err := r.Host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	require.NoError(t, h.LinkDel(lab.Link(t, r.Host, a.result.Interfaces[1].Name)))
	line.command, line.conf = "CHECK", a.prev(t, c)
	r.fails(line, 101)
	steps, err := r.m.Reconcile()
	require.NoError(t, err)
	require.NotEmpty(t, steps)
	r.must(line)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	r.must(web.call("DEL", c))
	r.empty()
}

// An ADD that is killed at any moment leaves nothing that DEL does not end.
func TestKilled(t *testing.T) {
	r := newRuntime(t)
	c := mapped(r.pods(), "8080:80/tcp", "9000:9000/udp")
	p := r.pod("killed")
	begun := time.Now()
	r.must(p.call("ADD", c))
	took := time.Since(begun)
	r.must(p.call("DEL", c))
	for i := range 12 {
		add := r.begin(p.call("ADD", c))
		select {
		case <-add.Done():
		case <-time.After(took * time.Duration(i) / 10):
		}
		add.Kill()
		r.must(p.call("DEL", c))
		r.empty()
	}
	r.must(p.call("ADD", c))
	r.serve(p, 80)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "killed", lab.ClientIPv4)
	r.must(p.call("DEL", c))
	r.empty()
}

// Twenty at once: a network that is not there yet, addresses and ports of their own.
func TestAtOnce(t *testing.T) {
	r := newRuntime(t)
	const n = 20
	var calls []call
	for i := range n {
		p := r.pod(fmt.Sprintf("pod%d", i))
		r.serve(p, 80)
		calls = append(calls, p.call("ADD", mapped(r.pods(), fmt.Sprintf("%d:80/tcp", 8000+i))))
	}
	all := func() []answer {
		list := make([]answer, n)
		var running []*lab.Process
		for _, c := range calls {
			running = append(running, r.begin(c))
		}
		for i, p := range running {
			list[i] = r.end(calls[i], p)
			require.Zero(t, list[i].code, list[i].out)
		}
		return list
	}
	start := time.Now()
	seen := make(map[string]bool)
	for i, a := range all() {
		for _, ip := range addresses(a) {
			require.False(t, seen[ip], "%s: given twice", ip)
			seen[ip] = true
		}
		r.asks(r.Client, "tcp", fmt.Sprintf("%s:%d", lab.HostIPv4, 8000+i), calls[i].id, lab.ClientIPv4)
	}
	t.Logf("%d ADDs at once and asked: %v", n, time.Since(start).Round(time.Millisecond))
	for i := range calls {
		calls[i].command = "DEL"
	}
	start = time.Now()
	all()
	t.Logf("%d DELs at once: %v", n, time.Since(start).Round(time.Millisecond))
	r.empty()
}
