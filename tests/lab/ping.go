// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"golang.org/x/sys/unix"
)

// ICMPError is an error that somebody on the way sent about an echo request.
type ICMPError struct {
	From       netip.Addr
	Type, Code uint8 // of ICMP or ICMPv6
}

func (e *ICMPError) Error() string {
	return fmt.Sprintf("icmp type %d code %d from %s", e.Type, e.Code, e.From)
}

// Echo is one echo request.
type Echo struct {
	To   string        //
	From string        // "": the kernel's choice
	ID   uint16        // 0: a new one
	Seq  uint16        //
	TTL  int           // or hop limit; 0: the kernel's
	Size int           // bytes of payload; 0: 32
	Wait time.Duration // 0: a second
}

// Ping sends one echo request and waits for its reply. The error is Timeout, an
// *ICMPError, or what the sender's own kernel said.
func Ping(ns *netns.NS, to string, timeout time.Duration) error {
	_, err := Echo{To: to, Wait: timeout}.Send(ns)
	return err
}

var lastEchoID atomic.Uint32

func init() { lastEchoID.Store(rand.Uint32()) }

// Send sends the request, checks that the reply carries what was sent, and
// gives the reply's payload.
func (e Echo) Send(ns *netns.NS) ([]byte, error) {
	to, err := netip.ParseAddr(e.To)
	if err != nil {
		return nil, err
	}
	if e.ID == 0 {
		e.ID = uint16(lastEchoID.Add(1))
	}
	if e.Size == 0 {
		e.Size = 32
	}
	if e.Wait == 0 {
		e.Wait = time.Second
	}
	f, err := e.socket(ns, to)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	defer c.Close()

	request := e.request(to)
	if err := c.SetDeadline(time.Now().Add(e.Wait)); err != nil {
		return nil, err
	}
	if _, err := c.WriteTo(request, &net.IPAddr{IP: to.AsSlice(), Zone: to.Zone()}); err != nil {
		return nil, err
	}
	buf := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return nil, fmt.Errorf("ping %s: %w", to, err)
		}
		// net strips the IPv4 header of a raw socket's packets.
		src, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		payload, err := e.judge(buf[:n], request, to, src.Unmap())
		if err != nil || payload != nil {
			return payload, err
		}
	}
}

func (e Echo) socket(ns *netns.NS, to netip.Addr) (f *os.File, err error) {
	domain, proto := unix.AF_INET, unix.IPPROTO_ICMP
	level, ttl := unix.IPPROTO_IP, unix.IP_TTL
	if to.Is6() {
		domain, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
		level, ttl = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	err = inside(ns, func() error {
		fd, err := unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		f = os.NewFile(uintptr(fd), "icmp")
		if e.TTL > 0 {
			if err := unix.SetsockoptInt(fd, level, ttl, e.TTL); err != nil {
				return os.NewSyscallError("setsockopt ttl", err)
			}
		}
		if e.From == "" {
			return nil
		}
		from, err := netip.ParseAddr(e.From)
		if err != nil {
			return err
		}
		var sa unix.Sockaddr = &unix.SockaddrInet6{Addr: from.As16()}
		if from.Is4() {
			sa = &unix.SockaddrInet4{Addr: from.As4()}
		}
		return os.NewSyscallError("bind", unix.Bind(fd, sa))
	})
	if err != nil && f != nil {
		f.Close()
	}
	return f, err
}

const (
	echoRequest4, echoReply4 = 8, 0
	echoRequest6, echoReply6 = 128, 129
)

func (e Echo) request(to netip.Addr) []byte {
	b := make([]byte, 8+e.Size)
	b[0] = echoRequest4
	if to.Is6() {
		b[0] = echoRequest6 // the kernel fills the checksum in
	}
	binary.BigEndian.PutUint16(b[4:], e.ID)
	binary.BigEndian.PutUint16(b[6:], e.Seq)
	for i := range e.Size {
		b[8+i] = byte(i)
	}
	if to.Is4() {
		binary.BigEndian.PutUint16(b[2:], checksum(b))
	}
	return b
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// judge gives the payload if the message is the reply, an error if it is an error
// about the request, and neither if it is something else.
func (e Echo) judge(msg, request []byte, to, from netip.Addr) ([]byte, error) {
	if len(msg) < 8 {
		return nil, nil
	}
	reply, header := uint8(echoReply4), 20
	isError := msg[0] == 3 || msg[0] == 11 || msg[0] == 12 || msg[0] == 5
	if to.Is6() {
		reply, header, isError = echoReply6, 40, msg[0] < 128
	}
	if msg[0] == reply && binary.BigEndian.Uint16(msg[4:]) == e.ID && binary.BigEndian.Uint16(msg[6:]) == e.Seq {
		if from != to.WithZone("") && !to.IsMulticast() {
			return nil, fmt.Errorf("ping %s: %w: %s", to, ErrWrongSource, from)
		}
		if string(msg[8:]) != string(request[8:]) {
			return nil, fmt.Errorf("ping %s: %w", to, errChanged)
		}
		return append([]byte{}, msg[8:]...), nil
	}
	if !isError || len(msg) < 8+header+8 {
		return nil, nil
	}
	if to.Is4() {
		if header = int(msg[8]&15) * 4; len(msg) < 8+header+8 {
			return nil, nil
		}
	}
	if inner := msg[8+header:]; inner[0] == request[0] && binary.BigEndian.Uint16(inner[4:]) == e.ID {
		return nil, &ICMPError{From: from, Type: msg[0], Code: msg[1]}
	}
	return nil, nil
}

var errChanged = errors.New("the reply's payload is not that of the request")
