// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// What is no URL is said at once, and not waited for.
func TestFollowNoHost(t *testing.T) {
	require.ErrorContains(t, Follow(t.Context(), nil, Options{Host: "engine"}), `docker-host "engine": not unix:///PATH or tcp://HOST:PORT`)
}
