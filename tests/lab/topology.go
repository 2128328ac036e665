// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Client is another host on an uplink of H's.
type Client struct {
	Name      string
	NS        *netns.NS
	Device    string           // the uplink, in H; in the client it is eth0
	HostMAC   net.HardwareAddr // of the uplink, in H
	MAC       net.HardwareAddr // of the client's eth0
	HostAddrs []netip.Addr     // of the uplink, in H
	Addrs     []netip.Addr     // of the client, one for each of HostAddrs
}

// AddClient adds another host on a new uplink eth1, eth2, … of H. Each of hostAddrs
// ("198.51.100.1/24") is an address of H's on it; the client gets the next one.
func (l *Lab) AddClient(t testing.TB, name string, hostAddrs ...string) *Client {
	t.Helper()
	c, err := l.addClient(name, hostAddrs...)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	return c
}

func (l *Lab) addClient(name string, hostAddrs ...string) (*Client, error) {
	ns, err := l.newNS(name)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	n := len(l.clients)
	c := &Client{Name: name, NS: ns, Device: fmt.Sprintf("eth%d", n),
		HostMAC: net.HardwareAddr{0x02, 0xbf, 0, 0, byte(n), 1}, MAC: net.HardwareAddr{0x02, 0xbf, 0, 0, byte(n), 2}}
	l.clients = append(l.clients, c)
	l.mu.Unlock()

	h, err := l.Host.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = c.Device, c.HostMAC
	if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerHardwareAddr: c.MAC,
		PeerNamespace: netlink.NsFd(ns.FD())}); err != nil {
		return nil, fmt.Errorf("uplink %s: %w", c.Device, err)
	}
	for _, s := range hostAddrs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, err
		}
		c.HostAddrs = append(c.HostAddrs, p.Addr())
		c.Addrs = append(c.Addrs, p.Addr().Next())
		if err := addAddr(l.Host, c.Device, p); err != nil {
			return nil, err
		}
		if err := addAddr(ns, "eth0", netip.PrefixFrom(p.Addr().Next(), p.Bits())); err != nil {
			return nil, err
		}
	}
	// Link-local addresses too are there at once, on these devices only.
	for where, dev := range map[*netns.NS]string{l.Host: c.Device, ns: "eth0"} {
		if err := writeSysctl(where, "ipv6/conf/"+dev+"/accept_dad", "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	if err := errors.Join(setUp(l.Host, c.Device), setUp(ns, "eth0")); err != nil {
		return nil, err
	}
	return c, errors.Join(settled(l.Host, c.Device), settled(ns, "eth0"))
}

// settled waits until the kernel has noticed a device's carrier, without which it
// drops what it should send, and until its addresses are usable.
func settled(ns *netns.NS, device string) error {
	return onLink(ns, device, func(h *netlink.Handle, l netlink.Link) error {
		if !eventually(10*time.Second, func() bool {
			now, err := h.LinkByIndex(l.Attrs().Index)
			return err == nil && now.Attrs().OperState == netlink.OperUp && usable(h, l)
		}) {
			return fmt.Errorf("device %s: does not come up", device)
		}
		return nil
	})
}

func usable(h *netlink.Handle, l netlink.Link) bool {
	addrs, err := h.AddrList(l, netlink.FAMILY_V6)
	linkLocal := slices.ContainsFunc(addrs, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
	waiting := slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		ip, _ := netip.AddrFromSlice(a.IP)
		return a.Flags&unix.IFA_F_TENTATIVE != 0 || !isLocal(h, l, ip)
	})
	return err == nil && !waiting && (linkLocal || len(addrs) == 0)
}

// AddNetns makes a namespace that somebody else's container could be in, with lo up,
// and says the path by which any process finds it.
func (l *Lab) AddNetns(t testing.TB, name string) (ns *netns.NS, path string) {
	t.Helper()
	ns, err := l.newNS(name)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	return ns, procPath(ns)
}

func (l *Lab) newNS(name string) (*netns.NS, error) {
	ns, err := netns.New()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	l.mu.Lock()
	l.namespaces = append(l.namespaces, ns)
	l.mu.Unlock()
	if err := setUp(ns, "lo"); err != nil {
		return nil, err
	}
	if l.o.trace {
		if err := l.startTrace(ns, name); err != nil {
			return nil, err
		}
	}
	return ns, nil
}

// AddAddr gives a device one more address ("198.51.100.7/24"), usable at once.
func AddAddr(t testing.TB, ns *netns.NS, device, prefix string) {
	t.Helper()
	if err := addAddr(ns, device, netip.MustParsePrefix(prefix)); err != nil {
		t.Fatalf("lab: %v", err)
	}
}

