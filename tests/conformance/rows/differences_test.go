// SPDX-License-Identifier: Apache-2.0

package rows

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Every difference is of rows and tests that exist, and says what and why.
func TestDifferences(t *testing.T) {
	ids := make(map[string]bool)
	for _, r := range All {
		ids[r.ID] = true
	}
	there := functions(t, Dir)
	for _, d := range slices.Concat(Differences, OnDocker) {
		for _, id := range strings.Split(d.Row, ", ") {
			require.True(t, ids[id], d.Row)
		}
		require.NotEmpty(t, d.What, d.Row)
		require.NotEmpty(t, d.Why, d.Row)
		for _, name := range d.Tests {
			top, _, _ := strings.Cut(name, "/")
			require.Contains(t, there, Test{Dir, top}, d.Row)
		}
	}
}

func TestUnexpected(t *testing.T) {
	results := map[string]string{"TestA1": "pass"}
	for _, d := range Differences {
		for _, name := range d.Tests {
			for top := name; top != "."; top = filepath.Dir(top) {
				results[top] = "fail"
			}
		}
	}
	require.Empty(t, Unexpected(Differences, results))
	results["TestA3/IPv4_only"], results["TestA1"], results["TestA2"], results["TestA2/deep"], results["TestG7"] = "fail", "fail", "fail", "fail", "pass"
	require.Equal(t, []string{"TestA1 fails, and is in no difference", "TestA2/deep fails, and is in no difference",
		"TestG7 does not fail any more: difference of G7"}, Unexpected(Differences, results))
}

// The committed pages have these lists.
func TestDifferencesAreCurrent(t *testing.T) {
	for page, table := range map[string]string{"differences": DifferencesTable(Differences, "on iptables"), "docker-rows": DifferencesTable(OnDocker, "with Docker's containers")} {
		text, err := os.ReadFile(filepath.Join(root, "docs", page+".md"))
		require.NoError(t, err)
		require.Contains(t, string(text), table, "run make "+page)
	}
}
