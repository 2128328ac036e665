// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// ptp is a list's first part: cables between the host and each container, of two families.
func (r *runtime) ptp(v4, v6 string) conf {
	return conf{"type": "ptp", "ipam": map[string]any{
		"type": "host-local", "dataDir": filepath.Join(r.Dir, "ipam"),
		"ranges": [][]any{{map[string]any{"subnet": v4}}, {map[string]any{"subnet": v6}}},
		"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}},
	}}
}

// silent requires that nothing answers at an address, while something does at another one.
func (r *runtime) silent(what, proto string, from *netns.NS, to, control string) {
	r.t.Helper()
	ask := lab.AskTCP
	if proto == "udp" {
		ask = lab.AskUDP
	}
	try := func(to string, within time.Duration) func() error {
		return func() error {
			_, err := ask(from, "", to, "x", within)
			return err
		}
	}
	lab.Unreachable(r.t, what, try(to, silence), try(control, wait))
}

// Behind the plugin ptp: a cable for each container, that ends at the host.
func TestChainedPTP(t *testing.T) {
	r := newRuntime(t)
	c := r.chain("cables", r.ptp("10.46.0.0/24", "fd00:46::/64"), nil)
	web, peer := r.pod("web"), r.pod("peer")
	const ports = `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":8080,"containerPort":80,"protocol":"udp"},
		{"hostPort":8081,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]`
	c.must("add", "eth0", web, ports)
	c.must("add", "eth0", peer, "[]")
	r.serve(web, 80)
	r.serve(web, 81)
	r.serve(peer, 80)
	lab.ServeTCP(t, r.Host, "host", ":9000")
	lab.ServeUDP(t, r.Host, "host", ":9000")
	lab.ServeTCP(t, r.Client, "world", ":80")
	lab.ServeUDP(t, r.Client, "world", ":80")
	lab.AddRoute(t, r.Client, "10.46.0.0/24", lab.HostIPv4)
	lab.AddRoute(t, r.Client, "fd00:46::/64", lab.HostIPv6)
	for _, proto := range []string{"tcp", "udp"} {
		for _, f := range []struct{ host, client, lo, gateway, web, peer string }{
			{lab.HostIPv4, lab.ClientIPv4, "127.0.0.1", "10.46.0.1", "10.46.0.2", "10.46.0.3"},
			{"[" + lab.HostIPv6 + "]", lab.ClientIPv6, "[::1]", "fd00:46::1", "fd00:46::2", "fd00:46::3"},
		} {
			in := func(a string) string { // as part of an address with a port
				if a[0] != '[' && len(f.lo) < 6 {
					return "[" + a + "]"
				}
				return a
			}
			r.asks(r.Client, proto, f.host+":8080", "web", f.client)
			r.asks(r.Host, proto, f.lo+":8080", "web", f.gateway)
			r.asks(r.Host, proto, f.host+":8080", "web", f.gateway)
			r.asks(r.Host, proto, in(f.gateway)+":8080", "web", f.gateway)
			r.asks(peer.ns, proto, f.host+":8080", "web", f.peer)
			r.asks(web.ns, proto, f.host+":8080", "web", f.gateway) // hairpin
			r.asks(peer.ns, proto, in(f.gateway)+":8080", "web", f.peer)
			// The rest of its traffic, too: the host and back, a peer, the world.
			r.asks(r.Host, proto, in(f.web)+":81", "web", f.gateway)
			r.asks(web.ns, proto, in(f.gateway)+":9000", "host", f.web)
			r.asks(peer.ns, proto, in(f.web)+":81", "web", f.peer)
			r.asks(web.ns, proto, in(f.client)+":80", "world", strings.Trim(f.host, "[]"))
			r.silent("an address that only the host has", proto, r.Client, in(f.web)+":80", f.host+":8080")
			r.silent("a port that is not published", proto, r.Client, in(f.web)+":81", f.host+":8080")
		}
	}
	r.silent("8081 from outside", "tcp", r.Client, lab.HostIPv4+":8081", lab.HostIPv4+":8080")
	r.asks(r.Host, "tcp", "127.0.0.1:8081", "web", "")
	for _, address := range []string{"10.46.0.2", "fd00:46::2"} {
		require.NoError(t, lab.Ping(r.Host, address, wait))
		require.NoError(t, lab.Ping(peer.ns, address, wait))
	}
	// In pieces, both ways.
	long := strings.Repeat("x", 4000)
	for from, to := range map[*netns.NS]string{r.Client: lab.HostIPv4 + ":8080", web.ns: "10.46.0.1:9000", r.Host: "[fd00:46::2]:81", peer.ns: "10.46.0.2:81"} {
		line, err := lab.AskUDP(from, "", to, long, wait)
		require.NoError(t, err, to)
		require.Contains(t, line, long)
	}
	c.must("check", "eth0", web, ports)
	c.must("check", "eth0", peer, "[]")
}

