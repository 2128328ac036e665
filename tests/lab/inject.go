// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Inject sends a frame n times by a device, as root of the namespace could.
func Inject(ns *netns.NS, device string, frame []byte, n int) error {
	return InjectEach(ns, device, n, func(int) []byte { return frame })
}

// InjectEach is Inject with a frame for each number from 0 to n-1.
func InjectEach(ns *netns.NS, device string, n int, frame func(i int) []byte) error {
	i, err := NewInjector(ns, device)
	if err != nil {
		return err
	}
	defer i.Close()
	for k := range n {
		if err := i.Send(frame(k)); err != nil {
			return fmt.Errorf("frame %d: %w", k, err)
		}
	}
	return nil
}

// Injector sends frames by a device. For many small lots it is kept: a packet socket takes
// some 20 ms to close, as the kernel waits for all that may look at it.
type Injector struct {
	device string
	fd     int
}

// NewInjector sends by a device of a namespace; the caller closes it.
func NewInjector(ns *netns.NS, device string) (*Injector, error) {
	fd, err := packetSocket(ns, device, 0)
	return &Injector{device, fd}, err
}

func (i *Injector) Close() error { return unix.Close(i.fd) }

// Send waits up to five seconds for room in the device's queue, for each frame.
func (i *Injector) Send(frames ...[]byte) error {
	for _, f := range frames {
		var err error
		// ENOBUFS: the device's queue is full for the moment.
		if !eventually(5*time.Second, func() bool {
			err = unix.Send(i.fd, f, 0)
			return !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR)
		}) || err != nil {
			return fmt.Errorf("device %s: %w", i.device, err)
		}
	}
	return nil
}

// packetSocket is bound to a device ("" for all of the namespace's) and gets what
// protocol asks for, 0 for nothing.
func packetSocket(ns *netns.NS, device string, protocol uint16) (fd int, err error) {
	sa := &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8}
	if device != "" {
		err := onLink(ns, device, func(_ *netlink.Handle, l netlink.Link) error {
			sa.Ifindex = l.Attrs().Index
			return nil
		})
		if err != nil {
			return -1, err
		}
	}
	err = ns.Do(func() error {
		// Made for protocol 0, it gets nothing before it is bound.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := unix.Bind(fd, sa); err != nil {
			unix.Close(fd)
			return os.NewSyscallError("bind", err)
		}
		return nil
	})
	return fd, err
}
