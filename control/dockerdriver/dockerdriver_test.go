// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

// optionsOf reads options as a request has them.
func optionsOf(t *testing.T, text string) (o options) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), &o))
	return o
}

// What Docker Engine 20.10.24 sends for docker run's -p, in no order.
func TestSpecs(t *testing.T) {
	for name, c := range map[string]struct{ ports, want, fails string }{
		"none":      {ports: `[]`},
		"one":       {ports: `[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":8080,"HostPortEnd":8080}]`, want: "8080:80/tcp"},
		"address":   {ports: `[{"Proto":17,"IP":"","Port":81,"HostIP":"127.0.0.1","HostPort":81,"HostPortEnd":81}]`, want: "127.0.0.1:81:81/udp"},
		"ipv6":      {ports: `[{"Proto":6,"Port":81,"HostIP":"::1","HostPort":81,"HostPortEnd":81}]`, want: "[::1]:81:81/tcp"},
		"mapped":    {ports: `[{"Proto":6,"Port":81,"HostIP":"::ffff:127.0.0.1","HostPort":81}]`, want: "127.0.0.1:81:81/tcp"},
		"random":    {ports: `[{"Proto":6,"IP":"","Port":80,"HostIP":"","HostPort":0,"HostPortEnd":0}]`, want: "80/tcp"},
		"random of": {ports: `[{"Proto":6,"Port":80,"HostIP":"::1","HostPort":0}]`, want: "[::1]::80/tcp"},
		"first free": {ports: `[{"Proto":6,"IP":"","Port":82,"HostIP":"","HostPort":9000,"HostPortEnd":9003}]`,
			want: "9000-9003:82/tcp"},
		"range": {ports: `[{"Proto":6,"Port":91,"HostPort":7001,"HostPortEnd":7001},{"Proto":17,"Port":90,"HostPort":7000},
			{"Proto":6,"Port":90,"HostPort":7000,"HostPortEnd":7000},{"Proto":6,"Port":99,"HostPort":7002}]`,
			want: "7000-7001:90-91/tcp 7002:99/tcp 7000:90/udp"},
		"two of one": {ports: `[{"Proto":6,"Port":80,"HostPort":8080},{"Proto":6,"Port":80,"HostPort":8081}]`, want: "8080:80/tcp 8081:80/tcp"},
		"the last":   {ports: `[{"Proto":6,"Port":65535,"HostPort":65535},{"Proto":6,"Port":65534,"HostPort":65534}]`, want: "65534-65535:65534-65535/tcp"},
		"sctp":       {ports: `[{"Proto":132,"Port":80,"HostPort":80}]`, want: "80:80/sctp"},

		"protocol":  {ports: `[{"Proto":1,"Port":80}]`, fails: "protocol 1 is not known"},
		"port 0":    {ports: `[{"Proto":6,"HostPort":80}]`, fails: "port 0"},
		"backwards": {ports: `[{"Proto":6,"Port":80,"HostPort":80,"HostPortEnd":79}]`, fails: "80 to 79"},
		"host":      {ports: `[{"Proto":6,"Port":80,"HostIP":"fe80::1%eth0","HostPort":80}]`, fails: "not valid"},
		"no list":   {ports: `{"a": 1}`, fails: "not understood"},
		"too large": {ports: `[{"Proto":6,"Port":65536}]`, fails: "not understood"},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := optionsOf(t, `{"com.docker.network.portmap": `+c.ports+`}`).specs()
			if c.fails != "" {
				require.ErrorContains(t, err, c.fails)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, strings.Join(list, " "))
		})
	}
}

func TestNetworkOptions(t *testing.T) {
	no := false
	read := func(generic, rest string) (control.NetworkOptions, error) {
		r := networkRequest{Options: optionsOf(t, `{"com.docker.network.generic": `+generic+rest+`}`), IPv4Data: []ipamData{{"172.18.0.0/16", "172.18.0.1/16"}}}
		return r.network()
	}
	o, err := read(`{"com.docker.network.bridge.enable_icc": "false", "com.docker.network.bridge.enable_ip_masquerade": "0",
		"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1", "com.docker.network.bridge.name": "br7",
		"com.docker.network.driver.mtu": "1400", "bpfnet.isolate": "false", "bpfnet.full_cone": "true",
		"bpfnet.gateway_mode": "routed", "bpfnet.name": "shop"}`, `, "com.docker.network.internal": true`)
	require.NoError(t, err)
	require.Equal(t, "172.18.0.0/16", o.Subnets[0].String())
	require.Equal(t, "172.18.0.1", o.Gateways[0].String())
	o.Subnets, o.Gateways = nil, nil
	require.Equal(t, control.NetworkOptions{Name: "shop", ICC: &no, Masquerade: &no, Isolate: &no, Internal: true, FullCone: true,
		Routed: true, MTU: 1400, Bridge: "br7", BindAddress: "127.0.0.1"}, o)
	for generic, words := range map[string]string{
		`{"x": "1"}`: "option x: not known", `{"bpfnet.isolate": "maybe"}`: "not true or false", `{"bpfnet.isolate": 1}`: "not text",
		`{"com.docker.network.driver.mtu": "many"}`: "not a number", `[]`: "not understood", `{"bpfnet.gateway_mode": "x"}`: "nat or routed",
		`{"com.docker.network.bridge.host_binding_ipv4": "::1"}`: "no IPv4 address",
	} {
		_, err := read(generic, "")
		require.ErrorContains(t, err, words)
	}
	_, err = read(`{}`, `, "com.docker.network.enable_ipv6": true`)
	require.ErrorContains(t, err, "--subnet")
	_, err = read(`{}`, `, "com.docker.network.internal": "yes"`)
	require.ErrorContains(t, err, "not understood")
}

