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
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/bpfnet/bpfnet/control/netns"
	"golang.org/x/sys/unix"
)

// Server answers every request, a line by TCP or a datagram by UDP, with
//
//	NAME remote=ADDR:PORT local=ADDR:PORT: REQUEST
//
// remote is the client as the server sees it, local the address that the client
// asked. An answer by UDP leaves from that address.
type Server struct {
	Name string
	Addr netip.AddrPort // where it listens

	requests atomic.Int64
	closer   io.Closer
	mu       sync.Mutex
	conns    map[net.Conn]bool // nil once closed
	running  sync.WaitGroup
}

// Reply is an answer, taken apart.
type Reply struct {
	Server        string
	Remote, Local netip.AddrPort
	Payload       string
}

// maxLine bounds a request by TCP, in bytes.
const maxLine = 16 << 20

// ServeTCP serves addr in the namespace until the test ends: "10.0.0.2:80", "[::1]:80",
// "0.0.0.0:80" or "[::]:80" for one family, ":80" for both.
func ServeTCP(t testing.TB, ns *netns.NS, name, addr string) *Server {
	t.Helper()
	s, err := NewTCPServer(ns, name, addr)
	return started(t, s, err)
}

// ServeUDP is ServeTCP for datagrams.
func ServeUDP(t testing.TB, ns *netns.NS, name, addr string) *Server {
	t.Helper()
	s, err := NewUDPServer(ns, name, addr)
	return started(t, s, err)
}

func started(t testing.TB, s *Server, err error) *Server {
	t.Helper()
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	t.Cleanup(s.Close)
	return s
}

// Requests is how many it has answered.
func (s *Server) Requests() int { return int(s.requests.Load()) }

// Close stops it and closes its connections.
func (s *Server) Close() {
	s.closer.Close()
	s.mu.Lock()
	for c := range s.conns {
		c.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.running.Wait()
}

func (s *Server) reply(remote, local netip.AddrPort, payload string) string {
	return fmt.Sprintf("%s remote=%s local=%s: %s", s.Name, plain(remote), plain(local), payload)
}

func plain(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// ParseReply takes an answer apart.
func ParseReply(line string) (r Reply, err error) {
	bad := fmt.Errorf("no answer of a lab server: %.100q", line)
	var ok bool
	var remote, local string
	if r.Server, line, ok = strings.Cut(line, " remote="); !ok {
		return r, bad
	}
	if remote, line, ok = strings.Cut(line, " local="); !ok {
		return r, bad
	}
	if local, r.Payload, ok = strings.Cut(line, ": "); !ok {
		return r, bad
	}
	if r.Remote, err = netip.ParseAddrPort(remote); err != nil {
		return r, bad
	}
	if r.Local, err = netip.ParseAddrPort(local); err != nil {
		return r, bad
	}
	return r, nil
}

// NewTCPServer is ServeTCP without a test; the caller closes it.
func NewTCPServer(ns *netns.NS, name, addr string) (*Server, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	var listener net.Listener
	err := inside(ns, func() (err error) {
		listener, err = lc.Listen(context.Background(), "tcp"+familyOf(addr), addr)
		return err
	})
	if err != nil {
		return nil, err
	}
	return newStreamServer(name, listener), nil
}

func newStreamServer(name string, listener net.Listener) *Server {
	s := &Server{Name: name, Addr: listener.Addr().(*net.TCPAddr).AddrPort(), closer: listener, conns: make(map[net.Conn]bool)}
	s.running.Go(func() {
		for {
			c, err := listener.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // the client has gone again
			}
			s.mu.Lock()
			if s.conns == nil {
				c.Close()
			} else {
				s.conns[c] = true
				s.running.Go(func() { s.serveConn(c) })
			}
			s.mu.Unlock()
		}
	})
	return s
}

// familyOf is "4" or "6" for an address of one family: for the net package 0.0.0.0
// would be both.
func familyOf(addr string) string {
	a, err := netip.ParseAddrPort(addr)
	switch {
	case err != nil:
		return ""
	case a.Addr().Is4():
		return "4"
	}
	return "6"
}

func (s *Server) serveConn(c net.Conn) {
	defer func() {
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	remote := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	local := c.LocalAddr().(*net.TCPAddr).AddrPort()
	for r := bufio.NewReader(c); ; {
		line, err := readLine(r)
		if err != nil {
			return
		}
		s.requests.Add(1)
		if _, err := io.WriteString(c, s.reply(remote, local, line)+"\n"); err != nil {
			return
		}
	}
}

func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return string(line[:len(line)-1]), nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return "", err
		}
		if len(line) > maxLine {
			return "", errors.New("line too long")
		}
	}
}

// Roomy is a net.ListenConfig's Control: a socket that loses nothing while its process waits
// for a processor. What a test finds lost was lost by the network.
func Roomy(_, _ string, raw syscall.RawConn) (err error) {
	ctlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20) })
	return errors.Join(ctlErr, err)
}

// NewUDPServer is ServeUDP without a test; the caller closes it.
func NewUDPServer(ns *netns.NS, name, addr string) (*Server, error) {
	lc := net.ListenConfig{Control: func(network, address string, raw syscall.RawConn) error {
		err := Roomy(network, address, raw)
		if err != nil {
			return err
		}
		ctlErr := raw.Control(func(fd uintptr) {
			if network == "udp4" {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			}
		})
		return errors.Join(ctlErr, err)
	}}
	var conn *net.UDPConn
	err := inside(ns, func() error {
		c, err := lc.ListenPacket(context.Background(), "udp"+familyOf(addr), addr)
		if err == nil {
			conn = c.(*net.UDPConn)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	s := &Server{Name: name, Addr: conn.LocalAddr().(*net.UDPAddr).AddrPort(), closer: conn}
	s.running.Go(func() {
		buf, oob := make([]byte, 1<<16), make([]byte, 256)
		for {
			n, oobn, _, from, err := conn.ReadMsgUDPAddrPort(buf, oob)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // an ICMP error about an earlier answer
			}
			asked, answer := pktinfo(oob[:oobn])
			s.requests.Add(1)
			line := s.reply(from, netip.AddrPortFrom(asked, s.Addr.Port()), string(buf[:n]))
			conn.WriteMsgUDPAddrPort([]byte(line), answer, from)
		}
	})
	return s, nil
}

// pktinfo finds the address that a datagram was sent to, and makes the control
// message by which the answer leaves from it.
func pktinfo(oob []byte) (asked netip.Addr, answer []byte) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range list {
		switch {
		case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO && len(m.Data) >= unix.SizeofInet4Pktinfo:
			// struct in_pktinfo: index, the local address of the packet, its destination
			asked = netip.AddrFrom4([4]byte(m.Data[8:12]))
			return asked, unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: asked.As4()})
		case m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_PKTINFO && len(m.Data) >= unix.SizeofInet6Pktinfo:
			asked = netip.AddrFrom16([16]byte(m.Data[:16]))
			return asked, unix.PktInfo6(&unix.Inet6Pktinfo{Addr: asked.As16()})
		}
	}
	return
}
