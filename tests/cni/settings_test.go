// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// What a runtime asks for, by which of its ways, and which goes before which.
func TestWishes(t *testing.T) {
	r := newRuntime(t)
	p := r.pod("wishes")
	names := []string{"web-0"}
	for i, tt := range []struct {
		name    string
		conf    conf
		args    string
		ip, ip6 string
		mac     string
		aliases []string
	}{
		{name: "CNI_ARGS", args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_UID=u;FOO=bar;IP=10.88.0.77;MAC=02:11:22:33:44:55",
			ip: "10.88.0.77", mac: "02:11:22:33:44:55"},
		{name: "both families", args: "IP=fd00:88::77,10.88.0.78/16;K8S_POD_NAME=web-0", ip: "10.88.0.78", ip6: "fd00:88::77"},
		{name: "args", conf: conf{"args": map[string]any{"cni": map[string]any{"ips": []string{"10.88.0.79"}}, "other": 1}}, args: "IP=10.88.0.80;K8S_POD_NAME=web-0", ip: "10.88.0.79"},
		{name: "runtimeConfig", conf: conf{"args": map[string]any{"cni": map[string]any{"ips": []string{"10.88.0.81"}}},
			"runtimeConfig": map[string]any{"ips": []string{"10.88.0.82/16", "fd00:88::82/64"}, "mac": "02:aa:00:00:00:01", "aliases": []string{"db", "primary"}}},
			args: "IP=10.88.0.83;MAC=02:11:22:33:44:66;K8S_POD_NAME=web-0", ip: "10.88.0.82", ip6: "fd00:88::82", mac: "02:aa:00:00:00:01", aliases: []string{"db", "primary"}},
		{name: "aliases by network", conf: conf{"runtimeConfig": map[string]any{"aliases": map[string]any{"pods": []string{"mine"}, "other": []string{"not"}}}},
			args: "K8S_POD_NAME=web-0", aliases: []string{"mine"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := *r
			r.t = t
			c := p.call("ADD", r.pods().with(tt.conf))
			c.args = tt.args
			a := r.must(c)
			got := r.containers()[names[0]]
			require.NotNil(t, got, "%v", r.containers())
			if tt.ip != "" {
				require.Equal(t, tt.ip, addresses(a)[0])
				require.NoError(t, lab.Ping(r.Host, tt.ip, wait))
			}
			if tt.ip6 != "" {
				require.Equal(t, tt.ip6, addresses(a)[1])
				require.NoError(t, lab.Ping(r.Host, tt.ip6, wait))
			}
			if tt.mac != "" {
				require.Equal(t, tt.mac, lab.Link(t, p.ns, "eth0").Attrs().HardwareAddr.String())
			}
			for _, ep := range got.Endpoints {
				require.Equal(t, tt.aliases, ep.Aliases)
			}
			c.command = "DEL"
			r.must(c)
			r.empty()
		})
		_ = i
	}

	// The resolver's settings come back, the runtime's before the configuration's.
	c := r.pods().with(conf{"dns": map[string]any{"nameservers": []string{"10.0.0.1"}, "domain": "example.org"}})
	a := r.must(p.call("ADD", c))
	require.Equal(t, []string{"10.0.0.1"}, a.result.DNS.Nameservers)
	r.must(p.call("DEL", c))
	c = c.with(conf{"runtimeConfig": map[string]any{"dns": map[string]any{"servers": []string{"10.0.0.2"}, "searches": []string{"a.example"}}}})
	a = r.must(p.call("ADD", c))
	require.Equal(t, []string{"10.0.0.2"}, a.result.DNS.Nameservers)
	require.Equal(t, []string{"a.example"}, a.result.DNS.Search)
	r.must(p.call("DEL", c))

	// Two pods of one name (of two namespaces), and an ID that cannot be a name: all have one.
	one, two := r.pod("one"), r.pod(strings.Repeat("ab", 32))
	for _, p := range []pod{one, two} {
		c := p.call("ADD", r.pods())
		c.args = "K8S_POD_NAME=same"
		r.must(c)
	}
	require.Contains(t, r.containers(), "same")
	require.Contains(t, r.containers(), "same-abababababab")
	require.Equal(t, two.id, r.containers()["same-abababababab"].ID, "an ID that can be ours is")
}

