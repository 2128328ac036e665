// SPDX-License-Identifier: Apache-2.0

package podman

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
	"github.com/bpfnet/bpfnet/tests/needs"
)

// subnets of the networks that the tests' containers are on.
var subnets = map[string]string{"podman": "10.88.0.0/16", "back": "10.89.0.0/16"}

// setUp does what an administrator would do.
func (e *engine) setUp() {
	e.t.Helper()
	require.NoError(e.t, os.Mkdir(e.networks(), 0o755))
	if needs.Next() {
		e.setUpNetavark()
	} else {
		e.setUpCNI()
	}
}

func (e *engine) networks() string { return filepath.Join(e.dir, "net.d") }

func (e *engine) setUpCNI() {
	e.t.Helper()
	for name, subnet := range subnets {
		e.write(filepath.Join(e.networks(), name+".conflist"), fmt.Sprintf(`{
  "cniVersion": "1.0.0", "name": %q, "plugins": [{
    "type": "bpfnet", "portsHeld": true, "subnets": [%q], "root": %q,
    "capabilities": {"portMappings": true, "ips": true, "mac": true, "aliases": true, "dns": true}
  }]
}`, name, subnet, e.Root))
	}
	e.configure("cni", "cni_plugin_dirs", filepath.Dir(lab.Binary(e.t)), "podman")
}

// setUpNetavark makes the networks by podman itself, the default one while another has that
// name: podman has made that one for itself.
func (e *engine) setUpNetavark() {
	e.t.Helper()
	dir := filepath.Dir(plugin(e.t))
	e.configure("netavark", "netavark_plugin_dirs", dir, "none-yet")
	for name, subnet := range subnets {
		e.must("network", "create", "--driver", "bpfnet-netavark", "--subnet", subnet, "--opt", "root="+e.Root, name)
	}
	e.configure("netavark", "netavark_plugin_dirs", dir, "podman")
}

// configure writes containers.conf. podman asks for more than a machine may allow.
func (e *engine) configure(backend, key, dir, network string) {
	e.t.Helper()
	e.write(filepath.Join(e.dir, "containers.conf"), fmt.Sprintf(`[containers]
cgroups = "no-conmon"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
runtime = "runc"
[network]
network_backend = %q
%s = [%q]
network_config_dir = %q
default_network = %q
`, backend, key, dir, e.networks(), network))
}
