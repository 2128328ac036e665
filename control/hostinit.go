// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
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

// Init sets the host up, or changes its configuration: nil keeps what is there. With
// another Options.Datapath than the host's it switches that, with everything that runs.
func (m *Manager) Init(c *Config) error {
	if c != nil {
		if err := c.check(); err != nil {
			return err
		}
	}
	any := *m
	any.switches = true
	return any.updateWith(c, func(o *op) error {
		if to := o.m.o.Datapath; to != "" && to != o.host.Datapath {
			if err := o.switchPath(to); err != nil {
				return err
			}
		}
		return o.configure(c)
	})
}

// initHost sets a host up for the first time.
func (o *op) initHost(flags *Config) error {
	h, err := o.m.newHost(flags)
	if err != nil {
		return err
	}
	o.host = h
	if err := kinds[h.Datapath].probe(); err != nil {
		return err
	}
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	if h.Cookie, err = ns.Cookie(); err != nil {
		return err
	}
	if err := o.path().Install(); err != nil {
		return err
	}
	o.did("host set up")
	return o.putHost()
}

// newHost fills the record from options, configuration file and flags.
func (m *Manager) newHost(flags *Config) (*hostRecord, error) {
	h := &hostRecord{Version: recordVersion, Netns: m.o.Netns, Cgroup: m.o.Cgroup, BPFFS: m.o.BPFFS, Datapath: cmp.Or(m.o.Datapath, DatapathBPF)}
	if h.BPFFS == "" {
		h.BPFFS = DefaultBPFFS
	}
	var err error
	if h.Cgroup == "" {
		if h.Cgroup, err = cgroupMount(); err != nil && h.Datapath == DatapathBPF {
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
	if slices.Equal(c.Uplinks, []string{allUplinks}) {
		c.Uplinks = nil
	}
	return c, c.check()
}

func (o *op) putHost() error { return store.Put(o.tx, bucketHost, "host", o.host) }

// sameHost refuses options that name another host than the store's.
func (m *Manager) sameHost(h *hostRecord) error {
	if h.Version > recordVersion {
		return fmt.Errorf("store %s: written by a newer bpfnet (version %d, this one knows %d): use that one", m.storePath(), h.Version, recordVersion)
	}
	if _, ok := kinds[h.Datapath]; !ok {
		return fmt.Errorf("store %s: set up with datapath %q, which this bpfnet does not have: use a newer one", m.storePath(), h.Datapath)
	}
	for _, x := range []struct{ flag, want, have, or string }{
		{"--netns", m.o.Netns, h.Netns, ""},
		{"--cgroup", m.o.Cgroup, h.Cgroup, ""},
		{"--bpffs", m.o.BPFFS, h.BPFFS, ""},
		{"--datapath", m.o.Datapath, h.Datapath, "; bpfnet init --datapath " + m.o.Datapath + " switches"},
	} {
		if x.flag == "--datapath" && m.switches {
			continue
		}
		if x.want != "" && x.want != x.have {
			have := x.have
			if have == "" {
				have = "the caller's"
			}
			return invalid("%s %s: the host of %s was set up with %s; leave it out, or use another --root%s", x.flag, x.want, m.root, have, x.or)
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
	if what := kinds[h.Datapath].missing(h); what != "" {
		return what + " is missing", nil
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
	list, err := link.Uplinks(ns, o.host.Config.Uplinks, ours)
	if err != nil {
		return nil, err
	}
	return list, store.Each(o.tx, bucketNetworks, func(_ string, n Network) error {
		for i := range list {
			list[i].Parent = list[i].Parent || n.Parent == list[i].Name
		}
		return nil
	})
}

// claims says which devices are ours, and so no uplinks.
func (o *op) claims() (func(netlink.Link) bool, error) {
	own, err := o.ownBridges()
	if err != nil {
		return nil, err
	}
	own[o.host.Config.Bridge] = true // though its network may not be made yet
	engines, err := o.engineVeths()
	return func(l netlink.Link) bool { return ourDevice(l.Attrs().Name, own) || engines(l) }, err
}

// refreshHost brings the packets' path up to date with the host's devices.
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
	return o.path().Refresh()
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
