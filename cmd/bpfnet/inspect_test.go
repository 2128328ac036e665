// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

func sampleContainer() (*control.Container, []*control.Network) {
	n := &control.Network{
		ID: "net1", Name: "mynet", Bridge: "br1", ICC: true, Masquerade: true, MTU: 1500, Isolate: true,
		Subnets: []control.Subnet{
			{Prefix: netip.MustParsePrefix("172.18.0.0/16"), Gateway: netip.MustParseAddr("172.18.0.1"), Range: netip.MustParsePrefix("172.18.1.0/24")},
			{Prefix: netip.MustParsePrefix("fd00:1::/64"), Gateway: netip.MustParseAddr("fd00:1::1"), Router: netip.MustParseAddr("fd00:1::ff")},
		},
	}
	c := container("web", control.StateRunning, "server", "-v")
	c.PID, c.Env, c.Hostname = 4711, []string{"A=b"}, "web"
	c.Started = time.Date(2026, 5, 1, 12, 0, 0, 5, time.FixedZone("", 3600))
	c.Exposed = []string{"22/tcp"}
	c.Publish = []string{"8080:80"}
	c.Links = []control.Link{{Target: "x", Name: "db", Alias: "database"}}
	c.Endpoints = map[string]*control.Endpoint{"net1": {
		Slot: 3, Network: "net1", MAC: "02:00:00:00:00:01", IfName: "eth0", HostIf: "veth1", Gateway: true,
		IPv4: netip.MustParsePrefix("172.18.1.2/16"), IPv6: netip.MustParsePrefix("fd00:1::2/64"), WantIPv4: netip.MustParseAddr("172.18.1.2"),
	}}
	return c, []*control.Network{n}
}

// Docker's own templates work: what people have in their scripts.
func TestInspectTemplates(t *testing.T) {
	c, networks := sampleContainer()
	v := inspectContainer(c, publications(t, "0.0.0.0 8080 80 1 tcp", ":: 8080 80 1 tcp"), networks, "/dir")
	for text, want := range map[string]string{
		"{{.Id}} {{.ID}}":                      c.ID + " " + c.ID,
		"{{.Name}}":                            "/web",
		"{{.NetworkSettings.IPAddress}}":       "172.18.1.2",
		"{{.State.Running}} {{.State.Pid}}":    "true 4711",
		"{{if eq .State.ExitCode 0}}ok{{end}}": "ok",
		"{{.State.StartedAt}}":                 "2026-05-01T11:00:00.000000005Z",
		"{{range .NetworkSettings.Networks}}{{.IPAddress}}/{{.IPPrefixLen}} {{.MacAddress}} {{.Gateway}}{{end}}":      "172.18.1.2/16 02:00:00:00:00:01 172.18.0.1",
		"{{.NetworkSettings.Networks.mynet.GlobalIPv6Address}} {{.NetworkSettings.Networks.mynet.IPv6Gateway}}":       "fd00:1::2 fd00:1::ff",
		`{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}`:                                              "8080",
		"{{range $p, $conf := .NetworkSettings.Ports}}{{if $conf}}{{$p}} -> {{(index $conf 1).HostIp}}{{end}}{{end}}": "80/tcp -> ::",
		"{{json .NetworkSettings.Ports}}": `{"22/tcp":null,"80/tcp":[{"HostIp":"0.0.0.0","HostPort":"8080"},{"HostIp":"::","HostPort":"8080"}]}`,
		"{{json .Config.ExposedPorts}}":   `{"22/tcp":{},"80/tcp":{}}`,
		"{{join .Config.Cmd \" \"}}|{{.HostConfig.NetworkMode}}|{{index .HostConfig.Links 0}}|{{.Path}}|{{index .Args 0}}": "server -v|mynet|/db:/web/database|server|-v",
		"{{json .HostConfig.Dns}}{{.HostsPath}}": "[]/dir/hosts",
	} {
		tm, err := template.New("").Funcs(templateFuncs).Option("missingkey=error").Parse(text)
		require.NoError(t, err, text)
		var got strings.Builder
		require.NoError(t, render(&got, tm, v), text)
		require.Equal(t, want, got.String(), text)
	}
}

func TestInspectNetwork(t *testing.T) {
	c, networks := sampleContainer()
	stopped := container("old", control.StateExited)
	stopped.ID, stopped.Endpoints = "x", c.Endpoints
	data, err := json.Marshal(inspectNetwork(networks[0], []*control.Container{c, stopped}))
	require.NoError(t, err)
	var got map[string]any
	require.NoError(t, json.Unmarshal(data, &got))
	require.Equal(t, "bridge", got["Driver"])
	require.Equal(t, true, got["EnableIPv6"])
	require.Equal(t, map[string]any{}, got["Labels"])
	require.Equal(t, map[string]any{"Driver": "default", "Config": []any{
		map[string]any{"Subnet": "172.18.0.0/16", "IPRange": "172.18.1.0/24", "Gateway": "172.18.0.1"},
		map[string]any{"Subnet": "fd00:1::/64", "Gateway": "fd00:1::1"},
	}}, got["IPAM"])
	require.Equal(t, map[string]any{c.ID: map[string]any{
		"Name": "web", "EndpointID": "3", "MacAddress": "02:00:00:00:00:01", "IPv4Address": "172.18.1.2/16", "IPv6Address": "fd00:1::2/64",
	}}, got["Containers"])
	require.Equal(t, "br1", got["Options"].(map[string]any)[optBridge])
}

// One that is not found spoils nothing for the others.
func TestInspectSeveral(t *testing.T) {
	out, err := os.Create(t.TempDir() + "/out")
	require.NoError(t, err)
	defer out.Close()
	a := &app{out: &output{file: out}}
	err = a.inspect([]string{"a", "no", "b"}, "{{.Id}}", func(name string) (any, error) {
		if name == "no" {
			return nil, errors.New("no such thing: no")
		}
		return map[string]string{"Id": name}, nil
	})
	require.EqualError(t, err, "no such thing: no")
	data, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	require.Equal(t, "a\nb\n", string(data))

	for bad, text := range map[string]string{
		"{{.Nope}}":           "--format: no field Nope; inspect without it shows all",
		"{{.Id}}{{.Id.Nope}}": "--format: no field Nope; inspect without it shows all",
		"{{.Null.Nope}}":      "--format: no field Nope; inspect without it shows all",
	} {
		err = a.inspect([]string{"a"}, bad, func(string) (any, error) { return map[string]any{"Id": "a", "Null": nil}, nil })
		require.EqualError(t, err, text, bad)
	}
	data, err = os.ReadFile(out.Name())
	require.NoError(t, err)
	require.Equal(t, "a\nb\n", string(data), "nothing before the error")
}
