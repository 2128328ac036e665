// SPDX-License-Identifier: Apache-2.0

// Package bench measures bpfnet side by side with what it replaces and with what bounds
// it: the iptables datapath, docker-proxy, the host's own stack, plain routing and
// bridging, loopback. All of them stand in labs of their own at the same time (site.go
// has the drawing) and are measured in turn: a round measures every contender once, each
// round begins with another one. What is compared is measured within a round, so that
// a machine that becomes slower or busier does so for all.
//
// A request/response has client and server on one CPU, and its rate is then the CPU's
// cost of a transaction; across CPUs, wake-ups would hide it. Streams and floods
// have a CPU at each end. Every measurement proves its path: the server is in the
// namespace that it should be in and saw the address that it should see, the device that
// leads there counted the bytes, and bpfnet's flows the packets.
//
// bench.go builds and runs, plan.go plans; contender.go says who goes which way; workload.go what is
// done; load.go, worker.go and talk.go do it; measure.go and cpu.go measure; stats.go and report.go sum up.
package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/bpfnet/bpfnet/control"
)

// Options says what to measure. The zero value is a run of about a minute.
type Options struct {
	Workloads  []string      // nil: Quick; "all"
	Flows      []string      // nil: Flows
	Contenders []string      // nil: Contenders
	Scales     []Scale       // nil: One. Others are for the workloads that scale, on published ports unless Flows says otherwise
	Rounds     int           // 0: six, the least that gives an interval of 95 %
	Time       time.Duration // of a measurement; 0: 250 ms. iperf3 and wrk take whole seconds
	Version    string        // of bpfnet, for the report

	// brief streams end after some megabytes, not seconds: for tests.
	brief bool

	// Progress gets a line, without its end, for each step; nil: nobody does.
	Progress func(line string)
}

// Quick are the workloads of a run that does not say which.
var Quick = []string{"tcp-rr", "tcp-crr"}

// Scales of a whole run: curves over ports and containers, and both together.
var WholeScales = []Scale{{1, 1}, {1000, 1}, {10000, 1}, {60000, 1}, {100, 100}, {1000, 1000}, {10000, 1000}}

const (
	quickRounds = 6
	quickTime   = 250 * time.Millisecond
	shortest    = 10 * time.Millisecond

	// Commands are measured no more often: 10,000 rules of iptables take ten seconds.
	commandRounds = quickRounds
)

func (o *Options) check() error {
	if o.Workloads == nil {
		o.Workloads = Quick
	}
	if slices.Equal(o.Workloads, []string{"all"}) {
		o.Workloads = Workloads()
	}
	if o.Contenders == nil {
		o.Contenders = Contenders
	}
	if o.Scales == nil {
		o.Scales = []Scale{One}
	}
	if o.Rounds == 0 {
		o.Rounds = quickRounds
	}
	if o.Time == 0 {
		o.Time = quickTime
	}
	for _, list := range []struct {
		what         string
		given, known []string
	}{{"workload", o.Workloads, Workloads()}, {"flow", o.Flows, Flows}, {"contender", o.Contenders, Contenders}} {
		for _, name := range list.given {
			if !slices.Contains(list.known, name) {
				return fmt.Errorf("%s %q: one of %s", list.what, name, strings.Join(list.known, ", "))
			}
		}
	}
	for _, s := range o.Scales {
		if err := s.check(); err != nil {
			return err
		}
	}
	if o.Rounds < 1 {
		return fmt.Errorf("rounds %d: one at least", o.Rounds)
	}
	if o.Time < shortest {
		return fmt.Errorf("time %s: %s at least", o.Time, shortest)
	}
	return nil
}

// bench is one run.
type bench struct {
	o          Options
	report     *Report
	cpus       []int // that this process may use
	meter      *meter
	sites      []*site
	contenders []*contender
	plan       []*planned
}

// Run measures. When ctx ends, it takes down what it built and returns what complete rounds
// there are beside ctx's error. A contender or workload that cannot run here is in
// the report's Skipped and no error; what was begun and went wrong is in Failed, and is one.
func Run(ctx context.Context, o Options) (r *Report, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if os.Geteuid() != 0 {
		return nil, control.ErrNotRoot
	}
	b := &bench{o: o, meter: newMeter(), report: &Report{
		Version: o.Version, Begun: time.Now(), Time: o.Time.Seconds(), Machine: machine(), LoadBefore: loadAverage(),
		Cases: []*Case{}, Memory: []Memory{}, Skipped: []Skip{}, Failed: []Skip{},
	}}
	if b.cpus, err = allowed(); err != nil {
		return nil, err
	}
	defer func() {
		b.progress("taking everything down")
		if closeErr := b.close(); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("clean up: %w", closeErr))
		}
		b.report.LoadAfter = loadAverage()
		b.report.Seconds = time.Since(b.report.Begun).Seconds()
	}()
	if err := b.build(ctx); err != nil {
		return nil, err
	}
	b.makePlan()
	err = b.rounds(ctx)
	if b.report.Rounds == 0 {
		if err == nil {
			err = b.nothing()
		}
		return nil, err
	}
	b.finish()
	if err == nil && len(b.report.Failed) > 0 {
		f := b.report.Failed[0]
		err = fmt.Errorf("%d went wrong; %s, %s %s: %s", len(b.report.Failed), f.Contender, f.Workload, f.Flow, f.Reason)
	}
	return b.report, err
}

