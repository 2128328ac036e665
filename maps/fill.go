// SPDX-License-Identifier: Apache-2.0

package maps

import "github.com/bpfnet/bpfnet/loader"

// Fill is how full a table is.
type Fill struct {
	Name       string // of the map
	Used, Size int    // entries
	Refused    uint64 // new flows that found it full; of control's tables 0: those are errors of commands
}

// Fill counts the tables that traffic or users fill. Established flows have a count,
// because walking 262,144 of their entries takes 90 ms; what it walks is at most the
// half-open, 65,536 of which take 20 ms.
func (t *Tables) Fill() ([]Fill, error) {
	f := t.Flows
	sweep, err := f.Sweep()
	if err != nil {
		return nil, err
	}
	counters, err := t.Counters.Read()
	if err != nil {
		return nil, err
	}
	known := func(n int) func() (int, error) { return func() (int, error) { return n, nil } }
	var fills []Fill
	for _, x := range []struct {
		name  string
		count func() (int, error)
	}{
		{loader.BPFMapFlows4, known(2 * sweep.Used4)},
		{loader.BPFMapFlows6, known(2 * sweep.Used6)},
		{loader.BPFMapHalf4, f.half4.count},
		{loader.BPFMapHalf6, f.half6.count},
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
		fills = append(fills, Fill{x.name, used, int(m.MaxEntries()), counters["full_"+x.name]})
	}
	return fills, nil
}
