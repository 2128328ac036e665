// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"net/netip"
	"slices"
	"time"
)

// Report is what a run found. Field names are stable.
type Report struct {
	Version    string    `json:"version"`
	Begun      time.Time `json:"begun"`
	Seconds    float64   `json:"seconds"` // that it all took
	Machine    Machine   `json:"machine"`
	LoadBefore string    `json:"loadBefore"` // /proc/loadavg's three
	LoadAfter  string    `json:"loadAfter"`
	Rounds     int       `json:"rounds"` // that are complete
	Time       float64   `json:"time"`   // seconds a measurement, at least
	Cases      []*Case   `json:"cases"`
	Memory     []Memory  `json:"memory"`
	Skipped    []Skip    `json:"skipped"` // what was asked for and cannot be done here
	Failed     []Skip    `json:"failed"`  // what was begun and went wrong: not in Cases
}

// Machine is what it ran on.
type Machine struct {
	Kernel  string `json:"kernel"`
	CPU     string `json:"cpu"` // model
	CPUs    int    `json:"cpus"`
	Virtual bool   `json:"virtual"` // says the CPU: there is a hypervisor
	Memory  uint64 `json:"memory"`  // bytes
}

// Case is one workload on one flow.
type Case struct {
	Workload string   `json:"workload"`
	Flow     string   `json:"flow,omitempty"` // "": the control plane
	Title    string   `json:"title"`
	Unit     string   `json:"unit"` // what Rate counts a second
	CPUs     string   `json:"cpus"` // client's and server's: "1" or "0, 1"
	Entries  []*Entry `json:"entries"`
}

// Entry is one contender at one scale.
type Entry struct {
	Contender string `json:"contender"`
	Scale
	Measurements []Measurement `json:"measurements"` // one a round

	Rate  float64 `json:"rate"` // median
	Least float64 `json:"least"`
	Most  float64 `json:"most"`
	CPU   float64 `json:"cpu"` // µs an operation, median; 0: not known

	// Against is the first contender's rate at this scale to this one's; AgainstOne this rate to
	// that of this contender at the least scale. Nil: that is this entry, or not measured.
	Against    *Ratio `json:"against,omitempty"`
	AgainstCPU *Ratio `json:"againstCPU,omitempty"` // as Against, by operations a second of CPU time
	AgainstOne *Ratio `json:"againstOne,omitempty"`
}

// Ratio compares the rates of two entries.
type Ratio struct {
	Of    string  `json:"of"`    // the other entry: "bpf", "1x1"
	Value float64 `json:"value"` // of the medians
	Low   float64 `json:"low"`   // interval of the rounds' ratios: see Interval
	High  float64 `json:"high"`
	Level float64 `json:"level"` // coverage of the interval
}

// Measurement is one run of one load.
type Measurement struct {
	Round int       `json:"round"` // from 1
	Turn  int       `json:"turn"`  // in the round's order of this case, from 1
	Begun time.Time `json:"begun"`
	Ended time.Time `json:"ended"`

	Seconds float64 `json:"seconds"` // that were measured
	Ops     float64 `json:"ops"`
	Rate    float64 `json:"rate"`           // operations a second
	CPU     float64 `json:"cpu"`            // µs an operation, of all that took part
	Lost    uint64  `json:"lost,omitempty"` // datagrams without an answer
	Others  float64 `json:"others"`         // CPUs that something else kept busy meanwhile

	// What proves the path.
	Seen        netip.Addr `json:"seen,omitzero"`         // the client, as the server saw it
	Bytes       uint64     `json:"bytes,omitempty"`       // counted by the device that it must pass, both ways
	Frame       float64    `json:"frame,omitempty"`       // mean bytes a packet there, the busier way
	Flows       int        `json:"flows,omitempty"`       // that the datapath knows there; in the first round only
	FlowPackets uint64     `json:"flowPackets,omitempty"` // of these, as the programs counted
	ClientCPUs  string     `json:"clientCPUs,omitempty"`  // allowed
	ServerCPUs  string     `json:"serverCPUs,omitempty"`  //
	ClientCPU   *int       `json:"clientRanOn,omitempty"` // last; workers only
	ServerCPU   *int       `json:"serverRanOn,omitempty"` //
}

