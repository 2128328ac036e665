// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"golang.org/x/sys/unix"
)

// ErrWrongSource says that an answer by UDP came from another address than the one asked.
var ErrWrongSource = errors.New("answer from another address")

// Conn is an open connection to a Server, or a connected UDP socket.
type Conn struct {
	net.Conn
	r *bufio.Reader
}

// Dial connects by "tcp" or "udp" from a namespace to an address ("203.0.113.1:8080").
// from is "", an address, or an address and a port, and is bound to before connecting.
func Dial(ns *netns.NS, network, from, to string, timeout time.Duration) (*Conn, error) {
	d := net.Dialer{Timeout: timeout}
	d.SetMultipathTCP(false)
	if _, err := netip.ParseAddrPort(to); err != nil {
		return nil, err // names are for nobody's resolver
	}
	src, err := parseFrom(from)
	if err != nil {
		return nil, err
	}
	if src.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(src)
		d.Control = reuseAddr
		if network[0] == 'u' {
			d.LocalAddr = net.UDPAddrFromAddrPort(src)
		}
	}
	var c net.Conn
	if err := inside(ns, func() (err error) {
		c, err = d.Dial(network, to)
		return err
	}); err != nil {
		return nil, err
	}
	return &Conn{c, bufio.NewReader(c)}, nil
}

// reuseAddr lets a source port be used again while an earlier connection is in TIME_WAIT.
func reuseAddr(_, _ string, raw syscall.RawConn) error {
	var err error
	ctlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	})
	return errors.Join(ctlErr, err)
}

// Ask sends one request and waits for its answer.
func (c *Conn) Ask(payload string, timeout time.Duration) (reply string, err error) {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if c.LocalAddr().Network() == "udp" {
		if _, err := io.WriteString(c, payload); err != nil {
			return "", err
		}
		buf := make([]byte, 1<<16)
		n, err := c.Read(buf)
		return string(buf[:n]), err
	}
	if _, err := io.WriteString(c, payload+"\n"); err != nil {
		return "", err
	}
	return readLine(c.r)
}

// AskTCP connects, asks and closes; see Dial for from and to. The timeout is for the whole.
func AskTCP(ns *netns.NS, from, to, payload string, timeout time.Duration) (reply string, err error) {
	return ask(ns, "tcp", from, to, payload, timeout)
}

// AskUDP asks by a connected socket: one datagram, which is not repeated.
func AskUDP(ns *netns.NS, from, to, payload string, timeout time.Duration) (reply string, err error) {
	return ask(ns, "udp", from, to, payload, timeout)
}

func ask(ns *netns.NS, network, from, to, payload string, timeout time.Duration) (string, error) {
	deadline := time.Now().Add(timeout)
	c, err := Dial(ns, network, from, to, timeout)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return c.Ask(payload, time.Until(deadline))
}

// AskUDPUnconnected asks by an unconnected socket: one datagram. An answer from
// elsewhere than to is ErrWrongSource.
func AskUDPUnconnected(ns *netns.NS, from, to, payload string, timeout time.Duration) (reply string, err error) {
	dst, err := netip.ParseAddrPort(to)
	if err != nil {
		return "", err
	}
	src, err := parseFrom(from)
	if err != nil {
		return "", err
	}
	network, bind := "udp6", "[::]:0"
	if dst.Addr().Is4() {
		network, bind = "udp4", "0.0.0.0:0"
	}
	if src.IsValid() {
		bind = src.String()
	}
	var c *net.UDPConn
	if err := inside(ns, func() error {
		var lc net.ListenConfig
		p, err := lc.ListenPacket(context.Background(), network, bind)
		if err == nil {
			c = p.(*net.UDPConn)
		}
		return err
	}); err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := c.WriteToUDPAddrPort([]byte(payload), dst); err != nil {
		return "", err
	}
	buf := make([]byte, 1<<16)
	n, got, err := c.ReadFromUDPAddrPort(buf)
	if err != nil {
		return "", err
	}
	if plain(got) != plain(dst) {
		return string(buf[:n]), fmt.Errorf("%w: asked %s, answered by %s", ErrWrongSource, dst, got)
	}
	return string(buf[:n]), nil
}

func parseFrom(from string) (netip.AddrPort, error) {
	if from == "" {
		return netip.AddrPort{}, nil
	}
	if a, err := netip.ParseAddr(from); err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	return netip.ParseAddrPort(from)
}

// inside is ns.Do for code that uses the net package, which finds out once per
// process whether there are IPv4 and IPv6, in whatever namespace that happens to be:
// without a lo that is up it finds none.
func inside(ns *netns.NS, fn func() error) error {
	probe.Do(func() {
		clean, err := netns.New()
		if err != nil {
			return
		}
		defer clean.Close()
		if setUp(clean, "lo") != nil {
			return
		}
		clean.Do(func() error {
			if l, err := net.ListenPacket("udp", "127.0.0.1:0"); err == nil {
				l.Close()
			}
			return nil
		})
	})
	return ns.Do(fn)
}

var probe sync.Once
