// SPDX-License-Identifier: Apache-2.0

package process

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRootfs(t *testing.T) {
	dir := copyRoot(t, "sh", "ls", "cat", "readlink", "hostname")
	resolv := writeFile(t, t.TempDir()+"/resolv", "nameserver 192.0.2.53\n", 0o644)
	require.NoError(t, os.Mkdir(dir+"/etc", 0o755))
	require.NoError(t, os.Symlink("../run/systemd/resolve/stub-resolv.conf", dir+"/etc/resolv.conf"))
	out, code := run(t, Spec{
		Args:      sh(`ls /; cat /etc/resolv.conf; readlink /proc/self/exe; ls /sys/class/net; echo x >/dev/null && ls /dev; ls /proc/1/root/..; cat /proc/self/mountinfo | while read a b c d e f; do echo "mount $e"; done`),
		NetnsFile: newNetns(t), NewMount: true, NewUTS: true, Hostname: "inside", Rootfs: dir,
		Binds: map[string]string{"/etc/resolv.conf": resolv, "/etc/hostname": resolv},
	})
	require.Zero(t, code, out)
	require.Contains(t, out, "nameserver 192.0.2.53")
	require.Contains(t, out, "/bin/readlink", "the root is the directory")
	require.Contains(t, out, "\nlo\n")
	require.Contains(t, out, "urandom")
	require.NotContains(t, out, "mount "+dir, "nothing of the host's tree is left")
	require.Contains(t, out, "mount /run/systemd/resolve/stub-resolv.conf")
	for _, line := range strings.Split(out, "\n") {
		require.NotContains(t, line, "mount /home")
	}
	hostMounts, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(hostMounts), dir, "nothing reaches the host's mounts")

	info, err := os.Stat(dir + "/run/systemd/resolve/stub-resolv.conf")
	require.NoError(t, err)
	require.Zero(t, info.Size(), "an empty file holds the place")

	_, err = Start(Spec{Args: []string{"env"}, Env: env, NewMount: true, Rootfs: dir})
	var se *StartError
	require.ErrorAs(t, err, &se)
	require.Equal(t, CodeNotFound, se.Code, "the host's commands are not found in another root")
}

// A container's file system is its own to arrange: links in it must not lead bpfnet out of it.
func TestNothingEscapesTheRoot(t *testing.T) {
	outside := t.TempDir()
	secret := writeFile(t, outside+"/secret", "keep", 0o600)
	source := writeFile(t, t.TempDir()+"/hosts", "new", 0o644)
	for name, link := range map[string]string{
		"absolute":           secret,
		"upwards":            "../../../../../../../../.." + secret,
		"dangling, absolute": outside + "/created",
		"dangling, upwards":  "../../../../../../../../.." + outside + "/created",
		"magic":              "/proc/self/cwd/created",
		"loop":               "/etc/hosts",
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyRoot(t, "sh", "cat")
			require.NoError(t, os.Mkdir(dir+"/etc", 0o755))
			require.NoError(t, os.Symlink(link, dir+"/etc/hosts"))
			r, w, err := os.Pipe()
			require.NoError(t, err)
			defer r.Close()
			p, err := Start(Spec{
				Args: []string{"cat", "/etc/hosts"}, Env: env, Stdout: w, NewMount: true, Rootfs: dir,
				Binds: map[string]string{"/etc/hosts": source},
			})
			w.Close()
			switch name {
			case "magic", "loop":
				require.ErrorContains(t, err, "/etc/hosts")
			default:
				require.NoError(t, err)
				out, err := io.ReadAll(r)
				require.NoError(t, err)
				_, err = p.Wait()
				require.NoError(t, err)
				require.Equal(t, "new", string(out))
			}
			data, err := os.ReadFile(secret)
			require.NoError(t, err)
			require.Equal(t, "keep", string(data))
			entries, err := os.ReadDir(outside)
			require.NoError(t, err)
			require.Len(t, entries, 1, "nothing was made outside")
		})
	}
	t.Run("linked directory", func(t *testing.T) {
		dir := copyRoot(t, "cat")
		require.NoError(t, os.Symlink(outside, dir+"/etc"))
		_, err := Start(Spec{
			Args: []string{"cat", "/etc/hosts"}, Env: env, NewMount: true, Rootfs: dir,
			Binds: map[string]string{"/etc/hosts": source},
		})
		require.ErrorContains(t, err, "/etc/hosts")
		require.NoFileExists(t, outside+"/hosts")
	})
	t.Run("directory in the way", func(t *testing.T) {
		dir := copyRoot(t, "cat")
		require.NoError(t, os.MkdirAll(dir+"/etc/hosts", 0o755))
		_, err := Start(Spec{
			Args: []string{"cat"}, Env: env, NewMount: true, Rootfs: dir,
			Binds: map[string]string{"/etc/hosts": source},
		})
		require.ErrorContains(t, err, "/etc/hosts: is a directory")
	})
}

func TestRelativeRootfs(t *testing.T) {
	dir := copyRoot(t, "sh")
	t.Chdir(filepath.Dir(dir))
	out, code := run(t, Spec{Args: sh("echo /*"), NewMount: true, Rootfs: filepath.Base(dir)})
	require.Zero(t, code, out)
	require.NotContains(t, out, "/home")
}

func TestRootOpensWithin(t *testing.T) {
	dir := t.TempDir()
	r, err := openRoot(dir)
	require.NoError(t, err)
	defer r.Close()
	fd, err := r.mkdirAll("/a/b/../c/d")
	require.NoError(t, err)
	unix.Close(fd)
	require.DirExists(t, dir+"/a/c/d")
	fd, err = r.file("/a/c/d/f")
	require.NoError(t, err)
	unix.Close(fd)
	require.FileExists(t, dir+"/a/c/d/f")
}
