// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
)

// G10: nobody but root, and nobody but root may look.
func TestRootOnly(t *testing.T) {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its identity
		_, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 65534, ^uintptr(0))
		if errno != 0 {
			done <- errno
			return
		}
		_, err := Open(Options{Root: t.TempDir()})
		done <- err
	}()
	require.ErrorIs(t, <-done, ErrNotRoot)

	l := newLab(t)
	c, _ := l.container("web", ContainerOptions{})
	for path, mode := range map[string]os.FileMode{
		l.o.Root:                                0o700,
		l.m.storePath():                         0o600,
		filepath.Join(l.o.Root, "containers"):   0o700,
		l.m.ContainerDir(c.ID):                  0o710,
		l.m.ContainerDir(c.ID) + "/hosts":       0o644,
		l.m.ContainerDir(c.ID) + "/resolv.conf": 0o644,
		l.o.BPFFS:                               0o700,
	} {
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, mode, st.Mode().Perm(), path)
	}
}

// A directory in which others have files is not taken for bpfnet's: not closed to them, and
// not emptied by uninstall.
func TestRootOfOthers(t *testing.T) {
	l := newLab(t)
	require.NoError(t, os.MkdirAll(filepath.Join(l.o.Root, "containers"), 0o755))
	theirs := filepath.Join(l.o.Root, "theirs")
	require.NoError(t, os.WriteFile(theirs, nil, 0o644))
	require.NoError(t, os.Chmod(l.o.Root, 0o755))
	err := l.m.Init(nil)
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, `root directory `+l.o.Root+`: has files that are not bpfnet's ("theirs")`)
	require.NoError(t, l.m.Uninstall())
	st, err := os.Stat(l.o.Root)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o755), st.Mode().Perm())
	require.FileExists(t, theirs)
	require.NoError(t, os.Remove(theirs))
	require.NoError(t, l.m.Init(nil), "what is bpfnet's own, of a store that was lost")
}

// The pins of another store's host are its own as long as that store is there.
func TestPinsOfOthers(t *testing.T) {
	l := newLab(t)
	l.container("web", ContainerOptions{Publish: []string{"8080:80"}})
	before := l.state()
	o := l.o
	o.Root = filepath.Join(t.TempDir(), "another")
	m, err := Open(o)
	require.NoError(t, err)
	require.ErrorContains(t, m.Init(nil), "whose store is "+filepath.Join(l.o.Root, "store.db")+": use its --root, or another --bpffs")
	_, err = m.CreateNetwork(NetworkOptions{Name: "net"})
	require.ErrorIs(t, err, loader.ErrOwned)
	_, err = m.Reconcile()
	require.ErrorIs(t, err, loader.ErrOwned)
	require.NoError(t, m.Uninstall())
	require.NoDirExists(t, o.Root)
	require.Equal(t, before, l.state())
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)

	// Lost with all that it knew: the next one's.
	require.NoError(t, os.RemoveAll(l.o.Root))
	require.NoError(t, m.Init(nil))
	require.NoError(t, m.Uninstall())
}

// A first command that fails leaves a host that nobody has touched.
func TestFirstCommandFails(t *testing.T) {
	l := newLab(t)
	ns := newNetns(t)
	path := l.keep(ns, "web")
	lo := func() (s string) {
		require.NoError(t, l.host.Do(func() error {
			raw, err := os.ReadFile("/proc/sys/net/ipv4/conf/lo/route_localnet")
			s = strings.TrimSpace(string(raw))
			return err
		}))
		return s
	}
	fail := func() {
		_, err := l.m.CreateContainer(ContainerOptions{Name: "web", Attach: "netns:" + path, Publish: []string{"203.0.113.1:80:80"}})
		require.ErrorContains(t, err, "cannot assign requested address")
		require.NotContains(t, err.Error(), "\n")
	}
	fail()
	require.Equal(t, []string{"lo", "eth0"}, links(t, l.host))
	require.Equal(t, []string{"lo"}, links(t, ns))
	require.NoDirExists(t, l.o.Root)
	require.NoDirExists(t, l.o.BPFFS)
	require.Equal(t, "0", lo())
	require.NoError(t, os.Mkdir(l.o.Root, 0o750))
	fail()
	st, err := os.Stat(l.o.Root)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o750), st.Mode().Perm())
	left, err := os.ReadDir(l.o.Root)
	require.NoError(t, err)
	require.Empty(t, left)

	require.NoError(t, l.m.Init(nil))
	require.Equal(t, "1", lo())
	before := l.state()
	fail()
	require.Equal(t, before, l.state())
	require.NoError(t, l.m.Uninstall())
	require.Equal(t, "0", lo())
	for name, err := range map[string]error{
		"rm":         l.m.RemoveContainer("x"),
		"unpublish":  l.m.Unpublish("x", "80"),
		"network rm": l.m.RemoveNetwork("x"),
		"disconnect": l.m.Disconnect("x", "y"),
		"link":       l.m.Link("x", "y"),
	} {
		require.ErrorIs(t, err, ErrNotFound, name)
	}
	require.NoDirExists(t, l.o.Root, "asking for what is not there sets nothing up")
}

