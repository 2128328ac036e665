// SPDX-License-Identifier: Apache-2.0

// Package cni calls bpfnet as container runtimes do, by hand and by cnitool, in a lab of
// its own.
//
//	X 203.0.113.2 ──────── 203.0.113.1 H ─┬─ pods 10.88.0.0/16, fd00:88::/64 ── containers
//	  2001:db8:113::2    2001:db8:113::1  └─ others, of the tests' making
package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
	"github.com/bpfnet/bpfnet/tests/needs"
)

const (
	wait    = 3 * time.Second
	silence = 300 * time.Millisecond
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// cnitool is the specification's own runtime.
func cnitool(t testing.TB) string {
	t.Helper()
	path, err := lab.Build("github.com/containernetworking/cni/cnitool")
	require.NoError(t, err)
	return path
}

// runtime plays a container runtime on the lab's host.
type runtime struct {
	*lab.Lab
	t testing.TB
	m *control.Manager
}

func newRuntime(t *testing.T, opts ...lab.Option) *runtime {
	t.Helper()
	needs.Engines(t)
	t.Parallel() // each has a host of its own, and waits most of its time
	r := &runtime{Lab: lab.New(t, opts...), t: t}
	m, err := control.Open(control.Options{Root: r.Root, BPFFS: r.BPFFS, Netns: r.NetnsPath, Cgroup: r.Cgroup, Datapath: datapath()})
	require.NoError(t, err)
	r.m = m
	require.NoError(t, m.Init(nil))
	t.Cleanup(func() {
		require.NoError(t, m.Uninstall())
		require.NoError(t, m.Close())
	})
	return r
}

// datapath is which one the tests run on: BPFNET_DATAPATH, or bpf.
func datapath() string { return os.Getenv("BPFNET_DATAPATH") }

// netfilter says whether they run on iptables, which promises less.
func netfilter() bool { return datapath() == control.DatapathIPTables }

// upstream is where the plugins of containernetworking are. They come with make test-engines.
func upstream(t testing.TB) string {
	t.Helper()
	for _, dir := range []string{"/usr/lib/cni", "/opt/cni/bin"} {
		if _, err := os.Stat(filepath.Join(dir, "host-local")); err == nil {
			return dir
		}
	}
	t.Fatal("host-local: not in /usr/lib/cni or /opt/cni/bin")
	return ""
}

// conf is a network's configuration.
type conf map[string]any

// with is the configuration with more in it; nil takes away.
func (c conf) with(more conf) conf {
	next := conf{}
	for _, part := range []conf{c, more} {
		for k, v := range part {
			if next[k] = v; v == nil {
				delete(next, k)
			}
		}
	}
	return next
}

// pods is the network of most tests. Where the store is stands in it, as in an installation
// that cannot count on its runtime's environment.
func (r *runtime) pods() conf {
	return conf{
		"cniVersion": "1.1.0", "name": "pods", "type": "bpfnet", "root": r.Root,
		"subnets":      []string{"10.88.0.0/16", "fd00:88::/64"},
		"capabilities": map[string]bool{"portMappings": true, "ips": true, "mac": true, "aliases": true, "dns": true},
	}
}

// call is one call of the plugin.
type call struct {
	command string
	conf    conf
	id      string
	netns   string
	ifName  string // eth0
	args    string
	path    string // CNI_PATH: where the programs are
	program string // bpfnet
	unset   string // a variable that is left out
}

// answer is what it came to.
type answer struct {
	out    string
	code   int
	err    *types.Error // of a failure
	result *current.Result
}

// run calls the plugin in the host's namespace.
func (r *runtime) run(c call) answer {
	r.t.Helper()
	p := r.begin(c)
	return r.end(c, p)
}

func (r *runtime) begin(c call) *lab.Process {
	r.t.Helper()
	config, err := json.Marshal(c.conf)
	require.NoError(r.t, err)
	program, path, ifName := c.program, c.path, c.ifName
	if program == "" {
		program = lab.Binary(r.t)
	}
	if path == "" {
		path = filepath.Dir(lab.Binary(r.t))
	}
	if ifName == "" {
		ifName = "eth0"
	}
	cmd := exec.Command(program)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "BPFNET_") && !strings.HasPrefix(v, "CNI_") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	for _, v := range []string{
		"CNI_COMMAND=" + c.command, "CNI_CONTAINERID=" + c.id, "CNI_NETNS=" + c.netns, "CNI_IFNAME=" + ifName, "CNI_ARGS=" + c.args, "CNI_PATH=" + path,
	} {
		if c.unset == "" || !strings.HasPrefix(v, c.unset+"=") {
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Stdin = bytes.NewReader(config)
	p, err := r.StartCommand(r.Host, cmd)
	require.NoError(r.t, err)
	return p
}

func (r *runtime) end(c call, p *lab.Process) answer {
	r.t.Helper()
	err := p.Wait(time.Minute)
	a := answer{out: p.Stdout()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		a.code = exit.ExitCode()
		a.err = &types.Error{}
		require.NoError(r.t, json.Unmarshal([]byte(a.out), a.err), "%s: %s %s", c.command, a.out, p.Stderr())
		require.NotContains(r.t, a.err.Msg, "\n")
		return a
	}
	require.NoError(r.t, err)
	require.Empty(r.t, p.Stderr(), c.command)
	if c.command == "ADD" {
		version, _ := c.conf["cniVersion"].(string)
		given, err := create.Create(version, []byte(a.out))
		require.NoError(r.t, err, a.out)
		a.result, err = current.NewResultFromResult(given)
		require.NoError(r.t, err, a.out)
	}
	return a
}

// must is run where it has to work.
func (r *runtime) must(c call) answer {
	r.t.Helper()
	a := r.run(c)
	require.Zero(r.t, a.code, "%s %s: %s", c.command, c.id, a.out)
	return a
}

// fails requires a failure with a code, and with each of the words in its text.
func (r *runtime) fails(c call, code uint, words ...string) {
	r.t.Helper()
	a := r.run(c)
	require.NotZero(r.t, a.code, "%s %s: %s", c.command, c.id, a.out)
	require.Equal(r.t, code, a.err.Code, "%s", a.out)
	for _, w := range words {
		require.Contains(r.t, a.err.Error(), w)
	}
}

// pod is a container.
type pod struct {
	id   string
	ns   *netns.NS
	path string
}

// vanish ends the pod's namespace, and its path: the file descriptor that it leads to may
// soon be another test's.
func (p pod) vanish(t testing.TB) {
	t.Helper()
	require.NoError(t, os.Remove(p.path))
	require.NoError(t, p.ns.Close())
}

// cli runs the real program's other commands on the host, and gives what it wrote.
func (r *runtime) cli(args ...string) string {
	r.t.Helper()
	out, err := r.Run(r.Host, lab.Binary(r.t), args...)
	require.NoError(r.t, err)
	return out
}

func (r *runtime) pod(id string) pod {
	r.t.Helper()
	ns, fd := r.AddNetns(r.t, id)
	path := filepath.Join(r.Dir, "netns-"+filepath.Base(fd))
	require.NoError(r.t, os.Symlink(fd, path))
	return pod{id, ns, path}
}

func (p pod) call(command string, c conf) call {
	return call{command: command, conf: c, id: p.id, netns: p.path}
}

// addresses are those of a result, without lengths.
func addresses(a answer) (list []string) {
	for _, ip := range a.result.IPs {
		list = append(list, ip.Address.IP.String())
	}
	return list
}

// mapped is a configuration with port mappings, "8080:80/tcp" or "127.0.0.1:8080:80/udp".
func mapped(c conf, specs ...string) conf {
	var list []map[string]any
	for _, s := range specs {
		ports, proto, _ := strings.Cut(s, "/")
		m := map[string]any{"protocol": proto}
		fields := strings.Split(ports, ":")
		if n := len(fields); n > 2 {
			m["hostIP"] = strings.Trim(strings.Join(fields[:n-2], ":"), "[]")
			fields = fields[n-2:]
		}
		var host, container int
		fmt.Sscan(fields[0], &host)
		fmt.Sscan(fields[1], &container)
		m["hostPort"], m["containerPort"] = host, container
		list = append(list, m)
	}
	return c.with(conf{"runtimeConfig": map[string]any{"portMappings": list}})
}

// containers are those that the store has, by name.
func (r *runtime) containers() map[string]*control.Container {
	r.t.Helper()
	list, err := r.m.Containers()
	require.NoError(r.t, err)
	all := make(map[string]*control.Container)
	for _, c := range list {
		all[c.Name] = c
	}
	return all
}

// empty requires that nothing of a container is left: in the store, the kernel, or its maps.
func (r *runtime) empty() {
	r.t.Helper()
	require.Empty(r.t, r.containers())
	h, err := r.Host.Netlink()
	require.NoError(r.t, err)
	defer h.Close()
	links, err := h.LinkList()
	require.NoError(r.t, err)
	for _, l := range links {
		require.False(r.t, strings.HasPrefix(l.Attrs().Name, "bpfv"), "device %s is left", l.Attrs().Name)
	}
	status, err := r.m.Status()
	require.NoError(r.t, err)
	for _, table := range status.Tables {
		if strings.HasPrefix(table.Name, "ports") || table.Name == "rules" || table.Name == "endpoints" {
			require.Zero(r.t, table.Used, "table %s", table.Name)
		}
	}
	require.Empty(r.t, status.Problems)
}

// asks asks a server by tcp or udp and requires its name, and whom it saw ("": anybody).
func (r *runtime) asks(from *netns.NS, proto, to, server, saw string) {
	r.t.Helper()
	ask := lab.AskTCP
	if proto == "udp" {
		ask = lab.AskUDP
	}
	line, err := ask(from, "", to, "payload", wait)
	require.NoError(r.t, err, "%s %s", proto, to)
	reply, err := lab.ParseReply(line)
	require.NoError(r.t, err)
	require.Equal(r.t, server, reply.Server, "%s %s", proto, to)
	require.Equal(r.t, "payload", reply.Payload)
	if saw != "" {
		require.Equal(r.t, saw, reply.Remote.Addr().String(), "%s %s: whom the server saw", proto, to)
	}
}

// serve answers on a pod's port, by both protocols and families.
func (r *runtime) serve(p pod, port int) {
	r.t.Helper()
	lab.ServeTCP(r.t, p.ns, p.id, fmt.Sprintf(":%d", port))
	lab.ServeUDP(r.t, p.ns, p.id, fmt.Sprintf(":%d", port))
}
