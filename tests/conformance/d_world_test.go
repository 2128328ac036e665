// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// D1: a container reaches the world, which sees H's address of the uplink that the
// route chose.
//
//	s 10.1.0.2 ── H ─┬─ 203.0.113.1  ── X 203.0.113.2, and behind it 192.0.2.99 (the default route)
//	                 └─ 198.51.100.1 ── Y 198.51.100.2
func TestD1(t *testing.T) {
	parallel(t)
	c, s, _, _ := mainCast(t, lab.HostDefault())
	y := c.AddClient(t, "Y", "198.51.100.1/24", "fd99::1/64")
	lab.AddAddr(t, c.Client, "eth0", "192.0.2.99/32")
	lab.AddAddr(t, c.Client, "eth0", "2001:db8:99::99/128")
	_, err := c.m.Reconcile()
	require.NoError(t, err)
	for name, ns := range map[string]*netns.NS{"X": c.Client, "Y": y.NS} {
		lab.ServeTCP(t, ns, name, ":9000")
		lab.ServeUDP(t, ns, name, ":9000")
	}
	for _, d := range []struct{ to, server, src string }{
		{lab.ClientIPv4, "X", lab.HostIPv4},
		{lab.ClientIPv6, "X", lab.HostIPv6},
		{"192.0.2.99", "X", lab.HostIPv4},
		{"2001:db8:99::99", "X", lab.HostIPv6},
		{"198.51.100.2", "Y", "198.51.100.1"},
		{"fd99::2", "Y", "fd99::1"},
	} {
		c.answers(s.ns, at(d.to, 9000), d.server, d.src)
		c.pings(s.ns, d.to)
		conn, err := lab.Dial(s.ns, "tcp", "", at(d.to, 9000), wait)
		require.NoError(t, err)
		defer conn.Close()
		c.carries(conn, 1_000_000)
	}
}

// D3: a container reaches another network's published port by H's addresses, as in
// A11, and only so.
func TestD3(t *testing.T) {
	parallel(t)
	c, s, _, o := mainCast(t)
	c.publish(o, "8090:80", "8090:80/udp")
	for _, h := range []string{lab.HostIPv4, "10.1.0.1", "10.2.0.1"} {
		c.answers(s.ns, at(h, 8090), "other", s.ip4.String())
		c.answers(o.ns, at(h, 8080), "srv", o.ip4.String())
	}
	for _, h := range []string{lab.HostIPv6, "fd00:1::1", "fd00:2::1"} {
		c.answers(s.ns, at(h, 8090), "other", s.ip6.String())
		c.answers(o.ns, at(h, 8080), "srv", o.ip6.String())
	}
	c.dropped(s.ns, at(o.ip4, 80), at(lab.HostIPv4, 8090), "ISOLATED")
	c.dropped(s.ns, at(o.ip6, 80), at(lab.HostIPv6, 8090), "ISOLATED")
}

// D4: masquerade off: the world, which needs a route, sees the container itself.
func TestD4(t *testing.T) {
	parallel(t)
	c := newCast(t, lab.RouteToHost())
	off := false
	c.network("plain", 3, true, func(o *control.NetworkOptions) { o.Masquerade = &off })
	c.network("n1", 1, true)
	plain, masked := c.container("plain", "plain", publish("8080:80", "8080:80/udp")), c.container("masked", "n1")
	c.serve(plain, 80)
	lab.ServeTCP(t, c.Client, "X", ":9000")
	lab.ServeUDP(t, c.Client, "X", ":9000")
	for _, d := range []struct {
		to, h   string
		own, by netip.Addr
	}{
		{lab.ClientIPv4, lab.HostIPv4, plain.ip4, netip.MustParseAddr(lab.HostIPv4)},
		{lab.ClientIPv6, lab.HostIPv6, plain.ip6, netip.MustParseAddr(lab.HostIPv6)},
	} {
		c.answers(plain.ns, at(d.to, 9000), "X", d.own.String())
		c.answers(masked.ns, at(d.to, 9000), "X", d.by.String())
		pings := lab.CaptureIn(t, c.Client, "eth0", lab.Matching(isEchoRequest))
		c.pings(plain.ns, d.to)
		c.pings(masked.ns, d.to)
		require.True(t, pings.Wait(2, wait))
		var sources []string
		for _, f := range pings.Frames() {
			sources = append(sources, lab.Decode(f).NetworkLayer().NetworkFlow().Src().String())
		}
		require.Equal(t, []string{d.own.String(), d.by.String()}, sources, "of the pings")
		// The source port is the container's too.
		for i, proto := range protos {
			from := at(d.own, 45000+i)
			reply, err := ask(plain.ns, proto, from, at(d.to, 9000), wait)
			require.NoError(t, err, proto)
			require.Equal(t, from, reply.Remote.String(), proto)
		}
		// From outside the container is reached no more than any other.
		c.answers(c.Client, at(d.h, 8080), "plain", d.to)
		c.dropped(c.Client, at(d.own, 80), at(d.h, 8080), "DIRECT_ACCESS")
	}
}

