// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

// Neighbours become ranges, and nothing else does.
func TestSpecs(t *testing.T) {
	m := func(ip string, host, container int, proto string) portMapping {
		return portMapping{HostIP: ip, HostPort: host, ContainerPort: container, Protocol: proto}
	}
	for name, tt := range map[string]struct {
		in   []portMapping
		want []string
	}{
		"none":              {nil, nil},
		"one":               {[]portMapping{m("", 8080, 80, "")}, []string{"8080:80/tcp"}},
		"in any order":      {[]portMapping{m("", 9002, 82, "tcp"), m("", 9000, 80, "tcp"), m("", 9001, 81, "TCP")}, []string{"9000-9002:80-82/tcp"}},
		"twice":             {[]portMapping{m("", 9000, 80, "tcp"), m("", 9000, 80, "")}, []string{"9000:80/tcp"}},
		"a gap":             {[]portMapping{m("", 9000, 80, "tcp"), m("", 9002, 82, "tcp")}, []string{"9000:80/tcp", "9002:82/tcp"}},
		"another offset":    {[]portMapping{m("", 9000, 80, "tcp"), m("", 9001, 82, "tcp")}, []string{"9001:82/tcp", "9000:80/tcp"}},
		"another protocol":  {[]portMapping{m("", 9000, 80, "tcp"), m("", 9001, 81, "udp")}, []string{"9000:80/tcp", "9001:81/udp"}},
		"another address":   {[]portMapping{m("", 9000, 80, "tcp"), m("127.0.0.1", 9001, 81, "tcp")}, []string{"9000:80/tcp", "127.0.0.1:9001:81/tcp"}},
		"IPv6":              {[]portMapping{m("::1", 9000, 80, "tcp"), m("::1", 9001, 81, "tcp")}, []string{"[::1]:9000-9001:80-81/tcp"}},
		"mapped":            {[]portMapping{m("::ffff:127.0.0.1", 9000, 80, "tcp")}, []string{"127.0.0.1:9000:80/tcp"}},
		"to the last":       {[]portMapping{m("", 65535, 65535, "udp"), m("", 65534, 65534, "udp")}, []string{"65534-65535:65534-65535/udp"}},
		"one of the host's": {[]portMapping{m("", 80, 9000, "tcp"), m("", 81, 9000, "tcp")}, []string{"80:9000/tcp", "81:9000/tcp"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := specs(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
		})
	}
	for _, bad := range []portMapping{m("", 0, 80, ""), m("", 80, 0, ""), m("", -1, 80, ""), m("", 80, 65536, ""), m("x", 80, 80, ""), m("", 80, 80, "icmp")} {
		_, err := specs([]portMapping{bad})
		require.Error(t, err, "%+v", bad)
		_, err = adoptedPorts([]portMapping{bad})
		require.Error(t, err, "%+v", bad)
	}
}

// Codes, and one line.
func TestAsError(t *testing.T) {
	own := types.NewError(7, "own", "")
	require.Equal(t, own, asError(own))
	require.EqualValues(t, 999, asError(types.NewError(0, "no code", "")).Code)
	e := asError(errors.Join(own, errors.New("later")))
	require.EqualValues(t, 7, e.Code)
	require.Equal(t, "own; own; later", e.Error())
	for err, code := range map[error]uint{
		control.ErrInvalid: 7, control.ErrConflict: 100, control.ErrNotFound: 3, control.ErrLocked: 11, control.ErrNotRoot: 50,
		errors.New("a\nb"): 999,
	} {
		e := asError(err)
		require.Equal(t, code, e.Code)
		require.NotContains(t, e.Error(), "\n")
	}
}

// Whatever a configuration is, it is refused with a code or means what it says.
func FuzzConfig(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.1.0","name":"pods","type":"bpfnet","subnets":["10.88.0.0/16"],"capabilities":{"portMappings":true},` +
			`"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80}],"ips":["10.88.0.7/16"],"mac":"02:00:00:00:00:01","aliases":["a"],"dns":{"servers":["1.1.1.1"]}}}`,
		`{"name":"a","ipam":{"type":"host-local"},"args":{"cni":{"ips":["::1"]}},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]}`,
		`{"name":"a","unknown":1}`, `{"name":"a","runtimeConfig":{"aliases":{"a":["x"]}}}`, `{`, `[]`, `null`, `{"ipam":null,"runtimeConfig":null,"prevResult":null}`,
	} {
		f.Add([]byte(s), "IP=10.0.0.1;MAC=02:00:00:00:00:01;K8S_POD_NAME=web")
	}
	f.Fuzz(func(t *testing.T, data []byte, args string) {
		c, err := readConfig(data)
		var w *wishes
		if err == nil {
			w, err = c.wishes(args)
		}
		if err != nil {
			e := asError(err)
			require.NotEqual(t, types.ErrInternal, e.Code, "%v", err)
			require.False(t, strings.Contains(e.Msg, "\n") && !strings.Contains(string(data)+args, "\n"), "%q", e.Msg)
			return
		}
		var all map[string]json.RawMessage
		require.NoError(t, json.Unmarshal(data, &all))
		for key := range all {
			require.True(t, slices.Contains(keys, key) || strings.HasPrefix(key, keysReserved), key)
		}
		require.True(t, !w.ipv4.IsValid() || w.ipv4.Is4())
		require.True(t, !w.ipv6.IsValid() || w.ipv6.Is6())
		_ = c.network()
	})
}
