// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/ports"
)

func (l *lab) publish(ref string, specs ...string) string {
	l.t.Helper()
	pubs, err := l.m.Publish(ref, specs...)
	require.NoError(l.t, err)
	return shownPubs(pubs)
}

func shownPubs(pubs []Publication) string {
	var out []string
	for _, p := range pubs {
		out = append(out, net.JoinHostPort(p.HostIP.String(), itoa(int(p.HostPort)))+"->"+itoa(int(p.Port))+"/"+p.Proto)
	}
	return strings.Join(out, " ")
}

func TestPublish(t *testing.T) {
	l := newLab(t)
	_, err := l.m.CreateNetwork(NetworkOptions{Name: "dual", IPv6: true})
	require.NoError(t, err)
	l.container("web", ContainerOptions{Publish: []string{"8080:80"}})
	l.container("dual", ContainerOptions{Network: "dual"})

	require.Equal(t, "127.0.0.1:8081->80/tcp", l.publish("web", "127.0.0.1:8081:80"))
	require.Equal(t, "0.0.0.0:8082->80/tcp [::]:8082->80/tcp", l.publish("dual", "8082:80"))
	require.Equal(t, "192.0.2.1:8083->80/tcp", l.publish("dual", "192.0.2.1:8083:80"))
	require.Equal(t, "[2001:db8::1]:8083->80/tcp", l.publish("dual", "[2001:db8::1]:8083:80"))
	require.Equal(t, "0.0.0.0:8080->80/udp", l.publish("web", "8080:80/udp"))
	require.Equal(t, "0.0.0.0:8084->81/tcp", l.publish("web", "8080-8085:81"), "B3")
	require.Equal(t, "127.0.1.2:9000->80/tcp", l.publish("web", "127.0.1.2:9000:80"), "A14")
	require.Equal(t, "127.0.1.3:9000->80/tcp", l.publish("dual", "127.0.1.3:9000:80"), "A14")
	require.Equal(t, "0.0.0.0:7000->80/tcp", l.publish("web", "7000-7002:80-82"))
	require.Equal(t, "0.0.0.0:9899->9899/sctp", l.publish("web", "9899/sctp"), "SCTP's port cannot be another")
	pubs, err := l.m.Publish("web", "8090:80,from=203.0.113.0/24,2001:db8::/32")
	require.NoError(t, err)
	require.Len(t, pubs[0].From, 2)

	before := l.state()
	for spec, want := range map[string]string{
		"8080:80":               "Bind for 0.0.0.0:8080 failed: port is already allocated",
		"127.0.0.1:8080:80":     "Bind for 127.0.0.1:8080 failed: port is already allocated",
		"8081:80":               "Bind for 0.0.0.0:8081 failed: port is already allocated",
		"7001:80":               "port is already allocated",
		"6999-7001:1-3":         "Bind for 0.0.0.0:7000 failed: port is already allocated",
		"8080-8081:80":          "all ports are allocated",
		"203.0.113.9:1:1":       "Bind for 203.0.113.9:1 failed: cannot assign requested address",
		"[fe80::1]:1:1":         "link-local",
		"0:80":                  "invalid hostPort: 0",
		"80:80:80:80":           "invalid IP address: 80:80",
		"80/what":               "invalid proto: what",
		"8000-8002:80-81":       "invalid ranges specified",
		"8100:80/sctp":          "sctp needs the same port on both sides",
		"80-90:80/sctp":         "sctp needs the same port on both sides",
		"abc":                   "containerPort: abc",
		"[2001:db8::1]:8099:80": "", // dual has IPv6
	} {
		if want == "" {
			continue
		}
		_, err := l.m.Publish("dual", "8100:1", spec)
		require.ErrorContains(t, err, want, spec)
		require.Equal(t, before, l.state(), "%s: B8, nothing is left", spec)
	}
	_, err = l.m.Publish("web", "[2001:db8::1]:8099:80")
	require.ErrorContains(t, err, "container web has no address of the family of 2001:db8::1")

	_, err = l.m.Publish("dual", "8200:80", "8201:80", "8200:81")
	require.ErrorContains(t, err, "Bind for 0.0.0.0:8200 failed: port is already allocated", "within one command")
	require.Equal(t, before, l.state())

	require.ErrorContains(t, l.m.Unpublish("web", "7001:81"), "container web: 7001:81 is not published by itself, but within 7000-7002:80-82")
	l.publish("web", "8300:80,from=10.0.0.0/8")
	require.ErrorIs(t, l.m.Unpublish("web", "8300:80,from=11.0.0.0/8"), ErrNotFound)
	require.NoError(t, l.m.Unpublish("web", "8300:80"))
	l.publish("web", "8300:80,from=10.0.0.0/8")
	require.NoError(t, l.m.Unpublish("web", "8300:80,from=10.0.0.0/8"))
	require.NoError(t, l.m.Unpublish("web", "8080:80", "7000-7002:80-82"))
	require.ErrorIs(t, l.m.Unpublish("web", "8080:80"), ErrNotFound)
	require.Equal(t, "0.0.0.0:8080->80/tcp [::]:8080->80/tcp", l.publish("dual", "8080:80"), "B13")
	c, err := l.m.Container("web")
	require.NoError(t, err)
	require.NotContains(t, c.Publish, "8080:80")
	require.Contains(t, c.Publish, "8080:80/udp")
}

