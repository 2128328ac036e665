// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// The end of a command ends nothing but what that command was started in, whoever comes late.
func TestFinishedLate(t *testing.T) {
	l := newLab(t)
	c, err := l.m.CreateContainer(ContainerOptions{Name: "job", Args: []string{"x"}})
	require.NoError(t, err)
	state := func() string {
		t.Helper()
		c, err := l.m.Container("job")
		require.NoError(t, err)
		return c.State
	}
	start := func() (pid int) {
		t.Helper()
		cmd := exec.Command("sleep", "1000")
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		require.NoError(t, l.m.Started(c.ID, cmd.Process.Pid, 0))
		return cmd.Process.Pid
	}
	first := start()
	require.NoError(t, l.m.Finished(c.ID, first, 3))
	require.Equal(t, StateExited, state())
	err = l.m.Started(c.ID, first, 0)
	require.ErrorIs(t, err, ErrConflict)
	require.ErrorContains(t, err, "was ended while its command was started")
	require.Equal(t, StateExited, state())

	_, err = l.m.PrepareStart(c.ID)
	require.NoError(t, err)
	require.NoError(t, l.m.Finished(c.ID, first, 3))
	require.Equal(t, StateCreated, state(), "being started again")
	second := start()
	require.NoError(t, l.m.Finished(c.ID, first, 3))
	require.Equal(t, StateRunning, state(), "started again")
	require.NoError(t, l.m.Finished(c.ID, second, 0))
	require.Equal(t, StateExited, state())
}

// A container writes what it likes into its files, and however much.
func TestHugeHosts(t *testing.T) {
	l := newLab(t)
	c, _ := l.container("web", ContainerOptions{})
	path := l.m.ContainerDir(c.ID) + "/hosts"
	require.NoError(t, exec.Command("truncate", "-s", "1T", path).Run())
	_, err := l.m.Reconcile()
	require.NoError(t, err)
	_, err = l.m.CreateNetwork(NetworkOptions{Name: "more"})
	require.NoError(t, err)
	require.NoError(t, l.m.Connect("more", "web", EndpointOptions{}))
	require.Contains(t, l.file(c, "hosts"), "172.18.0.2\t"+c.Hostname)
}

// Who shares a network shares its name, as Docker has it.
func TestHostnames(t *testing.T) {
	l := newLab(t)
	l.container("web", ContainerOptions{Hostname: "box"})
	own, err := os.Hostname()
	require.NoError(t, err)
	for net, want := range map[string]string{"host": own, "container:web": "box", "none": ""} {
		c, err := l.m.CreateContainer(ContainerOptions{Network: net, Args: []string{"x"}})
		require.NoError(t, err)
		if want == "" {
			want = c.ID[:12]
		}
		require.Equal(t, want, c.Hostname, net)
	}
}
