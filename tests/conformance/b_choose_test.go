// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/ports"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// ephemeral narrows the host's own range of ports.
func (c *cast) ephemeral(first, last int) {
	lab.Sysctl(c.t, c.Host, "ipv4/ip_local_port_range", fmt.Sprint(first, " ", last))
}

// bracket writes an address as specs want it.
func bracket(addr string) string {
	if strings.Contains(addr, ":") {
		return "[" + addr + "]"
	}
	return addr
}

// exposeAll is an option of container: --expose for each, and -P.
func exposeAll(list ...string) func(*control.ContainerOptions) {
	return func(o *control.ContainerOptions) { o.Expose, o.PublishAll = list, true }
}

// published is one container port's doors: "0.0.0.0:8080 [::]:8080".
func (c *cast) published(a *actor, port int, proto string) string {
	c.t.Helper()
	pubs, err := c.m.Publications(a.name)
	require.NoError(c.t, err)
	var list []string
	for _, p := range pubs {
		if i := port - int(p.Port); p.Proto == proto && i >= 0 && i < int(p.Count) {
			list = append(list, at(p.HostIP, int(p.HostPort)+i))
		}
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// hostPorts are the numbers that a container port is published under, by address, on these.
func (c *cast) hostPorts(a *actor, port int, proto string, addrs ...string) map[string]int {
	c.t.Helper()
	pubs, err := c.m.Publications(a.name)
	require.NoError(c.t, err)
	numbers := make(map[string]int)
	for _, p := range pubs {
		if i := port - int(p.Port); p.Proto == proto && i >= 0 && i < int(p.Count) {
			numbers[p.HostIP.String()] = int(p.HostPort) + i
		}
	}
	require.ElementsMatch(c.t, addrs, slices.Collect(maps.Keys(numbers)))
	return numbers
}

// hostPort is the one number of hostPorts. The Engine chooses for each family by itself: then it is that
// of the first address.
func (c *cast) hostPort(a *actor, port int, proto string, addrs ...string) int {
	c.t.Helper()
	numbers := c.hostPorts(a, port, proto, addrs...)
	for _, addr := range addrs {
		if !onDocker() {
			require.Equal(c.t, numbers[addrs[0]], numbers[addr], "one number for all addresses")
		}
	}
	return numbers[addrs[0]]
}

// B1: -p 80 and -P take free ports of ip_local_port_range that are not reserved, the same
// number for IPv4 and IPv6; -P takes every exposed port.
func TestB1(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.ephemeral(40000, 40199)
	lab.Sysctl(t, c.Host, "ipv4/ip_local_reserved_ports", "40000-40049,40060,40100-40199")
	c.network("n1", 1, true)
	c.network("n4", 4, false)
	fits := func(port int) {
		t.Helper()
		if onDocker() {
			require.True(t, port >= 40000 && port <= 40199, "port %d", port)
			return
		}
		require.True(t, port >= 40050 && port <= 40099 && port != 40060, "port %d", port)
	}
	t.Run("p", func(t *testing.T) {
		c := c.in(t)
		s := c.container("srv", "n1", publish("80", "80/udp"))
		c.serve(s, 80)
		for _, proto := range []string{"tcp", "udp"} {
			fits(c.hostPort(s, 80, proto, "0.0.0.0", "::"))
			numbers := c.hostPorts(s, 80, proto, "0.0.0.0", "::")
			fits(numbers["::"])
			c.answersBy(proto, c.Client, "", at(lab.HostIPv4, numbers["0.0.0.0"]), "srv", lab.ClientIPv4)
			c.answersBy(proto, c.Client, "", at(lab.HostIPv6, numbers["::"]), "srv", lab.ClientIPv6)
		}
	})
	t.Run("IPv4 only", func(t *testing.T) {
		c := c.in(t)
		s := c.container("four", "n4", publish("80"))
		c.serve(s, 80)
		port := c.hostPort(s, 80, "tcp", "0.0.0.0")
		fits(port)
		c.answersBy("tcp", c.Client, "", at(lab.HostIPv4, port), "four", lab.ClientIPv4)
	})
	t.Run("P", func(t *testing.T) {
		c := c.in(t)
		s := c.container("all", "n1", exposeAll("80", "90-92/udp", "81/tcp"))
		c.serve(s, 80)
		c.serve(s, 91)
		numbers := make(map[string]bool)
		for _, want := range []string{"80/tcp", "81/tcp", "90/udp", "91/udp", "92/udp"} {
			number, proto, _ := strings.Cut(want, "/")
			var port int
			fmt.Sscan(number, &port)
			got := c.hostPort(s, port, proto, "0.0.0.0", "::")
			fits(got)
			require.False(t, numbers[fmt.Sprint(got, proto)], "two on %d/%s", got, proto)
			numbers[fmt.Sprint(got, proto)] = true
		}
		pubs, err := c.m.Publications(s.name)
		require.NoError(t, err)
		n := uint32(0)
		for _, p := range pubs {
			n += p.Count
		}
		require.EqualValues(t, 10, n, "five ports, two families, nothing else")
		c.answersBy("tcp", c.Client, "", at(lab.HostIPv4, c.hostPort(s, 80, "tcp", "0.0.0.0", "::")), "all", lab.ClientIPv4)
		c.answersBy("udp", c.Client, "", at(lab.HostIPv6, c.hostPort(s, 91, "udp", "::", "0.0.0.0")), "all", lab.ClientIPv6)
	})
	t.Run("P beside p", func(t *testing.T) {
		c := c.in(t)
		s := c.container("both", "n1", exposeAll("80", "81"), publish("8080:80"))
		require.Equal(t, "0.0.0.0:8080 [::]:8080", c.published(s, 80, "tcp"), "as it was said, and not again")
		fits(c.hostPort(s, 81, "tcp", "0.0.0.0", "::"))
	})
	t.Run("many", func(t *testing.T) {
		c := c.in(t)
		// The rest of the range, one by one: every one is another, and in the range.
		s := c.container("many", "n1")
		seen := make(map[uint16]bool)
		for {
			pubs, err := c.m.Publish("many", "80")
			if err != nil {
				require.ErrorIs(t, err, ports.ErrExhausted)
				break
			}
			require.Len(t, pubs, 2)
			require.False(t, seen[pubs[0].HostPort], "port %d twice", pubs[0].HostPort)
			seen[pubs[0].HostPort] = true
			fits(int(pubs[0].HostPort))
		}
		require.NotEmpty(t, seen)
		c.remove(s.name)
	})
	t.Run("command", func(t *testing.T) {
		c := c.in(t)
		c.must("run", "-d", "--name", "cli", "--net", "n1", "-P", "--expose", "80-81", "--", "sleep", "1000")
		out := c.must("port", "cli", "80")
		var v4, v6 int
		_, err := fmt.Sscanf(out, "0.0.0.0:%d\n[::]:%d", &v4, &v6)
		require.NoError(t, err, out)
		require.Equal(t, v4, v6)
		fits(v4)
		require.Len(t, strings.Split(c.must("port", "cli"), "\n"), 4)
		c.must("rm", "-f", "cli")
	})
}

// B2: 127.0.0.1::80 takes a free port of that address.
func TestB2(t *testing.T) {
	parallel(t)
	for _, v := range []struct{ addr, other string }{{"127.0.0.1", "127.0.0.2"}, {lab.HostIPv4, "127.0.0.1"}, {"::1", lab.HostIPv6}} {
		t.Run(v.addr, func(t *testing.T) {
			c := newCast(t)
			c.ephemeral(40000, 40003)
			c.network("n1", 1, true)
			p := c.probe(c.Host)
			for _, network := range []string{"tcp", "udp"} {
				// The only one that is left on the address, though not on the other one.
				for _, taken := range []int{40000, 40001, 40003} {
					p.holds(network, at(v.addr, taken))
				}
				p.holds(network, at(v.other, 40002))
			}
			s := c.container("srv", "n1", publish(bracket(v.addr)+"::80", bracket(v.addr)+"::80/udp"))
			c.serve(s, 80)
			for _, proto := range []string{"tcp", "udp"} {
				require.Equal(t, 40002, c.hostPort(s, 80, proto, v.addr))
			}
			c.ephemeral(41000, 41999) // for the clients
			c.answers(c.Host, at(v.addr, 40002), "srv", "")
			if v.addr == "127.0.0.1" {
				c.publish(s, "9090:80", "9090:80/udp")
				c.silent(c.Client, at(lab.HostIPv4, 40002), works(c.Client, at(lab.HostIPv4, 9090)))
			}
			c.ephemeral(40000, 40003)
			c.cannot(s, ports.ErrExhausted, "", bracket(v.addr)+"::81")
		})
	}
}

// B3: of a range of host ports for one container port the first free one is taken.
func TestB3(t *testing.T) {
	parallel(t)
	for _, proto := range few([]string{"tcp", "udp"}, 1) {
		for _, by := range []string{"container", "process", "process on one address"} {
			t.Run(proto+" "+by, func(t *testing.T) {
				c := newCast(t)
				c.network("n1", 1, true)
				switch by {
				case "container":
					c.container("first", "n1", publish("8080:80/"+proto))
				case "process":
					c.probe(c.Host).holds(proto, "[::]:8080")
				default:
					c.probe(c.Host).holds(proto, "127.0.0.5:8080")
				}
				s := c.container("srv", "n1", publish("8080-8083:80/"+proto))
				c.serve(s, 80)
				require.Equal(t, 8081, c.hostPort(s, 80, proto, "0.0.0.0", "::"))
				c.answersBy(proto, c.Client, "", at(lab.HostIPv4, 8081), "srv", lab.ClientIPv4)
				c.answersBy(proto, c.Client, "", at(lab.HostIPv6, 8081), "srv", lab.ClientIPv6)
			})
		}
	}
}

// B4: where no port of the range is left the error is "all ports are allocated".
func TestB4(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.ephemeral(40000, 40003)
	c.network("n1", 1, true)
	p := c.probe(c.Host)
	for _, v := range few([]struct{ proto, other string }{{"tcp", "udp"}, {"udp", "tcp"}}, 1) {
		t.Run(v.proto, func(t *testing.T) {
			c := c.in(t)
			s := c.container("srv", "n1", publish("8080:80/"+v.proto, "8081:80/"+v.proto, "40000:80/"+v.proto, "40001:80/"+v.proto))
			held := []struct{ network, address string }{{v.proto, "[::]:8082"}, {v.proto + "4", "0.0.0.0:8083"}, {v.proto + "6", "[::1]:40003"}, {v.proto, "[::]:40002"}}
			for _, h := range held {
				p.holds(h.network, h.address)
			}
			before := c.inventory()
			for _, spec := range []string{"80", "8080-8083:80", "80-81", "8080-8081:80"} {
				t.Run(spec, func(t *testing.T) {
					c := c.in(t)
					c.denied(s, ports.ErrExhausted, "all ports are allocated", spec+"/"+v.proto)
					c.same(before, "%s", spec)
				})
			}
			// The other protocol has the same numbers for itself, and a port that is given back is found.
			c.container("other", "n1", publish("80/"+v.other, "8080-8083:80/"+v.other))
			p.closes(v.proto, "[::]:40002")
			late := c.container("late", "n1", publish("80/"+v.proto))
			require.Equal(t, 40002, c.hostPort(late, 80, v.proto, "::", "0.0.0.0"))
			for _, name := range []string{"srv", "other", "late"} {
				c.remove(name)
			}
			for _, h := range held[:3] {
				p.closes(h.network, h.address)
			}
		})
	}
}

// B14: the configuration's ip, in its file or by init --ip, is the address of a -p without one.
func TestB14(t *testing.T) {
	parallel(t)
	check := func(t *testing.T, c *cast, addr string) {
		t.Helper()
		s := c.container("srv", "n1", publish("8080:80", "8080:80/udp", "0.0.0.0:9090:80", "0.0.0.0:9090:80/udp",
			"[::]:9090:80", "[::]:9090:80/udp", "80/tcp"))
		c.serve(s, 80)
		chosen := c.hostPorts(s, 80, "tcp", "0.0.0.0", "::", addr)[addr]
		all := []string{at("0.0.0.0", 9090), at("::", 9090), at(addr, 8080)}
		require.ElementsMatch(t, all, strings.Fields(c.published(s, 80, "udp")))
		require.ElementsMatch(t, append(all, at(addr, chosen)), strings.Fields(c.published(s, 80, "tcp")))
		c.answers(c.Host, at(addr, 8080), "srv", "")
		for _, h := range []string{lab.HostIPv4, lab.HostIPv6} {
			c.refused(c.Client, at(h, 8080), at(h, 9090))
		}
	}
	t.Run("init", func(t *testing.T) {
		c := newCast(t)
		c.bound("n1", 1, true, "127.0.0.1")
		check(t, c, "127.0.0.1")
	})
	t.Run("command", func(t *testing.T) {
		c := newCast(t)
		c.must("init", "--ip", "127.0.0.1")
		c.network("n1", 1, true)
		check(t, c, "127.0.0.1")
	})
	t.Run("file", func(t *testing.T) {
		c := newCast(t)
		file := filepath.Join(t.TempDir(), "config.json")
		require.NoError(t, os.WriteFile(file, []byte(`{"ip":"127.0.0.1"}`), 0o600))
		c.must("--config", file, "init")
		c.network("n1", 1, true)
		check(t, c, "127.0.0.1")
	})
	t.Run("network", func(t *testing.T) {
		c := newCast(t)
		c.network("n1", 1, true, func(o *control.NetworkOptions) { o.BindAddress = "127.0.0.3" })
		check(t, c, "127.0.0.3")
	})
	t.Run("IPv6", func(t *testing.T) {
		c := newCast(t)
		c.bound("n1", 1, true, "::1")
		check(t, c, "::1")
	})
	t.Run("nobody's", func(t *testing.T) {
		c := newCast(t)
		c.bound("n1", 1, true, "198.51.100.77")
		s := c.container("srv", "n1")
		before := c.inventory()
		c.cannot(s, ports.ErrNotAvailable, "", "8080:80")
		c.same(before, "publish")
		c.publish(s, "0.0.0.0:8080:80")
	})
	t.Run("no address", func(t *testing.T) {
		c := newCast(t)
		before := c.inventory()
		for _, bad := range []string{"x", "1.2.3", "127.0.0.1/8", "fe80::1%lo"} {
			t.Run(bad, func(t *testing.T) {
				c := c.in(t)
				oneLine(t, c.m.Init(&control.Config{IP: bad}))
				c.refuses([]string{"init", "--ip", bad}, bad)
			})
		}
		c.same(before, "init")
	})
}
