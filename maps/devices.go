// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/bpfnet/bpfnet/loader"
)

// Devices says what the devices of the host are. A device without an entry is
// an uplink, or none of our business.
type Devices struct {
	table table[uint32, loader.BPFDevice]
}

// Device is the host end of an endpoint, or the bridge of a network: one of the
// two is not 0.
type Device struct {
	Endpoint uint32 // slot
	Network  uint32 // number
}

func (d *Devices) SetEndpoint(ifindex int, slot uint32) error {
	return d.set(ifindex, loader.BPFDevice{Kind: uint32(loader.BPFDeviceKindDEVICE_ENDPOINT), Id: slot})
}

func (d *Devices) SetBridge(ifindex int, network uint32) error {
	return d.set(ifindex, loader.BPFDevice{Kind: uint32(loader.BPFDeviceKindDEVICE_BRIDGE), Id: network})
}

// Delete forgets a device. Unknown is fine.
func (d *Devices) Delete(ifindex int) error { return d.table.del(uint32(ifindex)) }

// List is all devices, by ifindex.
func (d *Devices) List() (map[int]Device, error) {
	list := make(map[int]Device)
	err := d.table.each(func(ifindex uint32, w loader.BPFDevice) error {
		switch loader.BPFDeviceKind(w.Kind) {
		case loader.BPFDeviceKindDEVICE_ENDPOINT:
			list[int(ifindex)] = Device{Endpoint: w.Id}
		case loader.BPFDeviceKindDEVICE_BRIDGE:
			list[int(ifindex)] = Device{Network: w.Id}
		}
		return nil
	})
	return list, err
}

func (d *Devices) set(ifindex int, w loader.BPFDevice) error {
	if ifindex <= 0 {
		return fmt.Errorf("device %d: not positive", ifindex)
	}
	return d.table.put(uint32(ifindex), w)
}

// deleteIf deletes an entry that is still the one given.
func (d *Devices) deleteIf(ifindex uint32, w loader.BPFDevice) error {
	have, ok, err := d.table.get(ifindex)
	if err != nil || !ok || have != w {
		return err
	}
	return d.table.del(ifindex)
}
