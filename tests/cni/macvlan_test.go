// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// macvlan is a list's first part: interfaces beside the host's, in the client's subnets.
func (r *runtime) macvlan(more conf) conf {
	subnet := func(subnet, first, last, gateway string) []any {
		return []any{map[string]any{"subnet": subnet, "rangeStart": first, "rangeEnd": last, "gateway": gateway}}
	}
	return conf{"type": "macvlan", "master": r.X.Device, "ipam": map[string]any{
		"type": "host-local", "dataDir": filepath.Join(r.Dir, "ipam"),
		"ranges": []any{
			subnet("203.0.113.0/24", "203.0.113.50", "203.0.113.90", lab.ClientIPv4),
			subnet("2001:db8:113::/64", "2001:db8:113::50", "2001:db8:113::90", lab.ClientIPv6),
		},
	}}.with(more)
}

// hooks are the programs on a device.
func (r *runtime) hooks(device string) (programs []string) {
	r.t.Helper()
	status, err := r.m.Status()
	require.NoError(r.t, err)
	require.Empty(r.t, status.Problems)
	for _, h := range status.Hooks {
		if h.Device == device {
			programs = append(programs, h.Program)
		}
	}
	return programs
}

// Behind the plugin macvlan published ports are all that bpfnet does: for clients, the host
// and its other containers.
func TestChainedMacvlan(t *testing.T) {
	r := newRuntime(t)
	c := r.chain("beside", r.macvlan(nil), nil)
	other := r.chain("other", r.bridge("cni0", "10.44.0.0/24"), nil)
	web, second, peer := r.pod("web"), r.pod("second"), r.pod("peer")
	const ports = `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":8080,"containerPort":80,"protocol":"udp"},
		{"hostPort":8081,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]`
	c.must("add", "eth0", web, ports)
	c.must("add", "eth0", second, `[{"hostPort":9090,"containerPort":80,"protocol":"tcp"}]`)
	other.must("add", "eth0", peer, "[]")
	r.serve(web, 80)
	r.serve(second, 80)
	require.ElementsMatch(t, []string{loader.BPFProgFromUplink, loader.BPFProgToParent}, r.hooks(r.X.Device))
	for _, proto := range []string{"tcp", "udp"} {
		for range 2 {
			r.asks(r.Client, proto, lab.HostIPv4+":8080", "web", lab.ClientIPv4)
			r.asks(r.Client, proto, "["+lab.HostIPv6+"]:8080", "web", lab.ClientIPv6)
			r.asks(r.Host, proto, lab.HostIPv4+":8080", "web", lab.HostIPv4)
			r.asks(r.Host, proto, "["+lab.HostIPv6+"]:8080", "web", lab.HostIPv6)
			r.asks(r.Host, proto, "127.0.0.1:8080", "web", lab.HostIPv4)
			r.asks(r.Host, proto, "[::1]:8080", "web", lab.HostIPv6)
			r.asks(peer.ns, proto, lab.HostIPv4+":8080", "web", lab.HostIPv4)
		}
	}
	r.asks(r.Client, "tcp", lab.HostIPv4+":9090", "second", lab.ClientIPv4)
	r.asks(r.Host, "tcp", "127.0.0.1:8081", "web", lab.HostIPv4)
	r.silent("8081 from outside", "tcp", r.Client, lab.HostIPv4+":8081", lab.HostIPv4+":8080")
	// What is between the container and its neighbours is theirs.
	r.asks(r.Client, "tcp", "203.0.113.50:80", "web", lab.ClientIPv4)
	r.asks(second.ns, "tcp", "203.0.113.50:80", "web", "203.0.113.51")
	r.asks(second.ns, "udp", "[2001:db8:113::50]:80", "web", "2001:db8:113::51")
	// In pieces and in segments, both ways.
	for _, n := range []int{4000, 300_000} {
		long, ask := strings.Repeat("x", n), lab.AskUDP
		if n > 65_000 {
			ask = lab.AskTCP
		}
		for from, to := range map[*netns.NS]string{r.Client: lab.HostIPv4 + ":8080", r.Host: "127.0.0.1:8080", peer.ns: lab.HostIPv4 + ":8080"} {
			line, err := ask(from, "", to, long, wait)
			require.NoError(t, err, to)
			require.Contains(t, line, long)
		}
		line, err := ask(r.Client, "", "["+lab.HostIPv6+"]:8080", long, wait)
		require.NoError(t, err)
		require.Contains(t, line, long)
	}
	// Nobody listens, and the container says so.
	c.must("del", "eth0", second, "[]")
	c.must("add", "eth0", second, `[{"hostPort":9091,"containerPort":91,"protocol":"udp"}]`)
	_, err := lab.AskUDP(r.Client, "", lab.HostIPv4+":9091", "x", wait)
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	c.must("check", "eth0", web, ports)
}

