// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

func TestSeekTail(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		text  string
		lines int
		want  string
	}{
		{"a\nb\nc\n", 2, "b\nc\n"},
		{"a\nb\nc", 2, "b\nc"},
		{"a\nb\nc\n", 3, "a\nb\nc\n"},
		{"a\nb\nc\n", 9, "a\nb\nc\n"},
		{"a\nb\nc\n", 0, ""},
		{"a\nb\nc\n", -1, "a\nb\nc\n"},
		{"", 3, ""},
		{"\n\n\n", 2, "\n\n"},
		{"\n", 1, "\n"},
		{"a\n" + long + "\n" + long + "\nz\n", 2, long + "\nz\n"},
		{long, 1, long},
		{strings.Repeat("l\n", 100_000), 99_999, strings.Repeat("l\n", 99_999)},
	} {
		r := bytes.NewReader([]byte(c.text))
		require.NoError(t, seekTail(r, c.lines))
		got, err := io.ReadAll(r)
		require.NoError(t, err)
		require.Equal(t, c.want, string(got))
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("PATH", "/host/bin")
	t.Setenv("TAKEN", "from here")
	dir, err := os.Getwd()
	require.NoError(t, err)
	env, err := environment([]string{"A=1", "A=2=3", "TAKEN", "NOT_HERE", "HOME="}, "", "")
	require.NoError(t, err)
	require.Equal(t, []string{"PATH=/host/bin", "HOME=", "PWD=" + dir, "A=2=3", "TAKEN=from here"}, env)

	env, err = environment(nil, "/some/root", "")
	require.NoError(t, err)
	require.Equal(t, []string{"PATH=" + defaultPath, "HOME=/root"}, env)

	env, err = environment([]string{"PATH=/mine"}, "/some/root", "/srv")
	require.NoError(t, err)
	require.Equal(t, []string{"PATH=/mine", "HOME=/root", "PWD=/srv"}, env)
}

func TestCommandEnv(t *testing.T) {
	c := container("web", "running", "sh")
	c.Hostname, c.Env = "inside", []string{"A=1"}
	require.Equal(t, []string{"A=1", "HOSTNAME=inside"}, commandEnv(c))
	t.Setenv("TERM", "dumb")
	c.TTY, c.Env = true, []string{"HOSTNAME=mine"}
	require.Equal(t, []string{"HOSTNAME=mine", "TERM=dumb"}, commandEnv(c))
	require.Equal(t, []string{"HOSTNAME=mine"}, c.Env, "the record is not touched")
}

func TestAddressPool(t *testing.T) {
	pool, err := addressPool("base=10.200.0.0/16,size=24")
	require.NoError(t, err)
	require.Equal(t, control.AddressPool{Base: "10.200.0.0/16", Size: 24}, pool)
}

func TestDriverOptions(t *testing.T) {
	no := false
	var o control.NetworkOptions
	require.NoError(t, driverOptions(&o, []string{
		optBridge + "=br9", optICC + "=false", optMasquerade + "=0", optBindAddress + "=127.0.0.1", optMTU + "=1400", optGatewayMode4 + "=routed",
	}, func(string) bool { return false }))
	require.Equal(t, control.NetworkOptions{Bridge: "br9", ICC: &no, Masquerade: &no, BindAddress: "127.0.0.1", MTU: 1400, Routed: true}, o)
}
