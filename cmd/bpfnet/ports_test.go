// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

// publications reads "ADDRESS HOSTPORT PORT COUNT PROTO [FROM]" each.
func publications(t *testing.T, lines ...string) []control.Publication {
	t.Helper()
	var out []control.Publication
	for _, l := range lines {
		var p control.Publication
		var ip, from string
		n, _ := fmt.Sscan(l, &ip, &p.HostPort, &p.Port, &p.Count, &p.Proto, &from)
		require.GreaterOrEqual(t, n, 5, l)
		p.HostIP = netip.MustParseAddr(ip)
		if from != "" {
			for _, f := range strings.Split(from, ",") {
				p.From = append(p.From, netip.MustParsePrefix(f))
			}
		}
		out = append(out, p)
	}
	return out
}

func TestPortsText(t *testing.T) {
	for _, c := range []struct {
		name    string
		pubs    []string
		exposed []string
		want    string
	}{
		{"none", nil, nil, ""},
		{"both families", []string{":: 8080 80 1 tcp", "0.0.0.0 8080 80 1 tcp"}, nil, "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"},
		{"exposed", nil, []string{"80/tcp"}, "80/tcp"},
		{"exposed, in a row", nil, []string{"82/tcp", "80/tcp", "81/tcp", "81/udp"}, "80-82/tcp, 81/udp"},
		{"exposed range", nil, []string{"80-90/udp", "91/udp"}, "80-91/udp"},
		{"exposed and published", []string{"0.0.0.0 32768 80 1 tcp", "0.0.0.0 90 90 5 tcp"}, []string{"80/tcp", "80/udp", "89-96/tcp"}, "80/udp, 89/tcp, 0.0.0.0:90-94->90-94/tcp, 95-96/tcp, 0.0.0.0:32768->80/tcp"},
		{"range", []string{"0.0.0.0 7000 80 3 tcp"}, nil, "0.0.0.0:7000-7002->80-82/tcp"},
		{"in a row", []string{"0.0.0.0 7001 81 1 tcp", "0.0.0.0 7000 80 1 tcp"}, nil, "0.0.0.0:7000-7001->80-81/tcp"},
		{"not in a row", []string{"0.0.0.0 7000 80 1 tcp", "0.0.0.0 7002 81 1 tcp"}, nil, "0.0.0.0:7000->80/tcp, 0.0.0.0:7002->81/tcp"},
		{"not on one address", []string{"127.0.0.1 80 80 1 tcp", "127.0.0.2 81 81 1 tcp"}, nil, "127.0.0.1:80->80/tcp, 127.0.0.2:81->81/tcp"},
		{"one port twice", []string{"0.0.0.0 8081 80 1 tcp", "0.0.0.0 8080 80 1 tcp"}, nil, "0.0.0.0:8080->80/tcp, 0.0.0.0:8081->80/tcp"},
		{"same numbers first", []string{"0.0.0.0 8080 80 1 tcp", "0.0.0.0 443 443 1 tcp"}, []string{"22/tcp"}, "22/tcp, 0.0.0.0:443->443/tcp, 0.0.0.0:8080->80/tcp"},
		{"all of them", []string{"0.0.0.0 1 1 65535 udp"}, nil, "0.0.0.0:1-65535->1-65535/udp"},
		{"for some", []string{"0.0.0.0 80 80 1 tcp 203.0.113.0/24,198.51.100.0/24"}, nil, "0.0.0.0:80->80/tcp from=203.0.113.0/24,198.51.100.0/24"},
		{"for others", []string{"0.0.0.0 80 80 1 tcp 203.0.113.0/24", "0.0.0.0 81 81 1 tcp"}, nil, "0.0.0.0:80->80/tcp from=203.0.113.0/24, 0.0.0.0:81->81/tcp"},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, portsText(publications(t, c.pubs...), c.exposed))
		})
	}
}

func TestBindings(t *testing.T) {
	var lines []string
	for _, b := range bindings(publications(t, ":: 7000 80 2 tcp", "0.0.0.0 7000 80 2 tcp", "127.0.0.1 53 53 1 udp", "0.0.0.0 65535 65535 1 tcp 203.0.113.0/24")) {
		lines = append(lines, b.Port+" -> "+b.host())
	}
	require.Equal(t, []string{
		"53/udp -> 127.0.0.1:53",
		"80/tcp -> 0.0.0.0:7000", "80/tcp -> [::]:7000",
		"81/tcp -> 0.0.0.0:7001", "81/tcp -> [::]:7001",
		"65535/tcp -> 0.0.0.0:65535 from=203.0.113.0/24",
	}, lines)
	require.NotNil(t, bindings(nil), "an empty list, not null, as JSON")
}

func TestPortKey(t *testing.T) {
	for in, want := range map[string]string{
		"80": "80/tcp", "80/tcp": "80/tcp", "53/UDP": "53/udp", "9/sctp": "9/sctp",
		"0": "", "65536": "", "-1": "", "x": "", "": "", "80/x": "", "80x": "", "080": "", "80/": "",
	} {
		got, err := portKey(in)
		require.Equal(t, want, got, in)
		require.Equal(t, want == "", err != nil, in)
	}
}
