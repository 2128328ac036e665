// SPDX-License-Identifier: Apache-2.0

package insns

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTable(t *testing.T) {
	table := Table{"6.12": {"from_lo": 41_000, "sweep": 2850}, "6.1": {"from_lo": 38_000}, "6.2": {"sweep": 1}}
	text := table.String()
	require.Equal(t, head+"\nprogram\t6.1\t6.2\t6.12\nfrom_lo\t38000\t\t41000\nsweep\t\t1\t2850\n", text)
	again, err := Parse(text)
	require.NoError(t, err)
	require.Equal(t, table, again)

	_, err = Parse("program\t6.1\nsweep\t1\t2\n")
	require.ErrorContains(t, err, "has 3 fields, not 2")
	_, err = Parse("program\t6.1\nsweep\tmany\n")
	require.ErrorContains(t, err, "program sweep")
}

func TestCheck(t *testing.T) {
	table := Table{"6.1": {"from_lo": 95_000, "sweep": 3000}}
	for name, c := range map[string]struct {
		kernel string
		counts map[string]int
		want   string
	}{
		"as before":         {"6.1", map[string]int{"from_lo": 95_000, "sweep": 3000}, ""},
		"less":              {"6.1", map[string]int{"from_lo": 10, "sweep": 10}, ""},
		"within the slack":  {"6.1", map[string]int{"from_lo": 95_000, "sweep": 3300}, ""},
		"above the slack":   {"6.1", map[string]int{"from_lo": 95_000, "sweep": 3301}, "program sweep: 3301 instructions verified on 6.1, more than 3000 and 10 %: make insns, if that is right"},
		"the limit":         {"6.1", map[string]int{"from_lo": 100_000, "sweep": 3000}, ""},
		"above the limit":   {"6.1", map[string]int{"from_lo": 100_001, "sweep": 3000}, "program from_lo: 100001 instructions verified on 6.1, more than 100000"},
		"a new program":     {"6.1", map[string]int{"from_lo": 95_000, "sweep": 3000, "new": 1}, "program new: not in " + Path + " for 6.1: make insns"},
		"one that is gone":  {"6.1", map[string]int{"from_lo": 95_000}, "program sweep: in " + Path + ", but not loaded on 6.1"},
		"a kernel unheard":  {"7.0", map[string]int{"from_lo": 99_999}, ""},
		"unheard, too much": {"7.0", map[string]int{"from_lo": 100_001}, "program from_lo: 100001 instructions verified on 7.0, more than 100000"},
	} {
		t.Run(name, func(t *testing.T) {
			err := table.Check(c.kernel, c.counts)
			if c.want == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, c.want)
			}
		})
	}
}

func TestLines(t *testing.T) {
	text := Line("from_endpoint", 42_493, 66_088) + "\r\nsweep: refused\nbind4 too\n" + Line("sweep", 2999, 5488) + "\n"
	require.Equal(t, map[string]int{"from_endpoint": 42_493, "sweep": 2999}, Counts(text))
}

func TestCommitted(t *testing.T) {
	table, err := Committed()
	require.NoError(t, err)
	require.Equal(t, table.String(), committed, "not as make insns writes it")
	for kernel, column := range table {
		require.NoError(t, table.Check(kernel, column))
	}
}
