// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
	"github.com/bpfnet/bpfnet/tests/needs"
)

// nextOnly ends a test that podman 4 is too old for.
func nextOnly(t testing.TB) {
	t.Helper()
	if !needs.Next() {
		t.Skip("make test-engines-next runs it")
	}
}

// netavark calls the real one, as podman does.
func (d *driver) netavark(in any, args ...string) (object, error) {
	d.t.Helper()
	data, err := json.Marshal(in)
	require.NoError(d.t, err)
	args = append([]string{"--config", d.Dir, "--rootless", "false", "--plugin-directory", filepath.Dir(plugin(d.t))}, args...)
	cmd := exec.Command("/usr/lib/podman/netavark", args...)
	cmd.Stdin = strings.NewReader(string(data))
	p, err := d.StartCommand(d.Host, cmd)
	require.NoError(d.t, err)
	if err := p.Wait(time.Minute); err != nil {
		return nil, fmt.Errorf("%w: %s%s", err, p.Stdout(), p.Stderr())
	}
	require.Empty(d.t, p.Stderr())
	var answer object
	if out := p.Stdout(); out != "" {
		require.NoError(d.t, json.Unmarshal([]byte(out), &answer), out)
	}
	return answer, nil
}

// netavark itself as the caller, with a container on two networks.
func TestNetavarkCalls(t *testing.T) {
	nextOnly(t)
	d := newDriver(t)
	ns, path := d.AddNetns(t, "web")
	front := d.must(d.network(object{"name": "front", "subnets": []any{object{"subnet": "10.90.0.0/24"}, object{"subnet": "fd00:90::/64"}}}), "create")
	back := d.must(d.network(object{"name": "back", "id": strings.Repeat("2f", 32), "subnets": nil, "ipam_options": object{"driver": "none"}}), "create")
	request := object{
		"container_id": containerID, "container_name": "web",
		"port_mappings": []any{
			object{"container_port": 80, "host_ip": "", "host_port": 8080, "protocol": "tcp,udp", "range": 1},
			object{"container_port": 7000, "host_ip": "", "host_port": 9000, "protocol": "tcp", "range": 1000},
		},
		"networks": object{
			"front": object{"interface_name": "eth0", "static_ips": []string{"10.90.0.50", "fd00:90::50"}, "static_mac": "02:aa:cc:dd:aa:00", "aliases": []string{"www"}},
			"back":  object{"interface_name": "eth1"},
		},
		"network_info": object{"front": front, "back": back},
	}
	status, err := d.netavark(request, "setup", path)
	require.NoError(t, err)
	eth0 := status["front"].(object)["interfaces"].(object)["eth0"].(object)
	require.Equal(t, "02:aa:cc:dd:aa:00", eth0["mac_address"])
	require.Equal(t, []any{object{"ipnet": "10.90.0.50/24", "gateway": "10.90.0.1"}, object{"ipnet": "fd00:90::50/64", "gateway": "fd00:90::1"}}, eth0["subnets"])
	require.Len(t, status["back"].(object)["interfaces"].(object)["eth1"].(object)["subnets"], 1)
	for _, port := range []string{":80", ":7999"} {
		lab.ServeTCP(t, ns, "web", port)
	}
	lab.ServeUDP(t, ns, "web", ":80")
	answers(t, lab.AskTCP, d.Client, lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	answers(t, lab.AskUDP, d.Client, "["+lab.HostIPv6+"]:8080", "web", lab.ClientIPv6)
	answers(t, lab.AskTCP, d.Client, lab.HostIPv4+":9999", "web", lab.ClientIPv4)
	list, err := d.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, list, 2*3, "a range is one rule of a family")

	_, err = d.netavark(request, "setup", path)
	require.ErrorContains(t, err, `plugin \"bpfnet-netavark\" failed: exit code 1, message: `)
	require.ErrorContains(t, err, "already exists in network")

	_, err = d.netavark(nil, "update", "front", "--network-dns-servers", "203.0.113.2")
	require.NoError(t, err)
	for range 2 {
		_, err = d.netavark(request, "teardown", path)
		require.NoError(t, err)
	}
	d.nothing()
}

// box starts a container with servers of the lab's in its namespace.
func (e *engine) box(name string, flags ...string) *netns.NS {
	e.t.Helper()
	e.must(append(append([]string{"run", "-d", "--name", name, "--cgroup-parent", e.parent}, flags...), "web", "sleep", "100000")...)
	return e.serve(name)
}

