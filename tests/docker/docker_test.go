// SPDX-License-Identifier: Apache-2.0

// Package docker has an unmodified Docker Engine on bpfnet's packet path: bpfnet daemon --docker.
package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// engine is a Docker Engine in a lab, and bpfnet beside it.
type engine struct {
	*dockerd.Engine
	api *client.Client
}

// newEngine starts both; flags are dockerd's.
func newEngine(t testing.TB, flags ...string) *engine {
	t.Helper()
	e := newEngineAlone(t, flags...)
	e.startDaemon()
	return e
}

// newEngineAlone is an Engine without bpfnet.
func newEngineAlone(t testing.TB, flags ...string) *engine {
	t.Helper()
	e := &engine{Engine: dockerd.New(t, append([]string{"--iptables=false", "--ip6tables=false", "--userland-proxy=false"}, flags...)...)}
	e.StartEngine()
	api, err := client.New(client.WithHost(e.Socket()))
	require.NoError(t, err)
	t.Cleanup(func() { api.Close() })
	_, err = api.Ping(context.Background(), client.PingOptions{NegotiateAPIVersion: true})
	require.NoError(t, err)
	e.api = api
	e.ImportImage()
	return e
}

// in is the engine for a test within the test.
func (e *engine) in(t testing.TB) *engine { return &engine{e.In(t), e.api} }

func (e *engine) startDaemon() {
	e.T.Helper()
	e.StartDaemon("--docker", "--docker-host", e.Socket())
	e.Says("following docker ")
}

// adopted waits until bpfnet carries the container.
func (e *engine) adopted(names ...string) {
	e.T.Helper()
	e.Eventually(fmt.Sprint("adopted: ", names), func() bool {
		var rows []struct {
			Names string
			Pid   int
		}
		if json.Unmarshal([]byte(e.Bpfnet("ps", "-o", "json")), &rows) != nil {
			return false
		}
		have := make(map[string]bool)
		for _, r := range rows {
			have[r.Names] = r.Pid != 0 // known before, but with its ports since it has started
		}
		for _, n := range names {
			if !have["docker/"+n] {
				return false
			}
		}
		return true
	})
}

// counter is one of bpfnet status.
func (e *engine) counter(name string) uint64 {
	e.T.Helper()
	var list []struct{ Counters map[string]uint64 }
	require.NoError(e.T, json.Unmarshal([]byte(e.Bpfnet("status", "-o", "json")), &list))
	return list[0].Counters[name]
}
