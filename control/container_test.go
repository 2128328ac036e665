// SPDX-License-Identifier: Apache-2.0

package control

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestFirstContainer(t *testing.T) {
	l := newLab(t)
	c, ns := l.container("web", ContainerOptions{Publish: []string{"8080:80"}})
	require.Equal(t, StateRunning, c.State)
	require.Equal(t, []string{"lo", "eth0"}, links(t, ns))
	require.Contains(t, links(t, l.host), "bpfnet0")

	pubs, err := l.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, pubs, 1)
	require.Equal(t, uint16(8080), pubs[0].HostPort)

	pubs, err = l.m.Publish("web", "9090:90", "127.0.0.1::91/udp")
	require.NoError(t, err)
	require.Len(t, pubs, 2)

	hosts, err := os.ReadFile(filepath.Join(l.m.ContainerDir(c.ID), "hosts"))
	require.NoError(t, err)
	require.Contains(t, string(hosts), "172.17.0.2\t"+c.Hostname+"\n")

	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Empty(t, lines)

	st, err := l.m.Status()
	require.NoError(t, err)
	require.Empty(t, st.Problems)

	require.NoError(t, l.m.RemoveContainer("web"))
	require.Equal(t, []string{"lo"}, links(t, ns))
	require.NoError(t, l.m.Uninstall())
	require.Equal(t, []string{"lo", "eth0"}, links(t, l.host))
	_, err = os.Stat(l.o.Root)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = os.Stat(l.o.BPFFS)
	require.ErrorIs(t, err, os.ErrNotExist)
}
