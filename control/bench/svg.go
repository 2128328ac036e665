// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/go-analyze/charts"
)

// Measures of the picture, in pixels.
const (
	pageWidth    = 1200
	headHeight   = 70
	slotHeight   = 22 // a bar and the gap below it
	panelHead    = 64 // title and legend
	panelFoot    = 34 // the axis
	curveHeight  = 300
	curveColumns = 3
)

// colours of contenders are the same in every panel.
var colours = map[string]string{
	BPF: "#1f77b4", IPTables: "#d62728", DockerProxy: "#ff7f0e", HostLimit: "#2ca02c",
	Routing: "#9467bd", Bridging: "#8c564b", Loopback: "#17becf",
}

func colour(contender string) charts.Color { return charts.ColorFromHex(colours[contender]) }

// SVG draws the report: bars for each flow, with the host's limit (of its kind: limits)
// as a line; curves over ports and containers where there are several scales; the control plane.
func (r *Report) SVG() ([]byte, error) {
	var panels []panel
	for _, flow := range Flows {
		if p, ok := r.bars(flow); ok {
			panels = append(panels, p)
		}
	}
	panels = append(panels, r.curves()...)
	if p, ok := r.commandBars(); ok {
		panels = append(panels, p)
	}
	height := headHeight
	for _, p := range panels {
		height += p.height
	}
	page := charts.NewPainter(charts.PainterOptions{OutputFormat: charts.ChartOutputSVG, Width: pageWidth, Height: height})
	page.FilledRect(0, 0, pageWidth, height, charts.ColorWhite, charts.ColorWhite, 0)
	r.head(page)
	y := headHeight
	for _, p := range panels {
		for i, draw := range p.charts {
			left, right := pageWidth*i/p.columns, pageWidth*(i+1)/p.columns
			child := page.Child(charts.PainterBoxOption(charts.NewBox(left, y, right, y+p.height)))
			if err := draw(child); err != nil {
				return nil, fmt.Errorf("chart %d of a row: %w", i, err)
			}
		}
		y += p.height
	}
	picture, err := page.Bytes()
	return bytes.ReplaceAll(picture, []byte(fontGiven), []byte(fontTaken)), err
}

// panel is a row of charts.
type panel struct {
	height  int
	columns int
	charts  []func(*charts.Painter) error
}

func text(size float64) charts.FontStyle {
	return charts.FontStyle{FontSize: size, FontColor: charts.ColorFromHex("#222222")}
}

func (r *Report) head(page *charts.Painter) {
	m := r.Machine
	page.Text(fmt.Sprintf("bpfnet bench: Linux %s, %d CPUs (%s)", m.Kernel, m.CPUs, m.CPU), 16, 28, 0, text(15))
	line := fmt.Sprintf("%d rounds of %g ms, contenders in turn; medians; (interval of the rounds' ratios). Load before %s, after %s.",
		r.Rounds, r.Time*1000, r.LoadBefore, r.LoadAfter)
	if median, most := r.Others(); most > 0.1 {
		line += fmt.Sprintf(" Others kept %.1f CPUs busy (median; %.1f at most).", median, most)
	}
	page.Text(line, 16, 52, 0, text(10))
}

// bars is the panel of a flow: rates as ratios to the flow's limit.
func (r *Report) bars(flow string) (panel, bool) {
	var cases []*Case
	var names []string
	for _, c := range r.Cases {
		if c.Flow != flow || len(c.at(One)) == 0 {
			continue
		}
		cases = append(cases, c)
		for _, e := range c.at(One) {
			if !slices.Contains(names, e.Contender) {
				names = append(names, e.Contender)
			}
		}
	}
	if len(cases) == 0 {
		return panel{}, false
	}
	slices.SortFunc(names, func(a, b string) int { return slices.Index(Contenders, a) - slices.Index(Contenders, b) })
	limit := limits[flow]
	if !slices.Contains(names, limit) {
		limit = names[0]
	}
	g := grid{names: names, rows: make([]string, len(cases)), values: make([][]float64, len(names)), labels: make([][]string, len(names)), limit: limit}
	slices.Reverse(cases) // a chart's first row is at its bottom
	for i, c := range cases {
		g.rows[i] = c.Workload
		bound := c.entry(limit, One)
		for k, name := range names {
			value, label := charts.GetNullValue(), ""
			if e := c.entry(name, One); e != nil && bound != nil {
				value, label = rateLabel(e, bound)
			}
			g.values[k], g.labels[k] = append(g.values[k], value), append(g.labels[k], label)
		}
	}
	title := fmt.Sprintf("%s: rate as a share of %s's", flowTitles[flow], limit)
	return g.panel(title), true
}

// rateLabel is a bar's length and what stands behind it.
func rateLabel(e, bound *Entry) (float64, string) {
	ratio := compare(e, bound, Measurement.rate)
	label := fmt.Sprintf("%.2f", ratio.Value)
	if e != bound {
		label += fmt.Sprintf(" (%.2f-%.2f)", ratio.Low, ratio.High)
	}
	return ratio.Value, label + fmt.Sprintf(" · %s/s · %s CPU", short(e.Rate), shortCPU(e.CPU))
}

