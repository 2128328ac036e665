// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"testing"

	"github.com/bpfnet/bpfnet/control/netns"
	"golang.org/x/sys/unix"
)

// Tunnel is another host behind an uplink that has no Ethernet header: a tun device in H and
// one in the other host, each of whose packets are the other's.
type Tunnel struct {
	NS        *netns.NS
	Device    string       // in H and in the other host
	HostAddrs []netip.Addr // of the uplink, in H
	Addrs     []netip.Addr // of the other host, one for each of HostAddrs
}

// AddTunnel adds another host by a tunnel of its own; see AddClient for hostAddrs. It ends
// with the test.
func (l *Lab) AddTunnel(t testing.TB, device string, hostAddrs ...string) *Tunnel {
	t.Helper()
	ns, err := l.newNS(device)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	k := &Tunnel{NS: ns, Device: device}
	var ends [2]*os.File
	for i, where := range []*netns.NS{l.Host, ns} {
		if ends[i], err = tun(where, device); err != nil {
			t.Fatalf("lab: device %s: %v", device, err)
		}
	}
	var running sync.WaitGroup
	t.Cleanup(func() {
		ends[0].Close()
		ends[1].Close()
		running.Wait()
	})
	running.Go(func() { carry(ends[0], ends[1]) })
	running.Go(func() { carry(ends[1], ends[0]) })
	if err := errors.Join(setUp(l.Host, device), setUp(ns, device)); err != nil {
		t.Fatalf("lab: %v", err)
	}
	for _, s := range hostAddrs {
		p := netip.MustParsePrefix(s)
		other := netip.PrefixFrom(p.Addr().Next(), p.Bits())
		k.HostAddrs, k.Addrs = append(k.HostAddrs, p.Addr()), append(k.Addrs, other.Addr())
		if err := errors.Join(addAddr(l.Host, device, p), addAddr(ns, device, other)); err != nil {
			t.Fatalf("lab: %v", err)
		}
	}
	return k
}

// tun makes a device that lives as long as the file (Documentation/networking/tuntap.rst).
func tun(ns *netns.NS, device string) (f *os.File, err error) {
	err = ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return fmt.Errorf("/dev/net/tun: %w", err)
		}
		req, err := unix.NewIfreq(device)
		if err == nil {
			req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		f = os.NewFile(uintptr(fd), device)
		return nil
	})
	return f, err
}

// carry copies packets until either end is closed. What the other end does not take is lost.
func carry(from, to *os.File) {
	buf := make([]byte, 1<<16)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if _, err := to.Write(buf[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}
