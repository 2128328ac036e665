// SPDX-License-Identifier: Apache-2.0

package dockerdriver

import (
	"testing"

	"github.com/bpfnet/bpfnet/control/ports"
)

// Whatever a request says is read without a panic, and the ports that come out of it are
// ports as -p has them.
func FuzzRequest(f *testing.F) {
	for _, seed := range []string{
		`{}`, `null`, `[]`, `{"Options": null, "Interface": null}`,
		`{"NetworkID": "a", "Options": {"com.docker.network.generic": {"bpfnet.name": "x", "com.docker.network.driver.mtu": "1400"}, "com.docker.network.internal": true}, "IPv4Data": [{"AddressSpace": "", "Pool": "10.1.0.0/24", "Gateway": "10.1.0.1/24", "AuxAddresses": {"x": "10.1.0.9/24"}}]}`,
		`{"Options": {"com.docker.network.portmap": [{"Proto": 6, "IP": "", "Port": 80, "HostIP": "", "HostPort": 8080, "HostPortEnd": 8080}, {"Proto": 132, "Port": 81, "HostIP": "::1"}, {"Proto": 6, "Port": 65535, "HostPort": 65535}]}}`,
		`{"Options": {"com.docker.network.endpoint.exposedports": [{"Proto": 17, "Port": 53}], "bpfnet.name": "x"}}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		var n networkRequest
		if decode(body, &n) == nil {
			_, _ = n.network()
		}
		var e endpointRequest
		if decode(body, &e) != nil {
			return
		}
		if list, err := e.Options.exposed(); err == nil {
			for _, p := range list {
				if _, _, _, err := ports.ParsePort(p); err != nil {
					t.Errorf("exposed %q: %v", p, err)
				}
			}
		}
		if list, err := e.Options.specs(); err == nil {
			for _, spec := range list {
				if _, err := ports.Parse(spec); err != nil {
					t.Errorf("port %q: %v", spec, err)
				}
			}
		}
	})
}
