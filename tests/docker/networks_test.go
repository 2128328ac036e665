// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// Who reaches whom, by the flags of the Engine's own networks, as far as the rows of tests/conformance
// do not say it, which run with Docker's containers too.
//
//	docker0  a, b, db ◄─link─ client      n1  s (published), p       n2  o
//	quiet (icc off)  q1, q2 (published)   inner (internal)  i1, i2
func TestNetworks(t *testing.T) {
	e := newEngine(t)
	for _, n := range []string{"n1", "n2", "quiet -o com.docker.network.bridge.enable_icc=false", "inner --internal"} {
		e.Docker(append([]string{"network", "create"}, strings.Fields(n)...)...)
	}
	all := e.RunAll(
		"aa -p 7000:80 -p 7000:80/udp", "bb",
		"ss --net n1 -p 8080:80 -p 8080:80/udp", "pp --net n1",
		"oo --net n2",
		"q1 --net quiet", "q2 --net quiet -p 8090:80 -p 8090:80/udp",
		"i1 --net inner", "i2 --net inner -p 8099:80 -p 8099:80/udp")
	a, b, s, p, o := all["aa"], all["bb"], all["ss"], all["pp"], all["oo"]
	q1, q2, i1, i2 := all["q1"], all["q2"], all["i1"], all["i2"]
	e.adopted("aa", "bb", "ss", "pp", "oo", "q1", "q2", "i1", "i2")
	host := lab.HostIPv4
	lab.ServeTCP(t, e.Client, "world", ":9000")
	lab.ServeUDP(t, e.Client, "world", ":9000")
	world := lab.ClientIPv4 + ":9000"

	t.Run("isolation", func(t *testing.T) {
		e := e.in(t)
		e.Silent(o.NS, s.V4+":80", p.NS, s.V4+":80")
		e.Silent(a.NS, s.V4+":80", p.NS, s.V4+":80")
		e.Silent(p.NS, a.V4+":80", b.NS, a.V4+":80")
	})
	t.Run("icc off", func(t *testing.T) {
		e := e.in(t)
		e.Silent(q1.NS, q2.V4+":80", e.Host, q2.V4+":80")
		e.Answers(q1.NS, host+":8090", "q2", "")
		e.Answers(q1.NS, world, "world", host)
	})
	t.Run("internal", func(t *testing.T) {
		e := e.in(t)
		e.Answers(i1.NS, i2.V4+":80", "i2", i1.V4)
		// Not by the lack of a route alone, which newer Engines leave out: the container makes itself one.
		_, err := e.Run(i1.NS, "ip", "route", "replace", "default", "via", i1.Gateway())
		require.NoError(t, err)
		e.Silent(i1.NS, world, p.NS, world)
		e.Silent(e.Client, host+":8099", e.Client, host+":8080")
	})
	t.Run("two networks", func(t *testing.T) {
		e := e.in(t)
		e.Docker("network", "connect", "n1", "oo")
		e.Eventually("o on n1", func() bool { return len(e.Inspect("oo").NetworkSettings.Networks) == 2 })
		e.Says("container docker/oo: eth1 on network docker/n1")
		e.Answers(o.NS, s.V4+":80", "ss", "")
		e.Docker("network", "disconnect", "n1", "oo")
		e.Says("container docker/oo: off network docker/n1")
		e.Silent(o.NS, s.V4+":80", p.NS, s.V4+":80")
	})
	t.Run("configuration", func(t *testing.T) {
		e := e.in(t) // what the Engine cannot say of docker0
		e.Bpfnet("init", "--icc=false", "--ip-masq=false")
		e.Silent(b.NS, a.V4+":81", e.Host, a.V4+":81")
		e.Answers(b.NS, host+":7000", "aa", "")
		e.Answers(b.NS, world, "world", b.V4)
		e.Answers(p.NS, s.V4+":81", "ss", p.V4)

		e.Docker("run", "-d", "--name", "db", "--stop-timeout", "0", "--expose", "80", "--expose", "80/udp", "box", "sleep", "100000")
		client := e.RunBox("client", "--link", "db:database")
		db := e.Find("db")
		e.adopted("db", "client")
		e.Answers(client.NS, db.V4+":80", "db", client.V4)
		e.Silent(client.NS, db.V4+":81", client.NS, db.V4+":80")
		e.Silent(b.NS, db.V4+":80", client.NS, db.V4+":80")
		require.Contains(t, e.Docker("exec", "client", "cat", "/etc/hosts"), "database")

		// The target gets another address while it is away.
		e.Docker("stop", "db")
		e.RunBox("thief")
		e.Docker("start", "db")
		db = e.Find("db")
		e.adopted("db", "client", "thief")
		e.Answers(client.NS, db.V4+":80", "db", client.V4)
		e.Silent(client.NS, db.V4+":81", client.NS, db.V4+":80")
		e.Bpfnet("init", "--icc=true", "--ip-masq=true")
	})
	t.Run("another driver's", func(t *testing.T) {
		e := e.in(t)
		e.Docker("network", "create", "-d", "macvlan", "-o", "parent=eth0", "mac")
		e.RunBox("xx", "--net", "mac")
		e.Docker("network", "connect", "n1", "xx") // while it runs
		e.adopted("xx")
		at := e.Inspect("xx").NetworkSettings.Networks["n1"].IPAddress.String() + ":80"
		e.Answers(p.NS, at, "xx", p.V4)
		e.Silent(o.NS, at, p.NS, at)
	})
	t.Run("netfilter", func(t *testing.T) {
		e := e.in(t)
		require.Empty(t, e.rules())
	})
	t.Run("refused", func(t *testing.T) {
		e := e.in(t)
		_, err := e.Run(e.Host, lab.Binary(t), "rm", "-f", "ss")
		require.ErrorContains(t, err, "container docker/ss: belongs to docker: use docker")

		// Who was first keeps a port, whoever that is.
		_, path := e.AddNetns(t, "own")
		e.Bpfnet("attach", "own", "netns:"+path)
		e.Bpfnet("publish", "own", "9999:80")
		_, err = e.Run(e.Host, "/usr/bin/docker", "--host", e.Socket(), "run", "-d", "--name", "late", "-p", "9999:80", "box", "sleep", "1")
		require.ErrorContains(t, err, "address already in use")
		_, err = e.Run(e.Host, lab.Binary(t), "publish", "own", "8080:80")
		require.ErrorContains(t, err, "port is already allocated")
		require.Empty(t, e.rules())
	})
}

// rules are all of netfilter's in the host's namespace.
func (e *engine) rules() string {
	e.T.Helper()
	out, err := e.Run(e.Host, "nft", "list", "ruleset")
	require.NoError(e.T, err)
	return strings.TrimSpace(out)
}
