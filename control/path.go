// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/datapath/bpf"
	"github.com/bpfnet/bpfnet/control/datapath/iptables"
	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/control/store"
)

// Names of the datapaths.
const (
	DatapathBPF      = "bpf"
	DatapathIPTables = "iptables"
)

// kind is one implementation of the packets' path.
type kind struct {
	open    func(datapath.Host) datapath.Datapath
	patrol  func(datapath.Host) datapath.Patrol
	missing func(h *hostRecord) string // what should be in the kernel and is not, at a glance
	probe   func() error               // does this kernel have what it takes, and may we? Before Install
}

var kinds = map[string]kind{
	DatapathBPF: {
		open:    func(h datapath.Host) datapath.Datapath { return bpf.New(h) },
		patrol:  func(h datapath.Host) datapath.Patrol { return bpf.NewPatrol(h.Pins()) },
		missing: func(h *hostRecord) string { return bpf.Missing(h.BPFFS) },
		probe:   func() error { _, err := bpf.Probe(); return err },
	},
	DatapathIPTables: {
		open:    func(h datapath.Host) datapath.Datapath { return iptables.New(h) },
		patrol:  iptables.NewPatrol,
		missing: func(*hostRecord) string { return "" },
		probe:   func() error { return nil },
	},
}

// path is the packets' path of this host.
func (o *op) path() datapath.Datapath {
	if o.dp == nil {
		o.dp = kinds[o.host.Datapath].open(&pathHost{o})
		o.shut = append(o.shut, o.dp.Close)
	}
	return o.dp
}

// tables are what ports and links are told.
func (o *op) tables() (*datapath.Tables, error) { return o.path().Tables() }

// flush puts in force what the packets' path was told in this command.
func (o *op) flush() error {
	if o.dp == nil {
		return nil
	}
	return o.dp.Flush()
}

// pathHost is a command as its packets' path sees it.
type pathHost struct{ o *op }

func (h *pathHost) Netns() (*netns.NS, error)       { return h.o.hostNetns() }
func (h *pathHost) Cookie() uint64                  { return h.o.host.Cookie }
func (h *pathHost) Pins() string                    { return h.o.host.BPFFS }
func (h *pathHost) Owner() string                   { return h.o.m.storePath() }
func (h *pathHost) Cgroup() string                  { return h.o.host.Cgroup }
func (h *pathHost) Uplinks() ([]link.Uplink, error) { return h.o.uplinks() }
func (h *pathHost) Lo() *link.Lo                    { return &h.o.host.Lo }
func (h *pathHost) New() bool                       { return h.o.newHost }
func (h *pathHost) Reconciling() bool               { return h.o.reconciling }
func (h *pathHost) DropFlows() bool                 { return h.o.dropFlows }
func (h *pathHost) Did(format string, a ...any)     { h.o.did(format, a...) }
func (h *pathHost) Warn(format string, a ...any)    { h.o.m.warn(format, a...) }
func (h *pathHost) Records() datapath.Records       { return pathRecords{h.o} }

func (h *pathHost) Undo(what string, back func() error) { h.o.undo.add(what, back) }

func (h *pathHost) Settings() (s datapath.Settings, err error) {
	first, last, err := h.o.ephemeralRange()
	if err != nil {
		return s, err
	}
	c := &h.o.host.Config
	s = datapath.Settings{FlowTable: c.FlowTableSize, HalfOpen: c.HalfOpenTableSize, Quota: c.Quota, PoolAsked: c.MasqueradePorts != "", LimitsAsked: c.limitsAsked(),
		Forward: c.IPForward == nil || *c.IPForward, Flavour: c.IPTables}
	if s.Pool, err = masqueradeRanges(c.MasqueradePorts, first, last); err != nil {
		return s, err
	}
	s.Timeouts, err = c.timeouts()
	return s, err
}

func (h *pathHost) Networks() ([]datapath.Network, error) {
	if h.o.tx == nil {
		return nil, nil // see pathRecords
	}
	all, err := h.o.allNetworks()
	list := make([]datapath.Network, 0, len(all))
	for _, n := range all {
		x := datapath.Network{Number: n.Number, Name: n.Name, Bridge: n.Bridge, Foreign: n.ForeignBridge}
		for _, s := range n.Subnets {
			x.Subnets = append(x.Subnets, s.Prefix)
		}
		list = append(list, x)
	}
	return list, err
}

func (h *pathHost) Endpoints() (list []datapath.Endpoint, err error) {
	if h.o.tx == nil {
		return nil, nil
	}
	parents, err := h.o.parents()
	if err != nil {
		return nil, err
	}
	err = store.Each(h.o.tx, bucketContainers, func(_ string, c Container) error {
		for _, ep := range c.Endpoints {
			if ep.Slot != 0 && parents[ep.Network] == "" {
				list = append(list, datapath.Endpoint{Slot: ep.Slot, Device: ep.HostIf, Ifindex: ep.HostIndex, Container: c.Name})
			}
		}
		return nil
	})
	return list, err
}

// pathRecords are a bucket of the store. While a command is taken back there is none any
// more: what the packets' path is told then it needs not remember.
type pathRecords struct{ o *op }

func (r pathRecords) Get(key string, v any) (bool, error) {
	if r.o.tx == nil {
		return false, nil
	}
	raw, ok, err := store.Get[json.RawMessage](r.o.tx, bucketPath, key)
	if err != nil || !ok {
		return false, err
	}
	return true, json.Unmarshal(raw, v)
}

func (r pathRecords) Put(key string, v any) error { return store.Put(r.o.tx, bucketPath, key, v) }

func (r pathRecords) Delete(key string) error { return store.Delete(r.o.tx, bucketPath, key) }

func (r pathRecords) Each(prefix string, fn func(key string, decode func(v any) error) error) error {
	if r.o.tx == nil {
		return nil
	}
	return store.EachPrefix(r.o.tx, bucketPath, prefix, func(key string, raw json.RawMessage) error {
		return fn(key, func(v any) error { return json.Unmarshal(raw, v) })
	})
}