// The socket is root's alone, replaces one that nobody listens on, and nothing else.
func TestSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugins", "bpfnet.sock")
	l, err := listen(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	_, err = listen(path)
	require.ErrorContains(t, err, "another process listens on it")
	require.NoError(t, l.Close())
	again, err := listen(path) // as after a kill
	require.NoError(t, err)
	require.NoError(t, l.remove(), "it is another's now")
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, again.remove())
	require.NoError(t, again.Close())
	left, err := os.ReadDir(filepath.Dir(path))
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err = listen(path)
	require.ErrorContains(t, err, "no socket")
}

// Whatever comes over the socket is answered, and nothing of it reaches the host.
func TestHostile(t *testing.T) {
	dir := t.TempDir()
	m, err := control.Open(control.Options{Root: filepath.Join(dir, "root"), Netns: filepath.Join(dir, "none")})
	require.NoError(t, err)
	path := filepath.Join(dir, "s")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	ready := make(chan bool, 1)
	go func() {
		ended <- Serve(ctx, m, Options{Socket: path, Log: func(line string) {
			if strings.Contains(line, "listening") {
				ready <- true
			}
		}})
	}()
	<-ready
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	post := func(method, body string) (int, string) {
		t.Helper()
		r, err := client.Post("http://x/"+method, contentType, strings.NewReader(body))
		require.NoError(t, err)
		defer r.Body.Close()
		answer, err := io.ReadAll(r.Body)
		require.NoError(t, err)
		return r.StatusCode, string(answer)
	}
	status, answer := post("Plugin.Activate", "")
	require.Equal(t, 200, status)
	require.JSONEq(t, `{"Implements": ["NetworkDriver"]}`, answer)
	_, answer = post("NetworkDriver.GetCapabilities", "{}")
	require.JSONEq(t, `{"Scope": "local", "ConnectivityScope": "local"}`, answer)
	for _, method := range []string{"DiscoverNew", "DiscoverDelete"} {
		_, answer = post("NetworkDriver."+method, `{"DiscoveryType": 1, "DiscoveryData": {"Address": "x"}}`)
		require.JSONEq(t, `{}`, answer)
	}
	status, _ = post("NetworkDriver.Other", "{}")
	require.Equal(t, 404, status)
	id := strings.Repeat("a", 64)
	for _, c := range []struct{ method, body, words string }{
		{"CreateNetwork", `{`, "no JSON"},
		{"CreateNetwork", `[]`, "no JSON"},
		{"CreateNetwork", `{"NetworkID": 7}`, "no JSON"},
		{"CreateNetwork", `{"NetworkID": "../x", "IPv4Data": [{"Pool": "10.1.0.0/24"}]}`, "not an ID"},
		{"CreateNetwork", `{"NetworkID": "` + id + `"}`, "no IPv4 subnet"},
		{"CreateNetwork", `{"NetworkID": "` + id + `", "IPv4Data": [{"Pool": "10.1.0.0/24"}, {"Pool": "10.2.0.0/24"}]}`, "one per family"},
		{"CreateNetwork", `{"NetworkID": "` + id + `", "IPv4Data": [{"Pool": "127.0.0.0/24"}]}`, "invalid subnet"},
		{"CreateNetwork", `{"NetworkID": "` + id + `", "IPv4Data": [{"Pool": "0.0.0.0/0"}]}`, "invalid subnet"},
		{"CreateNetwork", `{"NetworkID": "` + id + `", "IPv4Data": [{"Pool": "10.1.0.0/24", "Gateway": "10.1.0.0/24"}]}`, "gateway"},
		{"CreateEndpoint", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `"}`, "without an address"},
		{"CreateEndpoint", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `", "Interface": {"Address": "10.1.0.2"}}`, "not valid"},
		{"CreateEndpoint", `{"NetworkID": "` + id + `", "EndpointID": "x", "Interface": {"Address": "10.1.0.2/24"}}`, "not an ID"},
		{"CreateEndpoint", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `", "Interface": {"Address": "10.1.0.2/24", "MacAddress": "01:00:5e:00:00:01"}}`, "single device"},
		{"CreateEndpoint", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `", "Interface": {"Address": "10.1.0.2/24"}, "Options": {"bpfnet.name": "../x"}}`, "name"},
		{"CreateEndpoint", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `", "Interface": {"Address": "10.1.0.2/24"}}`, "not known to bpfnet"},
		{"Join", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `", "SandboxKey": "/a/../b"}`, "not a path"},
		{"Join", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `", "SandboxKey": "/a"}`, "not known to bpfnet"},
		{"ProgramExternalConnectivity", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `", "Options": {"com.docker.network.portmap": 7}}`, "not understood"},
		{"EndpointOperInfo", `{"NetworkID": "` + id + `", "EndpointID": "` + id + `"}`, "not known"},
		{"CreateNetwork", strings.Repeat(" ", maxBody+1), "too large"},
	} {
		_, answer := post("NetworkDriver."+c.method, c.body)
		var said struct{ Err string }
		require.NoError(t, json.Unmarshal([]byte(answer), &said), answer)
		require.Contains(t, said.Err, c.words, "%s %.100s", c.method, c.body)
		require.NotContains(t, said.Err, "\n")
	}
	for _, method := range []string{"DeleteNetwork", "DeleteEndpoint", "Leave", "RevokeExternalConnectivity"} {
		_, answer = post("NetworkDriver."+method, `{"NetworkID": "`+id+`", "EndpointID": "`+id+`"}`)
		require.JSONEq(t, `{}`, answer, "what is gone is gone")
	}
	_, err = os.Stat(filepath.Join(dir, "root", "store.db"))
	require.ErrorIs(t, err, os.ErrNotExist)
	stop()
	require.NoError(t, <-ended)
	_, err = os.Stat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}
