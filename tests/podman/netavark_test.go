// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// netavark calls plugins since 1.6, and podman since 4.6; Debian's are older. So the protocol is
// spoken here, in the words of netavark's plugin-API.md.
type driver struct {
	*lab.Lab
	t testing.TB
	m *control.Manager
}

func newDriver(t testing.TB) *driver {
	t.Helper()
	d := &driver{Lab: lab.New(t), t: t}
	m, err := control.Open(control.Options{Root: d.Root, BPFFS: d.BPFFS, Netns: d.NetnsPath, Cgroup: d.Cgroup})
	require.NoError(t, err)
	d.m = m
	require.NoError(t, m.Init(nil))
	t.Cleanup(func() {
		require.NoError(t, m.Uninstall())
		require.NoError(t, m.Close())
	})
	return d
}

// plugin is the program under the name of the networks' driver.
func plugin(t testing.TB) string {
	t.Helper()
	name := filepath.Join(filepath.Dir(lab.Binary(t)), "bpfnet-netavark")
	if _, err := os.Lstat(name); err != nil {
		require.NoError(t, os.Symlink("bpfnet", name))
	}
	return name
}

// call gives what the plugin wrote; an error is the text of its {"error": …}.
func (d *driver) call(in any, args ...string) (out string, err error) {
	d.t.Helper()
	data, err := json.Marshal(in)
	require.NoError(d.t, err)
	cmd := exec.Command(plugin(d.t), args...)
	cmd.Stdin = bytes.NewReader(data)
	p, err := d.StartCommand(d.Host, cmd)
	require.NoError(d.t, err)
	bad := p.Wait(time.Minute)
	require.Empty(d.t, p.Stderr())
	if bad != nil {
		var said struct{ Error string }
		require.NoError(d.t, json.Unmarshal([]byte(p.Stdout()), &said), p.Stdout())
		require.NotEmpty(d.t, said.Error)
		return "", fmt.Errorf("%s", said.Error)
	}
	return p.Stdout(), nil
}

func (d *driver) must(in any, args ...string) map[string]any {
	d.t.Helper()
	out, err := d.call(in, args...)
	require.NoError(d.t, err)
	if out == "" {
		return nil
	}
	var answer map[string]any
	require.NoError(d.t, json.Unmarshal([]byte(out), &answer), out)
	return answer
}

// nothing requires that all is gone again, the networks too.
func (d *driver) nothing() {
	d.t.Helper()
	containers, err := d.m.Containers()
	require.NoError(d.t, err)
	require.Empty(d.t, containers)
	networks, err := d.m.Networks()
	require.NoError(d.t, err)
	require.Empty(d.t, networks)
}

type object = map[string]any

func (d *driver) network(more object) object {
	n := object{
		"name": "lab", "id": strings.Repeat("1f", 32), "driver": "bpfnet-netavark", "internal": false, "ipv6_enabled": false,
		"dns_enabled": true, "ipam_options": object{"driver": "host-local"}, "options": object{"root": d.Root},
		"subnets": []any{object{"subnet": "10.90.0.0/24"}}, "created": "2023-01-01T00:00:00Z",
	}
	for k, v := range more {
		n[k] = v
	}
	return n
}

const containerID = "752947ff91f961eb3cb47ffe9315016979f3ffbec09e4d96a4fae3fb03391697"

