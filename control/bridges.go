// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/store"
)

// Bridges shows the bridges of all networks as the kernel has them.
func (m *Manager) Bridges() ([]BridgeInfo, error) {
	var list []BridgeInfo
	_, err := m.view(func(o *op) (err error) {
		list, err = o.bridges()
		return err
	})
	slices.SortFunc(list, func(a, b BridgeInfo) int { return strings.Compare(a.Name, b.Name) })
	return list, err
}

func (o *op) bridges() ([]BridgeInfo, error) {
	seen, err := o.observe()
	if err != nil {
		return nil, err
	}
	behind := make(map[string]BridgePort)
	err = store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
		for _, ep := range c.Endpoints {
			behind[ep.HostIf] = BridgePort{Device: ep.HostIf, Container: c.Name, Interface: ep.IfName}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	networks, err := o.allNetworks()
	if err != nil {
		return nil, err
	}
	var list []BridgeInfo
	for _, n := range networks {
		if n.Bridge == "" {
			continue
		}
		info := BridgeInfo{Name: n.Bridge, Network: n.Name, Ports: []BridgePort{}}
		if dev := seen.devices[n.Bridge]; dev != nil {
			info.ID = bridgeID(dev)
			for name, l := range seen.devices {
				if l.Attrs().MasterIndex != dev.Attrs().Index {
					continue
				}
				port, ours := behind[name]
				if !ours {
					port = BridgePort{Device: name}
				}
				info.Ports = append(info.Ports, port)
			}
		}
		slices.SortFunc(info.Ports, func(a, b BridgePort) int { return strings.Compare(a.Device, b.Device) })
		list = append(list, info)
	}
	return list, nil
}

// bridgeID is what brctl shows: priority (the default one, IEEE 802.1D) and MAC.
func bridgeID(l netlink.Link) string {
	return fmt.Sprintf("8000.%x", []byte(l.Attrs().HardwareAddr))
}