func (e *engine) serve(name string) *netns.NS {
	e.t.Helper()
	pid, err := strconv.Atoi(e.must("inspect", "-f", "{{.State.Pid}}", name))
	require.NoError(e.t, err)
	ns, err := netns.OfPID(pid)
	require.NoError(e.t, err)
	e.t.Cleanup(func() { ns.Close() })
	for _, port := range []string{":80", ":179"} {
		lab.ServeTCP(e.t, ns, name, port)
		lab.ServeUDP(e.t, ns, name, port)
	}
	return ns
}

type asks = func(*netns.NS, string, string, string, time.Duration) (string, error)

// answers requires that a server's own answer comes, and that it sees who asks: podman has sockets
// on the ports, too.
func answers(t testing.TB, ask asks, from *netns.NS, to, server, sees string) {
	t.Helper()
	line, err := ask(from, "", to, "hello", wait)
	require.NoError(t, err, to)
	r, err := lab.ParseReply(line)
	require.NoError(t, err)
	require.Equal(t, server, r.Server, to)
	require.Equal(t, "hello", r.Payload)
	require.Equal(t, sees, r.Remote.Addr().String(), to)
}

// create is network create with the store of the lab's.
func (e *engine) create(name string, flags ...string) error {
	_, err := e.podman(append(append([]string{"network", "create", "--driver", "bpfnet-netavark", "--opt", "root=" + e.Root}, flags...), name)...)
	return err
}

