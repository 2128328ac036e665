// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/loader"
)

// hostRecord is what the store knows of the host that it is for.
type hostRecord struct {
	Version  int     `json:"version"` // of the records
	Netns    string  `json:"netns"`   // path; "": the caller's
	Cgroup   string  `json:"cgroup"`
	BPFFS    string  `json:"bpffs"`
	Datapath string  `json:"datapath"`
	Flags    Config  `json:"flags"`  // what init was told
	Config   Config  `json:"config"` // in force
	Cookie   uint64  `json:"cookie"` // of the namespace
	Boot     string  `json:"boot"`
	Lo       link.Lo `json:"lo"`   // what uninstall puts back
	Seed     string  `json:"seed"` // of the IPv6 prefixes
}

// recordVersion grows when older programs would misread the store.
const recordVersion = 1

// Init sets the host up, or changes its configuration: nil keeps what is there.
func (m *Manager) Init(c *Config) error {
	if c != nil {
		if err := c.check(); err != nil {
			return err
		}
	}
	return m.updateWith(c, func(o *op) error { return o.configure(c) })
}

// initHost sets a host up for the first time.
func (o *op) initHost(flags *Config) error {
	h, err := o.m.newHost(flags)
	if err != nil {
		return err
	}
	o.host = h
	if _, err := loader.Probe(); err != nil {
		return err
	}
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	if h.Cookie, err = ns.Cookie(); err != nil {
		return err
	}
	if err := ns.Do(func() error { return loader.Claim(h.BPFFS) }); err != nil {
		return err
	}
	o.undo.add("programs and maps", func() error {
		return ns.Do(func() error { return loader.Uninstall(loader.Options{BPFFS: h.BPFFS}) })
	})
	if err := o.loadPrograms(); err != nil {
		return err
	}
	if h.Lo, err = link.PrepareLo(ns); err != nil {
		return err
	}
	o.undo.add("lo", func() error { return link.RestoreLo(ns, h.Lo) })
	if err := o.refreshHost(); err != nil {
		return err
	}
	if err := o.armSweep(); err != nil {
		return err
	}
	o.did("host set up")
	return o.putHost()
}

// newHost fills the record from options, configuration file and flags.
func (m *Manager) newHost(flags *Config) (*hostRecord, error) {
	h := &hostRecord{Version: recordVersion, Netns: m.o.Netns, Cgroup: m.o.Cgroup, BPFFS: m.o.BPFFS, Datapath: DatapathBPF}
	if h.BPFFS == "" {
		h.BPFFS = loader.DefaultBPFFS
	}
	var err error
	if h.Cgroup == "" {
		if h.Cgroup, err = cgroupMount(); err != nil {
			return nil, err
		}
	}
	if flags != nil {
		h.Flags = *flags
	}
	if h.Config, err = m.effective(&h.Flags); err != nil {
		return nil, err
	}
	h.Boot, err = bootID()
	h.Seed = newID()
	return h, err
}

// effective is the configuration file with the flags of init on top.
func (m *Manager) effective(flags *Config) (Config, error) {
	file, err := ReadConfig(m.o.Config)
	if err != nil {
		return Config{}, err
	}
	c, err := overlay(*file, flags)
	if err != nil {
		return Config{}, err
	}
	c = c.withDefaults()
	return c, c.check()
}

func (o *op) putHost() error { return store.Put(o.tx, bucketHost, "host", o.host) }

// sameHost refuses options that name another host than the store's.
func (m *Manager) sameHost(h *hostRecord) error {
	if h.Version > recordVersion {
		return fmt.Errorf("store %s: written by a newer bpfnet (version %d, this one knows %d): use that one", m.storePath(), h.Version, recordVersion)
	}
	for _, x := range []struct{ flag, want, have string }{
		{"--netns", m.o.Netns, h.Netns},
		{"--cgroup", m.o.Cgroup, h.Cgroup},
		{"--bpffs", m.o.BPFFS, h.BPFFS},
		{"--datapath", m.o.Datapath, h.Datapath},
	} {
		if x.want != "" && x.want != x.have {
			have := x.have
			if have == "" {
				have = "the caller's"
			}
			return invalid("%s %s: the host of %s was set up with %s; leave it out, or use another --root", x.flag, x.want, m.root, have)
		}
	}
	return nil
}

// unsettled says why the kernel may not be in the state that the store describes.
func (m *Manager) unsettled(h *hostRecord) (string, error) {
	if _, err := os.Stat(m.dirtyPath()); err == nil {
		return "the last command was stopped half way", nil
	}
	boot, err := bootID()
	if err != nil {
		return "", err
	}
	if boot != h.Boot {
		return "the machine was booted", nil
	}
	for _, pin := range []string{"maps/" + loader.BPFMapSettings, "programs/current"} {
		if _, err := os.Stat(filepath.Join(h.BPFFS, pin)); err != nil {
			return "pin " + pin + " is missing", nil
		}
	}
	ns, err := openHostNetns(h.Netns)
	if err != nil {
		return "", err
	}
	defer ns.Close()
	cookie, err := ns.Cookie()
	if err != nil || cookie == h.Cookie {
		return "", err
	}
	if h.Netns == "" {
		return "", invalid("%s is for another network namespace than the one of this command: run it there, or use another --root", m.root)
	}
	return "netns " + h.Netns + " is new", nil
}

// loadPrograms makes the kernel have this binary's programs and maps. It upgrades.
func (o *op) loadPrograms() error {
	if err := o.load(); err != nil {
		return priced(err)
	}
	return o.writeSettings()
}