func TestNetavark(t *testing.T) {
	d := newDriver(t)
	require.Equal(t, "1.0.0", d.must(nil, "info")["api_version"])

	// create completes what podman needs to choose addresses, and touches nothing else.
	n := d.must(d.network(nil), "create")
	subnet := n["subnets"].([]any)[0].(object)
	require.Equal(t, "10.90.0.1", subnet["gateway"])
	require.Equal(t, false, n["dns_enabled"])
	for _, key := range []string{"name", "id", "driver", "created", "ipam_options"} {
		require.Equal(t, d.network(nil)[key], n[key], key)
	}
	networks, err := d.m.Networks()
	require.NoError(t, err)
	require.Empty(t, networks)

	for name, tt := range map[string]struct {
		network object
		words   string
	}{
		"option":  {object{"options": object{"frob": "1"}}, "frob"},
		"bool":    {object{"options": object{"icc": "maybe"}}, "maybe"},
		"mtu":     {object{"options": object{"mtu": "12"}}, "mtu"},
		"subnet":  {object{"subnets": []any{object{"subnet": "10.90.0.7/33"}}}, "network"},
		"gateway": {object{"subnets": []any{object{"subnet": "10.90.0.0/24", "gateway": "10.91.0.1"}}}, "10.91.0.1"},
		"name":    {object{"name": "host"}, "host"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := d.call(d.network(tt.network), "create")
			require.ErrorContains(t, err, tt.words)
			require.NotContains(t, err.Error(), "\n")
		})
	}

	ns, path := d.AddNetns(t, "web")
	request := object{
		"container_id": containerID, "container_name": "web", "network": n,
		"port_mappings": []any{
			object{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp", "range": 1},
			object{"container_port": 7000, "host_ip": "", "host_port": 9000, "protocol": "tcp,udp", "range": 1000},
			object{"container_port": 80, "host_ip": "127.0.0.1", "host_port": 8081, "protocol": "tcp", "range": 1},
		},
		"network_options": object{"aliases": []string{"www"}, "interface_name": "eth0", "static_ips": []string{"10.90.0.50"}, "static_mac": "02:aa:cc:dd:aa:00"},
	}
	status := d.must(request, "setup", path)
	eth0 := status["interfaces"].(object)["eth0"].(object)
	require.Equal(t, "02:aa:cc:dd:aa:00", eth0["mac_address"])
	require.Equal(t, []any{object{"ipnet": "10.90.0.50/24", "gateway": "10.90.0.1"}}, eth0["subnets"])
	require.Equal(t, []any{}, status["dns_server_ips"])
	list, err := d.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, list, 4, "a range is one rule")

	// podman's conmon then binds the ports, and they lead to the container all the same.
	d.MustBind(t, d.Host, "tcp", "0.0.0.0:8080")
	for _, port := range []int{80, 7000, 7999} {
		lab.ServeTCP(t, ns, "web", fmt.Sprintf(":%d", port))
	}
	lab.ServeUDP(t, ns, "web", ":7999")
	for _, to := range []string{":8080", ":9000", ":9999"} {
		line, err := lab.AskTCP(d.Client, "", lab.HostIPv4+to, "x", wait)
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(line, "web remote="+lab.ClientIPv4+":"), line)
	}
	line, err := lab.AskUDP(d.Client, "", lab.HostIPv4+":9999", "x", wait)
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(line, "web remote="+lab.ClientIPv4+":"), line)
	_, err = lab.AskTCP(d.Host, "", "127.0.0.1:8081", "x", wait)
	require.NoError(t, err)

	_, err = d.call(request, "setup", path)
	require.ErrorContains(t, err, "already exists in network lab")

	// A second network, whose addresses podman leaves to us.
	back := d.network(object{"name": "back", "subnets": nil, "ipam_options": object{"driver": "none"}})
	second := object{"container_id": containerID, "container_name": "web", "network": back, "network_options": object{"interface_name": "eth1"}}
	status = d.must(second, "setup", path)
	require.Len(t, status["interfaces"].(object)["eth1"].(object)["subnets"], 1)

	require.Nil(t, d.must(request, "teardown", path))
	require.Nil(t, d.must(request, "teardown", path))
	_, err = lab.AskTCP(d.Client, "", lab.HostIPv4+":9000", "x", wait)
	require.NoError(t, err, "the ports go by the network that is left")
	require.NoError(t, ns.Close())
	require.Nil(t, d.must(second, "teardown", path))
	d.nothing()

	// After a reboot that podman has used for another network of the name.
	ns, path = d.AddNetns(t, "before")
	first := object{"container_id": containerID, "container_name": "web", "network": n, "network_options": object{"interface_name": "eth0"}}
	d.must(first, "setup", path)
	require.NoError(t, ns.Close())
	_, path = d.AddNetns(t, "after")
	other := d.network(object{"id": strings.Repeat("2f", 32), "subnets": []any{object{"subnet": "10.91.0.0/24"}}})
	second = object{"container_id": strings.Repeat("3f", 32), "container_name": "web", "network": other, "network_options": object{"interface_name": "eth0"}}
	status = d.must(second, "setup", path)
	require.Equal(t, []any{object{"ipnet": "10.91.0.2/24", "gateway": "10.91.0.1"}}, status["interfaces"].(object)["eth0"].(object)["subnets"])
	d.must(second, "teardown", path)
	d.nothing()

	for name, args := range map[string][]string{"nothing": nil, "unknown": {"frob"}, "no namespace": {"setup"}, "not there": {"setup", "/run/netns/not-there-at-all"}} {
		t.Run(name, func(t *testing.T) {
			_, err := d.call(request, args...)
			require.Error(t, err)
		})
	}
	_, err = d.call("nonsense", "setup", path)
	require.ErrorContains(t, err, "standard input")
}
