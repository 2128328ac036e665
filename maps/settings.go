// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"time"

	"github.com/bpfnet/bpfnet/loader"
)

// Settings are what may change while the programs run.
type Settings struct {
	src   Source
	table table[uint32, loader.BPFConfig]
}

// Config is one host's settings.
type Config struct {
	NetnsCookie uint64      // of the host: the bind guard acts in it alone
	Quota       int         // established flows per endpoint
	Pool        []PortRange // what masquerade may use; MaxPortRanges at most
	Timeouts    Timeouts
	ICMPRate    int           // errors a second that the programs send
	Sweep       time.Duration // between two ticks of the sweep; whole milliseconds
}

// PortRange includes both ends.
type PortRange struct{ First, Last uint16 }

// MaxPortRanges is how many ranges Config.Pool may have.
const MaxPortRanges = int(loader.BPFLimitsMAX_PORT_RANGES)

// Timeouts of flows; from one tick (1.07 s) to 65535 ticks (19.5 h), rounded up
// to ticks.
type Timeouts struct {
	TCPEstablished time.Duration
	TCPTransitory  time.Duration // half-open, closing, after RST
	UDPNewIn       time.Duration // one way seen, from outside
	UDPNewOut      time.Duration // one way seen, from a container
	UDP            time.Duration // both ways seen
	ICMP           time.Duration
}

// DefaultTimeouts are what RFC 5382 (TCP), 4787 (UDP) and 5508 (ICMP) ask for
// at least.
func DefaultTimeouts() Timeouts {
	return Timeouts{
		TCPEstablished: 7440 * time.Second,
		TCPTransitory:  240 * time.Second,
		UDPNewIn:       30 * time.Second,
		UDPNewOut:      120 * time.Second,
		UDP:            300 * time.Second,
		ICMP:           60 * time.Second,
	}
}

// tick is the programs' unit of time: 2^30 ns.
const tick = time.Duration(1) << 30

func toTicks(d time.Duration) (uint16, error) {
	n := (d + tick - 1) / tick
	if d <= 0 || n > 65535 {
		return 0, fmt.Errorf("timeout %s: not between 1ns and %s", d, 65535*tick)
	}
	return uint16(n), nil
}

func (t *Timeouts) byKind() [loader.BPFTimeoutKindTIMEOUT_COUNT]*time.Duration {
	return [...]*time.Duration{
		loader.BPFTimeoutKindTIMEOUT_TCP_ESTABLISHED: &t.TCPEstablished,
		loader.BPFTimeoutKindTIMEOUT_TCP_TRANSITORY:  &t.TCPTransitory,
		loader.BPFTimeoutKindTIMEOUT_UDP_NEW_IN:      &t.UDPNewIn,
		loader.BPFTimeoutKindTIMEOUT_UDP_NEW_OUT:     &t.UDPNewOut,
		loader.BPFTimeoutKindTIMEOUT_UDP:             &t.UDP,
		loader.BPFTimeoutKindTIMEOUT_ICMP:            &t.ICMP,
	}
}

// Set writes the settings; the programs obey from the next packet on.
func (s *Settings) Set(c Config) error {
	slots, err := s.src.Map(loader.BPFMapSlots)
	if err != nil {
		return err
	}
	w, err := c.wire()
	if err != nil {
		return fmt.Errorf("settings: %w", err)
	}
	w.Slots = slots.MaxEntries()
	have, _, err := s.table.get(0)
	if err != nil || have == w {
		return err
	}
	return s.table.put(0, w)
}

// Get is the settings; timeouts are whole ticks. All zero before the first Set.
func (s *Settings) Get() (Config, error) {
	w, _, err := s.table.get(0)
	if err != nil {
		return Config{}, err
	}
	c := Config{
		NetnsCookie: w.NetnsCookie, Quota: int(w.Quota),
		ICMPRate: int(w.IcmpRate), Sweep: time.Duration(w.SweepMs) * time.Millisecond,
	}
	for i := range min(int(w.PoolCount), len(w.Pool)) {
		c.Pool = append(c.Pool, PortRange{w.Pool[i].First, w.Pool[i].Last})
	}
	for kind, d := range c.Timeouts.byKind() {
		*d = time.Duration(w.Timeouts[kind]) * tick
	}
	return c, nil
}

func (c Config) wire() (w loader.BPFConfig, err error) {
	if c.Quota < 0 || c.ICMPRate < 0 {
		return w, fmt.Errorf("quota %d, icmp rate %d: negative", c.Quota, c.ICMPRate)
	}
	if c.Sweep < time.Millisecond || c.Sweep > time.Hour {
		return w, fmt.Errorf("sweep %s: not 1ms to 1h", c.Sweep)
	}
	if len(c.Pool) > len(w.Pool) {
		return w, fmt.Errorf("masquerade ports: %d ranges, at most %d", len(c.Pool), len(w.Pool))
	}
	w = loader.BPFConfig{
		NetnsCookie: c.NetnsCookie, Quota: uint32(c.Quota), PoolCount: uint32(len(c.Pool)),
		IcmpRate: uint32(c.ICMPRate), SweepMs: uint32(c.Sweep / time.Millisecond),
	}
	for i, r := range c.Pool {
		if r.First == 0 || r.Last < r.First {
			return w, fmt.Errorf("masquerade ports %d-%d: not a range", r.First, r.Last)
		}
		w.Pool[i] = loader.BPFPortRange{First: r.First, Last: r.Last}
		w.PoolSize += uint32(r.Last-r.First) + 1
	}
	for kind, d := range c.Timeouts.byKind() {
		if w.Timeouts[kind], err = toTicks(*d); err != nil {
			return w, err
		}
	}
	return w, nil
}
