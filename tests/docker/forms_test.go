// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// -p in its forms, on a host that has several addresses, and what a container may not send.
//
//	X 203.0.113.2 ── 203.0.113.1 H 198.51.100.1, .7 ── 198.51.100.2 Y
func TestForms(t *testing.T) {
	e := newEngine(t)
	y := e.AddClient(t, "Y", "198.51.100.1/24")
	lab.AddAddr(t, e.Host, "eth1", "198.51.100.7/24")
	e.Docker("network", "create", "bound", "-o", "com.docker.network.bridge.host_binding_ipv4=198.51.100.7")
	all := e.RunAll(
		"one -p 127.0.1.2:7777:80 -p 127.0.1.2:7777:80/udp -p 8070:80 -p 8071:80 -p 8070:80/udp -p 8071:80/udp",
		"two -p 127.0.1.3:7777:80 -p 127.0.1.3:7777:80/udp -p 198.51.100.7:7000-7002:80-82 -p 198.51.100.7:7000-7002:80-82/udp",
		"any -p 80 --expose 81 -P",
		"held --net bound -p 8055:80 -p 8055:80/udp")
	e.adopted("one", "two", "any", "held")
	one, two := all["one"], all["two"]

	t.Run("addresses", func(t *testing.T) {
		e := e.in(t)
		e.Answers(e.Host, "127.0.1.2:7777", "one", "172.17.0.1")
		e.Answers(e.Host, "127.0.1.3:7777", "two", "172.17.0.1")
		e.Silent(e.Host, "127.0.0.1:7777", e.Host, "127.0.1.2:7777")
		for _, to := range []string{"8070", "8071"} {
			e.Answers(e.Client, lab.HostIPv4+":"+to, "one", lab.ClientIPv4)
			e.Answers(y.NS, "198.51.100.7:"+to, "one", "198.51.100.2")
		}
		e.Answers(y.NS, "198.51.100.7:7001", "two", "198.51.100.2")
		e.Silent(y.NS, "198.51.100.1:7001", y.NS, "198.51.100.7:7001")
		e.Silent(e.Client, lab.HostIPv4+":7001", y.NS, "198.51.100.7:7001")
		e.Answers(y.NS, "198.51.100.7:8055", "held", "198.51.100.2")
		e.Silent(y.NS, "198.51.100.1:8055", y.NS, "198.51.100.7:8055")
	})
	t.Run("unconnected", func(t *testing.T) {
		e := e.in(t) // the answer comes from the address that was asked
		for _, to := range []string{"198.51.100.1:8070", "198.51.100.7:8070"} {
			_, err := lab.AskUDPUnconnected(y.NS, "", to, "hello", dockerd.Soon)
			require.NoError(t, err)
		}
		_, err := lab.AskUDPUnconnected(e.Host, "", "127.0.1.2:7777", "hello", dockerd.Soon)
		require.NoError(t, err)
	})
	t.Run("any port", func(t *testing.T) {
		e := e.in(t)
		for _, port := range []string{"80/tcp", "81/tcp"} {
			where, _, _ := strings.Cut(e.Docker("port", "any", port), "\n")
			line, err := lab.AskTCP(e.Client, "", lab.HostIPv4+where[strings.LastIndex(where, ":"):], "hello", dockerd.Soon)
			require.NoError(t, err)
			require.True(t, strings.HasPrefix(line, "any "), line)
			require.Contains(t, e.Bpfnet("port", "any"), where)
		}
	})
	t.Run("forged", func(t *testing.T) {
		e := e.in(t)
		lab.ServeTCP(t, y.NS, "world", ":9000")
		lab.AddAddr(t, one.NS, "eth0", "172.17.0.99/16")
		from := func(src string) func() error {
			return func() error {
				_, err := lab.AskTCP(one.NS, src, "198.51.100.2:9000", "hello", dockerd.Soon/4)
				return err
			}
		}
		lab.Unreachable(t, "with another source", from("172.17.0.99"), from(one.V4))
		peer := func(src string) func() error {
			return func() error {
				_, err := lab.AskTCP(one.NS, src, two.V4+":80", "hello", dockerd.Soon/4)
				return err
			}
		}
		lab.Unreachable(t, "to a peer with another source", peer("172.17.0.99"), peer(one.V4))
		e.Answers(e.Client, lab.HostIPv4+":8070", "one", lab.ClientIPv4)
	})
	t.Run("does not start", func(t *testing.T) {
		e := e.in(t)
		_, err := e.Run(e.Host, "/usr/bin/docker", "--host", e.Socket(), "run", "-d", "--name", "bad", "-p", "8077:80", "box", "/nothing")
		require.ErrorContains(t, err, "no such file or directory")
		e.Eventually("its port leads nowhere", func() bool { return !e.leads(8077) })
		require.NotContains(t, e.Bpfnet("ps", "-a"), "docker/bad")
		e.Docker("rm", "bad")
	})
	t.Run("renamed", func(t *testing.T) {
		e := e.in(t)
		e.Docker("rename", "two", "zwei")
		e.Eventually("its new name", func() bool { return strings.Contains(e.Bpfnet("ps"), "docker/zwei") })
		require.NotContains(t, e.Bpfnet("ps"), "docker/two")
		e.Answers(e.Host, "127.0.1.3:7777", "two", "172.17.0.1")
		e.Docker("pause", "zwei")
		e.Docker("unpause", "zwei")
		e.Docker("restart", "-t", "0", "zwei")
		e.Find("zwei")
		e.adopted("zwei")
		e.Eventually("restarted", func() bool {
			_, err := lab.AskTCP(e.Host, "", "127.0.1.3:7777", "hello", dockerd.Soon/4)
			return err == nil
		})
	})
}