// A container that is back with another namespace is the new one: the runtime lost the old.
func TestAnotherLife(t *testing.T) {
	r := newRuntime(t)
	old, fresh := r.pod("life"), r.pod("life")
	c := mapped(r.pods(), "8080:80/tcp")
	r.must(old.call("ADD", c))
	r.must(fresh.call("ADD", c))
	require.Len(t, r.containers(), 1)
	r.serve(fresh, 80)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "life", lab.ClientIPv4)
	fresh.vanish(t)
	next := r.pod("life")
	r.must(next.call("ADD", c))
	r.must(next.call("DEL", c))
	r.empty()
}

// Errors have the specification's codes, and leave nothing.
func TestErrors(t *testing.T) {
	r := newRuntime(t)
	p, q := r.pod("p"), r.pod("q")
	base := r.pods()
	taken := mapped(base, "8080:80/tcp")
	r.must(q.call("ADD", taken))
	r.MustBind(t, r.Host, "tcp", "0.0.0.0:8090")
	add := func(c conf) call { return p.call("ADD", c) }
	args := func(s string) call { c := add(base); c.args = s; return c }
	without := func(v string) call { c := add(base); c.unset = v; return c }
	for name, tt := range map[string]struct {
		call  call
		code  uint
		words []string
	}{
		"unknown key":         {add(base.with(conf{"promiscMode": true})), 2, []string{"promiscMode", "true"}},
		"other case":          {add(base.with(conf{"MTU": 1400})), 2, []string{"MTU", "1400"}},
		"unknown capability":  {add(base.with(conf{"capabilities": map[string]bool{"bandwidth": true}})), 2, []string{"bandwidth"}},
		"unknown wish":        {add(base.with(conf{"runtimeConfig": map[string]any{"bandwidth": map[string]any{"ingressRate": 1}}})), 2, []string{"bandwidth", "ingressRate"}},
		"what bridge can":     {add(base.with(conf{"hairpinMode": false})), 2, []string{"hairpinMode", "false"}},
		"no ID":               {without("CNI_CONTAINERID"), 4, []string{"CNI_CONTAINERID"}},
		"bad ID":              {call{command: "ADD", conf: base, id: "../x", netns: p.path}, 4, []string{"../x"}},
		"bad interface":       {call{command: "ADD", conf: base, id: "p", netns: p.path, ifName: "a/b"}, 4, nil},
		"no namespace":        {without("CNI_NETNS"), 4, []string{"CNI_NETNS"}},
		"namespace gone":      {call{command: "ADD", conf: base, id: "p", netns: "/run/netns/not-there-at-all"}, 3, []string{"not-there-at-all"}},
		"not a namespace":     {call{command: "ADD", conf: base, id: "p", netns: "/etc/passwd"}, 4, []string{"CNI_NETNS"}},
		"the host's own":      {call{command: "ADD", conf: base, id: "p", netns: r.NetnsPath}, 8, nil},
		"unknown command":     {call{command: "FROB", conf: base, id: "p", netns: p.path}, 4, []string{"FROB"}},
		"unknown arg":         {args("FOO=bar"), 4, []string{"FOO"}},
		"bad IP":              {args("IP=nonsense"), 4, []string{"nonsense"}},
		"bad MAC":             {args("MAC=nonsense"), 4, []string{"nonsense"}},
		"not in the subnet":   {args("IP=10.77.0.1"), 7, []string{"10.77.0.1"}},
		"two of a family":     {args("IP=10.88.0.5,10.88.0.6"), 4, []string{"10.88.0.6"}},
		"address taken":       {args("IP=10.88.0.2"), 100, []string{"10.88.0.2"}},
		"multicast MAC":       {args("MAC=01:00:00:00:00:01"), 7, nil},
		"no name":             {add(base.with(conf{"name": nil})), 7, nil},
		"reserved name":       {add(base.with(conf{"name": "host"})), 100, []string{"host"}},
		"bad subnet":          {add(base.with(conf{"name": "bad", "subnets": []string{"10.0.0.0/33"}})), 6, nil},
		"overlapping":         {add(base.with(conf{"name": "bad", "subnets": []string{"10.88.9.0/24"}})), 100, []string{"10.88"}},
		"another subnet":      {add(base.with(conf{"subnets": []string{"10.66.0.0/16"}})), 100, []string{"10.66.0.0/16"}},
		"another setting":     {add(base.with(conf{"icc": false})), 100, []string{"icc"}},
		"bad mtu":             {add(base.with(conf{"name": "bad", "subnets": nil, "mtu": 9})), 7, []string{"mtu"}},
		"ipam without a type": {add(base.with(conf{"ipam": map[string]any{"subnet": "10.1.0.0/16"}})), 7, []string{"type"}},
		"ipam unknown":        {add(base.with(conf{"ipam": map[string]any{"type": "no-such-ipam"}})), 999, []string{"no-such-ipam"}},
		"ipam by a path":      {add(base.with(conf{"ipam": map[string]any{"type": "../bpfnet"}})), 999, nil},
		"ipam dhcp":           {add(base.with(conf{"ipam": map[string]any{"type": "dhcp"}})), 7, []string{"dhcp"}},
		"port 0":              {add(mapped(base, "0:80/tcp")), 7, []string{"hostPort"}},
		"port too high":       {add(mapped(base, "70000:80/tcp")), 7, []string{"70000"}},
		"bad protocol":        {add(mapped(base, "8085:80/icmp")), 7, []string{"icmp"}},
		"bad hostIP":          {add(mapped(base, "nonsense:8085:80/tcp")), 7, []string{"nonsense"}},
		"port taken":          {add(mapped(base, "8079:80/tcp", "8080:81/tcp")), 100, []string{"8080"}},
		"port of the host's":  {add(mapped(base, "8090:80/tcp")), 100, []string{"8090"}},
		"no such address":     {add(mapped(base, "198.51.100.9:8085:80/tcp")), 7, []string{"198.51.100.9"}},
		"bad alias":           {add(base.with(conf{"runtimeConfig": map[string]any{"aliases": []string{"a b"}}})), 7, []string{"a b"}},
		"another host":        {add(base.with(conf{"netns": "/proc/1/ns/net"})), 7, []string{"--netns"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := *r
			r.t = t
			r.fails(tt.call, tt.code, tt.words...)
			require.Len(t, r.containers(), 1)
			h, err := p.ns.Netlink()
			require.NoError(t, err)
			defer h.Close()
			links, err := h.LinkList()
			require.NoError(t, err)
			require.Len(t, links, 1)
		})
	}
	// Not JSON at all.
	cmd := exec.Command(lab.Binary(r.t))
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=p", "CNI_NETNS=" + p.path, "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(lab.Binary(r.t))}
	cmd.Stdin = strings.NewReader("{")
	bad, err := r.StartCommand(r.Host, cmd)
	require.NoError(t, err)
	a := r.end(call{command: "ADD"}, bad)
	require.EqualValues(t, 6, a.err.Code)

	r.must(p.call("ADD", base))
	r.must(p.call("DEL", base))
	r.must(q.call("DEL", base))
	r.empty()
}

