// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
)

func joining(id, path, network string, publish ...string) JoinOptions {
	return JoinOptions{
		Runtime: "test", ID: RuntimeID("test", id), Names: []string{id}, Netns: path,
		Network: NetworkOptions{Name: network}, Endpoint: EndpointOptions{}, Publish: publish,
	}
}

// A join that cannot be leaves everything as it was: the network that it would have made,
// the container, and one that is on another network already.
func TestJoinUndone(t *testing.T) {
	l := newLab(t)
	a, b := l.keep(newNetns(t), "a"), l.keep(newNetns(t), "b")
	_, err := l.m.Join(joining("first", a, "n1", "8080:80"))
	require.NoError(t, err)
	before := l.state()

	for name, opts := range map[string]JoinOptions{
		"port":       joining("second", b, "n2", "8080:80"),
		"more ports": joining("first", a, "n2", "8080:80", "8080:81"),
		"twice":      joining("first", a, "n1"),
		"address": func() JoinOptions {
			o := joining("second", b, "n1")
			o.Endpoint.IPv4 = netip.MustParseAddr("192.0.2.1")
			return o
		}(),
		"route": func() JoinOptions {
			o := joining("second", b, "n2")
			o.Endpoint.Routes = []Route{{To: netip.MustParsePrefix("192.0.2.0/24"), Via: netip.MustParseAddr("198.51.100.1")}}
			return o
		}(),
		"device":   func() JoinOptions { o := joining("second", b, "n2"); o.Endpoint.IfName = "lo"; return o }(),
		"settings": func() JoinOptions { o := joining("second", b, "n1"); o.Network.Internal = true; return o }(),
		"name":     joining("second", b, "none"),
		"ID":       func() JoinOptions { o := joining("second", b, "n1"); o.ID = "12"; return o }(),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := l.m.Join(opts)
			require.Error(t, err)
			require.NotContains(t, err.Error(), "\n")
			require.Equal(t, before, l.state())
			lines, err := l.m.Reconcile()
			require.NoError(t, err)
			require.Empty(t, lines)
		})
	}
}

// The container goes with the last network that a runtime asked for, and with its namespace.
func TestLeave(t *testing.T) {
	l := newLab(t)
	a := l.keep(newNetns(t), "a")
	_, err := l.m.CreateNetwork(NetworkOptions{Name: "user"})
	require.NoError(t, err)
	id := RuntimeID("test", "web")
	for _, n := range []string{"n1", "n2"} {
		j, err := l.m.Join(joining("web", a, n, "8080:80"))
		require.NoError(t, err)
		require.Equal(t, n == "n1", j.Default(false))
		require.Equal(t, "test", j.Endpoint.Runtime)
		require.NotEmpty(t, j.HostMAC)
	}
	require.NoError(t, l.m.Connect("user", "web", EndpointOptions{}))
	pubs, err := l.m.Publications("web")
	require.NoError(t, err)
	require.Len(t, pubs, 1)

	require.ErrorIs(t, l.m.Leave("user", id, "eth2"), ErrNotFound, "the user's own")
	require.ErrorIs(t, l.m.Leave("n1", id, "eth1"), ErrNotFound, "another interface")
	require.ErrorIs(t, l.m.Leave("n1", RuntimeID("test", "other"), "eth0"), ErrNotFound)
	require.NoError(t, l.m.Leave("n1", id, "eth0"))
	require.ErrorIs(t, l.m.Leave("n1", id, "eth0"), ErrNotFound)
	list, err := l.m.Attachments("test", "n2")
	require.NoError(t, err)
	require.Len(t, list, 1)
	require.True(t, list[0].Up)
	list, err = l.m.Attachments("other", "n2")
	require.NoError(t, err)
	require.Empty(t, list)
	require.NoError(t, l.m.Leave("n2", id, "eth1"))
	_, err = l.m.Container("web")
	require.ErrorIs(t, err, ErrNotFound)

	ns := newNetns(t)
	_, err = l.m.Join(joining("web", l.keep(ns, "b"), "n1"))
	require.NoError(t, err)
	require.NoError(t, netns.Unpersist(filepath.Join(filepath.Dir(l.o.Netns), "b")))
	require.NoError(t, ns.Close())
	lines, err := l.m.Reconcile()
	require.NoError(t, err)
	require.Contains(t, strings.Join(lines, "\n"), "container web: removed")
	st, err := l.m.Status()
	require.NoError(t, err)
	require.Empty(t, st.Problems)
}
