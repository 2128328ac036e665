// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// X asks H on each of its addresses, by each kind of socket.
func TestAsk(t *testing.T) {
	l := New(t)
	AddAddr(t, l.Host, "eth0", "203.0.113.7/24")
	AddAddr(t, l.Host, "eth0", "2001:db8:113::7/64")
	tcp := ServeTCP(t, l.Host, "web", ":80")
	udp := ServeUDP(t, l.Host, "dns", ":53")
	udp4 := ServeUDP(t, l.Host, "dns4", "0.0.0.0:54")

	asked := 0
	for _, to := range []string{HostIPv4, "203.0.113.7", HostIPv6, "2001:db8:113::7"} {
		from := ClientIPv4
		if strings.Contains(to, ":") {
			from = ClientIPv6
		}
		check := func(reply string, err error, name string, port int) {
			t.Helper()
			require.NoError(t, err)
			r, err := ParseReply(reply)
			require.NoError(t, err)
			require.Equal(t, name, r.Server)
			require.Equal(t, from, r.Remote.Addr().String())
			require.Equal(t, netip.MustParseAddr(to), r.Local.Addr())
			require.EqualValues(t, port, r.Local.Port())
			require.Equal(t, "hello: remote=x", r.Payload)
		}
		reply, err := AskTCP(l.Client, "", net.JoinHostPort(to, "80"), "hello: remote=x", limit)
		check(reply, err, "web", 80)
		reply, err = AskTCP(l.Client, net.JoinHostPort(from, "4321"), net.JoinHostPort(to, "80"), "hello: remote=x", limit)
		check(reply, err, "web", 80)
		require.Contains(t, reply, ":4321 local")
		for _, f := range []string{"", from} {
			reply, err = AskUDP(l.Client, f, net.JoinHostPort(to, "53"), "hello: remote=x", limit)
			check(reply, err, "dns", 53)
			reply, err = AskUDPUnconnected(l.Client, f, net.JoinHostPort(to, "53"), "hello: remote=x", limit)
			check(reply, err, "dns", 53)
		}
		asked++
	}
	reply, err := AskUDPUnconnected(l.Client, "", "203.0.113.7:54", "x", limit)
	require.NoError(t, err)
	require.Contains(t, reply, "local=203.0.113.7:54")
	require.Equal(t, 2*asked, tcp.Requests())
	require.Equal(t, 4*asked, udp.Requests())
	require.Equal(t, 1, udp4.Requests())

	c, err := Dial(l.Client, "tcp", "", HostIPv4+":80", limit)
	require.NoError(t, err)
	defer c.Close()
	for i := range 3 {
		payload := fmt.Sprint(i, strings.Repeat("x", 100_000))
		reply, err := c.Ask(payload, limit)
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(reply, payload))
	}
	tcp.Close()
	_, err = c.Ask("gone", limit)
	require.Error(t, err)
}

func TestParseReply(t *testing.T) {
	for _, bad := range []string{"", "x", "a remote=1.2.3.4:5", "a remote=1.2.3.4:5 local=x: y", "a remote=x local=1.2.3.4:5: y", "a remote=1.2.3.4:5 local=1.2.3.4:5 y"} {
		_, err := ParseReply(bad)
		require.Error(t, err, bad)
	}
}

// A server on the wildcard that does not care answers from its first address.
func TestWrongSource(t *testing.T) {
	l := New(t)
	AddAddr(t, l.Host, "eth0", "203.0.113.7/24")
	var careless net.PacketConn
	require.NoError(t, inside(l.Host, func() (err error) {
		careless, err = net.ListenPacket("udp4", ":53")
		return err
	}))
	defer careless.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := careless.ReadFrom(buf)
			if err != nil {
				return
			}
			careless.WriteTo(buf[:n], from)
		}
	}()
	_, err := AskUDPUnconnected(l.Client, "", HostIPv4+":53", "x", limit)
	require.NoError(t, err)
	_, err = AskUDPUnconnected(l.Client, "", "203.0.113.7:53", "x", limit)
	require.ErrorIs(t, err, ErrWrongSource)
}

func TestRefusedAndTimeout(t *testing.T) {
	l := New(t)
	for _, to := range []string{HostIPv4, HostIPv6} {
		_, err := AskTCP(l.Client, "", net.JoinHostPort(to, "81"), "x", limit)
		require.True(t, Refused(err), err)
		require.False(t, Timeout(err), err)
		_, err = AskUDP(l.Client, "", net.JoinHostPort(to, "81"), "x", limit)
		require.True(t, Refused(err), err)
		start := time.Now()
		_, err = AskUDPUnconnected(l.Client, "", net.JoinHostPort(to, "81"), "x", 50*time.Millisecond)
		require.True(t, Timeout(err), err)
		require.False(t, Refused(err), err)
		require.Less(t, time.Since(start), limit)
	}
	// Nobody has these addresses.
	for _, to := range []string{"203.0.113.99", "2001:db8:113::99"} {
		_, err := AskTCP(l.Client, "", net.JoinHostPort(to, "80"), "x", 50*time.Millisecond)
		require.True(t, Timeout(err), err)
		require.True(t, Timeout(Ping(l.Client, to, 50*time.Millisecond)))
	}
	_, err := AskTCP(l.Client, "", "localhost:80", "x", limit)
	require.Error(t, err)
	require.False(t, Timeout(err) || Refused(err))
	require.False(t, Timeout(nil) || Refused(nil))
}

// judge is a test that Unreachable works for: it notes how it was judged.
type judge struct {
	testing.TB
	failed, fatal bool
}

func (j *judge) Helper()               {}
func (j *judge) Errorf(string, ...any) { j.failed = true }
func (j *judge) Fatalf(string, ...any) { j.fatal = true; panic(j) }

