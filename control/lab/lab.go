// SPDX-License-Identifier: Apache-2.0

// Package lab builds what demo and bench show and measure in: a host, another host
// beside it and containers' namespaces, with a store, pins and a cgroup of their own.
// Nothing outside of them is changed, and Close leaves nothing of them behind.
//
//	   client                       host                            Namespace, any number
//	┌────────────────┐  uplink   ┌──────────────────────┐         ┌────────────────────┐
//	│ 203.0.113.2/24 ├───────────┤ 203.0.113.1/24       │         │ lo                 │
//	│ 2001:db8::2/64 │           │ 2001:db8::1/64       │         └────────────────────┘
//	└────────────────┘           └──────────────────────┘
package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
)

// The addresses of the drawing.
var (
	HostIPv4   = netip.MustParseAddr("203.0.113.1")
	ClientIPv4 = netip.MustParseAddr("203.0.113.2")
)

// Uplink is the device at both ends of the cable.
const Uplink = "uplink"

// Lab is the drawing, built. Its fields are not changed.
type Lab struct {
	Client, Host *netns.NS
	Dir          string // everything on disk
	Root         string // for control.Options; not made yet
	BPFFS        string // the same
	Cgroup       string // what Start starts is in it

	closers []func() error
	mu      sync.Mutex
	seats   map[*netns.NS]seat
}

// New builds a lab; name is the beginning of its directory's and its cgroup's name.
func New(name string) (l *Lab, err error) {
	l = &Lab{seats: make(map[*netns.NS]seat)}
	undo := l.Close
	defer func() {
		if err != nil {
			_ = undo() // l is nil by now; the error is the news
		}
	}()
	if l.Dir, err = os.MkdirTemp("", name+"-"); err != nil {
		return nil, err
	}
	l.OnClose(func() error { return os.RemoveAll(l.Dir) })
	l.Root, l.BPFFS = filepath.Join(l.Dir, "root"), filepath.Join(l.Dir, "bpf", "bpfnet")
	mount := filepath.Dir(l.BPFFS)
	if err = os.Mkdir(mount, 0o700); err != nil {
		return nil, err
	}
	if err = unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
		return nil, fmt.Errorf("bpffs: %w", err)
	}
	l.OnClose(func() error { return unix.Unmount(mount, unix.MNT_DETACH) })
	if err = l.makeCgroup(name); err != nil {
		return nil, err
	}
	for _, ns := range []**netns.NS{&l.Client, &l.Host} {
		if *ns, err = l.Namespace(); err != nil {
			return nil, err
		}
	}
	return l, l.wire()
}

// OnClose has f called by Close, before what was made earlier is taken down.
func (l *Lab) OnClose(f func() error) { l.closers = append(l.closers, f) }

// Close takes everything down, and says what could not be. Closing twice is no error.
func (l *Lab) Close() error {
	var errs []error
	for i := len(l.closers) - 1; i >= 0; i-- {
		errs = append(errs, l.closers[i]())
	}
	l.closers = nil
	return errors.Join(errs...)
}

// makeCgroup makes a child of the cgroup v2 mount: the bind guard attaches to it.
func (l *Lab) makeCgroup(name string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 {
		return fmt.Errorf("cgroup v2: no mount: %w", errors.Join(err, os.ErrNotExist))
	}
	if l.Cgroup, err = os.MkdirTemp(mounts[0].Mountpoint, name+"-"); err != nil {
		return err
	}
	l.OnClose(l.removeCgroup)
	return nil
}

// removeCgroup waits for the processes that have been killed: a cgroup is busy until
// the last of them is gone.
func (l *Lab) removeCgroup() error {
	deadline := time.Now().Add(5 * time.Second)
	for {
		err := os.Remove(l.Cgroup)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
			return err
		}
		if err := os.WriteFile(filepath.Join(l.Cgroup, "cgroup.kill"), []byte("1"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Namespace makes one that Close closes. Its lo is up.
func (l *Lab) Namespace() (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, err
	}
	l.OnClose(ns.Close)
	return ns, Up(ns, "lo")
}

// wire lays the cable between client and host.
func (l *Lab) wire() error {
	if err := Cable(l.Host, Uplink, l.Client, Uplink); err != nil {
		return err
	}
	if err := Up(l.Client, Uplink, ClientIPv4.String()+"/24", "2001:db8::2/64"); err != nil {
		return err
	}
	return Up(l.Host, Uplink, HostIPv4.String()+"/24", "2001:db8::1/64")
}

// Cable lays a veth between two namespaces.
func Cable(a *netns.NS, aName string, b *netns.NS, bName string) error {
	h, err := a.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = aName
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: bName, PeerNamespace: netlink.NsFd(b.FD())}
	if err := h.LinkAdd(cable); err != nil {
		return fmt.Errorf("cable %s: %w", aName, err)
	}
	return nil
}

// Up gives a device addresses (with their prefix's length) and brings it up.
func Up(ns *netns.NS, name string, addrs ...string) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		prefix := netip.MustParsePrefix(a)
		ip := net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
		if err := h.AddrAdd(link, &netlink.Addr{IPNet: &ip, Flags: unix.IFA_F_NODAD}); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return h.LinkSetUp(link)
}
