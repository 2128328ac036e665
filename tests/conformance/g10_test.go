// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// G10: an unprivileged user opens neither pins nor store and runs no command;
// a container's root in its own namespaces cannot touch the host's programs.
func TestG10(t *testing.T) {
	parallel(t)
	c, s, _, _ := ownCast(t)
	before := c.inventory()

	// As nobody: every file of ours refuses, and so does every command.
	nobody := &syscall.Credential{Uid: 65534, Gid: 65534}
	as := func(credential *syscall.Credential, name string, args ...string) (string, error) {
		cmd := c.Command(name, args...)
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.Credential = credential
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	paths := []string{filepath.Join(c.Root, "store.db")}
	if !netfilter() {
		paths = append(paths, filepath.Join(c.BPFFS, "maps", "flows4"), filepath.Join(c.BPFFS, "links"))
	}
	for _, path := range paths {
		_, err := os.Stat(path)
		require.NoError(t, err, "the control: root sees it")
		out, err := as(nobody, "ls", path)
		require.Error(t, err, path)
		require.Contains(t, out, "Permission denied")
	}
	public := filepath.Join("/tmp", filepath.Base(c.Dir)+"-bpfnet")
	image, err := os.ReadFile(lab.Binary(t))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(public, image, 0o755))
	t.Cleanup(func() { os.Remove(public) })
	for _, args := range [][]string{{"ps"}, {"publish", "srv", "9:9"}, {"uninstall"}, {"flows"}} {
		out, err := as(nobody, public, append([]string{"--root", c.Root}, args...)...)
		require.Error(t, err, args)
		require.Equal(t, 1, strings.Count(strings.TrimSpace(out)+"\n", "\n"), "one line: %s", out)
		require.Contains(t, out, "root", args)
	}

	// As root of a user namespace of its own: the container's devices at most.
	for _, script := range []string{
		"bpftool net detach tcx_ingress dev eth0",
		"cat " + filepath.Join(c.Root, "store.db"),
		"ls " + filepath.Join(c.BPFFS, "maps"),
		"nsenter --net=" + c.NetnsPath + " ip link del eth0",
		"nsenter --net=" + c.NetnsPath + " iptables -F FORWARD",
	} {
		out, err := c.Run(s.ns, "setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "unshare", "--user", "--map-root-user", "sh", "-c", script)
		require.Error(t, err, "%s: %s", script, out)
	}
	c.same(before, "what nobody and a container's root tried")
	c.answers(c.Client, at(lab.HostIPv4, 8080), "srv", lab.ClientIPv4)
}
