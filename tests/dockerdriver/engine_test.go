// SPDX-License-Identifier: Apache-2.0

// Package dockerdriver has a Docker Engine, unmodified and with its own rules in iptables, that
// takes bpfnet for a network driver.
package dockerdriver

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }

// engine is a Docker Engine in a lab, and bpfnet beside it. /run is the Engine's own.
type engine struct{ *dockerd.Engine }

// newEngine starts both; flags are dockerd's.
func newEngine(t testing.TB, flags ...string) *engine {
	t.Helper()
	e := &engine{dockerd.New(t, flags...)}
	e.OwnRun()
	e.startDaemon()
	e.StartEngine()
	e.ImportImage()
	return e
}

// in is the engine for a test within the test.
func (e *engine) in(t testing.TB) *engine { return &engine{e.In(t)} }

// plugin is where the Engine finds bpfnet.
func (e *engine) plugin() string { return filepath.Join(e.Plugins(), "bpfnet.sock") }

func (e *engine) startDaemon() {
	e.T.Helper()
	e.StartDaemon("--docker-driver=" + e.plugin())
	e.Says("docker driver: listening on ")
}