// D7: a container's source port is that of a service of H's, which keeps working: for
// the very X:9000 that the container talks to as well.
//
//	s :5353 ──────────► X:9000
//	H :5353 ◄────────── X:9000, and others
func TestD7(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	service := func(name, addr string) {
		lab.ServeTCP(t, c.Host, name, addr)
		lab.ServeUDP(t, c.Host, name, addr)
	}
	service("H", ":5353")
	for _, f := range []struct {
		name    string
		x, h, s netip.Addr
	}{
		{"IPv4", netip.MustParseAddr(lab.ClientIPv4), netip.MustParseAddr(lab.HostIPv4), s.ip4},
		{"IPv6", netip.MustParseAddr(lab.ClientIPv6), netip.MustParseAddr(lab.HostIPv6), s.ip6},
	} {
		t.Run(f.name+" UDP", func(t *testing.T) {
			c := c.in(t)
			x := c.udpSocket(c.Client, at(f.x, 9000))
			in := c.udpSocket(s.ns, at(f.s, 5353))
			for round := range 3 {
				payload := fmt.Sprint("from the container ", round)
				_, err := in.WriteToUDPAddrPort([]byte(payload), netip.AddrPortFrom(f.x, 9000))
				require.NoError(t, err)
				got, from := receive(t, x)
				require.Equal(t, payload, got)
				require.Equal(t, f.h, from.Addr())
				require.NotEqual(t, uint16(5353), from.Port(), "the port of H's service")
				_, err = x.WriteToUDPAddrPort([]byte("answer"), from)
				require.NoError(t, err)
				got, from = receive(t, in)
				require.Equal(t, "answer", got)
				require.Equal(t, netip.AddrPortFrom(f.x, 9000), from)

				_, err = x.WriteToUDPAddrPort([]byte("for the service"), netip.AddrPortFrom(f.h, 5353))
				require.NoError(t, err)
				got, from = receive(t, x)
				require.Equal(t, fmt.Sprintf("H remote=%s local=%s: for the service", at(f.x, 9000), at(f.h, 5353)), got)
				require.Equal(t, netip.AddrPortFrom(f.h, 5353), from)
			}
			c.answersBy("udp", c.Client, "", at(f.h, 5353), "H", f.x.String())
		})
		t.Run(f.name+" TCP", func(t *testing.T) {
			c := c.in(t)
			server, err := lab.NewTCPServer(c.Client, "X", at(f.x, 9100))
			require.NoError(t, err)
			defer server.Close()
			conn, err := lab.Dial(s.ns, "tcp", at(f.s, 5353), at(f.x, 9100), wait)
			require.NoError(t, err)
			defer conn.Close()
			external := func() netip.AddrPort {
				line, err := conn.Ask("container", wait)
				require.NoError(t, err)
				reply, err := lab.ParseReply(line)
				require.NoError(t, err)
				require.Equal(t, "X", reply.Server)
				return reply.Remote
			}
			require.Equal(t, f.h, external().Addr())
			require.NotEqual(t, uint16(5353), external().Port())
			c.answersBy("tcp", c.Client, "", at(f.h, 5353), "H", f.x.String())
			// X's port is a listener's: a SYN from it can only be crafted.
			require.Equal(t, "SA", c.handshake(f.x, 9100, f.h, 5353))
			external()
		})
	}

	// A service in the very range that masquerade takes its ports from is passed over.
	t.Run("in masquerade's range", func(t *testing.T) {
		c := c.in(t)
		service("in range", ":20001")
		service("in range", lab.HostIPv4+":20002")
		require.NoError(t, c.m.Init(&control.Config{MasqueradePorts: "20000-20003"}))
		for _, proto := range []string{"tcp", "udp"} {
			for _, port := range []int{9200, 9201} {
				if proto == "tcp" {
					lab.ServeTCP(t, c.Client, "X", at("", port))
				} else {
					lab.ServeUDP(t, c.Client, "X", at("", port))
				}
			}
			var used []uint16
			for range 2 {
				conn, err := lab.Dial(s.ns, proto, "", at(lab.ClientIPv4, 9200), wait)
				require.NoError(t, err)
				defer conn.Close()
				line, err := conn.Ask("x", wait)
				require.NoError(t, err, proto)
				reply, err := lab.ParseReply(line)
				require.NoError(t, err)
				used = append(used, reply.Remote.Port())
			}
			slices.Sort(used)
			require.Equal(t, []uint16{20000, 20003}, used, proto)
			before := c.drops("NO_PORT")
			err := c.blocked(proto, s.ns, at(lab.ClientIPv4, 9200), at(lab.ClientIPv4, 9201))
			require.True(t, lab.Timeout(err), "%v", err)
			require.Greater(t, c.drops("NO_PORT"), before)
			for _, port := range []int{20001, 20002} {
				c.answersBy(proto, c.Client, "", at(lab.HostIPv4, port), "in range", lab.ClientIPv4)
			}
		}
	})
}

