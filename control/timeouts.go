// SPDX-License-Identifier: Apache-2.0

package control

import (
	"time"

	"github.com/bpfnet/bpfnet/maps"
)

// Bounds of a timeout: the programs count it in 16 bits, in units of 1.07 s.
const (
	minTimeout = time.Second
	maxTimeout = 19 * time.Hour
)

// timeouts are the configured ones, or the RFCs' minima.
func (c *Config) timeouts() (maps.Timeouts, error) {
	t := maps.DefaultTimeouts()
	for _, x := range []struct {
		key, text string
		to        *time.Duration
	}{
		{"timeout-tcp", c.TimeoutTCP, &t.TCPEstablished},
		{"timeout-tcp-transitory", c.TimeoutTCPTransitory, &t.TCPTransitory},
		{"timeout-udp", c.TimeoutUDP, &t.UDP},
		{"timeout-udp-new-in", c.TimeoutUDPNewIn, &t.UDPNewIn},
		{"timeout-udp-new-out", c.TimeoutUDPNewOut, &t.UDPNewOut},
		{"timeout-icmp", c.TimeoutICMP, &t.ICMP},
	} {
		if x.text == "" {
			continue
		}
		d, err := time.ParseDuration(x.text)
		if err != nil {
			return t, invalid("%s: %q is no duration, as 90s or 2h4m", x.key, x.text)
		}
		if d < minTimeout || d > maxTimeout {
			return t, invalid("%s: %s is not in 1s-19h", x.key, x.text)
		}
		*x.to = d
	}
	return t, nil
}

// limitsAsked are the keys of those of the tables' sizes, the quota and the timeouts that are
// not what nobody said.
func (c *Config) limitsAsked() (keys []string) {
	none := Config{}.withDefaults()
	for _, x := range []struct {
		key   string
		asked bool
	}{
		{"flow-table-size", c.FlowTableSize != none.FlowTableSize},
		{"half-open-table-size", c.HalfOpenTableSize != none.HalfOpenTableSize},
		{"flow-quota", c.Quota != c.FlowTableSize/4},
		{"timeout-tcp", c.TimeoutTCP != ""},
		{"timeout-tcp-transitory", c.TimeoutTCPTransitory != ""},
		{"timeout-udp", c.TimeoutUDP != ""},
		{"timeout-udp-new-in", c.TimeoutUDPNewIn != ""},
		{"timeout-udp-new-out", c.TimeoutUDPNewOut != ""},
		{"timeout-icmp", c.TimeoutICMP != ""},
	} {
		if x.asked {
			keys = append(keys, x.key)
		}
	}
	return keys
}
