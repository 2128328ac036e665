// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/loader"
)

// loaderOptions are what the programs and maps of this host are to be.
func (p *Path) loaderOptions() (loader.Options, error) {
	s, err := p.host.Settings()
	o := p.pins()
	o.Sizes = loader.Sizes{FlowTable: s.FlowTable, HalfOpen: s.HalfOpen}
	o.DropFlows = p.host.DropFlows()
	return o, err
}

// loaded notes what Load did, for the user and for the steps that follow: what was
// opened before it may not be pinned any more.
func (p *Path) loaded(obj *loader.Objects) {
	p.table, p.progs = nil, nil
	if n := len(obj.Replaced); n > 0 {
		p.host.Did("programs: %d attachments upgraded", n)
	}
	g := &obj.Migration
	switch {
	case len(g.Maps) == 0:
	case g.Dropped:
		p.host.Did("tables %s: made anew, %d flows ended", strings.Join(g.Maps, ", "), g.Ended)
	default:
		p.host.Did("tables %s: made anew, %d flows carried over", strings.Join(g.Maps, ", "), g.Carried)
	}
}

// priced says how to pay the price that a LayoutError names.
func priced(err error) error {
	var layout *loader.LayoutError
	if errors.As(err, &layout) {
		return fmt.Errorf("%w: bpfnet reconcile --drop-flows goes on all the same", err)
	}
	return err
}

// Resize makes the flow tables as large as the configuration says; their flows
// are carried over.
func (p *Path) Resize() error {
	err := p.load()
	var layout *loader.LayoutError
	if errors.As(err, &layout) {
		return &datapath.RefusedError{Text: fmt.Sprintf("flow-table-size: %v: choose a larger one, or end flows first (bpfnet flows flush)", layout)}
	}
	if err != nil {
		return err
	}
	return p.armSweep()
}