// Containers of a list and of two lists, as icc, isolate and ipMasq have it; and nobody in
// another's name.
func TestChainedPTPPolicies(t *testing.T) {
	r := newRuntime(t)
	shy := r.chain("shy", r.ptp("10.46.0.0/24", "fd00:46::/64"), conf{"icc": false, "ipMasq": false})
	open := r.chain("open", r.ptp("10.47.0.0/24", "fd00:47::/64"), conf{"isolate": false})
	free := r.chain("free", r.ptp("10.48.0.0/24", "fd00:48::/64"), conf{"isolate": false})
	a, b, c, d := r.pod("aa"), r.pod("bb"), r.pod("cc"), r.pod("dd")
	const ports = `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]`
	shy.must("add", "eth0", a, ports)
	shy.must("add", "eth0", b, "[]")
	open.must("add", "eth0", c, "[]")
	free.must("add", "eth0", d, "[]")
	for _, p := range []pod{a, b, c, d} {
		r.serve(p, 80)
	}
	r.silent("icc off", "tcp", b.ns, "10.46.0.2:80", lab.HostIPv4+":8080")
	r.silent("icc off", "tcp", b.ns, "[fd00:46::2]:80", "["+lab.HostIPv6+"]:8080")
	r.asks(b.ns, "tcp", lab.HostIPv4+":8080", "aa", "10.46.0.1")
	r.silent("isolated", "tcp", c.ns, "10.46.0.2:80", lab.HostIPv4+":8080")
	r.asks(c.ns, "tcp", "10.48.0.2:80", "dd", "10.47.0.2")
	r.asks(d.ns, "udp", "[fd00:47::2]:80", "cc", "fd00:48::2")

	// Not masqueraded: the world has to have a route.
	lab.ServeTCP(t, r.Client, "world", ":80")
	lab.AddRoute(t, r.Client, "10.46.0.0/24", lab.HostIPv4)
	r.asks(a.ns, "tcp", lab.ClientIPv4+":80", "world", "10.46.0.2")
	r.asks(c.ns, "tcp", lab.ClientIPv4+":80", "world", lab.HostIPv4)

	// Another's address, though the route to it leads here.
	lab.ServeUDP(t, r.Host, "host", ":9000")
	_, err := r.Run(c.ns, "ip", "address", "add", "10.47.0.99/32", "dev", "eth0")
	require.NoError(t, err)
	_, err = r.Run(r.Host, "ip", "route", "add", "10.47.0.99/32", "dev", r.cable("cc"))
	require.NoError(t, err)
	ask := func(from string) func() error {
		return func() error {
			_, err := lab.AskUDP(c.ns, from, "10.47.0.1:9000", "x", silence)
			return err
		}
	}
	lab.Unreachable(t, "a forged source", ask("10.47.0.99:0"), ask("10.47.0.2:0"))
	for name, p := range map[*chain]pod{shy: a, open: c, free: d} {
		name.must("del", "eth0", p, "[]")
	}
	shy.must("del", "eth0", b, "[]")
	r.empty()
	require.Empty(t, r.networks())
}

// cable is the host's end of a container's only one.
func (r *runtime) cable(name string) (device string) {
	r.t.Helper()
	c, err := r.m.Container(name)
	require.NoError(r.t, err)
	for _, ep := range c.Endpoints {
		device = ep.HostIf
	}
	return device
}

// networks are the names of those that runtimes have.
func (r *runtime) networks() (list []string) {
	r.t.Helper()
	all, err := r.m.Networks()
	require.NoError(r.t, err)
	for _, n := range all {
		if n.Engine != "" {
			list = append(list, n.Name)
		}
	}
	return list
}

