// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"math/bits"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/ipam"
	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// inventory is all that the product has on the lab's host, a line each: devices, routes,
// programs, pins, the tables that the programs read, records and leases of the store, files,
// mounts, settings, processes. Numbers that differ from one run to the next (IDs, indices,
// addresses that were chosen) are replaced by what they belong to, so that two inventories can
// be compared; what belongs to nobody keeps its number, and shows.
type inventory struct {
	c       *cast
	lines   []string
	names   *strings.Replacer // IDs, devices and addresses
	devices map[int]string    // by index
	slots   map[uint32]string // endpoints, by slot
	numbers map[uint32]string // networks, by number
}

// inventory takes it; it changes nothing.
func (c *cast) inventory() []string {
	c.t.Helper()
	inv := &inventory{c: c, devices: make(map[int]string), slots: map[uint32]string{0: "-"}, numbers: make(map[uint32]string)}
	networks, err := c.m.Networks()
	require.NoError(c.t, err)
	containers, err := c.m.Containers()
	require.NoError(c.t, err)
	inv.learn(networks, containers)
	inv.records(networks, containers)
	inv.store()
	inv.kernel()
	inv.tables()
	inv.files()
	slices.Sort(inv.lines)
	return inv.lines
}

// same requires that nothing changed.
func (c *cast) same(before []string, what string, args ...any) {
	c.t.Helper()
	if onDocker() {
		soon(func() bool { return len(difference(before, c.inventory())) == 0 }) // the daemon hears of it
	}
	require.Empty(c.t, difference(before, c.inventory()), fmt.Sprintf(what, args...))
}

// difference are the lines that only one of two inventories has.
func difference(before, after []string) (list []string) {
	count := make(map[string]int)
	for _, l := range before {
		count[l]--
	}
	for _, l := range after {
		count[l]++
	}
	for l, n := range count {
		for range max(n, -n) {
			list = append(list, map[bool]string{true: "+ ", false: "- "}[n > 0]+l)
		}
	}
	slices.Sort(list)
	return list
}

func (inv *inventory) add(format string, args ...any) {
	inv.lines = append(inv.lines, inv.names.Replace(fmt.Sprintf(format, args...)))
}

func (inv *inventory) learn(networks []*control.Network, containers []*control.Container) {
	var pairs []string
	name := func(what, name string) {
		if what != "" {
			pairs = append(pairs, what, name)
		}
	}
	byID := make(map[string]string)
	for _, n := range networks {
		byID[n.ID] = n.Name
		inv.numbers[n.Number] = n.Name
		name(n.ID, "id("+n.Name+")")
		name(n.Bridge, "bridge("+n.Name+")")
	}
	for _, k := range containers {
		name(k.ID, "id("+k.Name+")")
		for _, ep := range k.Endpoints {
			at := k.Name + "@" + byID[ep.Network]
			if ep.Slot != 0 {
				inv.slots[ep.Slot] = at
			}
			name(ep.HostIf, "veth("+at+")")
			name(ep.MAC, "mac("+at+")")
			if mac, err := net.ParseMAC(ep.MAC); err == nil {
				name(ipam.LinkLocal(mac).String(), "ll("+at+")")
			}
			for _, a := range []netip.Prefix{ep.IPv4, ep.IPv6} {
				if a.IsValid() {
					name(a.Addr().String(), "ip("+at+")")
				}
			}
		}
	}
	// The longest first: 10.1.0.2 is also the beginning of 10.1.0.21.
	order := make([]int, len(pairs)/2)
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return len(pairs[2*b]) - len(pairs[2*a]) })
	var sorted []string
	for _, i := range order {
		sorted = append(sorted, pairs[2*i], pairs[2*i+1])
	}
	inv.names = strings.NewReplacer(sorted...)
}

// records is what the commands would list.
func (inv *inventory) records(networks []*control.Network, containers []*control.Container) {
	for _, n := range networks {
		inv.add("network %s %v internal=%v icc=%v", n.Name, n.Subnets, n.Internal, n.ICC)
	}
	for _, k := range containers {
		inv.add("container %s %s %s exit=%d exposed=%v", k.Name, k.Mode, k.State, k.ExitCode, k.Exposed)
		for id, ep := range k.Endpoints {
			inv.add("endpoint %s %s up=%v %s", k.Name, id, ep.Slot != 0, ep.IfName)
		}
		pubs, err := inv.c.m.Publications(k.Name)
		require.NoError(inv.c.t, err)
		for _, p := range pubs {
			inv.add("publication %s %s %s %s:%d x%d", k.Name, p.Spec, p.Proto, p.HostIP, p.HostPort, p.Count)
		}
	}
}