func TestUnreachable(t *testing.T) {
	l := New(t)
	ServeTCP(t, l.Host, "open", ":80")
	askFor := func(to string, patience time.Duration) func() error {
		return func() error {
			_, err := AskTCP(l.Client, "", to, "x", patience)
			return err
		}
	}
	ask := func(to string) func() error { return askFor(to, 50*time.Millisecond) }
	control := askFor(HostIPv4+":80", limit)
	judged := func(ask, control func() error) (j *judge, err error) {
		j = &judge{}
		defer func() { recover() }()
		err = Unreachable(j, "x", ask, control)
		return j, err
	}
	j, err := judged(askFor(HostIPv4+":81", limit), control)
	require.False(t, j.failed || j.fatal)
	require.True(t, Refused(err))
	j, err = judged(ask("203.0.113.99:80"), control)
	require.False(t, j.failed || j.fatal)
	require.True(t, Timeout(err))
	j, _ = judged(ask(HostIPv6+":80"), control)
	require.False(t, j.fatal || !j.failed, "an address without brackets is no address")
	j, _ = judged(askFor("["+HostIPv6+"]:80", limit), control)
	require.True(t, j.failed, "got through")
	j, _ = judged(ask("198.51.100.1:80"), control)
	require.True(t, j.failed, "no route: nothing is shown")
	j, _ = judged(ask(HostIPv4+":81"), ask(HostIPv4+":82"))
	require.True(t, j.fatal, "the control fails")
	calls := 0
	j, _ = judged(ask(HostIPv4+":81"), func() error {
		if calls++; calls == 2 {
			return errors.New("gone")
		}
		return nil
	})
	require.True(t, j.fatal, "the control fails afterwards")
}

func TestPing(t *testing.T) {
	l := New(t, RouteToHost())
	far := l.AddClient(t, "Y", "198.51.100.1/24", "2001:db8:51::1/64")
	AddRoute(t, far.NS, "203.0.113.0/24", "198.51.100.1")
	AddRoute(t, far.NS, "2001:db8:113::/64", "2001:db8:51::1")
	Sysctl(t, l.Host, "ipv4/ip_forward", "1")
	Sysctl(t, l.Host, "ipv6/conf/all/forwarding", "1")

	for i, to := range []string{"198.51.100.2", "2001:db8:51::2"} {
		gw := []string{HostIPv4, HostIPv6}[i]
		payload, err := Echo{To: to, ID: 77, Seq: 5, Size: 1000, From: []string{ClientIPv4, ClientIPv6}[i]}.Send(l.Client)
		require.NoError(t, err)
		require.Len(t, payload, 1000)
		require.NoError(t, Ping(l.Client, to, limit))

		_, err = Echo{To: to, TTL: 1}.Send(l.Client)
		var icmp *ICMPError
		require.ErrorAs(t, err, &icmp)
		require.Equal(t, gw, icmp.From.String())
		require.Equal(t, []uint8{11, 3}[i], icmp.Type, "time exceeded")
		_, err = Echo{To: to, TTL: 2}.Send(l.Client)
		require.NoError(t, err)
	}
	AddRoute(t, l.Host, "192.0.2.0/24", "198.51.100.2")
	_, err := Echo{To: "192.0.2.1"}.Send(l.Client)
	var icmp *ICMPError
	require.True(t, errors.As(err, &icmp) || Timeout(err), err) // Y does not forward
	_, err = Echo{To: "nonsense"}.Send(l.Client)
	require.Error(t, err)
	_, err = Echo{To: HostIPv4, From: "192.0.2.77"}.Send(l.Client)
	require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
}

func TestBind(t *testing.T) {
	l := New(t)
	b, err := l.Bind(l.Host, "tcp", "0.0.0.0:8080")
	require.NoError(t, err)
	require.Equal(t, "0.0.0.0:8080", b.Addr)
	require.Contains(t, cgroupProcs(l.Cgroup), b.p.Pid())
	_, err = l.Bind(l.Host, "tcp", "127.0.0.1:8080")
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	_, err = l.Bind(l.Host, "udp", "192.0.2.1:8080")
	require.ErrorIs(t, err, syscall.EADDRNOTAVAIL)
	_, err = l.Bind(l.Host, "tcp", "nonsense")
	require.Error(t, err)
	_, err = AskTCP(l.Client, "", HostIPv4+":8080", "x", limit)
	require.NoError(t, err)

	l.MustBind(t, l.Host, "udp", "0.0.0.0:8080")
	_, err = AskUDP(l.Client, "", HostIPv4+":8080", "x", limit)
	require.NoError(t, err)
	b.Close()
	again, err := l.Bind(l.Host, "tcp", "0.0.0.0:8080")
	require.NoError(t, err, "free again at once")
	again.Close()
	any := l.MustBind(t, l.Host, "tcp", ":0")
	require.NotZero(t, netip.MustParseAddrPort(any.Addr).Port())
}

func TestSelf(t *testing.T) {
	l := New(t)
	line := Self("serve", "web", ":80")
	p := l.Start(t, l.Host, line[0], line[1:]...)
	require.True(t, p.WaitOutput("serving", 5*time.Second), p.Stderr())
	for _, ask := range []func() (string, error){
		func() (string, error) { return AskTCP(l.Client, "", HostIPv4+":80", "x", limit) },
		func() (string, error) { return AskUDP(l.Client, "", "["+HostIPv6+"]:80", "x", limit) },
	} {
		reply, err := ask()
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(reply, "web "), reply)
	}
	line = Self("nonsense")
	out, err := l.Run(l.Host, line[0], line[1:]...)
	require.Error(t, err)
	require.Contains(t, out, "unknown")
}
