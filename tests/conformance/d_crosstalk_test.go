// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// D6: the host's own connections, the containers' and those to published ports share
// H's address, ip_local_port_range is ten ports wide, and seven of them are published:
// more than can be kept from the host's own sockets. Of 100,000 replies none goes to
// the wrong side.
//
//	X:9000 ◄── H:40000-40009   the host's TCP, connected and unconnected UDP, from before and after
//	X:9000 ◄── H:any other     srv, peer and other, masqueraded
//	X:any  ──► H:40002-40008   srv, published
func TestD6(t *testing.T) {
	parallel(t)
	c := newCast(t)
	lab.Sysctl(t, c.Host, "ipv4/ip_local_port_range", fmt.Sprint("40000 ", lastEphemeral()))
	_, err := c.m.Reconcile()
	require.NoError(t, err)
	lab.ServeTCP(t, c.Client, "X", ":9000")
	lab.ServeUDP(t, c.Client, "X", ":9000")
	d := &crosstalk{cast: c}

	// Before the containers, from ports that are not published later.
	for _, f := range families {
		x := at(f.client, 9000)
		d.dial("before", c.Host, "tcp", at(f.host, 40000), x, hostSide)
		d.dial("before", c.Host, "tcp", at(f.host, 40001), x, hostSide)
		d.dial("before", c.Host, "udp", at(f.host, 40000), x, hostSide)
		d.unconnected("before", c.Host, at(f.host, 40001), x, hostSide)
	}
	d.exchange(100)

	c.network("n1", 1, true)
	c.network("n2", 2, true)
	var specs []string
	for port := 40002; port <= 40008; port++ {
		specs = append(specs, fmt.Sprintf("%d:80", port), fmt.Sprintf("%d:80/udp", port))
	}
	s, p, o := c.container("srv", "n1", publish(specs...)), c.container("peer", "n1"), c.container("other", "n2")
	c.serve(s, 80)
	for _, f := range families {
		for range 2 {
			for _, who := range []*actor{s, p, o} {
				d.dial(who.name, who.ns, "tcp", "", at(f.client, 9000), containerSide)
				d.dial(who.name, who.ns, "udp", "", at(f.client, 9000), containerSide)
				d.unconnected(who.name, who.ns, f.any, at(f.client, 9000), containerSide)
			}
		}
		for port := 40002; port <= 40008; port++ {
			d.dial("published", c.Client, "tcp", "", at(f.host, port), publishedSide)
			d.dial("published", c.Client, "udp", "", at(f.host, port), publishedSide)
		}
	}
	d.exchange(100)

	// After: all ports that the kernel still gives, published ones among them.
	for _, network := range []string{"tcp", "udp", "unconnected"} {
		d.phase(t, network+" to X", func(d *crosstalk, f family) { d.open(network, f, at(f.client, 9000), hostSide) })
	}
	// The same sockets towards the host itself and a container.
	lab.ServeTCP(t, c.Host, "H", ":9000")
	lab.ServeUDP(t, c.Host, "H", ":9000")
	c.serve(o, 81)
	own, inside := side{"H", ephemeral}, side{"other", ephemeral}
	for _, network := range []string{"tcp", "udp", "unconnected"} {
		d.phase(t, network+" to the host and a container", func(d *crosstalk, f family) {
			switch len(d.talks) % 3 {
			case 0:
				d.open(network, f, at(f.loopback, 9000), own)
			case 1:
				d.open(network, f, at(f.host, 9000), own)
			default:
				d.open(network, f, at(f.of(o), 81), inside)
			}
		})
	}

	// Masquerade takes no published port: what X sends there is for the server.
	t.Run("masquerade's ports", func(t *testing.T) {
		c := c.in(t)
		require.NoError(t, c.m.Init(&control.Config{MasqueradePorts: "20000-20001"}))
		c.publish(s, "20001:80", "20001:80/udp")
		for _, f := range families {
			x := c.udpSocket(c.Client, at(f.client, 9300))
			for range 2 {
				in := c.udpSocket(p.ns, f.any)
				_, err := in.WriteToUDPAddrPort([]byte("masqueraded"), netip.MustParseAddrPort(at(f.client, 9300)))
				require.NoError(t, err)
			}
			got, src := receive(t, x)
			require.Equal(t, "masqueraded", got)
			require.Equal(t, at(f.host, 20000), src.String())
			_, err := x.WriteToUDPAddrPort([]byte("for the server"), netip.MustParseAddrPort(at(f.host, 20001)))
			require.NoError(t, err)
			got, src = receive(t, x)
			require.Equal(t, "srv remote="+at(f.client, 9300), got[:min(len(got), len("srv remote="+at(f.client, 9300)))])
			require.Equal(t, at(f.host, 20001), src.String())
		}
	})
}

// udp keeps a socket to its own family: one for both would take a port of each.
type family struct{ client, host, loopback, any, udp string }

var families = []family{
	{lab.ClientIPv4, lab.HostIPv4, "127.0.0.1", "0.0.0.0:0", "udp4"},
	{lab.ClientIPv6, lab.HostIPv6, "::1", "[::]:0", "udp6"},
}

// of is the actor's address of the family.
func (f family) of(a *actor) string {
	if f.udp == "udp4" {
		return a.ip4.String()
	}
	return a.ip6.String()
}

