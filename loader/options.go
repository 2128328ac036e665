// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"

	"github.com/cilium/ebpf"
)

// DefaultBPFFS is where pins go when Options.BPFFS is empty.
const DefaultBPFFS = "/sys/fs/bpf/bpfnet"

var (
	// ErrNotLoaded says that a pin is missing: nobody called Load since the
	// machine booted, or somebody removed the pins. Load mends it.
	ErrNotLoaded = errors.New("not loaded")

	// ErrLayout says that a pinned map does not have the layout, or the size,
	// that this binary was asked for, and cannot be carried over.
	ErrLayout = errors.New("pinned with another layout")
)

// Options say where the pins are, and what Load makes.
type Options struct {
	// BPFFS is the directory of the pins; DefaultBPFFS when empty. Its last
	// component must not contain a dot when it lies on an existing bpffs.
	BPFFS string

	// Owner is a file whose existence says that the pins are in use, an absolute path; empty:
	// nobody asks, and nothing is written down.
	Owner string

	Sizes Sizes

	// DropFlows lets Load end all flows, and start maps empty, when a map cannot be
	// carried over to this binary's layout.
	DropFlows bool

	// Log asks the verifier for a log of programs that pass; see Objects.VerifierLog.
	Log ebpf.LogLevel
}

// Sizes are entries of the flow tables, per family. Zero keeps what is pinned,
// or else what the object says; by any other value Load makes the tables anew.
type Sizes struct {
	FlowTable int // established flows; each takes two entries, and a slot of the sweep's list
	HalfOpen  int // half-open flows; each takes two entries
}

func (o Options) bpffs() string {
	if o.BPFFS == "" {
		return DefaultBPFFS
	}
	return o.BPFFS
}

// apply writes the sizes into a spec; names tells which maps the sizes fix.
func (s Sizes) apply(spec *ebpf.CollectionSpec) (fixed map[string]bool) {
	fixed = make(map[string]bool)
	set := func(entries int, names ...string) {
		if entries <= 0 {
			return
		}
		for _, name := range names {
			if m := spec.Maps[name]; m != nil {
				m.MaxEntries = uint32(entries)
				fixed[name] = true
			}
		}
	}
	set(2*s.FlowTable, BPFMapFlows4, BPFMapFlows6)
	set(2*s.FlowTable, BPFMapSlots, BPFMapFreeSlots) // of both families
	set(2*s.HalfOpen, BPFMapHalf4, BPFMapHalf6)
	return fixed
}
