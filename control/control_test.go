// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
)

// A lab is a host of its own: a network namespace with an uplink, a child cgroup,
// pins and store.
//
//	world (netns) ── veth ── host (netns): eth0 192.0.2.1/24, 2001:db8::1/64
type lab struct {
	t     testing.TB
	host  *netns.NS
	world *netns.NS
	o     Options
	m     *Manager
	warns []string
}

const unifiedCgroup = "/sys/fs/cgroup/unified"

func newLab(t testing.TB) *lab {
	t.Helper()
	dir := t.TempDir()
	l := &lab{t: t, host: newNetns(t), world: newNetns(t)}
	hostPath := filepath.Join(dir, "run", "host")
	require.NoError(t, netns.Persist(l.host, hostPath))
	t.Cleanup(func() { _ = netns.Unpersist(hostPath) })

	h, err := l.host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth0"
	up := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(l.world.FD())}
	require.NoError(t, h.LinkAdd(up))
	require.NoError(t, l.host.Do(func() error { // no address that comes later
		return os.WriteFile("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", []byte("1"), 0)
	}))
	require.NoError(t, h.LinkSetUp(up))
	require.NoError(t, loUp(l.host))
	for _, a := range []string{"192.0.2.1/24", "2001:db8::1/64"} {
		addr, err := netlink.ParseAddr(a)
		require.NoError(t, err)
		addr.Flags = 2 // IFA_F_NODAD
		require.NoError(t, h.AddrAdd(up, addr))
	}
	wh, err := l.world.Netlink()
	require.NoError(t, err)
	defer wh.Close()
	peer, err := wh.LinkByName("eth0")
	require.NoError(t, err)
	require.NoError(t, wh.LinkSetUp(peer))

	cgroup := filepath.Join(unifiedCgroup, fmt.Sprintf("control-test-%d-%s", os.Getpid(), filepath.Base(t.Name())))
	require.NoError(t, os.Mkdir(cgroup, 0o755))
	t.Cleanup(func() { _ = os.Remove(cgroup) })

	l.o = Options{
		Root:   filepath.Join(dir, "root"),
		BPFFS:  filepath.Join(dir, "bpf"),
		Netns:  hostPath,
		Cgroup: cgroup,
		Config: l.config(dir, "{}"),
		Warn:   func(s string) { l.warns = append(l.warns, s) },
	}
	l.m, err = Open(l.o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.m.Uninstall()) })
	return l
}

func (l *lab) config(dir, text string) string {
	path := filepath.Join(dir, "config.json")
	require.NoError(l.t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func newNetns(t testing.TB) *netns.NS {
	t.Helper()
	ns, err := netns.New()
	require.NoError(t, err)
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// container attaches a fresh namespace under a name.
func (l *lab) container(name string, opts ContainerOptions) (*Container, *netns.NS) {
	l.t.Helper()
	ns := newNetns(l.t)
	opts.Name, opts.Attach = name, "netns:"+l.keep(ns, name)
	c, err := l.m.CreateContainer(opts)
	require.NoError(l.t, err)
	return c, ns
}

// keep gives a namespace a path.
func (l *lab) keep(ns *netns.NS, name string) string {
	l.t.Helper()
	path := filepath.Join(filepath.Dir(l.o.Netns), name)
	require.NoError(l.t, netns.Persist(ns, path))
	l.t.Cleanup(func() { _ = netns.Unpersist(path) })
	return path
}

// links are the names of the devices of a namespace.
func links(t testing.TB, ns *netns.NS) []string {
	t.Helper()
	h, err := ns.Netlink()
	require.NoError(t, err)
	defer h.Close()
	list, err := h.LinkList()
	require.NoError(t, err)
	var names []string
	for _, l := range list {
		names = append(names, l.Attrs().Name)
	}
	return names
}

func itoa(n int) string { return fmt.Sprint(n) }

// writeSysctl is for a thread inside the namespace.
func writeSysctl(key, value string) error {
	return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0)
}
