// SPDX-License-Identifier: Apache-2.0

package netavark

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

func TestSpecs(t *testing.T) {
	for name, tt := range map[string]struct {
		in   portMapping
		want []string // nil: refused
	}{
		"one":       {portMapping{ContainerPort: 80, HostPort: 8080, Protocol: "tcp", Range: 1}, []string{"8080:80/tcp"}},
		"no range":  {portMapping{ContainerPort: 80, HostPort: 8080, Protocol: "tcp"}, []string{"8080:80/tcp"}},
		"range":     {portMapping{ContainerPort: 80, HostPort: 8080, Protocol: "udp", Range: 10}, []string{"8080-8089:80-89/udp"}},
		"two":       {portMapping{ContainerPort: 80, HostPort: 8080, Protocol: "tcp,udp", Range: 1}, []string{"8080:80/tcp", "8080:80/udp"}},
		"IPv6":      {portMapping{ContainerPort: 80, HostPort: 8080, Protocol: "tcp", HostIP: "::1"}, []string{"[::1]:8080:80/tcp"}},
		"the last":  {portMapping{ContainerPort: 65535, HostPort: 65535, Protocol: "tcp", Range: 1}, []string{"65535:65535/tcp"}},
		"too long":  {portMapping{ContainerPort: 80, HostPort: 65535, Protocol: "tcp", Range: 2}, nil},
		"no port":   {portMapping{ContainerPort: 80, Protocol: "tcp", Range: 1}, nil},
		"no server": {portMapping{HostPort: 80, Protocol: "tcp", Range: 1}, nil},
		"bad IP":    {portMapping{ContainerPort: 80, HostPort: 8080, Protocol: "tcp", HostIP: "x"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := specs([]portMapping{tt.in})
			if tt.want == nil {
				require.Error(t, err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
}

// Whatever podman says, create answers with a network that can be, or with one line.
func FuzzCreate(f *testing.F) {
	for _, s := range []string{
		`{"name":"web","id":"1f","subnets":[{"subnet":"10.90.0.0/24"},{"subnet":"fd00::/64","gateway":"fd00::1"}],"options":{"mtu":"1400","icc":"false"}}`,
		`{"name":"web","subnets":[null],"options":null}`, `{"name":"web","subnets":{}}`, `{"routes":[{"destination":"10.0.0.0/8","metric":5}]}`, `[]`, `null`, `{`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var out bytes.Buffer
		code := Main(control.Options{}, "1", []string{"create"}, bytes.NewReader(data), &out)
		var answer map[string]any
		require.NoError(t, json.Unmarshal(out.Bytes(), &answer), "%s", out.String())
		if code != 0 {
			text, _ := answer["error"].(string)
			require.NotEmpty(t, text)
			require.False(t, strings.Contains(text, "\n"), "%q", text)
			return
		}
		n := &network{}
		require.NoError(t, json.Unmarshal(out.Bytes(), n))
		opts, err := n.create()
		require.NoError(t, err)
		require.NoError(t, control.CheckNetwork(opts))
		require.Len(t, opts.Gateways, len(opts.Subnets), "podman must know what it may not give")
	})
}
