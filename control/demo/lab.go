// SPDX-License-Identifier: Apache-2.0

package demo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/netns"
)

// lab is the drawing: four namespaces, and the directories of a host.
type lab struct {
	client, host, web, peer  *netns.NS
	dir, root, bpffs, cgroup string
	closers                  []func() error
}

func (l *lab) onClose(f func() error) { l.closers = append(l.closers, f) }

func (l *lab) close() error {
	var errs []error
	for i := len(l.closers) - 1; i >= 0; i-- {
		errs = append(errs, l.closers[i]())
	}
	return errors.Join(errs...)
}

func newLab() (l *lab, err error) {
	l = &lab{}
	undo := l.close
	defer func() {
		if err != nil {
			_ = undo() // l is nil by now; the error is the news
		}
	}()
	if l.dir, err = os.MkdirTemp("", "bpfnet-demo-"); err != nil {
		return nil, err
	}
	l.onClose(func() error { return os.RemoveAll(l.dir) })
	l.root, l.bpffs = filepath.Join(l.dir, "root"), filepath.Join(l.dir, "bpf", "bpfnet")
	mount := filepath.Dir(l.bpffs)
	if err = os.Mkdir(mount, 0o700); err != nil {
		return nil, err
	}
	if err = unix.Mount("bpf", mount, "bpf", 0, "mode=0700"); err != nil {
		return nil, fmt.Errorf("bpffs: %w", err)
	}
	l.onClose(func() error { return unix.Unmount(mount, unix.MNT_DETACH) })
	if err = l.makeCgroup(); err != nil {
		return nil, err
	}
	for _, ns := range []**netns.NS{&l.client, &l.host, &l.web, &l.peer} {
		if *ns, err = netns.New(); err != nil {
			return nil, err
		}
		l.onClose((*ns).Close)
	}
	return l, l.wire()
}

// makeCgroup makes a child of the cgroup v2 mount: the bind guard attaches to it.
func (l *lab) makeCgroup() error {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 {
		return fmt.Errorf("cgroup v2: no mount: %w", errors.Join(err, os.ErrNotExist))
	}
	if l.cgroup, err = os.MkdirTemp(mounts[0].Mountpoint, "bpfnet-demo-"); err != nil {
		return err
	}
	l.onClose(func() error { return os.Remove(l.cgroup) })
	return nil
}

// wire lays the cable between client and host, and brings lo up everywhere.
func (l *lab) wire() error {
	host, err := l.host.Netlink()
	if err != nil {
		return err
	}
	defer host.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "uplink"
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "uplink", PeerNamespace: netlink.NsFd(l.client.FD())}
	if err := host.LinkAdd(cable); err != nil {
		return fmt.Errorf("cable: %w", err)
	}
	for _, ns := range []*netns.NS{l.client, l.host, l.web, l.peer} {
		if err := up(ns, "lo"); err != nil {
			return err
		}
	}
	if err := up(l.client, "uplink", "203.0.113.2/24", "2001:db8::2/64"); err != nil {
		return err
	}
	return up(l.host, "uplink", "203.0.113.1/24", "2001:db8::1/64")
}

func up(ns *netns.NS, name string, addrs ...string) error {
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

// masqueraded connects from peer to the client, which tells whom it saw.
func (l *lab) masqueraded() (string, error) {
	var listener net.Listener
	err := l.client.Do(func() (err error) {
		listener, err = net.Listen("tcp4", "203.0.113.2:7")
		return err
	})
	if err != nil {
		return "", err
	}
	defer listener.Close()
	err = l.peer.Do(func() error {
		conn, err := net.DialTimeout("tcp4", "203.0.113.2:7", wait)
		if err == nil {
			l.onClose(conn.Close)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	conn, err := listener.Accept()
	if err != nil {
		return "", err
	}
	l.onClose(conn.Close)
	host, _, err := net.SplitHostPort(conn.RemoteAddr().String())
	return host, err
}

// ping sends one echo request from inside ns and waits for its answer.
func ping(ns *netns.NS, to string, limit time.Duration) (took time.Duration, err error) {
	err = ns.Do(func() error {
		conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
		if err != nil {
			return err
		}
		defer conn.Close()
		message := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: 1, Data: []byte("bpfnet")}}
		b, err := message.Marshal(nil)
		if err != nil {
			return err
		}
		begun := time.Now()
		if _, err := conn.WriteTo(b, &net.IPAddr{IP: net.ParseIP(to)}); err != nil {
			return err
		}
		if err := conn.SetReadDeadline(begun.Add(limit)); err != nil {
			return err
		}
		buf := make([]byte, 1500)
		for {
			n, _, err := conn.ReadFrom(buf)
			if err != nil {
				return fmt.Errorf("ping %s: %w", to, err)
			}
			reply, err := icmp.ParseMessage(1, buf[:n])
			if err == nil && reply.Type == ipv4.ICMPTypeEchoReply {
				took = time.Since(begun)
				return nil
			}
		}
	})
	return took, err
}
