// SPDX-License-Identifier: Apache-2.0

package maps

import "github.com/bpfnet/bpfnet/loader"

// Fill is how full a table is.
type Fill struct {
	Name       string // of the map
	Used, Size int    // entries
}

// Fill counts the tables that traffic or users fill. It walks the flow tables.
func (t *Tables) Fill() ([]Fill, error) {
	f := t.Flows
	var fills []Fill
	for _, x := range []struct {
		name  string
		count func() (int, error)
	}{
		{loader.BPFMapFlows4, f.flows4.count},
		{loader.BPFMapFlows6, f.flows6.count},
		{loader.BPFMapHalf4, f.half4.count},
		{loader.BPFMapHalf6, f.half6.count},
		{loader.BPFMapSlots, func() (int, error) { s, err := f.Sweep(); return s.Used, err }},
		{loader.BPFMapEndpointAddrs, t.Endpoints.addrs.count},
		{loader.BPFMapPortsAddr, t.Ports.addrs.count},
		{loader.BPFMapRoutes, t.Routes.table.count},
		{loader.BPFMapHostAddrs, t.HostAddresses.table.count},
		{loader.BPFMapLinks, t.Links.table.count},
		{loader.BPFMapSources, t.Rules.sources.count},
	} {
		m, err := f.src.Map(x.name)
		if err != nil {
			return nil, err
		}
		used, err := x.count()
		if err != nil {
			return nil, err
		}
		fills = append(fills, Fill{x.name, used, int(m.MaxEntries())})
	}
	return fills, nil
}