// The life of it: listings, a torn-out program, an address of the host's that changes, GC, and
// the last container.
func TestChainedMacvlanLife(t *testing.T) {
	r := newRuntime(t)
	c := r.chain("beside", r.macvlan(nil), nil)
	web, other := r.pod("web"), r.pod("other")
	const eight, nine = `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]`, `[{"hostPort":8081,"containerPort":80,"protocol":"tcp"}]`
	ordinary := []string{loader.BPFProgFromUplink, loader.BPFProgToUplink}
	require.ElementsMatch(t, ordinary, r.hooks(r.X.Device))
	c.must("add", "eth0", web, eight)
	c.must("add", "eth0", other, nine)
	r.serve(web, 80)
	r.serve(other, 80)
	works := func() {
		t.Helper()
		r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
		r.asks(r.Client, "tcp", "["+lab.HostIPv6+"]:8081", "other", lab.ClientIPv6)
		r.asks(r.Host, "tcp", "127.0.0.1:8081", "other", "")
	}
	works()
	cli := r.cli
	require.Contains(t, cli("network", "ls"), "cni/beside")
	require.Contains(t, cli("network", "inspect", "cni/beside"), "203.0.113.0/24")
	require.Contains(t, cli("inspect", "cni/web"), "203.0.113.50")
	require.NotContains(t, cli("bridge", "ls"), "beside")
	require.Contains(t, cli("port", "cni/web"), "0.0.0.0:8080")
	require.NotContains(t, cli("reconcile"), "device")
	works()

	r.detach(loader.BPFProgToParent, r.X.Device)
	out, err := c.tool("check", "eth0", web, eight)
	require.Error(t, err)
	require.Contains(t, out, loader.BPFProgToParent)
	require.Contains(t, cli("reconcile"), loader.BPFProgToParent)
	c.must("check", "eth0", web, eight)
	works()

	// The host has another address, and then none: it reaches nobody, and is told.
	change := func(args ...string) {
		t.Helper()
		_, err := r.Run(r.Host, "ip", append([]string{"address"}, args...)...)
		require.NoError(t, err)
		cli("reconcile")
	}
	change("add", "203.0.113.7/32", "dev", r.X.Device)
	change("del", lab.HostIPv4+"/24", "dev", r.X.Device)
	r.asks(r.Host, "tcp", "127.0.0.1:8080", "web", "203.0.113.7")
	change("del", "203.0.113.7/32", "dev", r.X.Device)
	_, err = lab.AskTCP(r.Host, "", "127.0.0.1:8080", "x", wait)
	require.ErrorIs(t, err, unix.ECONNREFUSED)
	change("add", lab.HostIPv4+"/24", "dev", r.X.Device)
	works()

	// Its interface is gone.
	_, err = r.Run(other.ns, "ip", "link", "delete", "eth0")
	require.NoError(t, err)
	require.Contains(t, cli("reconcile"), "its macvlan of "+r.X.Device+" is gone")
	require.NotContains(t, r.containers(), "cni/other")
	c.must("del", "eth0", other, nine)
	c.must("add", "eth0", other, nine)
	works()

	r.must(call{command: "GC", conf: conf{"cniVersion": "1.1.0", "name": "beside", "type": "bpfnet", "root": r.Root,
		"cni.dev/valid-attachments": []any{map[string]any{"containerID": r.containers()["cni/web"].ID, "ifname": "eth0"}}}})
	require.Len(t, r.containers(), 1)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	web.vanish(t)
	for _, p := range []pod{web, other} {
		c.must("del", "eth0", p, "[]")
		c.must("del", "eth0", p, "[]")
	}
	r.empty()
	require.Empty(t, r.networks())
	require.ElementsMatch(t, ordinary, r.hooks(r.X.Device))
}