func (b *bench) nothing() error {
	for _, s := range slices.Concat(b.report.Failed, b.report.Skipped) {
		return fmt.Errorf("nothing was measured: %s: %s", strings.TrimSpace(s.Contender+" "+s.Workload), s.Reason)
	}
	return errors.New("nothing was measured: none of these contenders takes one of these flows")
}

func (b *bench) progress(format string, a ...any) {
	if b.o.Progress != nil {
		b.o.Progress(fmt.Sprintf(format, a...))
	}
}

func (b *bench) close() error {
	var errs []error
	for _, s := range b.sites {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}

func (b *bench) wants(contender string) bool { return slices.Contains(b.o.Contenders, contender) }

// build makes the sites of the contenders that are wanted.
func (b *bench) build(ctx context.Context) error {
	for _, scale := range b.o.Scales {
		for _, datapath := range []string{BPF, IPTables} {
			if !b.wants(datapath) {
				continue
			}
			b.progress("building a lab: %s, %d ports, %d containers", datapath, scale.Ports, scale.Containers)
			before := kernelMemory()
			s, err := managed(datapath, scale, ctx.Err)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.skip(Skip{Contender: datapath, Scale: scale.String(), Reason: err.Error()})
				continue
			}
			b.sites = append(b.sites, s)
			b.contenders = append(b.contenders, s.contender())
			m, err := s.memory(datapath, before)
			if err != nil {
				return err
			}
			b.report.Memory = append(b.report.Memory, m)
		}
	}
	if !slices.ContainsFunc(b.o.Contenders, func(c string) bool { return c != BPF && c != IPTables }) {
		return nil
	}
	s, err := plain()
	if err != nil {
		return err
	}
	b.sites = append(b.sites, s)
	for _, c := range s.contenders() {
		if !b.wants(c.name) {
			continue
		}
		if c.name == DockerProxy {
			if _, err := proxyPath(); err != nil {
				b.skip(Skip{Contender: c.name, Reason: err.Error()})
				continue
			}
			m, err := s.proxyMemory(ctx)
			if err != nil {
				return err
			}
			b.report.Memory = append(b.report.Memory, m)
		}
		b.contenders = append(b.contenders, c)
	}
	return nil
}

func (b *bench) skip(s Skip) { b.report.Skipped = append(b.report.Skipped, s) }

// rounds measures everything that is planned once a round.
func (b *bench) rounds(ctx context.Context) error {
	for round := 1; round <= b.o.Rounds; round++ {
		for _, p := range b.plan {
			if p.command != nil && round > commandRounds {
				continue
			}
			if err := b.turn(ctx, p, round); err != nil {
				b.truncate(round)
				return err
			}
		}
		if slices.ContainsFunc(b.plan, func(p *planned) bool { return len(p.who) > 0 }) {
			b.report.Rounds = round
		}
	}
	return nil
}

// turn measures all who take part in a case, beginning with another one each round.
// Its error is ctx's.
func (b *bench) turn(ctx context.Context, p *planned, round int) error {
	n := len(p.who)
	out := make(map[*contender]bool)
	for i := range n {
		if err := ctx.Err(); err != nil {
			return err
		}
		at := (i + round - 1) % n
		c := p.who[at]
		b.progress("round %d of %d: %s %s: %s %s", round, b.o.Rounds, p.Title, p.Flow, c.name, c.scale)
		if err := b.one(ctx, p, at, round, i+1); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			out[c] = true
			b.report.Failed = append(b.report.Failed, Skip{Contender: c.name, Scale: c.scale.String(), Workload: p.w.name, Flow: p.Flow, Reason: err.Error()})
		}
	}
	for i := n - 1; i >= 0; i-- {
		if out[p.who[i]] {
			p.drop(i)
		}
	}
	return nil
}

func (b *bench) one(ctx context.Context, p *planned, at, round, turn int) error {
	c, e := p.who[at], p.Entries[at]
	if p.command == nil {
		m, err := b.measure(ctx, c, p.w, p.Flow, round)
		if err != nil {
			return err
		}
		m.Turn = turn
		e.Measurements = append(e.Measurements, m)
		return nil
	}
	both, err := order(*p.command, c.site, round)
	if err != nil {
		return err
	}
	for i, e := range []*Entry{e, p.undo.Entries[at]} {
		both[i].Turn = turn
		e.Measurements = append(e.Measurements, both[i])
	}
	return nil
}

// truncate takes back what there is of a round that was broken off.
func (b *bench) truncate(round int) {
	for _, p := range b.plan {
		for _, e := range p.entries() {
			e.Measurements = slices.DeleteFunc(e.Measurements, func(m Measurement) bool { return m.Round == round })
		}
	}
}

// finish makes the report of the plan.
func (b *bench) finish() {
	for _, p := range b.plan {
		for _, c := range []*Case{p.Case, p.undo} {
			if c != nil && len(c.Entries) > 0 {
				c.sum()
				b.report.Cases = append(b.report.Cases, c)
			}
		}
	}
}
