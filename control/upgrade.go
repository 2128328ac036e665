// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"strings"

	"github.com/bpfnet/bpfnet/loader"
)

// ReconcileOptions change what Reconcile may do.
type ReconcileOptions struct {
	// DropFlows lets an upgrade end all connections, when what the programs
	// remember cannot be carried over. Without it such an upgrade is refused.
	DropFlows bool
}

// loaderOptions are what the programs and maps of this host are to be.
func (o *op) loaderOptions() loader.Options {
	c := &o.host.Config
	return loader.Options{
		BPFFS:     o.host.BPFFS,
		Sizes:     loader.Sizes{FlowTable: c.FlowTableSize, HalfOpen: c.HalfOpenTableSize},
		DropFlows: o.dropFlows,
	}
}

// loaded notes what Load did, for the user and for the steps that follow: what was
// opened before it may not be pinned any more.
func (o *op) loaded(obj *loader.Objects) {
	o.table, o.progs = nil, nil
	if n := len(obj.Replaced); n > 0 {
		o.did("programs: %d attachments upgraded", n)
	}
	g := &obj.Migration
	switch {
	case len(g.Maps) == 0:
	case g.Dropped:
		o.did("tables %s: made anew, %d flows ended", strings.Join(g.Maps, ", "), g.Ended)
	default:
		o.did("tables %s: made anew, %d flows carried over", strings.Join(g.Maps, ", "), g.Carried)
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

// resizeTables makes the flow tables as large as the configuration says; their flows
// are carried over.
func (o *op) resizeTables() error {
	err := o.load()
	var layout *loader.LayoutError
	if errors.As(err, &layout) {
		return conflict("flow-table-size: %v: choose a larger one, or end flows first (bpfnet flows flush)", layout)
	}
	o.rebuild = true // reconcile makes them as large as they were
	if err != nil {
		return err
	}
	return o.armSweep()
}