func TestRefs(t *testing.T) {
	db, err := store.Open(filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, db.Update(func(tx *store.Tx) error {
		id := func(prefix string) string { return prefix + strings.Repeat("0", 64-len(prefix)) }
		for name, prefix := range map[string]string{"one": "aa1", "two": "aa2", "aa1": "b", "bee": "c"} {
			c := Container{ID: id(prefix), Name: name}
			require.NoError(t, store.Put(tx, bucketContainers, c.ID, c))
			require.NoError(t, store.Put(tx, bucketNames, name, c.ID))
		}
		for ref, want := range map[string]string{"one": "one", "/one": "one", "aa2": "two", "aa1": "aa1", "aa10": "one",
			id("aa1"): "one", "b": "aa1", "bee": "bee"} {
			c, err := findContainer(tx, ref)
			require.NoError(t, err, ref)
			require.Equal(t, want, c.Name, ref)
		}
		_, err := findContainer(tx, "aa")
		require.ErrorContains(t, err, "ambiguous")
		for _, ref := range []string{"", "x", "aa3", "on", "AA1", id("d")} {
			_, err := findContainer(tx, ref)
			require.ErrorIs(t, err, ErrNotFound, ref)
			require.EqualError(t, err, "No such container: "+ref)
		}
		return nil
	}))
	for _, bad := range []string{"", "a", "-a", "a b", "a/b", "ä!", strings.Repeat("a", 200), "a\n"} {
		require.ErrorIs(t, checkName("container", bad), ErrInvalid, bad)
	}
	for _, good := range []string{"ab", "A1", "web.1_x-y"} {
		require.NoError(t, checkName("container", good))
	}
}