// Memory is of one contender at one scale, at rest.
type Memory struct {
	Contender string `json:"contender"`
	Scale
	Maps         uint64 `json:"maps"`         // bytes of the pinned maps
	MapCount     int    `json:"mapCount"`     //
	Processes    int    `json:"processes"`    // that have to run
	ProcessBytes uint64 `json:"processBytes"` // their resident memory
	Kernel       int64  `json:"kernel"`       // bytes that the kernel had more of when all was set up: noisy
}

// Skip is what is not in the report.
type Skip struct {
	Contender string `json:"contender,omitempty"`
	Scale     string `json:"scale,omitempty"`
	Workload  string `json:"workload,omitempty"`
	Flow      string `json:"flow,omitempty"`
	Reason    string `json:"reason"`
}

// sum fills the medians and the ratios.
func (c *Case) sum() {
	for _, e := range c.Entries {
		if len(e.Measurements) == 0 {
			continue
		}
		var rates, cpus []float64
		for _, m := range e.Measurements {
			rates = append(rates, m.Rate)
			if m.CPU > 0 {
				cpus = append(cpus, m.CPU)
			}
		}
		e.Rate = Median(rates)
		e.Least, e.Most = slices.Min(rates), slices.Max(rates)
		if len(cpus) > 0 {
			e.CPU = Median(cpus)
		}
	}
	for _, e := range c.Entries {
		if first := c.first(e.Scale); first != nil && first != e {
			e.Against = compare(first, e, Measurement.rate)
			e.Against.Of = first.Contender
			if first.CPU > 0 && e.CPU > 0 {
				e.AgainstCPU = compare(first, e, Measurement.perCPU)
				e.AgainstCPU.Of = first.Contender
			}
		}
		if e.Scale != One {
			if one := c.entry(e.Contender, One); one != nil {
				e.AgainstOne = compare(e, one, Measurement.rate)
				e.AgainstOne.Of = One.String()
			}
		}
	}
}

// first is the contender that the others at this scale are compared with.
func (c *Case) first(s Scale) *Entry {
	for _, e := range c.Entries {
		if e.Scale == s {
			return e
		}
	}
	return nil
}

func (c *Case) entry(contender string, s Scale) *Entry {
	for _, e := range c.Entries {
		if e.Contender == contender && e.Scale == s {
			return e
		}
	}
	return nil
}

func (m Measurement) rate() float64 { return m.Rate }

// perCPU is operations a second of CPU time.
func (m Measurement) perCPU() float64 { return 1e6 / m.CPU }

// compare is a's figure to b's. It pairs measurements of the same round: all entries of a
// case have the same rounds.
func compare(a, b *Entry, figure func(Measurement) float64) *Ratio {
	var as, bs, ratios []float64
	for _, x := range a.Measurements {
		as = append(as, figure(x))
	}
	for _, y := range b.Measurements {
		bs = append(bs, figure(y))
		for _, x := range a.Measurements {
			if x.Round == y.Round {
				ratios = append(ratios, figure(x)/figure(y))
			}
		}
	}
	r := &Ratio{Value: Median(as) / Median(bs)}
	r.Low, r.High, r.Level = Interval(ratios)
	return r
}

// Others is how many CPUs were kept busy by something else: the median of all
// measurements, and the most.
func (r *Report) Others() (median, most float64) {
	var list []float64
	for _, c := range r.Cases {
		for _, e := range c.Entries {
			for _, m := range e.Measurements {
				list = append(list, m.Others)
			}
		}
	}
	if len(list) == 0 {
		return 0, 0
	}
	return Median(list), slices.Max(list)
}
