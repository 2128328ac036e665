// SPDX-License-Identifier: Apache-2.0

// Package watch tells that something has changed in a network namespace: devices,
// addresses, routes, rules, or what is attached to devices. It says that much and no
// more: who wants to know what, looks. So it does not matter how many changes one
// notice stands for, nor that the kernel drops some of its messages when there are
// too many: then the notice is that there were.
package watch

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
)

// Change is what there was a change of; several are or-ed.
type Change uint32

const (
	Host  Change = 1 << iota // devices, addresses, routes, rules
	Hooks                    // qdiscs and filters; of TCX the kernel tells nothing
)

// All is what an overflow stands for.
const All = Host | Hooks

// groups are the kernel's multicast groups, rtnetlink(7).
var groups = []int{
	unix.RTNLGRP_LINK, unix.RTNLGRP_TC, unix.RTNLGRP_NEXTHOP,
	unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
	unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE,
}

// receiveBuffer is the kernel's room for messages, in bytes: thousands of them.
const receiveBuffer = 1 << 20

// Watcher listens until it is closed.
type Watcher struct {
	file    *os.File
	ignore  func(device string) bool
	ignored map[int]bool // devices by ifindex
	pending atomic.Uint32
	notice  chan struct{}
	done    chan struct{}
	err     error // once done is closed
}

// Open begins to listen in a namespace: what changes after it returns is told. Devices
// of names that ignore claims (nil: none) may come, go and have addresses and routes
// without a notice.
func Open(ns *netns.NS, ignore func(device string) bool) (*Watcher, error) {
	var fd int
	err := ns.Do(func() (err error) {
		fd, err = listen()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s: netlink: %w", ns, err)
	}
	if ignore == nil {
		ignore = func(string) bool { return false }
	}
	return begin(fd, ignore), nil
}

func begin(fd int, ignore func(string) bool) *Watcher {
	w := &Watcher{file: os.NewFile(uintptr(fd), "netlink"), ignore: ignore, ignored: make(map[int]bool),
		notice: make(chan struct{}, 1), done: make(chan struct{})}
	go w.run()
	return w
}

func listen() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, err
	}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer)
	}
	for _, g := range groups {
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, g)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// Notice is ready when there was a change since the last Take.
func (w *Watcher) Notice() <-chan struct{} { return w.notice }

// Take says what there was a change of since it was called last.
func (w *Watcher) Take() Change { return Change(w.pending.Swap(0)) }

// Done is closed when the watcher does not listen any more; Err says why.
func (w *Watcher) Done() <-chan struct{} { return w.done }

// Err is nil after Close, and before Done.
func (w *Watcher) Err() error {
	select {
	case <-w.done:
		return w.err
	default:
		return nil
	}
}

// Close ends it.
func (w *Watcher) Close() error {
	err := w.file.Close()
	<-w.done
	return err
}

func (w *Watcher) run() {
	defer close(w.done)
	buf := make([]byte, 64<<10)
	for {
		n, err := w.file.Read(buf)
		switch {
		case err == nil:
			w.tell(w.changes(buf[:n]))
		case errors.Is(err, unix.ENOBUFS):
			w.tell(All)
		case errors.Is(err, os.ErrClosed):
			return
		default:
			w.err = fmt.Errorf("netlink: %w", err)
			return
		}
	}
}

func (w *Watcher) tell(c Change) {
	if c == 0 {
		return
	}
	w.pending.Or(uint32(c))
	select {
	case w.notice <- struct{}{}:
	default: // one is waiting
	}
}

// changes reads messages; what it cannot read it takes for anything.
func (w *Watcher) changes(raw []byte) (c Change) {
	messages, err := syscall.ParseNetlinkMessage(raw)
	if err != nil {
		return All
	}
	for _, m := range messages {
		c |= w.change(m.Header.Type, m.Data)
	}
	return c
}

func (w *Watcher) change(kind uint16, data []byte) Change {
	switch kind {
	case unix.RTM_NEWQDISC, unix.RTM_DELQDISC, unix.RTM_NEWTFILTER, unix.RTM_DELTFILTER:
		return Hooks
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		return w.linkChange(kind, data)
	case unix.RTM_NEWADDR, unix.RTM_DELADDR: // struct ifaddrmsg
		if len(data) >= unix.SizeofIfAddrmsg && w.ignored[int(binary.NativeEndian.Uint32(data[4:]))] {
			return 0
		}
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE: // struct rtmsg
		if len(data) < unix.SizeofRtMsg {
			return Host
		}
		// The table named local follows the addresses.
		if data[4] == unix.RT_TABLE_LOCAL || binary.NativeEndian.Uint32(data[8:])&unix.RTM_F_CLONED != 0 {
			return 0
		}
		if v := attribute(data[unix.SizeofRtMsg:], unix.RTA_OIF); len(v) == 4 && w.ignored[int(binary.NativeEndian.Uint32(v))] {
			return 0
		}
	}
	return Host
}

func (w *Watcher) linkChange(kind uint16, data []byte) Change {
	if len(data) < unix.SizeofIfInfomsg {
		return Host
	}
	index := int(int32(binary.NativeEndian.Uint32(data[4:])))
	name := unix.ByteSliceToString(attribute(data[unix.SizeofIfInfomsg:], unix.IFLA_IFNAME))
	if !w.ignore(name) {
		delete(w.ignored, index) // it may have been renamed, or the number be another device's
		return Host
	}
	if kind == unix.RTM_NEWLINK {
		w.ignored[index] = true
	} else if binary.NativeEndian.Uint16(data) == unix.AF_UNSPEC { // not only out of a bridge
		delete(w.ignored, index)
	}
	return 0
}

// attribute finds one in a list of struct rtattr; nil when it is not there.
func attribute(data []byte, kind uint16) []byte {
	for len(data) >= unix.SizeofRtAttr {
		size := int(binary.NativeEndian.Uint16(data))
		if size < unix.SizeofRtAttr || size > len(data) {
			return nil
		}
		if binary.NativeEndian.Uint16(data[2:]) == kind {
			return data[unix.SizeofRtAttr:size]
		}
		data = data[min(len(data), (size+3)&^3):]
	}
	return nil
}
