// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func testConfig() Config {
	return Config{
		NetnsCookie: 1 << 40, Quota: 1000, Pool: []PortRange{{1024, 32767}, {61000, 65535}},
		Timeouts: DefaultTimeouts(), ICMPRate: 100, Sweep: time.Second,
	}
}

func TestSettings(t *testing.T) {
	s, c := newTables(t).Settings, testConfig()
	zero, err := s.Get()
	require.NoError(t, err)
	require.Zero(t, zero)
	require.NoError(t, s.Set(c))
	got, err := s.Get()
	require.NoError(t, err)
	for kind, d := range got.Timeouts.byKind() {
		asked := *c.Timeouts.byKind()[kind]
		require.GreaterOrEqual(t, *d, asked)
		require.Less(t, *d, asked+tick)
	}
	got.Timeouts = c.Timeouts
	require.Equal(t, c, got)
	w, _, err := s.table.get(0)
	require.NoError(t, err)
	require.EqualValues(t, 2*testTable, w.Slots)
	require.EqualValues(t, 32767-1024+1+65535-61000+1, w.PoolSize)
	require.EqualValues(t, 2, w.PoolCount)

	for name, change := range map[string]func(*Config){
		"quota":       func(c *Config) { c.Quota = -1 },
		"ranges":      func(c *Config) { c.Pool = make([]PortRange, MaxPortRanges+1) },
		"not a range": func(c *Config) { c.Pool = []PortRange{{2, 1}} },
		"timeout":     func(c *Config) { c.Timeouts.UDP = 0 },
		"sweep":       func(c *Config) { c.Sweep = 0 },
	} {
		bad := testConfig()
		change(&bad)
		require.ErrorContains(t, s.Set(bad), name)
	}
}