func TestNumbers(t *testing.T) {
	db, err := store.Open(filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	defer db.Close()
	require.NoError(t, db.Update(func(tx *store.Tx) error {
		const kind = numNetworks
		a, err := takeNumbers(tx, kind, 3)
		require.NoError(t, err)
		require.Equal(t, []uint32{1, 2, 3}, a)
		require.NoError(t, giveNumbers(tx, kind, 2))
		a, err = takeNumbers(tx, kind, 1)
		require.NoError(t, err)
		require.Equal(t, []uint32{4}, a, "what was given back comes last")
		all, err := takeNumbers(tx, kind, int(maps.MaxNetworks)-1-3)
		require.NoError(t, err)
		require.Equal(t, uint32(2), all[len(all)-1])
		_, err = takeNumbers(tx, kind, 1)
		require.ErrorContains(t, err, "networks: all 4095 are in use")
		wrong, err := keepNumbers(tx, kind, map[uint32]bool{7: true})
		require.NoError(t, err)
		require.Equal(t, 4094, wrong)
		return nil
	}))
}

// A device that comes later is an uplink after reconcile; one that goes is none.
func TestUplinkLater(t *testing.T) {
	l := newLab(t)
	require.NoError(t, l.m.Init(&Config{MasqueradePorts: "2000-2999"}))
	h, err := l.host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eth1"
	up := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth1", PeerNamespace: netlink.NsFd(l.world.FD())}
	require.NoError(t, h.LinkAdd(up))
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Equal(t, []string{"device eth1: from_uplink attached (tcx ingress)", "device eth1: to_uplink attached (tcx egress)"}, lines)
	before := l.state()
	for _, name := range []string{"etho", "lo"} {
		err := l.m.Init(&Config{Uplinks: []string{name}})
		require.ErrorContains(t, err, "uplink "+name+": no such device that leads to the world; there is: eth0, eth1 (all: each of them)")
		require.Equal(t, before, l.state())
	}
	require.NoError(t, l.m.Init(&Config{Uplinks: []string{"eth1", "later"}}))
	require.Contains(t, l.warns, "uplink later: no such device")
	st, err := l.m.Status()
	require.NoError(t, err)
	require.Empty(t, st.Problems)
	for _, hook := range st.Hooks {
		require.NotEqual(t, "eth0", hook.Device)
	}
	require.NoError(t, h.LinkDel(up))
	lines, err = l.m.Reconcile()
	require.NoError(t, err)
	require.NotEmpty(t, lines)
	src, err := loader.OpenMaps(loader.Options{BPFFS: l.o.BPFFS})
	require.NoError(t, err)
	defer src.Close()
	settings, err := maps.New(src).Settings.Get()
	require.NoError(t, err)
	require.Equal(t, []maps.PortRange{{First: 2000, Last: 2999}}, settings.Pool)
	st, err = l.m.Status()
	require.NoError(t, err)
	require.Contains(t, st.Problems, "uplink eth1, later: no such device: nobody reaches a published port; bpfnet init --uplink all takes what there is")
	require.NoError(t, l.m.Init(&Config{Uplinks: []string{"all"}}))
	st, err = l.m.Status()
	require.NoError(t, err)
	require.Empty(t, st.Problems)
	devices := make(map[string]bool)
	for _, hook := range st.Hooks {
		devices[hook.Device] = true
	}
	require.True(t, devices["eth0"])
}

func TestFlows(t *testing.T) {
	l := newLab(t)
	c, _ := l.container("web", ContainerOptions{Publish: []string{"8080:80"}})
	var ep *Endpoint
	for _, ep = range c.Endpoints {
	}
	src, err := loader.OpenMaps(loader.Options{BPFFS: l.o.BPFFS})
	require.NoError(t, err)
	defer src.Close()
	m, err := src.Map(loader.BPFMapHalf4)
	require.NoError(t, err)
	be := func(a string) uint32 {
		b := netip.MustParseAddr(a).As4()
		return uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24
	}
	mapped := func(a string) loader.BPFAddr { return loader.BPFAddr{W: [4]uint32{0, 0, 0xffff0000, be(a)}} }
	port := func(p uint16) uint16 { return p<<8 | p>>8 }
	seeds, err := src.Map(loader.BPFMapSeeds)
	require.NoError(t, err)
	seed, err := loader.SeedOf(seeds)
	require.NoError(t, err)
	put := func(f loader.BPFFlow) { require.NoError(t, m.Put(seed.Digest(f.Tuple), f)) }
	put(
		loader.BPFFlow{Tuple: loader.BPFTuple{Saddr: mapped("192.0.2.9"), Daddr: mapped("192.0.2.1"), Sport: port(5000), Dport: port(8080), Proto: 6, Family: 4}, Packets: 3, Bytes: 300, Timeout: 10, Dst: loader.BPFRef{Id: ep.Slot}, State: 1,
			Saddr: mapped("192.0.2.9"), Daddr: mapped("172.17.0.2"), Sport: port(5000), Dport: port(80), ZoneTwin: uint32(ep.HostIndex)})
	put(
		loader.BPFFlow{Tuple: loader.BPFTuple{Saddr: mapped("172.17.0.2"), Daddr: mapped("192.0.2.9"), Sport: port(80), Dport: port(5000), Zone: uint32(ep.HostIndex), Proto: 6, Family: 4}, Packets: 2, Bytes: 200, Timeout: 10, Flags: 1, Src: loader.BPFRef{Id: ep.Slot},
			Saddr: mapped("192.0.2.1"), Daddr: mapped("192.0.2.9"), Sport: port(8080), Dport: port(5000)})
	for _, f := range []FlowFilter{{}, {Container: "web"}, {Port: 80}, {Port: 8080, Proto: "tcp"}} {
		list, err := l.m.Flows(f)
		require.NoError(t, err)
		require.Len(t, list, 1, f)
		require.Equal(t, "web", list[0].Container)
		require.Equal(t, uint64(5), list[0].Packets)
		require.Equal(t, "answered", list[0].State)
		require.Equal(t, "172.17.0.2:80", list[0].NewDest.String())
	}
	list, err := l.m.Flows(FlowFilter{Proto: "udp"})
	require.NoError(t, err)
	require.Empty(t, list)
	_, err = l.m.Flows(FlowFilter{Container: "nobody"})
	require.ErrorIs(t, err, ErrNotFound)
	n, err := l.m.FlushFlows(FlowFilter{})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	list, err = l.m.Flows(FlowFilter{})
	require.NoError(t, err)
	require.Empty(t, list)

	bridges, err := l.m.Bridges()
	require.NoError(t, err)
	require.Equal(t, []BridgePort{{Device: ep.HostIf, Container: "web", Interface: "eth0"}}, bridges[0].Ports)
	require.Regexp(t, `^8000\.[0-9a-f]{12}$`, bridges[0].ID)
	require.False(t, bridges[0].STP)
	l.inHost("", "ip", "link", "add", "br0", "type", "bridge", "stp_state", "1", "priority", "4096")
	l.inHost("", "ip", "link", "set", "br0", "up")
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "own", Bridge: "br0", Subnets: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/24")}})
	require.NoError(t, err)
	bridges, err = l.m.Bridges()
	require.NoError(t, err)
	i := slices.IndexFunc(bridges, func(b BridgeInfo) bool { return b.Name == "br0" })
	require.Regexp(t, `^1000\.[0-9a-f]{12}$`, bridges[i].ID)
	require.True(t, bridges[i].STP)
	require.Contains(t, bridges[0].ID, "8000.")
}
