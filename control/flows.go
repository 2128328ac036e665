// SPDX-License-Identifier: Apache-2.0

package control

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/bpfnet/bpfnet/control/datapath"
)

// Flows lists the flows that the packets' path knows, one line for both directions,
// the busiest ones last.
func (m *Manager) Flows(f FlowFilter) ([]FlowInfo, error) {
	var list []FlowInfo
	_, err := m.view(func(o *op) error {
		found, err := o.flows(f)
		for _, x := range found {
			list = append(list, x.FlowInfo)
		}
		return err
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
		found, err := o.flows(f)
		if err != nil {
			return err
		}
		for _, x := range found {
			if err := x.End(); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}

// flows are those that match.
func (o *op) flows(f FlowFilter) ([]datapath.Flow, error) {
	want := ""
	if f.Container != "" {
		c, err := findContainer(o.tx, f.Container)
		if err != nil {
			return nil, err
		}
		want = c.Name
	}
	all, err := o.path().Flows()
	return slices.DeleteFunc(all, func(x datapath.Flow) bool { return !f.match(&x.FlowInfo, want) }), err
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
