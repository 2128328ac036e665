// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// From linux/sock_diag.h, linux/inet_diag.h and net/tcp_states.h.
const (
	sockDiagByFamily = 20
	diagMsgLen       = 72 // struct inet_diag_msg
	diagSKV6Only     = 11 // INET_DIAG_SKV6ONLY, a __u8

	stateTimeWait   = 6
	stateClose      = 7 // bound, neither listening nor connected; asked for as state 13, since 6.8
	stateListen     = 10
	stateNewSynRecv = 12

	// A request socket belongs to its listener, and TIME_WAIT holds nothing.
	liveStates = ^uint32(1<<stateTimeWait | 1<<stateNewSynRecv)
)

// diagRequest is struct inet_diag_req_v2 without a peer; port 0 asks for all.
type diagRequest struct {
	family, protocol uint8
	states           uint32
	port             uint16
}

func (r *diagRequest) Len() int { return 56 }

func (r *diagRequest) Serialize() []byte {
	b := make([]byte, r.Len())
	b[0], b[1] = r.family, r.protocol
	binary.NativeEndian.PutUint32(b[4:], r.states)
	binary.BigEndian.PutUint16(b[8:], r.port)
	for i := range 8 { // idiag_cookie: INET_DIAG_NOCOOKIE
		b[48+i] = 0xff
	}
	return b
}

// socket is what the kernel tells about one.
type socket struct {
	state uint8
	port  uint16
	addr  netip.Addr // IPv4 for v4-mapped ones
	dual  bool       // :: that takes IPv4 as well
}

func dump(r diagRequest, fn func(s socket)) error {
	req := nl.NewNetlinkRequest(sockDiagByFamily, unix.NLM_F_DUMP)
	req.AddData(&r)
	var bad error
	err := req.ExecuteIter(unix.NETLINK_INET_DIAG, sockDiagByFamily, func(msg []byte) bool {
		s, err := parseSocket(msg)
		if err != nil {
			bad = err
			return false
		}
		fn(s)
		return true
	})
	if errors.Is(err, nl.ErrDumpInterrupted) {
		err = nil // sockets came and went meanwhile, as they do afterwards
	}
	if err = errors.Join(err, bad); err != nil {
		return fmt.Errorf("sock_diag: %w", err)
	}
	return nil
}

func parseSocket(msg []byte) (s socket, err error) {
	if len(msg) < diagMsgLen {
		return s, fmt.Errorf("message of %d bytes", len(msg))
	}
	s.state = msg[1]
	s.port = binary.BigEndian.Uint16(msg[4:])
	if msg[0] == unix.AF_INET {
		s.addr = netip.AddrFrom4([4]byte(msg[8:12]))
		return s, nil
	}
	s.addr = netip.AddrFrom16([16]byte(msg[8:24])).Unmap()
	if s.addr.IsUnspecified() {
		s.dual = true
		for attrs := msg[diagMsgLen:]; len(attrs) >= 5; {
			n := int(binary.NativeEndian.Uint16(attrs))
			if n < 4 || n > len(attrs) {
				break
			}
			if binary.NativeEndian.Uint16(attrs[2:]) == diagSKV6Only && n >= 5 {
				s.dual = attrs[4] == 0
			}
			attrs = attrs[min((n+3)&^3, len(attrs)):]
		}
	}
	return s, nil
}

// onlyTimeWait reports that connections in TIME_WAIT are all that TCP has on port.
func onlyTimeWait(port uint16) (bool, error) {
	waiting, living := 0, 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := dump(diagRequest{family, unix.IPPROTO_TCP, ^uint32(0), port}, func(s socket) {
			if s.state == stateTimeWait {
				waiting++
			} else {
				living++
			}
		})
		if err != nil {
			return false, err
		}
	}
	return waiting > 0 && living == 0, nil
}

// Snapshot is what the TCP and UDP sockets of a network namespace held when
// HostPorts looked. It is for one goroutine.
type Snapshot struct {
	tcp, udp proto
	there    map[netip.Addr]error // what a bind to the address says
}

type proto struct {
	used  Set                 // by any socket on any address
	bound map[uint16][]socket // by those that a bind would collide with for good
}

// HostPorts asks the kernel for all sockets of the calling thread's network
// namespace. On kernels before 6.8 a TCP socket that is bound, but neither listens
// nor connects, is not seen.
func HostPorts() (*Snapshot, error) {
	s := &Snapshot{there: make(map[netip.Addr]error)}
	for _, d := range []struct {
		to       *proto
		protocol uint8
		always   bool // whatever the state
	}{{&s.tcp, unix.IPPROTO_TCP, false}, {&s.udp, unix.IPPROTO_UDP, true}} {
		d.to.bound = make(map[uint16][]socket)
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			err := dump(diagRequest{family, d.protocol, liveStates, 0}, func(k socket) {
				if k.port == 0 {
					return
				}
				d.to.used.Add(k.port)
				if d.always || k.state == stateListen || k.state == stateClose {
					d.to.bound[k.port] = append(d.to.bound[k.port], k)
				}
			})
			if err != nil {
				return nil, err
			}
		}
	}
	return s, nil
}

func (s *Snapshot) of(name string) *proto {
	switch name {
	case "tcp":
		return &s.tcp
	case "udp":
		return &s.udp
	}
	return &proto{} // SCTP is not dumped
}

// Used returns the ports that any socket of the protocol (tcp, udp) has on any
// address, those of the host's own connections included.
func (s *Snapshot) Used(proto string) Set { return s.of(proto).used }

// Bound reports whether a listening or just bound TCP socket, or a UDP socket, has
// the port on addr, or on the wildcard that covers it. Nothing is bound to find out,
// so it can be asked when the bind guard already refuses the port.
func (s *Snapshot) Bound(proto string, addr netip.Addr, port uint16) bool {
	addr = addr.Unmap()
	for _, k := range s.of(proto).bound[port] {
		if k.overlaps(addr) {
			return true
		}
	}
	return false
}

func (k *socket) overlaps(a netip.Addr) bool {
	if k.dual {
		return true
	}
	return k.addr.Is4() == a.Is4() && (k.addr == a || k.addr.IsUnspecified() || a.IsUnspecified())
}

// Free says what HeldByHost says, and binds only for ports that some socket has.
func (s *Snapshot) Free(proto string, addr netip.Addr, port uint16) error {
	if used := s.of(proto); proto == "sctp" || used.used.Has(port) {
		return HeldByHost(proto, addr, port)
	}
	err, known := s.there[addr]
	if !known {
		err = bindError(tryBind(addressOnly, addr, 0))
		s.there[addr] = err
	}
	return err
}

// Checker answers as HeldByHost, by single binds as long as few ports are asked
// for and by a Snapshot then. The zero Checker is ready; it is for one goroutine,
// in one network namespace, and one command.
type Checker struct {
	asked    int
	snapshot *Snapshot
}

// snapshotAfter so many binds a dump costs no more than they did.
const snapshotAfter = 32

// Free can be Pick's free, when another container's ports are asked for before.
func (c *Checker) Free(proto string, addr netip.Addr, port uint16) error {
	if c.asked++; c.asked == snapshotAfter {
		if s, err := HostPorts(); err == nil {
			c.snapshot = s
		} // else it takes longer: sock_diag can be missing
	}
	if c.snapshot != nil {
		return c.snapshot.Free(proto, addr, port)
	}
	return HeldByHost(proto, addr, port)
}