// lastEphemeral leaves the host's own sockets enough ports beside those that an Engine holds.
func lastEphemeral() uint16 {
	if onDocker() {
		return 40015
	}
	return 40009
}

// Sides: who answers, and from which ports of H's the question may come.
type side struct {
	server string
	port   func(uint16) bool
}

var (
	ephemeral     = func(p uint16) bool { return p >= 40000 && p <= lastEphemeral() }
	hostSide      = side{"X", ephemeral}
	containerSide = side{"X", func(p uint16) bool { return !ephemeral(p) }}
	publishedSide = side{"srv", func(uint16) bool { return true }}
)

// crosstalk is many sockets that ask in parallel; each knows whose answers are its own.
type crosstalk struct {
	*cast
	talks []*talk
}

type talk struct {
	name string
	ask  func(payload string) (string, error)
	side side
	port uint16 // of the socket
}

// phase adds three sockets of the host's in each family, or more until one sits on a published port,
// exchanges, and closes them.
func (d *crosstalk) phase(t *testing.T, name string, open func(*crosstalk, family)) {
	t.Run(name, func(t *testing.T) {
		sub := &crosstalk{cast: d.in(t), talks: d.talks}
		for _, f := range families {
			published := 0
			// Three ports are not published: of ten sockets to three destinations one has another.
			for n := 0; n < 3 || n < 10 && published == 0 && !onDocker(); n++ {
				open(sub, f)
				if port := sub.talks[len(sub.talks)-1].port; port >= 40002 && port <= 40008 {
					published++
				}
			}
			if onDocker() {
				require.Zero(t, published, "the Engine holds published ports")
			} else {
				require.NotZero(t, published, "%s: the host's own sockets have no published port: nothing is shown", f.host)
			}
		}
		sub.exchange(times(100_000, 2_000) / 3)
	})
}

// open is a socket of the host's from after the containers'.
func (d *crosstalk) open(network string, f family, to string, s side) {
	d.t.Helper()
	switch network {
	case "unconnected":
		d.unconnected("after", d.Host, f.any, to, s)
	case "udp":
		d.dial("after", d.Host, f.udp, "", to, s)
	default:
		d.dial("after", d.Host, network, "", to, s)
	}
}

func (d *crosstalk) dial(name string, ns *netns.NS, network, from, to string, s side) {
	d.t.Helper()
	conn, err := lab.Dial(ns, network, from, to, wait)
	require.NoError(d.t, err, "%s %s %s to %s", name, network, from, to)
	d.t.Cleanup(func() { conn.Close() })
	local := netip.MustParseAddrPort(conn.LocalAddr().String())
	d.talks = append(d.talks, &talk{
		name: fmt.Sprintf("%s %s %s to %s", name, network, local, to), side: s, port: local.Port(),
		ask: func(payload string) (string, error) { return conn.Ask(payload, wait) },
	})
}

func (d *crosstalk) unconnected(name string, ns *netns.NS, from, to string, s side) {
	d.t.Helper()
	conn, dst := d.udpSocket(ns, from), netip.MustParseAddrPort(to)
	buf := make([]byte, 2048)
	local := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	d.talks = append(d.talks, &talk{
		name: fmt.Sprintf("%s udp-unconnected %s to %s", name, local, to), side: s, port: local.Port(),
		ask: func(payload string) (string, error) {
			if err := conn.SetDeadline(time.Now().Add(wait)); err != nil {
				return "", err
			}
			if _, err := conn.WriteToUDPAddrPort([]byte(payload), dst); err != nil {
				return "", err
			}
			n, from, err := conn.ReadFromUDPAddrPort(buf)
			if err == nil && (from.Addr().Unmap() != dst.Addr() || from.Port() != dst.Port()) {
				err = fmt.Errorf("%w: %s", lab.ErrWrongSource, from)
			}
			return string(buf[:n]), err
		},
	})
}

// exchange asks about total questions, all sockets at once, and counts the replies
// that went astray.
func (d *crosstalk) exchange(total int) {
	d.t.Helper()
	each := total/len(d.talks) + 1
	var all sync.WaitGroup
	var wrong atomic.Int64
	errs := make(chan error, len(d.talks))
	for _, k := range d.talks {
		all.Go(func() {
			for i := range each {
				if err := k.once(i); err != nil {
					wrong.Add(1)
					errs <- fmt.Errorf("%s: %w", k.name, err)
					return
				}
			}
		})
	}
	all.Wait()
	close(errs)
	for err := range errs {
		d.t.Error(err)
	}
	require.Zero(d.t, wrong.Load())
}

func (k *talk) once(i int) error {
	payload := fmt.Sprintf("%s #%d", k.name, i)
	line, err := k.ask(payload)
	if err != nil {
		return err
	}
	reply, err := lab.ParseReply(line)
	switch {
	case err != nil:
		return err
	case reply.Payload != payload:
		return fmt.Errorf("somebody else's reply: %q", reply.Payload)
	case reply.Server != k.side.server:
		return fmt.Errorf("answered by %s", reply.Server)
	case !k.side.port(reply.Remote.Port()):
		return errors.New("came from " + reply.Remote.String())
	}
	return nil
}