// DelAddr takes an address away.
func DelAddr(t testing.TB, ns *netns.NS, device, prefix string) {
	t.Helper()
	err := onLink(ns, device, func(h *netlink.Handle, l netlink.Link) error {
		return h.AddrDel(l, &netlink.Addr{IPNet: ipNet(netip.MustParsePrefix(prefix))})
	})
	if err != nil {
		t.Fatalf("lab: address %s: %v", prefix, err)
	}
}

// EndDetection makes a device's IPv6 addresses usable at once: duplicate address detection
// keeps those of a device that somebody else has made waiting for a second or two.
func EndDetection(t testing.TB, ns *netns.NS, device string) {
	t.Helper()
	err := writeSysctl(ns, "ipv6/conf/"+device+"/accept_dad", "0")
	if err == nil {
		err = onLink(ns, device, func(h *netlink.Handle, l netlink.Link) error {
			addrs, err := h.AddrList(l, netlink.FAMILY_V6)
			for _, a := range addrs {
				if a.Flags&unix.IFA_F_TENTATIVE == 0 {
					continue
				}
				ip, _ := netip.AddrFromSlice(a.IP)
				bits, _ := a.Mask.Size()
				err = errors.Join(err, h.AddrDel(l, &a), addAddr(ns, device, netip.PrefixFrom(ip, bits)))
			}
			return err
		})
	}
	if err == nil {
		err = settled(ns, device)
	}
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
}

// AddRoute makes a route ("10.0.0.0/8") by a gateway.
func AddRoute(t testing.TB, ns *netns.NS, prefix, via string) {
	t.Helper()
	if err := addRoute(ns, netip.MustParsePrefix(prefix), netip.MustParseAddr(via)); err != nil {
		t.Fatalf("lab: %v", err)
	}
}

// Sysctl writes a file below /proc/sys/net, by its path from there.
func Sysctl(t testing.TB, ns *netns.NS, key, value string) {
	t.Helper()
	if err := writeSysctl(ns, key, value); err != nil {
		t.Fatalf("lab: %v", err)
	}
}

func writeSysctl(ns *netns.NS, key, value string) error {
	return ns.Do(func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) })
}

// ReadSysctl reads what Sysctl writes.
func ReadSysctl(t testing.TB, ns *netns.NS, key string) string {
	t.Helper()
	var text []byte
	err := ns.Do(func() (err error) {
		text, err = os.ReadFile("/proc/sys/net/" + key)
		return err
	})
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	return strings.TrimSpace(string(text))
}

// Link finds a device.
func Link(t testing.TB, ns *netns.NS, device string) netlink.Link {
	t.Helper()
	var found netlink.Link
	err := onLink(ns, device, func(h *netlink.Handle, l netlink.Link) error { found = l; return nil })
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	return found
}

func onLink(ns *netns.NS, device string, fn func(*netlink.Handle, netlink.Link) error) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(device)
	if err != nil {
		return fmt.Errorf("device %s: %w", device, err)
	}
	return fn(h, l)
}

func setUp(ns *netns.NS, device string) error {
	return onLink(ns, device, func(h *netlink.Handle, l netlink.Link) error {
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("device %s: up: %w", device, err)
		}
		return nil
	})
}

func addAddr(ns *netns.NS, device string, p netip.Prefix) error {
	return onLink(ns, device, func(h *netlink.Handle, l netlink.Link) error {
		a := &netlink.Addr{IPNet: ipNet(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.AddrAdd(l, a); err != nil {
			return fmt.Errorf("device %s: address %s: %w", device, p, err)
		}
		// The kernel makes the route to an IPv6 address of its own a moment later.
		if l.Attrs().RawFlags&unix.IFF_UP != 0 && !eventually(10*time.Second, func() bool { return isLocal(h, l, p.Addr()) }) {
			return fmt.Errorf("device %s: address %s: does not come up", device, p)
		}
		return nil
	})
}

func isLocal(h *netlink.Handle, l netlink.Link, a netip.Addr) bool {
	opt := &netlink.RouteGetOptions{}
	if a.IsLinkLocalUnicast() {
		opt.OifIndex = l.Attrs().Index
	}
	routes, err := h.RouteGetWithOptions(a.AsSlice(), opt)
	return err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL
}

func addRoute(ns *netns.NS, p netip.Prefix, via netip.Addr) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := h.RouteAdd(&netlink.Route{Dst: ipNet(p), Gw: via.AsSlice()}); err != nil {
		return fmt.Errorf("route %s via %s: %w", p, via, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