// buckets of the store whose keys say whose they are; of the others the count is enough.
var keyedBuckets = map[string]bool{"addresses": true, "members": true, "names": true, "network-names": true, "links": true, "linked-by": true, "shared-by": true}

func (inv *inventory) store() {
	t := inv.c.t
	db, err := store.OpenRead(filepath.Join(inv.c.Root, "store.db"))
	require.NoError(t, err)
	defer db.Close()
	err = db.View(func(tx *store.Tx) error {
		for _, bucket := range []string{"addresses", "members", "names", "network-names", "links", "linked-by", "shared-by",
			"networks", "containers", "slots", "ports", "hosts", "netns"} {
			n := 0
			err := store.Each(tx, bucket, func(key string, _ json.RawMessage) error {
				if n++; keyedBuckets[bucket] {
					inv.add("store %s %s", bucket, key)
				}
				return nil
			})
			if err != nil {
				return err
			}
			inv.add("store %s: %d", bucket, n)
		}
		for _, kind := range []string{"slots", "networks", "rules"} {
			rec, _, err := store.Get[struct{ Used []byte }](tx, "numbers", kind)
			if err != nil {
				return err
			}
			n := 0
			for _, b := range rec.Used {
				n += bits.OnesCount8(b)
			}
			inv.add("numbers in use: %s %d", kind, n)
		}
		return nil
	})
	require.NoError(t, err)
}

// kernel is devices, addresses, routes, neighbours and settings of H, and the programs on it.
func (inv *inventory) kernel() {
	t, host := inv.c.t, inv.c.Host
	h, err := host.Netlink()
	require.NoError(t, err)
	defer h.Close()
	links, err := h.LinkList()
	require.NoError(t, err)
	for _, l := range links {
		inv.devices[l.Attrs().Index] = l.Attrs().Name
	}
	for _, l := range links {
		a := l.Attrs()
		inv.add("device %s %s master=%s mtu=%d up=%v", a.Name, l.Type(), inv.devices[a.MasterIndex], a.MTU, a.Flags&1 != 0)
		addrs, err := h.AddrList(l, netlink.FAMILY_ALL)
		require.NoError(t, err)
		for _, addr := range addrs {
			if !addr.IP.IsLinkLocalUnicast() {
				inv.add("address %s %s", a.Name, addr.IPNet)
			}
		}
		neighbours, err := h.NeighList(a.Index, 0)
		require.NoError(t, err)
		for _, n := range neighbours {
			if n.State&netlink.NUD_PERMANENT != 0 {
				inv.add("neighbour %s %s %s", a.Name, n.IP, n.HardwareAddr)
			}
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteList(nil, family)
		require.NoError(t, err)
		for _, r := range routes {
			if r.Dst == nil || !r.Dst.IP.IsLinkLocalUnicast() && !r.Dst.IP.IsMulticast() {
				inv.add("route %v via %v dev %s", r.Dst, r.Gw, inv.devices[r.LinkIndex])
			}
		}
	}
	for _, key := range []string{"ipv4/ip_local_reserved_ports", "ipv4/ip_forward", "ipv4/conf/lo/route_localnet", "ipv4/conf/lo/accept_local"} {
		inv.add("sysctl %s %s", key, lab.ReadSysctl(t, host, key))
	}
	if netfilter() {
		return
	}
	require.NoError(t, host.Do(func() error {
		list, err := loader.Attachments(inv.c.BPFFS)
		for _, a := range list {
			inv.add("attached %s on %q %s %s", a.Program, inv.device(a.Ifindex), a.Kind, a.Problem)
		}
		return err
	}))
}

func (inv *inventory) device(index int) string {
	if index == 0 {
		return ""
	}
	if name, ok := inv.devices[index]; ok {
		return name
	}
	return fmt.Sprintf("gone %d", index)
}

func (inv *inventory) slot(n uint32) string {
	if name, ok := inv.slots[n]; ok {
		return name
	}
	return fmt.Sprintf("nobody's slot %d", n)
}

func (inv *inventory) network(n uint32) string {
	if name, ok := inv.numbers[n]; ok {
		return name
	}
	return fmt.Sprintf("nobody's network %d", n)
}

// tables are the maps that the programs read.
func (inv *inventory) tables() {
	t := inv.c.t
	if netfilter() {
		inv.rules()
		return
	}
	src, err := loader.OpenMaps(loader.Options{BPFFS: inv.c.BPFFS})
	require.NoError(t, err)
	defer src.Close()
	m := maps.New(src)
	endpoints, err := m.Endpoints.List()
	require.NoError(t, err)
	for slot, ep := range endpoints {
		inv.add("map endpoint %s on %s of %s %s %s %s", inv.slot(slot), inv.device(ep.Ifindex), inv.network(ep.Network), ep.IPv4, ep.IPv6, ep.MAC)
	}
	networks, err := m.Networks.List()
	require.NoError(t, err)
	for _, n := range networks {
		members, err := m.Networks.Members(n)
		require.NoError(t, err)
		for _, slot := range members {
			inv.add("map member %s %s", inv.network(n), inv.slot(slot))
		}
		inv.add("map network %s", inv.network(n))
	}
	publications, linkRules, err := m.Rules.List()
	require.NoError(t, err)
	rules := make(map[uint32]string)
	for _, n := range publications {
		p, _, err := m.Rules.Publication(n)
		require.NoError(t, err)
		rules[n] = fmt.Sprintf("%s %s %d %d %v", inv.slot(p.Endpoint4), inv.slot(p.Endpoint6), p.HostPort, p.Port, p.Sources)
		inv.add("map publication %s", rules[n])
	}
	inv.add("map link rules: %d", len(linkRules))
	doors, err := m.Ports.List()
	require.NoError(t, err)
	for _, d := range doors {
		rule, ok := rules[d.Rule]
		if !ok {
			rule = fmt.Sprintf("nobody's rule %d", d.Rule)
		}
		inv.add("map port %s %s %d x%d to %s", d.Proto, d.Addr, d.First, d.Count, rule)
	}
	links, err := m.Links.List()
	require.NoError(t, err)
	for l := range links {
		inv.add("map link %s %s %s %d", inv.slot(l.Client), inv.slot(l.Server), l.Proto, l.Port)
	}
}

// numbered is a chain of a rule or network, which has another number each time.
var numbered = regexp.MustCompile(`BPFNET-(S|TO|PUB|LINK)-\d+`)

// rules are those of netfilter, without their order.
func (inv *inventory) rules() {
	for _, family := range []string{"iptables-save", "ip6tables-save"} {
		out, err := inv.c.Run(inv.c.Host, family)
		require.NoError(inv.c.t, err, out)
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "-A ") {
				inv.add("%s %s", family, numbered.ReplaceAllString(strings.TrimSpace(line), "BPFNET-$1-number"))
			}
		}
	}
}

