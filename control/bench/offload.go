// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"errors"
	"fmt"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"

	"github.com/bpfnet/bpfnet/control/netns"
)

// The frames of the modes without offloads: what a veth carries one at a time.
const (
	smallMTU   = 1500
	smallFrame = smallMTU + 14
)

// segments says whether a feature of a device makes packets larger than its MTU: GSO and
// TSO of any kind, and GRO if that is to be counted.
func segments(feature string, gro bool) bool {
	return gro && strings.HasPrefix(feature, "rx-gro") ||
		strings.HasPrefix(feature, "tx-") && (strings.Contains(feature, "segmentation") || strings.HasPrefix(feature, "tx-gso"))
}

// smallPackets turns GSO and TSO off on every device of the site, and GRO unless it is to
// stay as it is, gives lo an MTU of smallMTU, and proves it by asking again. The caller
// calls back, which undoes it.
func (s *site) smallPackets(gro bool) (back func() error, err error) {
	var undo []func() error
	all := func() error {
		var errs []error
		for i := len(undo) - 1; i >= 0; i-- {
			errs = append(errs, undo[i]())
		}
		return errors.Join(errs...)
	}
	for _, ns := range []*netns.NS{s.Client, s.Host, s.web, s.peer} {
		u, err := shrink(ns, !gro)
		if u != nil {
			undo = append(undo, u)
		}
		if err != nil {
			return nil, errors.Join(err, all())
		}
	}
	return all, nil
}

// shrink does it in one namespace. Its undo is there with an error, too.
func shrink(ns *netns.NS, gro bool) (undo func() error, err error) {
	h, err := ns.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	features := make(map[string]map[string]bool)
	mtu := 0
	undo = func() error {
		var errs []error
		for name, f := range features {
			on := make(map[string]bool)
			for feature := range f {
				on[feature] = true
			}
			errs = append(errs, ns.Do(func() error { return change(name, on) }))
		}
		if mtu != 0 {
			errs = append(errs, setMTU(ns, "lo", mtu))
		}
		return errors.Join(errs...)
	}
	for _, l := range links {
		name := l.Attrs().Name
		err := ns.Do(func() error {
			on, err := enabled(name, gro)
			if err != nil {
				return err
			}
			features[name] = on
			off := make(map[string]bool)
			for feature := range on {
				off[feature] = false
			}
			if err := change(name, off); err != nil {
				return err
			}
			if on, err = enabled(name, gro); err == nil && len(on) > 0 {
				err = fmt.Errorf("%d features that make large packets stay on", len(on))
			}
			return err
		})
		if err != nil {
			return undo, fmt.Errorf("offloads of %s: %w", name, err)
		}
		if name == "lo" {
			mtu = l.Attrs().MTU
			if err := setMTU(ns, name, smallMTU); err != nil {
				return undo, err
			}
		}
	}
	return undo, nil
}

func setMTU(ns *netns.NS, name string, mtu int) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetMTU(l, mtu)
}

// enabled lists the features that make large packets and are on. It and change are
// called on a thread inside the namespace.
func enabled(name string, gro bool) (map[string]bool, error) {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return nil, err
	}
	defer e.Close()
	all, err := e.FeaturesWithState(name)
	if err != nil {
		return nil, err
	}
	on := make(map[string]bool)
	for feature, state := range all {
		// tx-gso-robust and -partial are fixed qualities, they split nothing by themselves.
		if segments(feature, gro) && state.Active && !(state.NeverChanged && strings.HasPrefix(feature, "tx-gso-")) {
			on[feature] = true
		}
	}
	return on, nil
}

func change(name string, to map[string]bool) error {
	if len(to) == 0 {
		return nil
	}
	e, err := ethtool.NewEthtool()
	if err != nil {
		return err
	}
	defer e.Close()
	return e.Change(name, to)
}

// count is what a device has counted, both ways.
type count struct{ rxPackets, rxBytes, txPackets, txBytes uint64 }

func counted(ns *netns.NS, name string) (count, error) {
	h, err := ns.Netlink()
	if err != nil {
		return count{}, err
	}
	defer h.Close()
	l, err := h.LinkByName(name)
	if err != nil {
		return count{}, fmt.Errorf("device %s: %w", name, err)
	}
	s := l.Attrs().Statistics
	if s == nil {
		return count{}, fmt.Errorf("device %s: no statistics: %w", name, netlink.ErrNotImplemented)
	}
	return count{s.RxPackets, s.RxBytes, s.TxPackets, s.TxBytes}, nil
}

func (c count) minus(b count) count {
	return count{c.rxPackets - b.rxPackets, c.rxBytes - b.rxBytes, c.txPackets - b.txPackets, c.txBytes - b.txBytes}
}

// frame is the mean size of a packet the way that carried more bytes.
func (c count) frame() float64 {
	bytes, packets := c.rxBytes, c.rxPackets
	if c.txBytes > c.rxBytes {
		bytes, packets = c.txBytes, c.txPackets
	}
	if packets == 0 {
		return 0
	}
	return float64(bytes) / float64(packets)
}
