// SPDX-License-Identifier: Apache-2.0

package needs

import (
	"os"
	"testing"
)

// Engines ends a test of other container engines' real programs, unless make test-engines runs
// it, which installs them: there the test fails if one is missing.
func Engines(t testing.TB) {
	t.Helper()
	if os.Getenv("BPFNET_ENGINES") == "" {
		t.Skip("make test-engines runs it")
	}
}

// Next says whether the engines are those of make test-engines-next, which came with Debian 13.
func Next() bool { return os.Getenv("BPFNET_ENGINES") == "next" }
