// SPDX-License-Identifier: Apache-2.0

// Package bpf is the datapath of eBPF programs on the TC hooks: it loads and attaches
// them (package loader) and fills their maps (package maps). What it is told is in force at once.
package bpf

import (
	"os"
	"path/filepath"

	"github.com/bpfnet/bpfnet/control/datapath"
	"github.com/bpfnet/bpfnet/control/link"
	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
)

// DefaultPins is where programs and maps are pinned when nobody says.
const DefaultPins = loader.DefaultBPFFS

// Path is the datapath for one command.
type Path struct {
	host  datapath.Host
	table *maps.Tables
	progs *loader.ProgramSet
	rules *link.Policies // of the host, read once
	shut  []func() error
}

var _ datapath.Datapath = (*Path)(nil)

// New touches nothing yet.
func New(h datapath.Host) *Path { return &Path{host: h} }

// Close ends the use of maps and programs.
func (p *Path) Close() error {
	for i := len(p.shut) - 1; i >= 0; i-- {
		_ = p.shut[i]()
	}
	p.shut = nil
	return nil
}

// Missing names a pin that should be there and is not; empty: all are.
func Missing(pins string) string {
	for _, pin := range []string{"maps/" + loader.BPFMapSettings, "programs/current"} {
		if _, err := os.Stat(filepath.Join(pins, pin)); err != nil {
			return "pin " + pin
		}
	}
	return ""
}

// Probe says what the kernel can do, by name; the error names what it lacks.
func Probe() (map[string]bool, error) {
	f, err := loader.Probe()
	return f.Map(), err
}

// tables are the kernel's maps.
func (p *Path) tables() (*maps.Tables, error) {
	if p.table == nil {
		if err := loader.Fits(loader.Options{BPFFS: p.host.Pins()}); err != nil {
			return nil, err
		}
		src, err := loader.OpenMaps(loader.Options{BPFFS: p.host.Pins()})
		if err != nil {
			return nil, err
		}
		p.table = maps.New(src)
		p.shut = append(p.shut, src.Close)
	}
	return p.table, nil
}

// Tables are the kernel's maps.
func (p *Path) Tables() (*datapath.Tables, error) {
	t, err := p.tables()
	if err != nil {
		return nil, err
	}
	return &datapath.Tables{Rules: t.Rules, Ports: t.Ports, Links: t.Links}, nil
}

// Flush has nothing to do: every store into a map is in force.
func (p *Path) Flush() error { return nil }

// patrol looks at attachments.
type patrol struct{ inner *loader.Patrol }

// NewPatrol looks at what is recorded below pins.
func NewPatrol(pins string) datapath.Patrol { return &patrol{loader.NewPatrol(pins)} }

func (p *patrol) Look() (datapath.Sight, error) { return p.look(false) }

func (p *patrol) look(filters bool) (datapath.Sight, error) {
	s, err := p.inner.Look(filters)
	return datapath.Sight{Changed: s.Changed, Lost: s.Lost}, err
}
