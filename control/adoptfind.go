// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/control/watch"
)

// FindNetns finds the namespaces of containers whose engine does not say yet where they
// are, while it starts them: by the cables that have just been laid. The containers that
// all cables of were found are returned, with their Netns; it is that of a mount, and so
// only for an engine whose mounts this process sees.
func (m *Manager) FindNetns(engine string, list []AdoptedContainer) (found []AdoptedContainer, err error) {
	_, err = m.view(func(o *op) error {
		f, err := o.newFinder(engine)
		if err != nil {
			return err
		}
		places, err := f.places()
		if err != nil {
			return err
		}
		for _, path := range places {
			macs := f.cables(path)
			for _, c := range list {
				if c.laidIn(macs) {
					c.Netns = path
					found = append(found, c)
				}
			}
		}
		return nil
	})
	return found, err
}

// laidIn says whether all of a container's cables are among those of a namespace.
func (c *AdoptedContainer) laidIn(macs map[string]string) bool {
	for i := range c.Endpoints {
		if macs[c.Endpoints[i].Network] != c.Endpoints[i].MAC {
			return false
		}
	}
	return len(c.Endpoints) > 0
}

// ShutPorts lets nothing pass the cables that an engine has laid and not said yet whose they
// are: those of its names for devices, at bridges of its networks. The programs are then
// where they belong by the time that it does. shut are the indices of the devices that need
// no look any more, and grows.
func (m *Manager) ShutPorts(engine string, shut map[int]bool) error {
	var list []netlink.Link
	_, err := m.view(func(o *op) (err error) {
		list, err = o.strayPorts(engine, shut)
		return err
	})
	if err != nil || len(list) == 0 {
		return err
	}
	return m.change(ErrNotSetUp, func(o *op) error {
		for _, l := range list {
			// It may have gone meanwhile.
			if dev, err := o.device(l.Attrs().Name); err != nil || dev == nil || dev.Attrs().Index != l.Attrs().Index {
				continue
			}
			if err := o.path().ShutDevice(l.Attrs().Index, l.Attrs().Name); err != nil {
				return err
			}
			shut[l.Attrs().Index] = true
		}
		return nil
	})
}

// strayPorts are ports of an engine's bridges that look like its cables and are nobody's;
// shut forgets those that are gone.
func (o *op) strayPorts(engine string, shut map[int]bool) (list []netlink.Link, err error) {
	names, err := o.engineDevices()
	if err != nil {
		return nil, err
	}
	f, err := o.newFinder(engine)
	if err != nil {
		return nil, err
	}
	there := make(map[int]bool)
	for _, l := range f.devices {
		a := l.Attrs()
		there[a.Index] = true
		if l.Type() == "veth" && names(a.Name) && f.bridges[a.MasterIndex] != "" && !f.ends[a.Index] && !shut[a.Index] {
			list = append(list, l)
		}
	}
	for index := range shut {
		if !there[index] {
			delete(shut, index)
		}
	}
	return list, nil
}

// WatchDevices tells of changes of the host's devices of some names, and of nothing else of
// devices.
func (m *Manager) WatchDevices(names func(device string) bool) (*watch.Watcher, error) {
	path := ""
	ok, err := m.view(func(o *op) error {
		path = o.host.Netns
		return nil
	})
	if err == nil && !ok {
		err = ErrNotSetUp
	}
	if err != nil {
		return nil, err
	}
	ns, err := openHostNetns(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return watch.Open(ns, func(device string) bool { return !names(device) })
}

type finder struct {
	host    *netns.NS
	devices []netlink.Link
	bridges map[int]string  // network IDs by ifindex
	known   map[string]bool // namespaces that somebody has, by ID
	ends    map[int]bool    // endpoints' devices
}

func (o *op) newFinder(engine string) (*finder, error) {
	host, err := o.hostNetns()
	if err != nil {
		return nil, err
	}
	seen, err := o.observe()
	if err != nil {
		return nil, err
	}
	f := &finder{host: host, bridges: make(map[int]string), known: map[string]bool{host.ID(): true}, ends: make(map[int]bool)}
	for _, l := range seen.byIndex {
		f.devices = append(f.devices, l)
	}
	err = store.Each(o.tx, bucketNetworks, func(id string, n Network) error {
		if l := seen.devices[n.Bridge]; l != nil && n.Engine == engine {
			f.bridges[l.Attrs().Index] = id
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
		f.known[c.NetnsID] = true
		for _, ep := range c.Endpoints {
			f.ends[ep.HostIndex] = true
		}
		return nil
	})
}

// places are where the namespaces are mounted that nobody has yet.
func (f *finder) places() (list []string, err error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("nsfs"))
	if err != nil {
		return nil, fmt.Errorf("mounts: %w", err)
	}
	seen := make(map[string]bool)
	for _, m := range mounts {
		inode, isNet := strings.CutPrefix(m.Root, "net:[")
		id := fmt.Sprintf("%d:%s", unix.Mkdev(uint32(m.Major), uint32(m.Minor)), strings.TrimSuffix(inode, "]"))
		if isNet && !seen[id] && !f.known[id] {
			seen[id] = true
			list = append(list, m.Mountpoint)
		}
	}
	return list, nil
}

// cables are the MACs of a namespace's ends of the cables to the engine's networks, by
// network. A namespace that goes meanwhile has none.
func (f *finder) cables(path string) map[string]string {
	ns, err := netns.Open(path)
	if err != nil {
		return nil
	}
	defer ns.Close()
	ends, err := link.EndsInto(f.host, ns, f.devices)
	if err != nil {
		return nil
	}
	macs := make(map[string]string)
	for _, e := range ends {
		network := f.bridges[e.Master]
		if network == "" {
			continue
		}
		if mac, err := link.MACIn(ns, e.Peer); err == nil {
			macs[network] = mac.String()
		}
	}
	return macs
}