// at is the entries of one scale.
func (c *Case) at(s Scale) []*Entry {
	var list []*Entry
	for _, e := range c.Entries {
		if e.Scale == s {
			list = append(list, e)
		}
	}
	return list
}

// grid is a chart of horizontal bars: rows of one bar a name.
type grid struct {
	names  []string // of series
	rows   []string
	values [][]float64 // by name, then by row
	labels [][]string
	limit  string // the name whose value is a line, too; ""
	format func(float64) string
}

func (g grid) panel(title string) panel {
	height := panelHead + panelFoot + len(g.rows)*(len(g.names)*slotHeight+10)
	return panel{height, 1, []func(*charts.Painter) error{func(p *charts.Painter) error {
		most := 0.0
		series := make(charts.BarSeriesList, len(g.names))
		palette := make([]charts.Color, len(g.names))
		for k, name := range g.names {
			palette[k] = colour(name)
			series[k] = charts.BarSeries{Name: name, Values: g.values[k], Label: charts.SeriesLabel{
				Show: charts.Ptr(true), FontStyle: text(9), Distance: 6,
				LabelFormatter: inTurn(g.labels[k]),
			}}
			if name == g.limit {
				series[k].MarkLine = charts.NewMarkLine(charts.SeriesMarkTypeAverage)
				series[k].MarkLine.ValueFormatter = func(float64) string { return "" }
			}
			for _, v := range g.values[k] {
				if v != charts.GetNullValue() {
					most = max(most, v)
				}
			}
		}
		opt := charts.NewBarChartOptionWithSeries(series)
		opt.Horizontal = true
		opt.Theme = charts.GetTheme(charts.ThemeLight).WithSeriesColors(palette)
		opt.Padding = charts.NewBox(16, 12, 24, 6)
		opt.Title = charts.TitleOption{Text: title, FontStyle: text(13)}
		opt.Legend = charts.LegendOption{SeriesNames: g.names, FontStyle: text(10), Offset: charts.OffsetStr{Left: charts.PositionRight}}
		opt.CategoryAxis = charts.CategoryAxisOption{Labels: g.rows, LabelFontStyle: text(10)}
		// Room for the labels behind the longest bar.
		end, labels := ticks(most * 1.45)
		opt.ValueAxis = []charts.ValueAxisOption{{Min: charts.Ptr(0.0), Max: end, LabelCount: labels, LabelFontStyle: text(9)}}
		opt.BarSize = 0.6
		if g.format != nil {
			opt.ValueFormatter = g.format
		}
		return p.BarChart(opt)
	}}}
}

// Text is laid out with the widths of Roboto. Where that is missing, what "sans-serif" names
// may be wider, and would run into the next thing: these are not.
const (
	fontGiven = "font-family:'Roboto Medium',sans-serif"
	fontTaken = "font-family:'Roboto','Helvetica Neue','Arial','Liberation Sans','DejaVu Sans Condensed',sans-serif"
)

// inTurn gives the labels of a series, which the chart asks for once each, without saying
// which, from the first row on and for those that have a bar.
func inTurn(labels []string) charts.SeriesLabelFormatter {
	given := slices.DeleteFunc(slices.Clone(labels), func(l string) bool { return l == "" })
	next := 0
	return func(int, string, float64) (string, *charts.LabelStyle) {
		label := given[next%len(given)]
		next++
		return label, onTop
	}
}

// onTop keeps the line of the limit out of the labels.
var onTop = &charts.LabelStyle{BackgroundColor: charts.ColorWhite}

// ticks is an axis from 0 to at least most, in round steps.
func ticks(most float64) (end *float64, labels int) {
	least := max(most, 1e-9) / 8
	ten := math.Pow(10, math.Floor(math.Log10(least)))
	step := 10 * ten
	for _, s := range []float64{5, 2.5, 2, 1} {
		if s*ten >= least {
			step = s * ten
		}
	}
	n := math.Ceil(most / step)
	return charts.Ptr(n * step), int(n) + 1
}

// commandBars is the panel of the control plane, at the least scale.
func (r *Report) commandBars() (panel, bool) {
	g := grid{format: func(ms float64) string { return humanize.CommafWithDigits(ms, 0) + " ms" }}
	for _, c := range r.Cases {
		if c.Flow == "" {
			for _, e := range c.at(One) {
				if !slices.Contains(g.names, e.Contender) {
					g.names = append(g.names, e.Contender)
				}
			}
		}
	}
	if len(g.names) == 0 {
		return panel{}, false
	}
	g.values, g.labels = make([][]float64, len(g.names)), make([][]string, len(g.names))
	for _, c := range slices.Backward(r.Cases) {
		if c.Flow != "" || len(c.at(One)) == 0 {
			continue
		}
		g.rows = append(g.rows, c.Title)
		for k, name := range g.names {
			value, label := charts.GetNullValue(), ""
			if e := c.entry(name, One); e != nil {
				value = 1000 / e.Rate
				label = fmt.Sprintf("%.1f ms (%.1f-%.1f)", value, 1000/e.Most, 1000/e.Least)
			}
			g.values[k], g.labels[k] = append(g.values[k], value), append(g.labels[k], label)
		}
	}
	return g.panel("control plane: milliseconds a command (least-most)"), true
}

