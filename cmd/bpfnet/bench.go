// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/bpfnet/bpfnet/control/bench"
)

func benchCommand(a *app) *cobra.Command {
	var (
		o             bench.Options
		scales        []string
		whole         bool
		svgTo, jsonTo string
	)
	c := &cobra.Command{
		Use:   "bench [flags]",
		Short: "Measure side by side with iptables, docker-proxy and the host's own limit",
		Long: `Builds labs of its own, with a client, a host and containers in network
namespaces, a store, pins and a cgroup each, measures all contenders in turn, and leaves
nothing behind. About a minute; --all is everything, and takes most of an hour.

Rates are medians of the rounds. A ratio has the interval that holds its median with
95 % certainty, from the ratios within the rounds; six rounds are the least for that.

Workloads:  ` + strings.Join(bench.Workloads(), " ") + `
Flows:      ` + strings.Join(bench.Flows, " ") + `
Contenders: ` + strings.Join(bench.Contenders, " "),
		Example: `  sudo bpfnet bench
  sudo bpfnet bench --workload tcp-in,tcp-in-1500 --flow published --rounds 10
  sudo bpfnet bench --workload tcp-crr --flow published --scale 1x1,10000x1000
  sudo bpfnet bench --all --rounds 12 --svg bench.svg --json bench.json`,
		Args: wantsNothing,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if whole {
				if o.Workloads == nil {
					o.Workloads = []string{"all"}
				}
				if scales == nil {
					o.Scales = bench.WholeScales
				}
			}
			for _, s := range scales {
				scale, err := parseScale(s)
				if err != nil {
					return usageError(cmd, "%v", err)
				}
				o.Scales = append(o.Scales, scale)
			}
			return a.bench(cmd, o, svgTo, jsonTo)
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringSliceVar(&o.Workloads, "workload", nil, "`names` of workloads, or all (default "+strings.Join(bench.Quick, ",")+")")
	f.StringSliceVar(&o.Flows, "flow", nil, "`names` of flows (default all)")
	f.StringSliceVar(&o.Contenders, "contender", nil, "`names` of contenders; the others are compared with the first (default all)")
	f.StringSliceVar(&scales, "scale", nil, "`PORTSxCONTAINERS`,...: how many of both are there (default 1x1)")
	f.IntVar(&o.Rounds, "rounds", 0, "measure each contender `N` times (default 6)")
	f.DurationVar(&o.Time, "time", 0, "`time` of a measurement; iperf3 and wrk take whole seconds (default 250ms)")
	f.BoolVar(&whole, "all", false, "all workloads, and curves over ports and containers")
	f.StringVar(&svgTo, "svg", "", "write a picture into this `file`")
	complete(c, "svg", anyFile)
	f.StringVar(&jsonTo, "json", "", "write the report with every measurement into this `file`; -o json prints it")
	complete(c, "json", anyFile)
	return c
}

// untilInterrupted ends with a signal that should end this process. Nothing does before it has
// taken its labs down, the second one included.
func untilInterrupted() (ctx context.Context, stop func()) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// parseScale reads "1000x1".
func parseScale(text string) (bench.Scale, error) {
	var s bench.Scale
	var rest string
	if n, _ := fmt.Sscanf(text, "%dx%d%s", &s.Ports, &s.Containers, &rest); n != 2 {
		return s, fmt.Errorf("--scale %q: not PORTSxCONTAINERS", text)
	}
	return s, nil
}

func (a *app) bench(cmd *cobra.Command, o bench.Options, svgTo, jsonTo string) error {
	o.Version = buildVersion().Version
	ctx, stop := untilInterrupted()
	defer stop()
	line := progressLine(a.err)
	o.Progress = line.show
	r, err := bench.Run(ctx, o)
	line.clear()
	switch {
	case err == ctx.Err() && err != nil: // it alone
		err = &exitStatus{130, errors.New("bench: interrupted; nothing is left behind")}
	case errors.Is(err, context.Canceled):
		err = &exitStatus{130, fmt.Errorf("bench: %w", err)}
	case err != nil:
		err = fmt.Errorf("bench: %w", err)
	}
	if r == nil {
		return err
	}
	return errors.Join(a.benchReport(r, svgTo, jsonTo), err)
}

// benchReport writes the report wherever it was asked for.
func (a *app) benchReport(r *bench.Report, svgTo, jsonTo string) error {
	var errs []error
	if svgTo != "" {
		picture, err := r.SVG()
		if err == nil {
			err = os.WriteFile(svgTo, picture, 0o644)
		}
		errs = append(errs, err)
	}
	if jsonTo != "" {
		data, err := json.MarshalIndent(r, "", "    ")
		if err == nil {
			err = os.WriteFile(jsonTo, append(data, '\n'), 0o644)
		}
		errs = append(errs, err)
	}
	if a.json() {
		return errors.Join(append(errs, a.printJSON(r))...)
	}
	a.printBench(r)
	return errors.Join(errs...)
}

// progress is a line that is written again and again on a terminal, and nowhere else.
type progress struct{ out *os.File }

func progressLine(out *os.File) *progress {
	if !term.IsTerminal(int(out.Fd())) {
		out = nil
	}
	return &progress{out: out}
}

func (p *progress) show(text string) {
	if p.out != nil {
		width, _, err := term.GetSize(int(p.out.Fd()))
		if err != nil || width < 10 {
			width = 80
		}
		fmt.Fprintf(p.out, "\r\x1b[K%s", ellipsis(text, width-1))
	}
}

func (p *progress) clear() {
	if p.out != nil {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}