// podman 5: a network of two families, from its creation to its removal.
func TestNetworkLife(t *testing.T) {
	nextOnly(t)
	e := newEngine(t)
	for flags, words := range map[string]string{
		"--opt frob=1":    "network bad: option frob: not one of mtu, icc,",
		"--opt icc=maybe": `option icc: "maybe": true or false`,
		"--subnet 10.90.0.0/24 --gateway 10.91.0.1":            "invalid gateway 10.91.0.1",
		"--subnet 10.90.0.0/24 --subnet 10.91.0.0/24":          "one per family at most",
		"--ipam-driver dhcp":                                   "ipam driver dhcp: host-local or none",
		"--subnet 10.90.0.0/24 --route 10.0.0.0/8,10.90.0.1,7": "metric 7: routes have none",
	} {
		require.ErrorContains(t, e.create("bad", strings.Fields(flags)...), words, flags)
	}
	require.NoError(t, e.create("six", "--subnet", "10.92.0.0/24", "--subnet", "fd00:92::/64", "--ip-range", "10.92.0.128/25", "--opt", "mtu=1400"))
	require.Equal(t, "10.92.0.1 fd00:92::1 false bpfnet-netavark", e.must("network", "inspect", "-f",
		"{{range .Subnets}}{{.Gateway}} {{end}}{{.DNSEnabled}} {{.Driver}}", "six"))

	ns := e.box("web", "-p", "8080:80", "-p", "8080:80/udp", "-p", "9000-9099:80-179", "-p", "9000-9099:80-179/udp", "-p", "[::1]:8081:80",
		"--network", "six:ip=10.92.0.50,ip6=fd00:92::50,mac=02:11:22:33:44:55,interface_name=lan0")
	require.Equal(t, "10.92.0.50/24 fd00:92::50/64 02:11:22:33:44:55", e.must("inspect", "-f",
		`{{with index .NetworkSettings.Networks "six"}}{{.IPAddress}}/{{.IPPrefixLen}} {{.GlobalIPv6Address}}/{{.GlobalIPv6PrefixLen}} {{.MacAddress}}{{end}}`, "web"))
	require.Contains(t, e.must("exec", "web", "busybox", "ip", "link", "show", "lan0"), "mtu 1400")
	resolv := e.must("exec", "web", "busybox", "cat", "/etc/resolv.conf")
	require.NotContains(t, resolv, "10.92.0.1", "aardvark has no part in it")
	list, err := e.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, list, 2*4+1, "a range is one rule of a family")
	published := func() {
		t.Helper()
		for _, ask := range []asks{lab.AskTCP, lab.AskUDP} {
			answers(t, ask, e.Client, lab.HostIPv4+":8080", "web", lab.ClientIPv4)
			answers(t, ask, e.Client, "["+lab.HostIPv6+"]:8080", "web", lab.ClientIPv6)
			answers(t, ask, e.Client, lab.HostIPv4+":9099", "web", lab.ClientIPv4)
			answers(t, ask, e.Host, "127.0.0.1:9000", "web", "10.92.0.1")
		}
	}
	published()
	answers(t, lab.AskTCP, e.Host, "[::1]:8081", "web", "fd00:92::1")
	lab.Unreachable(t, "a port of [::1] from outside",
		func() error { _, err := lab.AskTCP(e.Client, "", "["+lab.HostIPv6+"]:8081", "x", silence); return err },
		func() error { _, err := lab.AskTCP(e.Client, "", "["+lab.HostIPv6+"]:8080", "x", wait); return err })
	lab.ServeTCP(t, e.Client, "world", ":9000")
	answers(t, lab.AskTCP, ns, lab.ClientIPv4+":9000", "world", lab.HostIPv4)
	answers(t, lab.AskTCP, ns, "["+lab.ClientIPv6+"]:9000", "world", lab.HostIPv6)

	// Others: an address of podman's choice, on the network and on another one.
	peer := e.box("peer", "--network", "six")
	require.Equal(t, "10.92.0.129", e.address("peer", "six"))
	answers(t, lab.AskTCP, peer, "10.92.0.50:80", "web", "10.92.0.129")
	other := e.box("other")
	lab.Unreachable(t, "another network",
		func() error { _, err := lab.AskTCP(other, "", "10.92.0.50:80", "x", silence); return err },
		func() error { _, err := lab.AskTCP(peer, "", "10.92.0.50:80", "x", wait); return err })
	answers(t, lab.AskTCP, other, lab.HostIPv4+":8080", "web", e.address("other", "podman"))

	// What the plugin refuses podman shows, and takes back what it has done.
	_, err = e.podman("run", "-d", "--name", "late", "--cgroup-parent", e.parent, "--network", "six", "-p", "7000:80/sctp", "web", "sleep", "1")
	require.ErrorContains(t, err, `plugin "bpfnet-netavark" failed: exit code 1, message: port "7000:80/sctp": sctp needs the same port on both sides`)
	_, err = e.m.Container("late")
	require.Error(t, err)

	// A pod: its containers share the first one's network.
	e.must("pod", "create", "--name", "pod", "--cgroup-parent", e.parent, "--infra-image", "web", "--infra-command", "sleep 100000", "--network", "six", "-p", "8090:80")
	e.box("inner", "--pod", "pod")
	answers(t, lab.AskTCP, e.Client, lab.HostIPv4+":8090", "inner", lab.ClientIPv4)
	e.must("pod", "rm", "-f", "-t", "0", "pod")

	e.must("restart", "-t", "0", "web")
	e.serve("web")
	published()
	pid, err := strconv.Atoi(e.must("inspect", "-f", "{{.State.Pid}}", "web"))
	require.NoError(t, err)
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	e.eventually("podman has taken down what was killed", func() bool { _, err := e.m.Container("web"); return err != nil })
	_, err = lab.AskUDP(e.Client, "", lab.HostIPv4+":8080", "x", silence)
	require.Error(t, err)
	e.must("start", "web")
	e.serve("web")
	published()

	// The network goes with its last container, and may come back as another one.
	_, err = e.podman("network", "rm", "six")
	require.ErrorContains(t, err, "network is being used")
	e.must("rm", "-f", "-t", "0", "web", "peer", "late")
	e.must("network", "rm", "six")
	_, err = e.m.Network("six")
	require.Error(t, err)
	require.NoError(t, e.create("six", "--subnet", "10.93.0.0/24", "--internal"))
	in := e.box("in", "--network", "six")
	lab.Unreachable(t, "the world from an internal network",
		func() error {
			if _, err := e.Run(in, "ip", "route", "replace", "default", "via", "10.93.0.1"); err != nil {
				return err
			}
			_, err := lab.AskTCP(in, "", lab.ClientIPv4+":9000", "x", silence)
			return err
		},
		func() error { _, err := lab.AskTCP(other, "", lab.ClientIPv4+":9000", "x", wait); return err })
	e.must("rm", "-f", "-t", "0", "-a")
	e.empty()
	networks, err := e.m.Networks()
	require.NoError(t, err)
	require.Empty(t, networks)
}
