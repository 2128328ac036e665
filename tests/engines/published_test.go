// SPDX-License-Identifier: Apache-2.0

package engines

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// -p in its forms, on docker0 and on a network of one's own.
func TestPublished(t *testing.T) {
	e := newEngine(t)
	e.docker("network", "create", "n1")
	e.run("web", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "8080:80/udp", "-p", "127.0.0.1:8081:80/udp")
	e.run("own", "--net", "n1", "-p", "9000-9001:80-81", "-p", "9000-9001:80-81/udp")
	e.adopted("web", "own")
	e.answers(e.Client, lab.HostIPv4+":8080", "web", lab.ClientIPv4)
	e.answers(e.Client, lab.HostIPv4+":9000", "own", lab.ClientIPv4)
	e.answers(e.Client, lab.HostIPv4+":9001", "own", lab.ClientIPv4)
	for _, to := range []string{"127.0.0.1:8080", "[::1]:8080", lab.HostIPv4 + ":8080", "127.0.0.1:8081"} {
		e.answers(e.Host, to, "web", "172.17.0.1")
	}
	e.silent(e.Client, lab.HostIPv4+":8081", e.Client, lab.HostIPv4+":8080")
	require.Contains(t, e.bpfnet("port", "web"), "0.0.0.0:8080")
}