// curves are the panels of what was measured at several scales: over ports on one
// container, and over containers with a port each.
func (r *Report) curves() []panel {
	var all []func(*charts.Painter) error
	for _, c := range r.Cases {
		for _, k := range []curve{
			c.curve("published ports, on one container", func(s Scale) (int, bool) { return s.Ports, s.Containers == 1 }),
			c.curve("containers, with a published port each", func(s Scale) (int, bool) { return s.Containers, s.Ports == s.Containers }),
		} {
			if len(k.x) > 1 {
				all = append(all, k.draw)
			}
		}
	}
	var list []panel
	for row := range slices.Chunk(all, curveColumns) {
		list = append(list, panel{curveHeight, curveColumns, row})
	}
	return list
}

// curve is one chart of lines.
type curve struct {
	title, axis string
	x           []string
	names       []string
	values      [][]float64
}

// curve collects the scales for which x is true, in ascending order.
func (c *Case) curve(axis string, x func(Scale) (int, bool)) curve {
	var scales []Scale
	k := curve{axis: axis}
	for _, e := range c.Entries {
		if _, ok := x(e.Scale); ok && !slices.Contains(scales, e.Scale) {
			scales = append(scales, e.Scale)
		}
	}
	slices.SortFunc(scales, func(a, b Scale) int { return a.Ports - b.Ports })
	for _, s := range scales {
		n, _ := x(s)
		k.x = append(k.x, humanize.Comma(int64(n)))
		for _, e := range c.at(s) {
			if !slices.Contains(k.names, e.Contender) && e.Contender != Routing {
				k.names = append(k.names, e.Contender)
			}
		}
	}
	// As a part of the limit's rate, which is a line; without it, as a rate.
	bound, unit := 1.0, c.Unit+"/s"
	limit := c.entry(limits[c.Flow], One)
	if limit != nil {
		bound, unit = limit.Rate, fmt.Sprintf("as a share of %s's", limit.Contender)
	}
	if c.Flow == "" {
		unit = "milliseconds"
	}
	for _, name := range k.names {
		var line []float64
		for _, s := range scales {
			e := c.entry(name, s)
			switch {
			case limit != nil && name == limit.Contender:
				line = append(line, 1)
			case e == nil:
				line = append(line, charts.GetNullValue())
			case c.Flow == "":
				line = append(line, 1000/e.Rate)
			default:
				line = append(line, e.Rate/bound)
			}
		}
		k.values = append(k.values, line)
	}
	flow := flowTitles[c.Flow]
	k.title = fmt.Sprintf("%s, %s", flow, unit)
	if c.Workload != "" && c.Flow != "" {
		k.title = fmt.Sprintf("%s, %s, %s", flow, c.Workload, unit)
	} else {
		k.title = fmt.Sprintf("%s, %s", c.Title, unit)
	}
	return k
}

func (k curve) draw(p *charts.Painter) error {
	series := make(charts.LineSeriesList, len(k.names))
	palette := make([]charts.Color, len(k.names))
	most := 0.0
	for i, name := range k.names {
		palette[i] = colour(name)
		series[i] = charts.LineSeries{Name: name, Values: k.values[i]}
		for _, v := range k.values[i] {
			if v != charts.GetNullValue() {
				most = max(most, v)
			}
		}
	}
	opt := charts.NewLineChartOptionWithSeries(series)
	opt.Theme = charts.GetTheme(charts.ThemeLight).WithSeriesColors(palette)
	opt.Padding = charts.NewBox(16, 12, 24, 10)
	opt.Title = charts.TitleOption{Text: k.title, FontStyle: text(11)}
	opt.Legend = charts.LegendOption{SeriesNames: k.names, FontStyle: text(10), Offset: charts.OffsetStr{Left: "16", Top: "26"}}
	opt.XAxis = charts.XAxisOption{Labels: k.x, Title: k.axis, TitleFontStyle: text(10), LabelFontStyle: text(9)}
	end, labels := ticks(most * 1.05)
	opt.YAxis = []charts.YAxisOption{{Min: charts.Ptr(0.0), Max: end, LabelCount: labels, LabelFontStyle: text(9)}}
	opt.LineStrokeWidth = 2
	opt.Symbol = charts.Symbol{Shape: charts.SymbolCircle}
	return p.LineChart(opt)
}

// short is a rate with three digits: "45.2k".
func short(v float64) string {
	value, prefix := humanize.ComputeSI(v)
	digits := max(0, 2-int(math.Log10(max(1, value))))
	return fmt.Sprintf("%.*f%s", digits, value, prefix)
}

func shortCPU(us float64) string {
	if us == 0 {
		return "unknown"
	}
	return strings.TrimSpace(fmt.Sprintf("%.3g µs", us))
}