// receive reads a datagram.
func receive(t testing.TB, conn *net.UDPConn) (string, netip.AddrPort) {
	t.Helper()
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(wait)))
	buf := make([]byte, 2048)
	n, from, err := conn.ReadFromUDPAddrPort(buf)
	require.NoError(t, err)
	return string(buf[:n]), netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// handshake sends a SYN of X's and says what flags came back to it.
func (c *cast) handshake(src netip.Addr, sport uint16, dst netip.Addr, dport uint16) string {
	c.t.Helper()
	answers := lab.CaptureIn(c.t, c.Client, "eth0", func(frame []byte) bool {
		f := tcpOf(frame)
		return f != nil && uint16(f.SrcPort) == dport && uint16(f.DstPort) == sport && f.Ack == 1001
	})
	packet := lab.Packet{SrcMAC: c.X.MAC, DstMAC: c.X.HostMAC, Src: src, Dst: dst}
	require.NoError(c.t, lab.Inject(c.Client, "eth0", packet.TCP(sport, dport, "S", 1000, 0, nil), 1))
	require.True(c.t, answers.Wait(1, wait), "no answer to the SYN")
	f, flags := tcpOf(answers.Frames()[0]), ""
	for _, x := range []struct {
		set  bool
		name string
	}{{f.SYN, "S"}, {f.ACK, "A"}, {f.RST, "R"}, {f.FIN, "F"}} {
		if x.set {
			flags += x.name
		}
	}
	return flags
}

// D9: containers and the host ping X with one ICMP id at once, and each gets its own
// answers.
func TestD9(t *testing.T) {
	parallel(t)
	c, s, p, o := mainCast(t)
	const id = 777
	host := &actor{name: "H", ns: c.Host}
	for _, f := range families {
		to := f.client
		seen := lab.CaptureIn(t, c.Client, "eth0", lab.Matching(isEchoRequest))
		var all sync.WaitGroup
		errs := make(chan error, 64)
		start := make(chan struct{})
		rounds := times(1000, 100)
		for i, who := range []*actor{s, p, o, host} {
			size := 40 + 24*i // tells whose it is
			all.Go(func() {
				<-start
				for seq := range rounds {
					payload, err := lab.Echo{To: to, ID: id, Seq: uint16(seq), Size: size, Wait: wait}.Send(who.ns)
					if err == nil && len(payload) != size {
						err = fmt.Errorf("an answer of %d bytes to %d", len(payload), size)
					}
					if err != nil {
						errs <- fmt.Errorf("%s to %s, %d: %w", who.name, to, seq, err)
						return
					}
				}
			})
		}
		close(start)
		all.Wait()
		close(errs)
		for err := range errs {
			t.Error(err)
		}
		// X told them apart by the id.
		ids := make(map[uint16]int)
		for _, f := range seen.Frames() {
			ids[echoID(f)]++
		}
		require.Len(t, ids, 4, "%v", ids)
		require.Contains(t, ids, uint16(id), "the host's own")
		for _, n := range ids {
			require.Equal(t, rounds, n)
		}
		seen.Stop()

		// X pings the host with it meanwhile. (In turns: a socket of X's for ICMP is
		// shown everybody's, and would overflow.)
		for seq := range rounds / 2 {
			for _, e := range []struct {
				ns *netns.NS
				to string
			}{{s.ns, to}, {c.Client, f.host}, {c.Host, to}} {
				_, err := lab.Echo{To: e.to, ID: id, Seq: uint16(seq), Wait: wait}.Send(e.ns)
				require.NoError(t, err)
			}
		}

		// The host pings with the ids that the containers' were given.
		for external := range ids {
			t.Run(fmt.Sprintf("the host pings %s with %d", to, external), func(t *testing.T) {
				_, err := lab.Echo{To: to, ID: external, Seq: 7, Size: 48, Wait: silence}.Send(c.Host)
				require.NoError(t, err)
				_, err = lab.Echo{To: to, ID: id, Seq: 8, Size: 56, Wait: wait}.Send(s.ns)
				require.NoError(t, err)
			})
		}
	}
}
