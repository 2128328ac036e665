// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Loops of the workers, in raw system calls on blocking sockets. IPv4 only.

const (
	patience  = 3 * time.Second        // of a client with an answer; what takes longer is broken
	lostAfter = 100 * time.Millisecond // a datagram
	mostLost  = 20                     // in a row
	batch     = 64                     // requests between two looks at the clock, datagrams a call
)

// raw repeats a call that a signal interrupted.
//
//go:uintptrescapes
func raw(trap, a, b, c, d, e, f uintptr) (uintptr, error) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, a, b, c, d, e, f)
		switch errno {
		case 0:
			return n, nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

func read(fd int, buf []byte) (int, error) {
	n, err := raw(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0, 0)
	return int(n), err
}

func write(fd int, buf []byte) error {
	_, err := raw(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0, 0)
	return err
}

func closeFD(fd int) error {
	_, err := raw(unix.SYS_CLOSE, uintptr(fd), 0, 0, 0, 0, 0)
	return err
}

func getcpu() int {
	var cpu uint32
	_, _ = raw(unix.SYS_GETCPU, uintptr(unsafe.Pointer(&cpu)), 0, 0, 0, 0, 0)
	return int(cpu)
}

func sockaddr(a netip.AddrPort) *unix.RawSockaddrInet4 {
	sa := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.Port))[:], a.Port())
	return sa
}

func connect(fd int, to *unix.RawSockaddrInet4) error {
	_, err := raw(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(to)), unix.SizeofSockaddrInet4, 0, 0, 0)
	if errors.Is(err, unix.EINPROGRESS) { // what SO_SNDTIMEO makes of it
		return unix.ETIMEDOUT
	}
	return err
}