// An IPAM plugin gives the addresses, and gets them back, whatever goes wrong.
func TestHostLocal(t *testing.T) {
	r := newRuntime(t)
	dir := upstream(t)
	data := filepath.Join(t.TempDir(), "ipam")
	c := r.pods().with(conf{"cniVersion": "1.0.0", "name": "hl", "subnets": nil, "ipam": map[string]any{
		"type": "host-local", "dataDir": data,
		"ranges": []any{[]any{map[string]any{"subnet": "10.99.0.0/24", "rangeStart": "10.99.0.20", "gateway": "10.99.0.254"}},
			[]any{map[string]any{"subnet": "fd00:99::/64"}}},
		"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "192.0.2.0/24"}, map[string]any{"dst": "198.51.100.0/24", "gw": "10.99.0.253"}},
	}})
	leases := func() (n int) {
		list, _ := os.ReadDir(filepath.Join(data, "hl"))
		for _, f := range list {
			if strings.HasPrefix(f.Name(), "10.") || strings.HasPrefix(f.Name(), "fd00") {
				n++
			}
		}
		return n
	}
	p, q := r.pod("p"), r.pod("q")
	line := p.call("ADD", mapped(c, "8080:80/tcp"))
	line.path = dir
	a := r.must(line)
	require.Equal(t, []string{"10.99.0.20", "fd00:99::2"}, addresses(a))
	require.Equal(t, "10.99.0.254", a.result.IPs[0].Gateway.String())
	require.Equal(t, 2, leases())
	require.Len(t, a.result.Routes, 4, "two defaults, and two beside")
	h, err := p.ns.Netlink()
	require.NoError(t, err)
	defer h.Close()
	routes, err := h.RouteList(lab.Link(t, p.ns, "eth0"), 2)
	require.NoError(t, err)
	by := make(map[string]string)
	for _, r := range routes {
		if r.Gw != nil {
			by[fmt.Sprint(r.Dst)] = r.Gw.String()
		}
	}
	require.Equal(t, map[string]string{"0.0.0.0/0": "10.99.0.254", "192.0.2.0/24": "10.99.0.254", "198.51.100.0/24": "10.99.0.253"}, by)
	r.serve(p, 80)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "p", lab.ClientIPv4)

	check := p.call("CHECK", a.prev(t, c))
	check.path = dir
	r.must(check)

	// A failure after the addresses were given gives them back.
	bad := q.call("ADD", mapped(c, "8080:80/tcp"))
	bad.path = dir
	r.fails(bad, 100, "8080")
	require.Equal(t, 2, leases())

	del := p.call("DEL", c)
	del.path = dir
	r.must(del)
	require.Zero(t, leases())
	r.must(del)
	r.empty()

	// The plugin's own error keeps its code, and names it.
	full := q.call("ADD", c.with(conf{"ipam": map[string]any{"type": "host-local", "dataDir": data, "subnet": "10.98.0.0/33"}}))
	full.path = dir
	a = r.run(full)
	require.NotZero(t, a.code)
	require.Contains(t, a.err.Error(), "ipam host-local")
}

