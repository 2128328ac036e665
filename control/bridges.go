// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vishvananda/netlink/nl"

	"github.com/bpfnet/bpfnet/control/link"
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
			if info.ID, info.STP, err = o.bridgeData(dev.Attrs().Index); err != nil {
				return nil, fmt.Errorf("bridge %s: %w", n.Bridge, err)
			}
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

// bridgeData is what brctl shows of a bridge: its identifier, of priority and MAC (IEEE 802.1D),
// and whether it speaks STP.
func (o *op) bridgeData(index int) (id string, stp bool, err error) {
	ns, err := o.hostNetns()
	if err != nil {
		return "", false, err
	}
	err = ns.Do(func() error {
		data, err := link.BridgeData(index)
		if err != nil {
			return err
		}
		if raw := data[nl.IFLA_BR_BRIDGE_ID]; len(raw) == 8 { // struct ifla_bridge_id
			id = fmt.Sprintf("%x.%x", raw[:2], raw[2:])
		}
		stp = !allZero(data[nl.IFLA_BR_STP_STATE])
		return nil
	})
	return id, stp, err
}

func allZero(value []byte) bool {
	return !slices.ContainsFunc(value, func(b byte) bool { return b != 0 })
}
