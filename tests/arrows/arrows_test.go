// SPDX-License-Identifier: Apache-2.0

// Package arrows holds the code base to its drawing: who may import whom.
//
//	cmd/bpfnet → control → control/{ipam,link,netns,ports,process,store,watch}, maps
//	cmd/bpfnet → control/{docker,dockerdriver,cni,netavark} → control, control/{ipam,netns}
//	             control → control/datapath/{bpf,iptables} → control/datapath → control/link, maps
//	             control/datapath/bpf, maps → loader
//	maps → loader
//	tests → all
package arrows

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "github.com/bpfnet/bpfnet"

// allowed lists what each room may import of ours; "*" is everything.
var allowed = map[string][]string{
	"":                          {},
	"cmd/bpfnet":                {"control", "control/bench", "control/cni", "control/demo", "control/docker", "control/dockerdriver", "control/netavark", "control/process"},
	"control":                   {"control/ipam", "control/link", "control/netns", "control/ports", "control/process", "control/store", "control/watch", "control/datapath", "control/datapath/bpf", "control/datapath/iptables", "maps"},
	"control/datapath":          {"control/link", "control/netns", "maps"},
	"control/datapath/iptables": {"control/datapath", "control/link", "control/netns", "maps"},
	"control/datapath/bpf":      {"control/datapath", "control/link", "loader", "maps"},
	"control/bench":             {"control", "control/lab", "control/netns"},
	"control/cni":               {"control", "control/netns"},
	"control/demo":              {"control", "control/lab", "control/netns"},
	"control/docker":            {"control"},
	"control/dockerdriver":      {"control"},
	"control/ipam":              {},
	"control/lab":               {"control/netns"},
	"control/link":              {"control/netns"},
	"control/netavark":          {"control", "control/ipam"},
	"control/netns":             {},
	"control/ports":             {},
	"control/process":           {},
	"control/store":             {},
	"control/watch":             {"control/netns"},
	"maps":                      {"loader"},
	"loader":                    {},
}

func TestArrows(t *testing.T) {
	out, err := exec.Command("go", "list", "-f", "{{.ImportPath}} {{join .Imports \" \"}}", module+"/...").Output()
	require.NoError(t, err)
	seen := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		room := strings.TrimPrefix(strings.TrimPrefix(fields[0], module), "/")
		seen[room] = true
		if strings.HasPrefix(room, "tests/") {
			continue
		}
		may, known := allowed[room]
		require.True(t, known, "%s: a room that the drawing does not have", room)
		for _, imported := range fields[1:] {
			other, ours := strings.CutPrefix(imported, module+"/")
			if ours {
				require.Contains(t, may, other, "%s imports %s", room, other)
			}
		}
	}
	for room := range allowed {
		require.True(t, seen[room], "%s: in the drawing, not in the tree", room)
	}
}
