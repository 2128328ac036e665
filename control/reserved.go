// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/ports"
	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// Our part of ip_local_reserved_ports: published tcp and udp ports, so that the
// host's own connections are not given them.
const keyReserved = "reserved"

// reserve keeps the ports of new doors from being chosen for the host's own connections.
func (o *op) reserve(doors []door) error {
	return o.changeReserved(func(want *ports.Set) {
		for _, d := range doors {
			if d.Proto != maps.SCTP {
				want.AddRange(ports.Range{First: d.Host, Last: d.Host + uint16(d.Count-1)})
			}
		}
	})
}

// release gives the ports of closed doors back, unless another door has them.
func (o *op) release(doors []door) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	return o.changeReserved(func(want *ports.Set) {
		for _, d := range doors {
			some := anyDoor(t, d.Host, d.Count)
			for i := range d.Count {
				port := d.Host + uint16(i)
				if !some || !anyDoor(t, port, 1) {
					want.Remove(port)
				}
			}
		}
	})
}

// anyDoor says whether one of these ports leads anywhere, on any address, by tcp or udp.
func anyDoor(t *datapath.Tables, first uint16, count int) bool {
	for _, proto := range []maps.Proto{maps.TCP, maps.UDP} {
		for _, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			_, taken, err := t.Ports.Conflict(maps.Binding{Proto: proto, Addr: any, First: first, Count: count})
			if err != nil || taken {
				return true
			}
		}
	}
	return false
}

type reservedRecord struct {
	Want ports.Set `json:"want"` // published
	Mine ports.Set `json:"mine"` // of them, those that we added
}

func (o *op) changeReserved(change func(want *ports.Set)) error {
	v, err := o.hostView()
	if err != nil {
		return err
	}
	rec, _, err := store.Get[reservedRecord](o.tx, bucketHost, keyReserved)
	if err != nil {
		return err
	}
	old := rec
	change(&rec.Want)
	if rec.Want == old.Want && !o.reconciling {
		return nil
	}
	return o.writeReserved(v, rec.Want, old.Mine)
}

func (o *op) writeReserved(v *hostView, want, mine ports.Set) error {
	ns, err := o.hostNetns()
	if err != nil {
		return err
	}
	next, mineNext, complete := ports.Reserve(want, mine, v.reserved, v.ephemeral)
	if !complete {
		o.m.warn("published ports take more than half of ip_local_port_range (%s): not all of them are kept from the host's own connections", v.ephemeral)
	}
	if next != v.reserved {
		before := v.reserved
		o.undo.add("ip_local_reserved_ports", func() error {
			return ns.Do(func() error { return ports.WriteReserved(before) })
		})
		if err := ns.Do(func() error { return ports.WriteReserved(next) }); err != nil {
			return err
		}
		v.reserved = next
	}
	return store.Put(o.tx, bucketHost, keyReserved, reservedRecord{want, mineNext})
}

// releaseAll takes our ports out of ip_local_reserved_ports.
func (o *op) releaseAll() error {
	v, err := o.hostView()
	if err != nil {
		return err
	}
	rec, _, err := store.Get[reservedRecord](o.tx, bucketHost, keyReserved)
	if err != nil {
		return err
	}
	return o.writeReserved(v, ports.Set{}, rec.Mine)
}
