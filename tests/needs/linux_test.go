// SPDX-License-Identifier: Apache-2.0

package needs

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestIsOlder(t *testing.T) {
	for release, older := range map[string]bool{
		"6.1.0-56-cloud-amd64": true, "6.5.13": true, "5.15.0": true,
		"6.6.0": false, "6.12.117+deb12-cloud-amd64": false, "6.18.44": false, "7.0-rc1": false,
	} {
		got, err := isOlder(release, 6, 6)
		require.NoError(t, err, release)
		require.Equal(t, older, got, release)
	}
	_, err := isOlder("next", 6, 6)
	require.Error(t, err)
}
