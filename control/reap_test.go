// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"
)

// A container whose command died with nobody to tell holds nothing that another asks for.
func TestReap(t *testing.T) {
	l := newLab(t)
	die := func(o ContainerOptions) *Container {
		c, err := l.m.CreateContainer(o)
		require.NoError(t, err)
		cmd := exec.Command("sleep", "1000")
		require.NoError(t, cmd.Start())
		require.NoError(t, l.m.Started(c.ID, cmd.Process.Pid, 0))
		got, err := l.m.Container(c.ID)
		require.NoError(t, err)
		require.Equal(t, StateRunning, got.State)
		require.ErrorContains(t, l.m.RemoveContainer(c.ID), "container is running")
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait()
		return c
	}
	c := die(ContainerOptions{Name: "one", Publish: []string{"127.0.0.1:8080:80"}, Args: []string{"x"}})
	die(ContainerOptions{Name: "two", AutoRemove: true, Publish: []string{"81"}, Args: []string{"x"}})

	var addr EndpointOptions
	for _, ep := range c.Endpoints {
		addr.IPv4 = ep.IPv4.Addr()
	}
	l.container("two", ContainerOptions{Publish: []string{"8080:80"}, Endpoint: addr})
	got, err := l.m.Container("one")
	require.NoError(t, err)
	require.Equal(t, StateExited, got.State)
	require.Equal(t, 255, got.ExitCode, "of which nobody has heard")
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)
	require.NoError(t, l.m.RemoveContainer("one"))
}
