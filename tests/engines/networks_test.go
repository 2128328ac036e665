// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// Who reaches whom, by the flags of the Engine's own networks.
//
//	docker0  a, b, db ◄─link─ client      n1  s (published), p       n2  o
//	quiet (icc off)  q1, q2 (published)   inner (internal)  i1, i2   six (IPv6)  s6
func TestNetworks(t *testing.T) {
	e := newEngine(t)
	for _, n := range []string{"n1", "n2", "quiet -o com.docker.network.bridge.enable_icc=false", "inner --internal",
		"plain -o com.docker.network.bridge.enable_ip_masquerade=false", "six --ipv6 --subnet fd00:6::/64"} {
		e.docker(append([]string{"network", "create"}, strings.Fields(n)...)...)
	}
	all := e.runAll(
		"aa -p 7000:80 -p 7000:80/udp", "bb",
		"ss --net n1 -p 8080:80 -p 8080:80/udp -p 127.0.0.1:8081:80 -p 127.0.0.1:8081:80/udp -p 9000-9001:80-81 -p 9000-9001:80-81/udp", "pp --net n1",
		"oo --net n2",
		"q1 --net quiet", "q2 --net quiet -p 8090:80 -p 8090:80/udp",
		"i1 --net inner", "i2 --net inner -p 8099:80 -p 8099:80/udp",
		"mm --net plain",
		"s6 --net six -p 8060:80 -p 8060:80/udp")
	a, b, s, p, o, m, s6 := all["aa"], all["bb"], all["ss"], all["pp"], all["oo"], all["mm"], all["s6"]
	q1, q2, i1, i2 := all["q1"], all["q2"], all["i1"], all["i2"]
	e.adopted("aa", "bb", "ss", "pp", "oo", "q1", "q2", "i1", "i2", "mm", "s6")
	host := lab.HostIPv4
	lab.ServeTCP(t, e.Client, "world", ":9000")
	lab.ServeUDP(t, e.Client, "world", ":9000")
	world, world6 := lab.ClientIPv4+":9000", "["+lab.ClientIPv6+"]:9000"

	t.Run("published", func(t *testing.T) {
		e := e.in(t)
		e.answers(e.Client, host+":8080", "ss", lab.ClientIPv4)
		e.answers(e.Host, "127.0.0.1:8080", "ss", "172.18.0.1")
		e.answers(e.Host, "[::1]:8080", "ss", "172.18.0.1")
		e.answers(e.Host, "172.18.0.1:8080", "ss", "")
		e.answers(e.Host, "127.0.0.1:8081", "ss", "172.18.0.1")
		e.answers(e.Client, host+":9000", "ss", lab.ClientIPv4)
		e.answers(e.Client, host+":9001", "ss", lab.ClientIPv4)
		require.Contains(t, e.bpfnet("port", "ss"), "0.0.0.0:8080")
		e.answers(p.ns, host+":8080", "ss", p.v4)
		e.answers(o.ns, host+":8080", "ss", o.v4)
		e.answers(s.ns, host+":8080", "ss", "172.18.0.1") // hairpin
		e.answers(a.ns, "172.18.0.1:8080", "ss", a.v4)
		e.answers(e.Client, "["+lab.HostIPv6+"]:8060", "s6", lab.ClientIPv6)
		e.answers(e.Host, "[::1]:8060", "s6", "fd00:6::1")
		e.silent(e.Client, host+":8081", e.Client, host+":8080")
		e.silent(p.ns, "127.0.0.1:8081", e.Host, "127.0.0.1:8081")
		e.silent(e.Client, "["+lab.HostIPv6+"]:8080", e.Client, "["+lab.HostIPv6+"]:8060")
	})
	t.Run("peers", func(t *testing.T) {
		e := e.in(t)
		e.answers(p.ns, s.v4+":81", "ss", p.v4)
		e.answers(b.ns, a.v4+":81", "aa", b.v4)
		e.answers(e.Host, s.v4+":81", "ss", "172.18.0.1")
	})
	t.Run("isolation", func(t *testing.T) {
		e := e.in(t)
		e.silent(o.ns, s.v4+":80", p.ns, s.v4+":80")
		e.silent(a.ns, s.v4+":80", p.ns, s.v4+":80")
		e.silent(p.ns, a.v4+":80", b.ns, a.v4+":80")
	})
	t.Run("direct access", func(t *testing.T) {
		e := e.in(t) // the Engine turns the kernel's forwarding on
		require.Equal(t, "1", lab.ReadSysctl(t, e.Host, "ipv4/ip_forward"))
		e.silent(e.Client, s.v4+":80", e.Client, host+":8080")
		e.silent(e.Client, "["+s6.v6+"]:80", e.Client, "["+lab.HostIPv6+"]:8060")
	})
	t.Run("icc off", func(t *testing.T) {
		e := e.in(t)
		e.silent(q1.ns, q2.v4+":80", e.Host, q2.v4+":80")
		e.answers(q1.ns, host+":8090", "q2", "")
		e.answers(q1.ns, world, "world", host)
	})
	t.Run("internal", func(t *testing.T) {
		e := e.in(t)
		e.answers(i1.ns, i2.v4+":80", "i2", i1.v4)
		e.silent(i1.ns, world, p.ns, world)
		e.silent(e.Client, host+":8099", e.Client, host+":8080")
	})
	t.Run("masquerade", func(t *testing.T) {
		e := e.in(t)
		e.answers(a.ns, world, "world", host)
		e.answers(p.ns, world, "world", host)
		e.answers(s6.ns, world6, "world", lab.HostIPv6)
		e.answers(m.ns, world, "world", m.v4)
	})
	t.Run("two networks", func(t *testing.T) {
		e := e.in(t)
		e.docker("network", "connect", "n1", "oo")
		e.eventually("o on n1", func() bool { return len(e.inspect("oo").NetworkSettings.Networks) == 2 })
		e.says("container docker/oo: eth1 on network docker/n1")
		e.answers(o.ns, s.v4+":80", "ss", "")
		e.docker("network", "disconnect", "n1", "oo")
		e.says("container docker/oo: off network docker/n1")
		e.silent(o.ns, s.v4+":80", p.ns, s.v4+":80")
	})
	t.Run("configuration", func(t *testing.T) {
		e := e.in(t) // what the Engine cannot say of docker0
		e.bpfnet("init", "--icc=false", "--ip-masq=false")
		e.silent(b.ns, a.v4+":81", e.Host, a.v4+":81")
		e.answers(b.ns, host+":7000", "aa", "")
		e.answers(b.ns, world, "world", b.v4)
		e.answers(p.ns, s.v4+":81", "ss", p.v4)

		e.docker("run", "-d", "--name", "db", "--stop-timeout", "0", "--expose", "80", "--expose", "80/udp", "box", "sleep", "100000")
		client := e.run("client", "--link", "db:database")
		db := e.find("db")
		e.adopted("db", "client")
		e.answers(client.ns, db.v4+":80", "db", client.v4)
		e.silent(client.ns, db.v4+":81", client.ns, db.v4+":80")
		e.silent(b.ns, db.v4+":80", client.ns, db.v4+":80")
		require.Contains(t, e.docker("exec", "client", "cat", "/etc/hosts"), "database")

		// The target gets another address while it is away.
		e.docker("stop", "db")
		e.run("thief")
		e.docker("start", "db")
		db = e.find("db")
		e.adopted("db", "client", "thief")
		e.answers(client.ns, db.v4+":80", "db", client.v4)
		e.silent(client.ns, db.v4+":81", client.ns, db.v4+":80")
		e.bpfnet("init", "--icc=true", "--ip-masq=true")
	})
	t.Run("netfilter", func(t *testing.T) {
		e := e.in(t)
		require.Empty(t, e.rules())
	})
	t.Run("refused", func(t *testing.T) {
		e := e.in(t)
		_, err := e.Run(e.Host, binary(t), "rm", "-f", "ss")
		require.ErrorContains(t, err, "container docker/ss: belongs to docker: use docker")

		// Who was first keeps a port, whoever that is.
		_, path := e.AddNetns(t, "own")
		e.bpfnet("attach", "own", "netns:"+path)
		e.bpfnet("publish", "own", "9999:80")
		_, err = e.Run(e.Host, dockerCLI, "--host", e.socket(), "run", "-d", "--name", "late", "-p", "9999:80", "box", "sleep", "1")
		require.ErrorContains(t, err, "address already in use")
		_, err = e.Run(e.Host, binary(t), "publish", "own", "8080:80")
		require.ErrorContains(t, err, "port is already allocated")
		require.Empty(t, e.rules())
	})
}

// rules are all of netfilter's in the host's namespace.
func (e *engine) rules() string {
	e.t.Helper()
	out, err := e.Run(e.Host, "nft", "list", "ruleset")
	require.NoError(e.t, err)
	return strings.TrimSpace(out)
}

// in is the engine for a test within the test.
func (e *engine) in(t *testing.T) *engine {
	inner := *e
	inner.t = t
	return &inner
}
