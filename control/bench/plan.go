// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"slices"
)

// planned is a case to be filled, and who takes part.
type planned struct {
	*Case
	w       workload
	command *command // of the control plane: this case and the next are its steps
	undo    *Case    // the case of its second step
	who     []*contender
}

// makePlan lists the cases, and leaves out those that nobody can run.
func (b *bench) makePlan() {
	flows := b.o.Flows
	if flows == nil {
		flows = Flows
	}
	for _, w := range workloads {
		if !slices.Contains(b.o.Workloads, w.name) {
			continue
		}
		if w.tool == toolCommand {
			b.planCommands(w)
			continue
		}
		if missing := w.missing(); missing != nil {
			b.skip(Skip{Workload: w.name, Reason: missing.Error()})
			continue
		}
		for _, flow := range Flows {
			if slices.Contains(flows, flow) {
				b.planFlow(w, flow)
			}
		}
	}
}

// missing is which program the workload lacks here.
func (w workload) missing() error {
	names := map[string][]string{toolIperf: {"iperf3"}, toolWrk: {"wrk", "nginx"}}[w.tool]
	for _, name := range names {
		if _, err := toolPath(name); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) planFlow(w workload, flow string) {
	curve := w.curve && (flow == FlowPublished || b.o.Flows != nil)
	client, server := w.cpus(b.cpus)
	p := &planned{w: w, Case: &Case{Workload: w.name, Flow: flow, Title: w.title, Unit: w.unit, CPUs: fmt.Sprint(client)}}
	if server != client {
		p.CPUs = fmt.Sprintf("%d, %d", client, server)
	}
	for _, c := range b.inOrder() {
		if _, ok := c.paths[flow]; ok && (c.scale == One || curve) {
			p.add(c)
		}
	}
	if len(p.who) > 0 {
		b.plan = append(b.plan, p)
	}
}

func (b *bench) planCommands(w workload) {
	for _, c := range commands(w) {
		p := &planned{w: w, command: &c, Case: &Case{Workload: w.name, Title: c.titles[0], Unit: w.unit}}
		p.undo = &Case{Workload: w.name, Title: c.titles[1], Unit: w.unit}
		for _, who := range b.inOrder() {
			if who.m != nil {
				p.add(who)
				p.undo.Entries = append(p.undo.Entries, &Entry{Contender: who.name, Scale: who.scale})
			}
		}
		if len(p.who) > 0 {
			b.plan = append(b.plan, p)
		}
	}
}

func (p *planned) add(c *contender) {
	p.who = append(p.who, c)
	p.Entries = append(p.Entries, &Entry{Contender: c.name, Scale: c.scale})
}

// inOrder is the contenders by scale, then in the report's order.
func (b *bench) inOrder() []*contender {
	list := slices.Clone(b.contenders)
	slices.SortStableFunc(list, func(x, y *contender) int {
		if x.scale != y.scale {
			return slices.Index(b.o.Scales, x.scale) - slices.Index(b.o.Scales, y.scale)
		}
		return slices.Index(Contenders, x.name) - slices.Index(Contenders, y.name)
	})
	return list
}

// drop ends the part of one who went wrong: what it has is not comparable.
func (p *planned) drop(i int) {
	p.who, p.Entries = slices.Delete(p.who, i, i+1), slices.Delete(p.Entries, i, i+1)
	if p.undo != nil {
		p.undo.Entries = slices.Delete(p.undo.Entries, i, i+1)
	}
}

func (p *planned) entries() []*Entry {
	if p.undo == nil {
		return p.Entries
	}
	return slices.Concat(p.Entries, p.undo.Entries)
}
