// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// chain is a list of plugins with bpfnet behind the one that makes the interface, called by
// cnitool with the plugins of others.
type chain struct {
	*runtime
	net, path string
	name      string
	after     conf // bpfnet's own part
}

func (r *runtime) chain(name string, main, after conf) *chain {
	r.t.Helper()
	if netfilter() {
		r.t.Skip("only the datapath bpf carries the packets of another's interface")
	}
	others := upstream(r.t)
	c := &chain{runtime: r, net: r.t.TempDir(), path: filepath.Dir(lab.Binary(r.t)) + ":" + others, name: name, after: after}
	after = conf{"type": "bpfnet", "root": r.Root, "capabilities": map[string]bool{"portMappings": true}}.with(after)
	list := map[string]any{"cniVersion": "1.0.0", "name": name, "plugins": []any{main, after}}
	require.NoError(r.t, os.WriteFile(filepath.Join(c.net, "10.conflist"), []byte(mustJSON(r.t, list)), 0o644))
	return c
}

func (c *chain) tool(command, ifName string, p pod, ports string) (string, error) {
	c.t.Helper()
	cmd := exec.Command(cnitool(c.t), command, c.name, p.path)
	cmd.Env = append(os.Environ(), "CNI_PATH="+c.path, "NETCONFPATH="+c.net, "CNI_IFNAME="+ifName,
		`CAP_ARGS={"portMappings":`+ports+`}`, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME="+p.id)
	run, err := c.StartCommand(c.Host, cmd)
	require.NoError(c.t, err)
	err = run.Wait(time.Minute)
	return run.Stdout() + run.Stderr(), err
}

func (c *chain) must(command, ifName string, p pod, ports string) {
	c.t.Helper()
	out, err := c.tool(command, ifName, p, ports)
	require.NoError(c.t, err, "%s: %s", command, out)
}

func (r *runtime) bridge(device, subnet string) conf {
	return conf{"type": "bridge", "bridge": device, "isDefaultGateway": device == "cni0", "isGateway": true,
		"ipam": map[string]any{"type": "host-local", "dataDir": filepath.Join(r.Dir, "ipam"), "subnet": subnet}}
}

// Behind the plugin bridge: it makes the interface, bpfnet publishes the ports and carries the packets.
func TestChained(t *testing.T) {
	r := newRuntime(t)
	one := r.chain("one", r.bridge("cni0", "10.44.0.0/24"), nil)
	two := r.chain("two", r.bridge("cni1", "10.45.0.0/24"), nil)
	web, peer := r.pod("web"), r.pod("peer")
	const ports = `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"},{"hostPort":8080,"containerPort":80,"protocol":"udp"},
		{"hostPort":8081,"containerPort":80,"protocol":"tcp","hostIP":"127.0.0.1"}]`
	one.must("add", "eth0", web, ports)
	one.must("add", "eth0", peer, "[]")
	r.serve(web, 80)
	for _, proto := range []string{"tcp", "udp"} {
		r.asks(r.Client, proto, lab.HostIPv4+":8080", "web", lab.ClientIPv4)
		r.asks(r.Host, proto, "127.0.0.1:8080", "web", "10.44.0.1")
		r.asks(peer.ns, proto, lab.HostIPv4+":8080", "web", "10.44.0.3")
		r.asks(peer.ns, proto, "10.44.0.2:80", "web", "10.44.0.3")
	}
	r.asks(r.Host, "tcp", "127.0.0.1:8081", "web", "")
	lab.ServeTCP(t, r.Client, "world", lab.ClientIPv4+":80")
	r.asks(web.ns, "tcp", lab.ClientIPv4+":80", "world", lab.HostIPv4)
	lab.Unreachable(t, "8081 from outside", func() error {
		_, err := lab.AskTCP(r.Client, "", lab.HostIPv4+":8081", "x", silence)
		return err
	}, func() error {
		_, err := lab.AskTCP(r.Client, "", lab.HostIPv4+":8080", "x", wait)
		return err
	})
	one.must("check", "eth0", web, ports)
	require.ErrorContains(t, r.m.RemoveContainer("web"), "belongs to cni")
	require.ErrorContains(t, r.m.RemoveNetwork("one"), "belongs to cni")

	// A network of bpfnet's own does not mix with that.
	own := web.call("ADD", r.pods())
	own.ifName = "eth1"
	r.fails(own, 100, "attached to it already") // under another ID
	adopted, err := r.m.Container("web")
	require.NoError(t, err)
	own.id = adopted.ID
	r.fails(own, 100, "belongs to cni")

	// A second network of the container's; its ports go by the first, until that goes.
	two.must("add", "eth1", web, ports)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	one.must("check", "eth0", web, ports)
	two.must("check", "eth1", web, ports)
	two.must("del", "eth1", web, ports)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	two.must("add", "eth1", web, ports)
	one.must("del", "eth0", web, ports)
	r.asks(r.Host, "tcp", "127.0.0.1:8080", "web", "10.45.0.1") // the plugin gave this one no default route
	two.must("del", "eth1", web, ports)
	two.must("del", "eth1", web, ports)
	_, err = r.m.Container("web")
	require.Error(t, err)

	// What is in the way is an error, and nothing is left of it.
	one.must("add", "eth0", web, ports)
	out, err := one.tool("add", "eth1", peer, ports)
	require.Error(t, err)
	require.Contains(t, out, "already")
	late := r.pod("late")
	out, err = one.tool("add", "eth0", late, `[{"hostPort":8079,"containerPort":80,"protocol":"tcp"},{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]`)
	require.Error(t, err)
	require.Contains(t, out, "8080")
	_, err = r.m.Container("late")
	require.Error(t, err)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	one.must("del", "eth0", late, "[]")

	// The namespace is gone before DEL.
	web.vanish(t)
	one.must("del", "eth0", web, ports)
	one.must("del", "eth0", peer, "[]")
	r.empty()
}

// Several at once: each has its own port, and nothing is left.
func TestChainedAtOnce(t *testing.T) {
	r := newRuntime(t)
	c := r.chain("one", r.bridge("cni0", "10.44.0.0/24"), nil)
	pods := make([]pod, 8)
	for i := range pods {
		pods[i] = r.pod(fmt.Sprintf("pod%d", i))
		r.serve(pods[i], 80)
	}
	all := func(command string) {
		var wg sync.WaitGroup
		for i, p := range pods {
			wg.Go(func() {
				out, err := c.tool(command, "eth0", p, fmt.Sprintf(`[{"hostPort":%d,"containerPort":80,"protocol":"tcp"}]`, 8000+i))
				assert.NoError(t, err, out)
			})
		}
		wg.Wait()
	}
	all("add")
	for i, p := range pods {
		r.asks(r.Client, "tcp", fmt.Sprintf("%s:%d", lab.HostIPv4, 8000+i), p.id, lab.ClientIPv4)
	}
	all("del")
	r.empty()
}

// What cannot be followed is said, and left alone.
func TestChainedRefused(t *testing.T) {
	r := newRuntime(t)
	p := r.pod("p")
	_, err := r.Run(r.Host, "ip", "link", "add", "lan0", "type", "veth", "peer", "lan1")
	require.NoError(t, err)
	require.NoError(t, r.m.Init(&control.Config{Uplinks: []string{r.X.Device}}))
	ipam := map[string]any{"type": "host-local", "dataDir": filepath.Join(r.Dir, "ipam"), "subnet": "10.46.0.0/24"}
	for name, tt := range map[string]struct {
		main, after conf
		words       string
	}{
		"a device":      {conf{"type": "host-device", "device": "lan1", "ipam": ipam}, nil, "no macvlan"},
		"a private one": {conf{"type": "macvlan", "master": "eth0", "mode": "private", "ipam": ipam}, nil, "in mode bridge"},
		"no uplink":     {conf{"type": "macvlan", "master": "lan0", "ipam": ipam}, nil, "no uplink"},
		"another's net": {r.bridge("cni0", "10.44.0.0/24"), conf{"subnets": []string{"10.44.0.0/24"}}, "subnets"},
		"another's mtu": {r.bridge("cni0", "10.44.0.0/24"), conf{"mtu": 1400}, "mtu"},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.t = t
			c := r.chain("refused", tt.main, tt.after)
			out, err := c.tool("add", "eth0", p, "[]")
			require.Error(t, err)
			require.Contains(t, out, tt.words)
			c.must("del", "eth0", p, "[]")
			require.Empty(t, r.containers())
		})
	}
}

// GC ends what bpfnet has of an attachment that is not listed.
func TestChainedGC(t *testing.T) {
	r := newRuntime(t)
	c := r.chain("one", r.bridge("cni0", "10.44.0.0/24"), nil)
	web, stale := r.pod("web"), r.pod("stale")
	c.must("add", "eth0", web, `[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]`)
	c.must("add", "eth0", stale, `[{"hostPort":8081,"containerPort":80,"protocol":"tcp"}]`)
	r.serve(web, 80)
	id := ""
	for name, have := range r.containers() {
		if name == "cni/web" {
			id = have.ID
		}
	}
	require.NotEmpty(t, id)
	r.must(call{command: "GC", conf: conf{"cniVersion": "1.1.0", "name": "one", "type": "bpfnet", "root": r.Root,
		"cni.dev/valid-attachments": []any{map[string]any{"containerID": id, "ifname": "eth0"}}}})
	require.Len(t, r.containers(), 1)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	for _, p := range []pod{web, stale} {
		c.must("del", "eth0", p, "[]")
	}
	r.empty()
}
