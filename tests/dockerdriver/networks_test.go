// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// Who reaches whom, by the flags of networks that docker network create -d bpfnet made.
//
//	n1 (IPv6)  s (published), p       n2  o (-P), w              docker0 (the Engine's)  d
//	quiet (icc off)  q1, q2 (published)   inner (internal)  i1, i2   plain (no masquerade)  m
func TestNetworks(t *testing.T) {
	t.Parallel()
	e := newEngine(t)
	for _, n := range []string{"n1 --ipv6 --subnet fd00:6::/64 -o bpfnet.name=first", "n2",
		"quiet -o com.docker.network.bridge.enable_icc=false", "inner --internal",
		"plain -o com.docker.network.bridge.enable_ip_masquerade=false -o com.docker.network.driver.mtu=1400 -o com.docker.network.bridge.name=plain0 -o com.docker.network.bridge.host_binding_ipv4=127.0.0.1"} {
		e.Docker(append([]string{"network", "create", "-d", "bpfnet"}, strings.Fields(n)...)...)
	}
	boxes := e.RunAll(
		"ss --net n1 -p 8080:80 -p 8080:80/udp -p 127.0.0.1:8081:80 -p 127.0.0.1:8081:80/udp -p 9000-9001:80-81 -p 9000-9001:80-81/udp",
		"pp --network name=n1,alias=pal,driver-opt=bpfnet.name=pea",
		"oo --net n2 --mac-address 02:42:00:00:00:77 -P --expose 80 --expose 80/udp",
		"ww --net n2 -p 8095:80 -p 8095:80/udp",
		"q1 --net quiet", "q2 --net quiet -p 8090:80 -p 8090:80/udp",
		"i1 --net inner", "i2 --net inner -p 8099:80 -p 8099:80/udp",
		"mm --net plain -p 8070:80 -p 8070:80/udp -p 8071-8072:81",
		"dd")
	s, p, o, w, m, d := boxes["ss"], boxes["pp"], boxes["oo"], boxes["ww"], boxes["mm"], boxes["dd"]
	q1, q2, i1, i2 := boxes["q1"], boxes["q2"], boxes["i1"], boxes["i2"]
	host, gateway := lab.HostIPv4, s.Gateway()
	lab.ServeTCP(t, e.Client, "world", ":9000")
	lab.ServeUDP(t, e.Client, "world", ":9000")
	world, world6 := lab.ClientIPv4+":9000", "["+lab.ClientIPv6+"]:9000"

	t.Run("published", func(t *testing.T) {
		e := e.in(t)
		e.Answers(e.Client, host+":8080", "ss", lab.ClientIPv4)
		e.Answers(e.Client, host+":9000", "ss", lab.ClientIPv4)
		e.Answers(e.Client, host+":9001", "ss", lab.ClientIPv4)
		e.Answers(e.Client, "["+lab.HostIPv6+"]:8080", "ss", lab.ClientIPv6)
		e.Answers(e.Host, "127.0.0.1:8080", "ss", gateway)
		e.Answers(e.Host, "127.0.0.1:8081", "ss", gateway)
		e.Answers(e.Host, "[::1]:8080", "ss", "fd00:6::1")
		e.Answers(e.Host, gateway+":8080", "ss", gateway)
		e.Answers(p.NS, host+":8080", "ss", p.V4)
		e.Answers(o.NS, host+":8080", "ss", o.V4)
		e.Answers(s.NS, host+":8080", "ss", gateway) // hairpin
		e.Answers(d.NS, host+":8080", "ss", d.V4)    // from the Engine's own network
		e.Answers(e.Host, "127.0.0.1:8070", "mm", "")
		e.Silent(e.Client, host+":8070", e.Client, host+":8080") // host_binding_ipv4
		e.Silent(e.Client, host+":8081", e.Client, host+":8080")
		e.Silent(p.NS, "127.0.0.1:8081", e.Host, "127.0.0.1:8081")
	})
	t.Run("chosen", func(t *testing.T) {
		e := e.in(t)
		port := e.Bpfnet("port", e.sandbox("oo"), "80/tcp")
		_, number, err := net.SplitHostPort(port)
		require.NoError(t, err)
		line, err := lab.AskTCP(e.Client, "", host+":"+number, "hello", dockerd.Soon)
		require.NoError(t, err)
		require.Contains(t, line, "oo")
		require.Equal(t, "127.0.0.1:8071", e.Bpfnet("port", e.sandbox("mm"), "81/tcp"))
	})
	t.Run("peers", func(t *testing.T) {
		e := e.in(t)
		e.Answers(p.NS, s.V4+":81", "ss", p.V4)
		e.Answers(p.NS, "["+s.V6+"]:81", "ss", p.V6)
		e.Answers(e.Host, s.V4+":81", "ss", gateway)
	})
	t.Run("names", func(t *testing.T) {
		e := e.in(t) // the Engine's resolver, which bpfnet has no part in
		require.Contains(t, e.Docker("exec", "pp", "nslookup", "ss"), s.V4)
		require.Contains(t, e.Docker("exec", "ss", "nslookup", "pal"), p.V4)
		require.Contains(t, e.Bpfnet("ps"), "pea")
		require.Contains(t, e.Bpfnet("network", "ls"), "first")
	})
	t.Run("isolation", func(t *testing.T) {
		e := e.in(t)
		e.Silent(o.NS, s.V4+":80", p.NS, s.V4+":80")
		e.Silent(p.NS, o.V4+":80", e.Host, o.V4+":80")
		e.Silent(d.NS, s.V4+":80", p.NS, s.V4+":80")
	})
	t.Run("direct access", func(t *testing.T) {
		e := e.in(t) // the Engine turns the kernel's forwarding on
		require.Equal(t, "1", lab.ReadSysctl(t, e.Host, "ipv4/ip_forward"))
		e.Silent(e.Client, s.V4+":80", e.Client, host+":8080")
		e.Silent(e.Client, "["+s.V6+"]:80", e.Client, "["+lab.HostIPv6+"]:8080")
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
		require.NotContains(t, e.Docker("exec", "i1", "ip", "route"), "default")
		// Not by the lack of a route alone: the container makes itself one.
		_, err := e.Run(i1.NS, "ip", "route", "add", "default", "via", i1.Gateway())
		require.NoError(t, err)
		e.Silent(i1.NS, world, p.NS, world)
		e.Silent(e.Client, host+":8099", e.Client, host+":8080")
		require.NotContains(t, e.Docker("network", "ls"), "docker_gwbridge")
	})
	t.Run("masquerade", func(t *testing.T) {
		e := e.in(t)
		e.Answers(p.NS, world, "world", host)
		e.Answers(p.NS, world6, "world", lab.HostIPv6)
		e.Answers(m.NS, world, "world", m.V4)
		e.Docker("run", "--rm", "--net", "n1", "box", "ping", "-c", "1", "-W", "1", lab.ClientIPv4) // its first packet
		require.Contains(t, e.Docker("exec", "mm", "ip", "link"), "mtu 1400")
	})
	t.Run("two networks", func(t *testing.T) {
		e := e.in(t)
		e.Docker("network", "connect", "n1", "oo")
		e.Answers(o.NS, s.V4+":80", "ss", "")
		e.Answers(o.NS, w.V4+":80", "ww", o.V4)
		e.Docker("network", "disconnect", "n1", "oo")
		e.Silent(o.NS, s.V4+":80", p.NS, s.V4+":80")
		require.Contains(t, e.Docker("exec", "oo", "ip", "link"), "02:42:00:00:00:77")

		// The Engine moves published ports to the network that carries the default route.
		for _, change := range []string{"connect n1", "disconnect n2", "connect n2", "disconnect n1"} {
			e.Docker(append(append([]string{"network"}, strings.Fields(change)...), "ww")...)
			e.Answers(e.Client, host+":8095", "ww", lab.ClientIPv4)
		}
	})
	t.Run("conflicts", func(t *testing.T) {
		e := e.in(t)
		_, err := e.TryDocker("run", "--rm", "--net", "n2", "-p", "8080:80", "box", "true")
		require.ErrorContains(t, err, "Bind for 0.0.0.0:8080 failed: port is already allocated")
		lab.ServeTCP(t, e.Host, "host", ":8500")
		_, err = e.TryDocker("run", "--rm", "--net", "n2", "-p", "8500:80", "box", "true")
		require.ErrorContains(t, err, "address already in use")
		_, err = e.TryDocker("run", "--rm", "-p", "8080:80", "box", "true") // the Engine's own
		require.ErrorContains(t, err, "address already in use")
		require.ErrorContains(t, e.bind("8080"), "Address already in use")
		require.NoError(t, e.bind("8600"))
		for option, words := range map[string]string{
			"nonsense=1":         "option nonsense: not known to bpfnet",
			"bpfnet.isolate=no!": "option bpfnet.isolate: \"no!\": not true or false",
			"com.docker.network.bridge.host_binding_ipv4=::1": "no IPv4 address",
			"com.docker.network.bridge.name=bpfn-x":           "are kept for bpfnet's own",
			"bpfnet.name=first":                               "already exists",
			"bpfnet.gateway_mode=bad":                         "nat or routed",
		} {
			_, err := e.TryDocker("network", "create", "-d", "bpfnet", "-o", option, "bad")
			require.ErrorContains(t, err, words)
		}
		_, err = e.TryDocker("network", "create", "-d", "bpfnet", "--ipam-driver", "null", "bad")
		require.Error(t, err)
		_, err = e.Run(e.Host, lab.Binary(t), "rm", "-f", "pea")
		require.ErrorContains(t, err, "container pea: belongs to docker: use docker")
		_, err = e.Run(e.Host, lab.Binary(t), "run", "--net", "first", "--", "true")
		require.ErrorContains(t, err, "network first: belongs to docker: use docker")
	})
	t.Run("gone", func(t *testing.T) {
		e := e.in(t)
		e.Docker("rm", "-f", "ss", "pp", "oo", "q1", "q2", "i1", "i2", "ww", "mm", "dd")
		e.Docker("network", "rm", "n1", "n2", "quiet", "inner", "plain")
		require.Empty(t, e.Bpfnet("ps", "-aq"))
		require.Empty(t, e.Bpfnet("network", "ls", "-q"))
		require.NoError(t, e.bind("8080"))
		devices, err := e.Run(e.Host, "ip", "-br", "link")
		require.NoError(t, err)
		require.NotContains(t, devices, "bpf")
		require.NotContains(t, devices, "plain0")
		require.Equal(t, "", lab.ReadSysctl(t, e.Host, "ipv4/ip_local_reserved_ports"))
		e.Bpfnet("uninstall")
		require.NoError(t, e.Daemon.Wait(dockerd.Wait))
	})
}

// sandbox is bpfnet's name of a container that was given none.
func (e *engine) sandbox(name string) string {
	e.T.Helper()
	return e.Docker("inspect", "-f", "{{.NetworkSettings.SandboxID}}", name)[:12]
}

// bind is a process of the host's that wants a port; the error is why it does not get it.
func (e *engine) bind(port string) error {
	_, err := e.Run(e.Host, "socat", "-u", "TCP-LISTEN:"+port+",accept-timeout=0.1", "STDOUT")
	return err
}