// The program by its other names, and by none.
func TestProgram(t *testing.T) {
	r := newRuntime(t)
	link := filepath.Join(t.TempDir(), "bpfnet-cni")
	require.NoError(t, os.Symlink(lab.Binary(t), link))
	p := r.pod("p")
	c := p.call("ADD", r.pods())
	c.program = link
	r.must(c)
	c.command = "DEL"
	r.must(c)
	r.empty()

	about, err := r.StartCommand(r.Host, exec.Command(lab.Binary(t), "cni"))
	require.NoError(t, err)
	require.NoError(t, about.Wait(wait))
	require.Contains(t, about.Stderr(), "CNI protocol versions supported: 0.3.1, 0.4.0, 1.0.0, 1.1.0")
	require.Empty(t, about.Stdout())

	// A variable of a runtime's does not change what a user types.
	cmd := r.Command(lab.Binary(t), "ps", "-q")
	cmd.Env = append(cmd.Env, "CNI_COMMAND=ADD")
	ps, err := r.StartCommand(r.Host, cmd)
	require.NoError(t, err)
	require.NoError(t, ps.Wait(wait))
	require.Empty(t, ps.Stdout())
}

// cnitool is libcni: lists of plugins, its cache of results, capabilities.
func TestCnitool(t *testing.T) {
	r := newRuntime(t)
	dir := t.TempDir()
	plugin := r.pods()
	delete(plugin, "cniVersion")
	delete(plugin, "name")
	list := map[string]any{"cniVersion": "1.1.0", "name": "pods", "plugins": []any{plugin}}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "10-pods.conflist"), []byte(mustJSON(t, list)), 0o644))
	p := r.pod("p")
	r.serve(p, 80)
	tool := func(command string, more ...string) (string, error) {
		cmd := exec.Command(cnitool(t), append([]string{command, "pods", p.path}, more...)...)
		cmd.Env = append(os.Environ(), "CNI_PATH="+filepath.Dir(lab.Binary(t)), "NETCONFPATH="+dir, "CNI_IFNAME=eth0",
			`CAP_ARGS={"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}],"ips":["10.88.0.40"]}`, "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=tooled")
		run, err := r.StartCommand(r.Host, cmd)
		require.NoError(t, err)
		err = run.Wait(time.Minute)
		return run.Stdout() + run.Stderr(), err
	}
	must := func(command string) string {
		t.Helper()
		out, err := tool(command)
		require.NoError(t, err, "%s: %s", command, out)
		return out
	}
	must("status")
	var result struct {
		IPs []struct{ Address string }
	}
	require.NoError(t, json.Unmarshal([]byte(must("add")), &result))
	require.Equal(t, "10.88.0.40/16", result.IPs[0].Address)
	r.asks(r.Client, "tcp", lab.HostIPv4+":8080", "p", lab.ClientIPv4)
	require.Contains(t, r.containers(), "tooled")
	must("check")
	must("del")
	r.empty()
	must("del")
	out, err := tool("check")
	require.Error(t, err, out)
	must("add")
	must("gc") // with cnitool's own list, which is what it has cached
	must("del")
	r.empty()
}