// socket is one that gives up after a while.
func socket(udp bool, limit time.Duration) (int, error) {
	kind := unix.SOCK_STREAM
	if udp {
		kind = unix.SOCK_DGRAM
	}
	n, err := raw(unix.SYS_SOCKET, unix.AF_INET, uintptr(kind|unix.SOCK_CLOEXEC), 0, 0, 0, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	fd, tv := int(n), unix.NsecToTimeval(limit.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		return -1, os.NewSyscallError("setsockopt", err)
	}
	tv = unix.NsecToTimeval(patience.Nanoseconds())
	return fd, os.NewSyscallError("setsockopt", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
}

func listen(j job) (int, error) {
	kind := unix.SOCK_STREAM
	if j.UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if !j.UDP { // connections of the last measurement may be in TIME_WAIT
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return -1, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(j.Addr.Port()), Addr: j.Addr.Addr().As4()}); err != nil {
		return -1, fmt.Errorf("bind %s: %w", j.Addr, err)
	}
	if j.UDP {
		return fd, nil
	}
	return fd, os.NewSyscallError("listen", unix.Listen(fd, 128))
}

// dial gives a connected socket.
func dial(j job) (int, error) {
	limit := patience
	if j.UDP {
		limit = lostAfter
	}
	fd, err := socket(j.UDP, limit)
	if err != nil {
		return -1, err
	}
	if err := connect(fd, sockaddr(j.Addr)); err != nil {
		return -1, fmt.Errorf("connect %s: %w", j.Addr, err)
	}
	if !j.UDP {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	return fd, os.NewSyscallError("setsockopt", err)
}

// requests is a turn of the TCP request/response.
func requests(fd int) (uint64, uint64, error) {
	b := make([]byte, 1)
	for range batch / 4 {
		if err := write(fd, b); err != nil {
			return 0, 0, os.NewSyscallError("write", err)
		}
		n, err := read(fd, b)
		if err != nil {
			return 0, 0, os.NewSyscallError("read", err)
		}
		if n != 1 {
			return 0, 0, errors.New("the server closed")
		}
	}
	return batch / 4, 0, nil
}

// connectRequest is one of connect-request-response: the server closes first, so that
// the client's port is free at once however fast it goes.
func connectRequest(to *unix.RawSockaddrInet4) error {
	fd, err := socket(false, patience)
	if err != nil {
		return err
	}
	if err := connect(fd, to); err != nil {
		return os.NewSyscallError("connect", err)
	}
	b := make([]byte, 1)
	if err := write(fd, b); err != nil {
		return os.NewSyscallError("write", err)
	}
	for i, want := range []int{1, 0} {
		n, err := read(fd, b)
		if err != nil {
			return os.NewSyscallError("read", err)
		}
		if n != want {
			return fmt.Errorf("read %d: %d bytes, not %d", i, n, want)
		}
	}
	return os.NewSyscallError("close", closeFD(fd))
}

// accept serves connections one after the other.
func (w *worker) accept(fd int) error {
	var from unix.RawSockaddrInet4
	b := make([]byte, 1)
	for {
		size := uint32(unix.SizeofSockaddrInet4)
		n, err := raw(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)), unix.SOCK_CLOEXEC, 0, 0)
		if err != nil {
			return os.NewSyscallError("accept", err)
		}
		conn := int(n)
		w.saw(from.Addr)
		if w.job.Talk == talkRR {
			if err := unix.SetsockoptInt(conn, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		for {
			// A client that is killed resets: no end of the server's.
			if n, err := read(conn, b); err != nil || n == 0 {
				break
			}
			w.count(1) // before the client can have counted it
			if err := write(conn, b); err != nil {
				break
			}
			if w.job.Talk == talkCRR {
				break
			}
		}
		if err := closeFD(conn); err != nil {
			return os.NewSyscallError("close", err)
		}
	}
}

func (w *worker) count(n uint64) {
	if total := w.ops.Add(n); total/1024 != (total-n)/1024 || total == n {
		w.cpu.Store(int32(getcpu()))
	}
}

// echo answers datagrams.
func (w *worker) echo(fd int) error {
	var from unix.RawSockaddrInet4
	b := make([]byte, 64)
	for {
		size := uint32(unix.SizeofSockaddrInet4)
		n, err := raw(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0,
			uintptr(unsafe.Pointer(&from)), uintptr(unsafe.Pointer(&size)))
		if err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		w.saw(from.Addr)
		w.count(1)
		_, err = raw(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), n, 0,
			uintptr(unsafe.Pointer(&from)), uintptr(size))
		if err != nil {
			return os.NewSyscallError("sendto", err)
		}
	}
}

// asker numbers its datagrams, so that a late answer is not taken for the next.
type asker struct {
	fd  int
	seq uint32
}

func (a *asker) ask() (ops, lost uint64, err error) {
	b := make([]byte, 4)
	for range batch / 4 {
		a.seq++
		for row := 0; ; row++ {
			if row > mostLost {
				return 0, 0, fmt.Errorf("%d datagrams without an answer", row)
			}
			binary.NativeEndian.PutUint32(b, a.seq)
			if err := write(a.fd, b); err != nil {
				return 0, 0, os.NewSyscallError("write", err)
			}
			answered, err := a.answer(b)
			if err != nil {
				return 0, 0, err
			}
			if answered {
				break
			}
			lost++
		}
		ops++
	}
	return ops, lost, nil
}

func (a *asker) answer(b []byte) (bool, error) {
	for {
		n, err := read(a.fd, b)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return false, nil
		case err != nil:
			return false, os.NewSyscallError("read", err)
		case n == 4 && binary.NativeEndian.Uint32(b) == a.seq:
			return true, nil
		}
	}
}

// mmsghdr is struct mmsghdr of socket.h.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
	_   uint32
}

// datagrams are messages for one call, all in the same bytes.
func datagrams(buf []byte) []mmsghdr {
	iov := &unix.Iovec{Base: &buf[0], Len: uint64(len(buf))}
	list := make([]mmsghdr, batch)
	for i := range list {
		list[i].hdr.Iov, list[i].hdr.Iovlen = iov, 1
	}
	return list
}

type flood struct {
	fd   int
	list []mmsghdr
}

func newFlood(fd int) *flood { return &flood{fd, datagrams(make([]byte, floodSize))} }

func (f *flood) send() (ops, lost uint64, err error) {
	n, err := raw(unix.SYS_SENDMMSG, uintptr(f.fd), uintptr(unsafe.Pointer(&f.list[0])), batch, 0, 0, 0)
	if errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN) {
		return 0, 0, nil
	}
	return uint64(n), 0, os.NewSyscallError("sendmmsg", err)
}

// sink counts the datagrams that come.
func (w *worker) sink(fd int) error {
	list := datagrams(make([]byte, 64))
	var from unix.RawSockaddrInet4
	list[0].hdr.Name, list[0].hdr.Namelen = (*byte)(unsafe.Pointer(&from)), unix.SizeofSockaddrInet4
	for {
		n, err := raw(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&list[0])), batch, unix.MSG_WAITFORONE, 0, 0)
		if err != nil {
			return os.NewSyscallError("recvmmsg", err)
		}
		w.saw(from.Addr)
		w.count(uint64(n))
	}
}