// The life of it: listings, torn-out programs, a namespace that goes, GC, and the last one.
func TestChainedPTPLife(t *testing.T) {
	r := newRuntime(t)
	c := r.chain("cables", r.ptp("10.46.0.0/24", "fd00:46::/64"), nil)
	web, other, third := r.pod("web"), r.pod("other"), r.pod("third")
	port := func(n int) string { return fmt.Sprintf(`[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]`, n) }
	c.must("add", "eth0", web, port(8080))
	added, err := c.tool("add", "eth0", other, port(8081))
	require.NoError(t, err, added)
	for _, p := range []pod{web, other, third} {
		r.serve(p, 80)
	}
	works := func() {
		t.Helper()
		r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
		r.asks(r.Client, "tcp", "["+lab.HostIPv6+"]:8080", "web", lab.ClientIPv6)
		r.asks(web.ns, "tcp", "10.46.0.3:80", "other", "10.46.0.2")
	}
	works()
	cli := r.cli
	require.Contains(t, cli("network", "ls"), "cni/cables")
	require.Contains(t, cli("network", "inspect", "cni/cables"), "10.46.0.0/24")
	require.Contains(t, cli("inspect", "cni/web"), "10.46.0.2")
	require.NotContains(t, cli("bridge", "ls"), "cables")
	require.Contains(t, cli("port", "cni/web"), "0.0.0.0:8080")
	require.NotContains(t, cli("reconcile"), "device") // there was nothing to put back
	works()

	// Somebody takes a program off.
	r.detach(loader.BPFProgFromEndpoint, r.cable("web"))
	out, err := c.tool("check", "eth0", web, port(8080))
	require.Error(t, err)
	require.Contains(t, out, r.cable("web"))
	// cnitool checks the ports that it has added; a runtime that wants others is told.
	direct := conf{"cniVersion": "1.0.0", "name": "cables", "type": "bpfnet", "root": r.Root, "prevResult": json.RawMessage(added)}
	ask := call{command: "CHECK", conf: mapped(direct, "8081:80/tcp"), id: r.containers()["cni/other"].ID, netns: other.path}
	r.must(ask)
	ask.conf = mapped(direct, "9999:80/tcp")
	r.fails(ask, 101, "9999:80/tcp")
	require.Contains(t, cli("reconcile"), r.cable("web"))
	c.must("check", "eth0", web, port(8080))
	works()

	// A cable that the engine of it has taken away, and laid anew.
	_, err = r.Run(r.Host, "ip", "link", "delete", r.cable("other"))
	require.NoError(t, err)
	require.Contains(t, cli("reconcile"), "is gone")
	require.NotContains(t, r.containers(), "cni/other")
	c.must("del", "eth0", other, port(8081))
	c.must("del", "eth0", other, port(8081))
	c.must("add", "eth0", other, port(8081))
	r.asks(r.Client, "tcp", lab.HostIPv4+":8081", "other", lab.ClientIPv4)

	// The runtime forgets one.
	c.must("add", "eth0", third, port(8082))
	id := r.containers()["cni/web"].ID
	r.must(call{command: "GC", conf: conf{"cniVersion": "1.1.0", "name": "cables", "type": "bpfnet", "root": r.Root,
		"cni.dev/valid-attachments": []any{map[string]any{"containerID": id, "ifname": "eth0"}}}})
	require.Len(t, r.containers(), 1)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)

	// The namespace goes first; with the last container the network goes, too.
	web.vanish(t)
	require.Contains(t, cli("reconcile"), "its namespace is gone")
	require.Empty(t, r.networks())
	for _, p := range []pod{web, other, third} {
		c.must("del", "eth0", p, "[]")
	}
	r.empty()
	c.must("add", "eth0", other, port(8081))
	r.asks(r.Client, "tcp", lab.HostIPv4+":8081", "other", lab.ClientIPv4)
}

// detach takes a program off a device as somebody with bpftool would.
func (r *runtime) detach(program, device string) {
	r.t.Helper()
	pins, err := filepath.Glob(fmt.Sprintf("%s/links/%s-%d-*", r.BPFFS, program, lab.Link(r.t, r.Host, device).Attrs().Index))
	require.NoError(r.t, err)
	require.Len(r.t, pins, 1)
	l, err := link.LoadPinnedLink(pins[0], nil)
	require.NoError(r.t, err)
	defer l.Close()
	require.NoError(r.t, l.Detach())
}
