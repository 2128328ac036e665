// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// streams are UDP clients of H's port everywhere: X, H itself, a peer, a container of
// another network, the server.
func (c *cast) streams(port int, containers ...*actor) (list []*stream) {
	c.t.Helper()
	for _, to := range []string{lab.HostIPv4, lab.HostIPv6} {
		list = append(list, c.streaming(c.Client, at(to, port)), c.streaming(c.Host, at(to, port)))
		for _, a := range containers {
			list = append(list, c.streaming(a.ns, at(to, port)))
		}
	}
	return append(list, c.streaming(c.Host, at("127.0.0.1", port)), c.streaming(c.Host, at("::1", port)))
}

// E10: a port is published while clients keep trying: their next packet gets in.
func TestE10(t *testing.T) {
	c, s, p, o := ownCast(t)
	streams := c.streams(8090, s, p, o)
	var retries []*retry
	for _, from := range []struct {
		ns  *netns.NS
		dev string
		to  []string
	}{
		{c.Client, "eth0", nil}, {s.ns, "eth0", nil}, {p.ns, "eth0", nil}, {o.ns, "eth0", nil},
		{c.Host, "lo", []string{"127.0.0.1", "::1"}},
	} {
		deaf(c, from.ns)
		for _, to := range append(from.to, lab.HostIPv4, lab.HostIPv6) {
			retries = append(retries, c.retrying(from.ns, from.dev, detour(at(to, 8090))))
		}
	}
	for _, k := range streams {
		k.flows(20)
		k.unanswered()
	}
	_, err := c.m.Publish("srv", "8090:80", "8090:80/udp")
	require.NoError(t, err)
	before := make([]int, len(retries))
	for i, k := range retries {
		before[i] = k.syns()
	}
	nextAnswered(streams, 50, "srv")
	for i, k := range retries {
		require.NoError(t, <-k.done, k.what)
		n := k.syns()
		require.Greater(t, n, 1, "%s: the first one was refused", k.what)
		require.LessOrEqual(t, n, before[i]+1, "%s: the next SYN is answered", k.what)
		k.answered("srv")
	}
}

// retry is a client that is not told that the port is closed: it sends its SYN again.
type retry struct {
	t    testing.TB
	what string
	raw  syscall.RawConn
	conn net.Conn // once it is done
	done chan error
}

// retrying starts one, whose first SYN is refused.
func (c *cast) retrying(ns *netns.NS, dev, to string) *retry {
	c.t.Helper()
	refused := lab.CaptureIn(c.t, ns, dev, func(f []byte) bool { return resetFrom(f, 8090) })
	k := &retry{t: c.t, what: fmt.Sprintf("from %s to %s", ns, to), done: make(chan error, 1)}
	open := make(chan struct{})
	d := net.Dialer{Timeout: 2 * wait, Control: func(_, _ string, raw syscall.RawConn) error {
		k.raw = raw
		close(open)
		return nil
	}}
	d.SetMultipathTCP(false)
	go func() {
		k.done <- ns.Do(func() (err error) {
			k.conn, err = d.Dial("tcp", to)
			return err
		})
	}()
	<-open
	require.True(c.t, refused.Wait(1, wait), "%s: a SYN was refused", k.what)
	return k
}

// answered requires that it has reached a server.
func (k *retry) answered(server string) {
	k.t.Helper()
	defer k.conn.Close()
	require.NoError(k.t, k.conn.SetDeadline(time.Now().Add(wait)))
	_, err := fmt.Fprintln(k.conn, k.what)
	require.NoError(k.t, err)
	line, err := bufio.NewReader(k.conn).ReadString('\n')
	require.NoError(k.t, heard(strings.TrimSuffix(line, "\n"), err, server, k.what))
}

// syns is how many it has sent.
func (k *retry) syns() (n int) {
	k.t.Helper()
	require.NoError(k.t, k.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		require.NoError(k.t, err)
		n = 1 + int(info.Total_retrans)
	}))
	return n
}

