// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/store"
	"github.com/bpfnet/bpfnet/maps"
)

// Flows lists the flows that the programs know, one line for both directions,
// the busiest ones last.
func (m *Manager) Flows(f FlowFilter) ([]FlowInfo, error) {
	var list []FlowInfo
	_, err := m.view(func(o *op) error {
		return o.eachFlow(f, func(info FlowInfo, _ maps.Flow) error {
			list = append(list, info)
			return nil
		})
	})
	slices.SortFunc(list, func(a, b FlowInfo) int {
		return cmp.Or(cmp.Compare(b.Idle, a.Idle), cmp.Compare(a.Packets, b.Packets),
			a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
	})
	return list, err
}

// FlushFlows ends the flows that match, and says how many: their next packet is
// judged anew.
func (m *Manager) FlushFlows(f FlowFilter) (int, error) {
	n := 0
	err := m.change(nil, func(o *op) error {
		t, err := o.tables()
		if err != nil {
			return err
		}
		var ends []maps.Flow
		err = o.eachFlow(f, func(_ FlowInfo, flow maps.Flow) error {
			ends = append(ends, flow)
			return nil
		})
		if err != nil {
			return err
		}
		for _, flow := range ends {
			if err := t.Flows.Delete(flow.Key); err != nil {
				return err
			}
			if err := t.Flows.Delete(flow.Twin()); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}

// eachFlow joins the two entries of every flow and gives them names.
func (o *op) eachFlow(f FlowFilter, fn func(FlowInfo, maps.Flow) error) error {
	t, err := o.tables()
	if err != nil {
		return err
	}
	names, err := o.slotNames()
	if err != nil {
		return err
	}
	want := ""
	if f.Container != "" {
		c, err := findContainer(o.tx, f.Container)
		if err != nil {
			return err
		}
		want = c.Name
	}
	replies := make(map[maps.FlowKey]maps.Flow)
	var first []maps.Flow
	err = t.Flows.Each(func(x maps.Flow) error {
		if x.Reply() {
			replies[x.Key] = x
		} else {
			first = append(first, x)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, x := range first {
		reply, both := replies[x.Twin()]
		info := joinFlow(x, reply, both)
		info.Container, info.Peer = names[x.Dst.ID], names[x.Src.ID]
		if x.Kind == maps.FlowMasquerade || x.Kind == maps.FlowRouted || info.Container == "" {
			info.Container, info.Peer = info.Peer, info.Container
		}
		if !f.match(&info, want) {
			continue
		}
		if err := fn(info, x); err != nil {
			return err
		}
	}
	return nil
}

// joinFlow is one line of both directions.
func joinFlow(x, reply maps.Flow, both bool) FlowInfo {
	info := FlowInfo{
		Proto:       x.Key.Proto.String(),
		Kind:        x.Kind.String(),
		State:       x.State.String(),
		Source:      x.Key.Src,
		Destination: x.Key.Dst,
		NewSource:   x.NewSrc,
		NewDest:     x.NewDst,
		Idle:        x.Idle,
		Expires:     x.Expires(),
		Packets:     x.Packets,
		Bytes:       x.Bytes,
	}
	if both {
		info.Idle = min(info.Idle, reply.Idle)
		info.Expires = max(info.Expires, reply.Expires())
		info.Packets += reply.Packets
		info.Bytes += reply.Bytes
	}
	return info
}

func (f *FlowFilter) match(info *FlowInfo, container string) bool {
	if container != "" && info.Container != container && info.Peer != container {
		return false
	}
	if f.Proto != "" && f.Proto != info.Proto {
		return false
	}
	if f.Port == 0 {
		return true
	}
	return slices.ContainsFunc([]netip.AddrPort{info.Source, info.Destination, info.NewSource, info.NewDest},
		func(a netip.AddrPort) bool { return a.Port() == f.Port })
}

// slotNames are the names of the containers behind the endpoints' slots.
func (o *op) slotNames() (map[uint32]string, error) {
	names := make(map[uint32]string)
	err := store.Each(o.tx, bucketContainers, func(_ string, c Container) error {
		for _, ep := range c.Endpoints {
			if ep.Slot != 0 {
				names[ep.Slot] = c.Name
			}
		}
		return nil
	})
	return names, err
}