// B6: a process of the host's has the port.
func TestPublishHeld(t *testing.T) {
	l := newLab(t)
	l.container("web", ContainerOptions{})
	var listener net.Listener
	require.NoError(t, l.host.Do(func() (err error) {
		listener, err = net.Listen("tcp4", "127.0.0.1:8080")
		return err
	}))
	before := l.state()
	_, err := l.m.Publish("web", "8080:80")
	require.ErrorIs(t, err, ports.ErrInUse)
	require.ErrorContains(t, err, "Bind for 0.0.0.0:8080 failed: address already in use")
	require.Equal(t, before, l.state())
	require.Equal(t, "192.0.2.1:8080->80/tcp", l.publish("web", "192.0.2.1:8080:80"))
	require.NoError(t, l.m.Unpublish("web", "192.0.2.1:8080:80"))
	require.NoError(t, listener.Close())
	require.Equal(t, "0.0.0.0:8080->80/tcp", l.publish("web", "8080:80"))
}

// B1, B14, and what is kept from the host's own connections.
func TestPublishRandom(t *testing.T) {
	l := newLab(t)
	require.NoError(t, l.m.Init(&Config{IP: "127.0.0.1"}))
	require.NoError(t, l.host.Do(func() error {
		return writeSysctl("ipv4/ip_local_port_range", "40000 40009")
	}))
	l.container("web", ContainerOptions{Expose: []string{"80-81", "53/udp"}, PublishAll: true, Publish: []string{"80"}})
	pubs, err := l.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, pubs, 3)
	seen := map[uint16]bool{}
	for _, p := range pubs {
		require.Equal(t, "127.0.0.1", p.HostIP.String())
		require.GreaterOrEqual(t, p.HostPort, uint16(40000))
		require.LessOrEqual(t, p.HostPort, uint16(40009))
		seen[p.HostPort] = true
	}
	reserved := func() (s ports.Set) {
		require.NoError(t, l.host.Do(func() (err error) {
			s, err = ports.ReadReserved()
			return err
		}))
		return s
	}
	set := reserved()
	require.Equal(t, len(seen), set.Len())
	_, err = l.m.Publish("web", "1", "2", "3", "4", "5", "6/udp", "7/udp")
	require.NoError(t, err)
	set = reserved()
	require.Equal(t, 5, set.Len(), "never more than half")
	require.Contains(t, strings.Join(l.warns, "\n"), "more than half of ip_local_port_range")
	require.NoError(t, l.m.RemoveContainer("web"))
	set = reserved()
	require.Zero(t, set.Len())
}