func (o *op) load() error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	return ns.Do(func() error {
		obj, err := loader.Load(o.loaderOptions())
		if err != nil {
			return err
		}
		o.loaded(obj)
		return obj.Close()
	})
}

func (o *op) armSweep() error {
	return o.withProgram(loader.BPFProgSweep, loader.ArmSweep)
}

// uplinks are the devices by which the world comes, as the configuration has it.
func (o *op) uplinks() ([]link.Uplink, error) {
	ns, err := o.hostNetns()
	if err != nil {
		return nil, err
	}
	ours, err := o.claims()
	if err != nil {
		return nil, err
	}
	return link.Uplinks(ns, o.host.Config.Uplinks, ours)
}

func (o *op) uplinkSet() (map[int]bool, error) {
	up, err := o.uplinks()
	if err != nil {
		return nil, err
	}
	return indices(up), nil
}

func indices(up []link.Uplink) map[int]bool {
	set := make(map[int]bool, len(up))
	for _, l := range up {
		set[l.Index] = true
	}
	return set
}

// claims says which devices are ours, and so no uplinks.
func (o *op) claims() (func(netlink.Link) bool, error) {
	own, err := o.ownBridges()
	if err != nil {
		return nil, err
	}
	own[o.host.Config.Bridge] = true // though its network may not be made yet
	return func(l netlink.Link) bool { return ourDevice(l.Attrs().Name, own) }, nil
}

// refreshHost brings hooks, addresses and routes up to date with the host's devices.
func (o *op) refreshHost() error {
	up, err := o.uplinks()
	if err != nil {
		return err
	}
	for _, name := range o.host.Config.Uplinks {
		if !slices.ContainsFunc(up, func(l link.Uplink) bool { return l.Name == name }) {
			o.m.warn("uplink %s: no such device", name)
		}
	}
	for _, l := range up {
		if err := o.attachUplink(l); err != nil {
			return err
		}
	}
	if err := o.attach(loader.BPFProgFromLo, 1, "lo", loader.Ingress); err != nil {
		return err
	}
	isUplink := indices(up)
	if err := o.detachOldUplinks(isUplink); err != nil {
		return err
	}
	if err := o.attachBindGuard(); err != nil {
		return err
	}
	return o.refreshHostTables(isUplink)
}

// attachUplink puts the programs on a device, unless that has gone meanwhile.
func (o *op) attachUplink(l link.Uplink) error {
	in, out := uplinkPrograms(l)
	err := o.attach(in, l.Index, l.Name, loader.Ingress)
	if err == nil {
		err = o.attach(out, l.Index, l.Name, loader.Egress)
	}
	if err == nil {
		return nil
	}
	if seen, err2 := o.observe(); err2 == nil && seen.byIndex[l.Index] == nil {
		return nil
	}
	return err
}

var allUplinkPrograms = []string{loader.BPFProgFromUplink, loader.BPFProgToUplink, loader.BPFProgFromTunnel, loader.BPFProgToTunnel}

// uplinkPrograms are the two that belong on an uplink: tun, WireGuard and their like have no
// Ethernet header.
func uplinkPrograms(l link.Uplink) (in, out string) {
	if !l.Ethernet {
		return loader.BPFProgFromTunnel, loader.BPFProgToTunnel
	}
	return loader.BPFProgFromUplink, loader.BPFProgToUplink
}

// detachOldUplinks takes our programs off devices that are uplinks no more.
func (o *op) detachOldUplinks(isUplink map[int]bool) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	var on map[int][]string
	err = ns.Do(func() (err error) {
		on, err = loader.Devices(o.host.BPFFS)
		return err
	})
	if err != nil {
		return err
	}
	for ifindex, programs := range on {
		for _, p := range programs {
			if isUplink[ifindex] || !slices.Contains(allUplinkPrograms, p) {
				continue
			}
			if err := o.detach(p, ifindex); err != nil {
				return err
			}
			o.did("device %d: %s detached, no uplink any more", ifindex, p)
		}
	}
	return nil
}

// ourDevice says whether a device is an endpoint's or a network's.
func ourDevice(name string, bridges map[string]bool) bool {
	return strings.HasPrefix(name, vethPrefix) || strings.HasPrefix(name, bridgePrefix) || bridges[name]
}

// ownBridges are the devices of our networks.
func (o *op) ownBridges() (map[string]bool, error) {
	own := make(map[string]bool)
	err := store.Each(o.tx, bucketNetworks, func(_ string, n Network) error {
		own[n.Bridge] = true
		return nil
	})
	return own, err
}

// cgroupMount is where the cgroup v2 tree is mounted: proc_pid_mountinfo(5).
func cgroupMount() (string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		before, after, _ := strings.Cut(s.Text(), " - ")
		if fields := strings.Fields(before); len(fields) > 4 && strings.HasPrefix(after, "cgroup2 ") {
			return fields[4], nil
		}
	}
	return "", errors.New("cgroup: no cgroup v2 tree is mounted; mount one, or name one with --cgroup")
}

// booted says whether the machine was booted since the store was last reconciled:
// no process and no namespace of it lives.
func (o *op) booted() bool {
	if o.boot == "" {
		o.boot, _ = bootID()
	}
	return o.boot != o.host.Boot
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// sameNetns says whether two namespaces are one; closed handles are not.
func sameNetns(a *netns.NS, path string) bool {
	b, err := netns.Open(path)
	if err != nil {
		return false
	}
	defer b.Close()
	return a.Equal(b)
}
