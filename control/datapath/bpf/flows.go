// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/maps"
)

// Flows joins the two entries of every flow and gives them names.
func (p *Path) Flows() ([]datapath.Flow, error) {
	t, err := p.tables()
	if err != nil {
		return nil, err
	}
	endpoints, err := p.host.Endpoints()
	if err != nil {
		return nil, err
	}
	names := make(map[uint32]string)
	for _, e := range endpoints {
		names[e.Slot] = e.Container
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
		return nil, err
	}
	list := make([]datapath.Flow, 0, len(first))
	for _, x := range first {
		reply, both := replies[x.Twin()]
		info := joinFlow(x, reply, both)
		info.Container, info.Peer = names[x.Dst.ID], names[x.Src.ID]
		if x.Kind == maps.FlowMasquerade || x.Kind == maps.FlowRouted || info.Container == "" {
			info.Container, info.Peer = info.Peer, info.Container
		}
		list = append(list, datapath.Flow{FlowInfo: info, End: func() error {
			if err := t.Flows.Delete(x.Key); err != nil {
				return err
			}
			return t.Flows.Delete(x.Twin())
		}})
	}
	return list, nil
}

// joinFlow is one line of both directions.
func joinFlow(x, reply maps.Flow, both bool) datapath.FlowInfo {
	info := datapath.FlowInfo{
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
