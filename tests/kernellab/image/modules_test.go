// SPDX-License-Identifier: Apache-2.0

package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tree is the modules of a kernel by what each needs; those with a + are built in.
func tree(needs map[string]string) *modules {
	m := &modules{files: make(map[string]string), builtin: make(map[string]bool)}
	for name := range needs {
		if plain, ok := strings.CutPrefix(name, "+"); ok {
			m.builtin[moduleName(plain)] = true
		} else {
			m.files[moduleName(name)] = name + ".ko"
		}
	}
	m.depends = func(file string) ([]string, error) {
		return strings.FieldsFunc(needs[strings.TrimSuffix(file, ".ko")], func(r rune) bool { return r == ',' }), nil
	}
	return m
}

func TestOrder(t *testing.T) {
	needs := map[string]string{"llc": "", "stp": "llc", "bridge": "stp,llc", "br_netfilter": "bridge", "8021q": "garp,mrp", "garp": "stp,llc", "mrp": "",
		"udp-tunnel": "", "wireguard": "udp_tunnel", "+ipv6": "", "vxlan": "udp_tunnel,ipv6", "one": "two", "two": "three", "three": "one", "self": "self"}
	m := tree(needs)
	for _, wanted := range [][]string{{"bridge"}, {"br_netfilter", "8021q"}, {"8021q", "bridge", "bridge", "llc"}, {"wireguard", "vxlan"}, {"udp-tunnel", "udp_tunnel"}, nil} {
		files, err := m.order(wanted)
		require.NoError(t, err)
		at := make(map[string]int)
		for i, f := range files {
			name := moduleName(f)
			require.NotContains(t, at, name, "twice: %v", files)
			at[name] = i
		}
		var check func(name string)
		check = func(name string) {
			require.Contains(t, at, moduleName(name), "%v", files)
			for _, f := range []string{name, strings.ReplaceAll(name, "_", "-")} {
				for _, n := range strings.FieldsFunc(needs[f], func(r rune) bool { return r == ',' }) {
					if m.builtin[n] {
						continue
					}
					check(n)
					require.Less(t, at[moduleName(n)], at[moduleName(name)], "%s before %s: %v", n, name, files)
				}
			}
		}
		for _, name := range wanted {
			check(name)
		}
	}
	files, err := m.order([]string{"ipv6"})
	require.NoError(t, err)
	require.Empty(t, files, "built in")

	_, err = m.order([]string{"bridge", "nonesuch"})
	require.ErrorIs(t, err, ErrNoModule)
	require.ErrorContains(t, err, "module nonesuch")
	for _, name := range []string{"one", "self"} {
		_, err = m.order([]string{name})
		require.ErrorContains(t, err, "needs itself")
	}
}

// A kernel's directory as dpkg -x leaves it.
func TestReadModules(t *testing.T) {
	kernel := t.TempDir()
	_, err := readModules(kernel)
	require.ErrorContains(t, err, "0 trees")
	dir := filepath.Join(kernel, "lib/modules/6.1.0")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "kernel/net"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.builtin"), []byte("kernel/net/ipv6/ipv6.ko\nkernel/net/packet/af-packet.ko\n"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kernel/net/udp-tunnel.ko"), nil, 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "kernel/net/packed.ko.xz"), nil, 0o644))
	m, err := readModules(kernel)
	require.NoError(t, err)
	require.Equal(t, map[string]string{"udp_tunnel": filepath.Join(dir, "kernel/net/udp-tunnel.ko")}, m.files)
	require.Equal(t, map[string]bool{"ipv6": true, "af_packet": true}, m.builtin)

	_, err = m.order([]string{"udp_tunnel"})
	require.Error(t, err, "an empty file is no module")
	self, err := os.Executable()
	require.NoError(t, err)
	needs, err := dependsOf(self)
	require.NoError(t, err)
	require.Empty(t, slices.Compact(needs), "a program needs no module")
}