// deaf makes a namespace not hear that a port of H's is closed.
func deaf(c *cast, ns *netns.NS) {
	c.t.Helper()
	_, err := c.Run(ns, "nft", "table inet deaf { chain input { type filter hook input priority 0; tcp sport 8090 tcp flags rst / syn,rst drop; }; }")
	require.NoError(c.t, err)
}

// resetFrom finds TCP resets without options, from a port.
func resetFrom(f []byte, port int) bool {
	l4 := 34
	if len(f) > 13 && f[12] == 0x86 {
		l4 = 54
	}
	return len(f) >= l4+20 && (l4 == 34 && f[23] == 6 || l4 == 54 && f[20] == 6) &&
		int(f[l4])<<8|int(f[l4+1]) == port && f[l4+13]&4 != 0
}

// E11: a container goes and comes again with a new address, or with the old one in a new
// namespace, or is stopped, started and restarted, while UDP clients keep sending: the next packet
// reaches the new one, and none reaches who has its address now.
func TestE11(t *testing.T) {
	c, _, p, o := ownCast(t)
	streams := c.streams(8080, p, o)
	nextAnswered(streams, 20, "srv")
	old := c.station(&actor{name: "srv"}, "n1")
	for round, name := range []string{"new address", "old address"} {
		ns, path := c.AddNetns(t, name)
		again := &actor{name: name, ns: ns}
		c.serve(again, 80) // before it is attached: nothing but the network is waited for
		opts := control.ContainerOptions{Name: "srv", Network: "n1", Attach: "netns:" + path, Publish: []string{"8080:80", "8080:80/udp"}}
		if round == 1 {
			opts.Endpoint.IPv4, opts.Endpoint.IPv6 = old.ip4, old.ip6
		} else {
			opts.Endpoint.IPv4, opts.Endpoint.IPv6 = addrs("10.1.0.77")[0], addrs("fd00:1::77")[0]
		}
		require.NoError(t, c.m.RemoveContainer("srv"))
		for _, k := range streams {
			k.flows(5)
		}
		_, err := c.m.CreateContainer(opts)
		require.NoError(t, err)
		nextAnswered(streams, 50, name)
		c.answers(c.Client, at(lab.HostIPv4, 8080), name, lab.ClientIPv4)
		c.answers(c.Client, at(lab.HostIPv6, 8080), name, lab.ClientIPv6)
	}

	// Its command stops and starts: its address is somebody else's by then, who answers on the same port.
	require.NoError(t, c.m.RemoveContainer("srv"))
	c.must(append([]string{"run", "-d", "--name", "srv", "--net", "n1", "-p", "8080:80", "-p", "8080:80/udp", "--"}, lab.Self("serve", "again", ":80")...)...)
	serves := func(times int) {
		t.Helper()
		eventually(t, "srv serves", func() bool { return strings.Count(c.must("logs", "srv"), "serving") == times })
		nextAnswered(streams, 50, "again")
		c.answers(c.Client, at(lab.HostIPv4, 8080), "again", lab.ClientIPv4)
		c.answers(c.Client, at(lab.HostIPv6, 8080), "again", lab.ClientIPv6)
	}
	serves(1)
	was := c.station(&actor{name: "srv"}, "n1")
	c.must("stop", "-t", "0", "srv")
	heir := c.container("heir", "n1", func(o *control.ContainerOptions) { o.Endpoint.IPv4, o.Endpoint.IPv6 = was.ip4, was.ip6 })
	c.serve(heir, 80)
	for _, k := range streams {
		k.flows(5)
	}
	c.must("start", "srv")
	is := c.station(&actor{name: "srv"}, "n1")
	require.NotEqual(t, was.ip4, is.ip4)
	require.NotEqual(t, was.ip6, is.ip6)
	serves(2)
	c.must("restart", "-t", "0", "srv")
	serves(3)
	for _, k := range streams {
		k.unheard("heir")
	}
}
