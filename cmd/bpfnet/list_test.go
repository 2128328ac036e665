// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

func TestAgo(t *testing.T) {
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		0:                        "Less than a second",
		999 * time.Millisecond:   "Less than a second",
		time.Second:              "1 second",
		59 * time.Second:         "59 seconds",
		60 * time.Second:         "About a minute",
		2 * time.Minute:          "2 minutes",
		59 * time.Minute:         "59 minutes",
		60 * time.Minute:         "About an hour",
		90 * time.Minute:         "2 hours",
		47 * time.Hour:           "47 hours",
		48 * time.Hour:           "2 days",
		13 * day:                 "13 days",
		14 * day:                 "2 weeks",
		59 * day:                 "8 weeks",
		60 * day:                 "2 months",
		364 * day:                "12 months",
		2 * 365 * day:            "2 years",
		-time.Second:             "Less than a second",
		2*time.Minute + 59*1e9:   "2 minutes",
		29*time.Minute + 1:       "29 minutes",
		30*time.Hour + 29*60*1e9: "30 hours",
	} {
		require.Equal(t, want, ago(d), d)
	}
}

func container(name, state string, args ...string) *control.Container {
	return &control.Container{ID: strings.Repeat("0123456789abcdef", 4), Name: name, State: state, Mode: control.ModeNetwork, Args: args}
}

func TestPsTable(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	up := container("web", control.StateRunning, "python3", "-m", "http.server", "80")
	up.Created, up.Started, up.PID = now.Add(-2*time.Minute), now.Add(-3*time.Second), 4711
	up.Exposed = []string{"443/tcp"}
	up.Endpoints = map[string]*control.Endpoint{"n1": {}, "n2": {}}
	down := container("job", control.StateExited, "true")
	down.Created, down.Finished, down.ExitCode = now.Add(-time.Hour), now.Add(-5*time.Second), 3
	made := container("new", control.StateCreated, "sleep", "1")
	made.Created = now
	taken := container("lab", control.StateRunning)
	taken.Created, taken.Attached = now.Add(-48*time.Hour), true
	names := map[string]string{"n1": "front", "n2": "back"}

	var rows []any
	for _, c := range []*control.Container{up, down, made, taken} {
		var pubs []control.Publication
		if c == up {
			pubs = publications(t, "0.0.0.0 8080 80 1 tcp", ":: 8080 80 1 tcp")
		}
		rows = append(rows, psRowOf(c, pubs, names, false, now))
	}
	var out strings.Builder
	require.NoError(t, psListing.print(&out, "", rows))
	require.Equal(t, strings.TrimLeft(`
CONTAINER ID   COMMAND                  CREATED                  STATUS                     PORTS                                              NAMES
0123456789ab   "python3 -m http.ser…"   2 minutes ago            Up 3 seconds               443/tcp, 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp   web
0123456789ab   "true"                   About an hour ago        Exited (3) 5 seconds ago                                                      job
0123456789ab   "sleep 1"                Less than a second ago   Created                                                                       new
0123456789ab   "(attached)"             2 days ago               Up 2 days                                                                     lab
`, "\n"), out.String())

	down.Finished = time.Time{}
	require.Equal(t, "Exited (3)", statusText(down, now), "its supervisor had died")

	for format, want := range map[string]string{
		"{{.Names}}: {{.Networks}}":                               "web: back,front\n",
		`{{.ID}}\t{{.State}}`:                                     "0123456789ab   running\n",
		`table {{.Names}}\t{{.Status}}`:                           "NAMES     STATUS\nweb       Up 3 seconds\n",
		"{{upper .Names}} {{json .Ports}} {{.PID}}":               "WEB \"443/tcp, 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp\" 4711\n",
		"{{truncate .Names 2}}{{pad .State 1 1}}{{title .State}}": "we running Running\n",
	} {
		out.Reset()
		require.NoError(t, psListing.print(&out, format, rows[:1]), format)
		require.Equal(t, want, out.String(), format)
	}
	out.Reset()
	require.NoError(t, psListing.print(&out, "json", rows[:1]))
	require.Contains(t, out.String(), `"Names":"web"`)
	require.Equal(t, 1, strings.Count(out.String(), "\n"))

	fields := "there are Command, CreatedAt, ID, Names, Networks, PID, Ports, RunningFor, State, Status"
	for bad, text := range map[string]string{
		"{{":                "--format: unclosed action",
		"{{nonsense .ID}}":  `--format: function "nonsense" not defined`,
		"{{.ID}} {{.Nope}}": "--format: no field Nope; " + fields,
		"table {{.Nope}}":   "--format: no field Nope; " + fields,
		"table {{.ID}}{{if eq .ID \"1\"}}{{end}}{{range split .ID \"\"}}{{.Nope}}{{end}}": "--format: no field Nope; " + fields,
		"{{.ID.Nope}}":       "--format: no field Nope; " + fields,
		"{{join .ID \",\"}}": "--format: <join .ID \",\">: error calling join: not a list",
	} {
		out.Reset()
		require.EqualError(t, psListing.print(&out, bad, rows), text, bad)
		require.Empty(t, out.String(), bad)
	}
}

func TestPsSelection(t *testing.T) {
	all := []*control.Container{
		container("a", control.StateRunning), container("b", control.StateExited), container("c", control.StateRunning), container("d", control.StateCreated),
	}
	got := func(every bool, last int) (names string) {
		for _, c := range selectContainers(all, every, last) {
			names += c.Name
		}
		return names
	}
	require.Equal(t, "ca", got(false, -1), "running, newest first")
	require.Equal(t, "dcba", got(true, -1))
	require.Equal(t, "d", got(false, 1))
	require.Equal(t, "dcb", got(true, 3))
	require.Equal(t, "", got(true, 0))
}

func TestNetworkTable(t *testing.T) {
	var out strings.Builder
	n := &control.Network{ID: strings.Repeat("ab", 32), Name: "bridge", Bridge: "bpfnet0", Labels: map[string]string{"b": "2", "a": "1"}}
	require.NoError(t, networkListing.print(&out, "", []any{networkRowOf(n, false)}))
	require.Equal(t, "NETWORK ID     NAME      DRIVER    SCOPE\nabababababab   bridge    bridge    local\n", out.String())
	out.Reset()
	require.NoError(t, networkListing.print(&out, "{{.ID}} {{.Labels}} {{.Internal}}", []any{networkRowOf(n, true)}))
	require.Equal(t, n.ID+" a=1,b=2 false\n", out.String())
}

func TestBridgeRows(t *testing.T) {
	rows := bridgeRows([]control.BridgeInfo{
		{Name: "br0", ID: "8000.02", STP: true},
		{Name: "br1", ID: "8000.03", Ports: []control.BridgePort{{Device: "v1", Container: "web", Interface: "eth0"}, {Device: "tap0"}}},
	})
	require.Equal(t, [][]string{
		{"br0", "8000.02", "yes", "", ""},
		{"br1", "8000.03", "no", "v1", "web (eth0)"},
		{"", "", "", "tap0", ""},
	}, rows)
}
