// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// completions splits what __complete prints: the words, and what the shell does with them.
func completions(t *testing.T, out string) (words []string, directive string) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	for _, line := range lines {
		if rest, ok := strings.CutPrefix(line, ":"); ok {
			return words, rest
		}
		word, _, _ := strings.Cut(line, "\t")
		words = append(words, word)
	}
	require.Fail(t, "no directive", out)
	return nil, ""
}

const (
	noFiles  = "4" // cobra.ShellCompDirectiveNoFileComp
	someFile = "0"
	dirs     = "16"
)

// Values are completed where they are known, files where a file is wanted, and nothing else.
func TestCompletions(t *testing.T) {
	t.Setenv("BPFNET_ROOT", t.TempDir()+"/none")
	for _, c := range []struct {
		line      string
		words     string
		directive string
	}{
		{"-o ''", "text json", noFiles},
		{"--datapath ''", "bpf iptables", noFiles},
		{"--config ''", "", someFile},
		{"--netns ''", "", someFile},
		{"--root ''", "", dirs},
		{"--bpffs ''", "", dirs},
		{"--cgroup ''", "", dirs},
		{"network create ''", "", noFiles},
		{"network create -d ''", "bridge", noFiles},
		{"network create --gateway-mode ''", "nat routed", noFiles},
		{"network create --subnet ''", "", noFiles},
		{"network connect --link ''", "", noFiles},
		{"init --iptables-flavour ''", "nft legacy", noFiles},
		{"flows --proto ''", "tcp udp sctp icmp icmpv6", noFiles},
		{"flows flush --proto ''", "tcp udp sctp icmp icmpv6", noFiles},
		{"publish web ''", "", noFiles},
		{"unpublish web ''", "", noFiles},
		{"status ''", "", noFiles},
		{"reconcile ''", "", noFiles},
		{"uninstall ''", "", noFiles},
		{"version ''", "", noFiles},
		{"bench --svg ''", "", someFile},
		{"bench --json ''", "", someFile},
		{"daemon --docker-host ''", "", noFiles},
		{"run --name ''", "", noFiles},
		{"run --rootfs ''", "", dirs},
		{"run --workdir ''", "", dirs},
		{"run ''", "", someFile}, // a command of the host's
		{"exec web ''", "", someFile},
		{"run --net ''", "none host", noFiles},
		{"attach ''", "", noFiles},
		{"attach foo ''", "pid: netns: docker:", "6"}, // and no space after it
		{"attach foo pid:1 ''", "", noFiles},
		{"help network r", "rm", noFiles},
	} {
		out, _, code := bpfnet(t, append([]string{"__complete"}, words(c.line)...)...)
		require.Zero(t, code, c.line)
		got, directive := completions(t, out)
		require.Equal(t, c.words, strings.Join(got, " "), c.line)
		require.Equal(t, c.directive, directive, c.line)
	}
}

func TestCompletedNames(t *testing.T) {
	l := newLab(t)
	l.must("run", "-d", "--name", "web", "sleep", "1000")
	l.must("network", "create", "mynet")
	for line, want := range map[string]string{
		"stop ''":                   "web",
		"rm ''":                     "web",
		"rm web ''":                 "",
		"exec ''":                   "web",
		"network connect ''":        "bridge mynet",
		"network connect mynet ''":  "web",
		"network connect --link ''": "web",
		"network inspect ''":        "bridge mynet",
		"network rm ''":             "mynet",
		"flows --container ''":      "web",
		"run --net ''":              "none host bridge mynet container:web",
		"run --network container:":  "none host bridge mynet container:web", // the shell takes what fits
	} {
		out := l.must(append([]string{"__complete"}, words(line)...)...)
		got, directive := completions(t, out)
		require.Equal(t, want, strings.Join(got, " "), line)
		require.Equal(t, noFiles, directive, line)
	}
	l.must("rm", "-f", "web")
}