// files are those below root and the pins, what is mounted below root, and the program's own processes.
func (inv *inventory) files() {
	for _, dir := range []string{inv.c.Root, inv.c.BPFFS} {
		filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(dir, path)
			if err == nil && !strings.HasSuffix(path, ".lock") {
				inv.add("file %s %s", filepath.Base(dir), inv.pin(rel))
			}
			return nil
		})
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], inv.c.Root+"/") {
			inv.add("mount %s", strings.TrimPrefix(f[4], inv.c.Root))
		}
	}
	for _, pid := range inv.c.own() {
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		inv.add("process %s", strings.ReplaceAll(string(cmdline), "\x00", " "))
	}
}

// programSet is a directory of programs, whose name has a random number.
var programSet = regexp.MustCompile(`^(programs/[0-9a-f]{16})-[0-9a-f]{8}`)

// pin replaces the index and the namespace's cookie in the name of an attachment's pin, and that number.
func (inv *inventory) pin(path string) string {
	path = programSet.ReplaceAllString(path, "$1-number")
	parts := strings.Split(path, "-")
	if strings.HasPrefix(path, "links/") && len(parts) == 3 {
		if index, err := strconv.Atoi(parts[1]); err == nil {
			return parts[0] + "-" + inv.device(index)
		}
	}
	return path
}

// own are the processes in the lab's cgroup that are the real program, by pid.
func (c *cast) own() (pids []int) {
	programs := filepath.Dir(lab.Binary(c.t))
	procs, err := os.ReadFile(filepath.Join(c.Cgroup, "cgroup.procs"))
	require.NoError(c.t, err)
	for _, f := range strings.Fields(string(procs)) {
		pid, err := strconv.Atoi(f)
		require.NoError(c.t, err)
		if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil && filepath.Dir(exe) == programs {
			pids = append(pids, pid)
		}
	}
	return pids
}
