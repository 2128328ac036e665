// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/ipam"
)

// What is read from files, flags and other people's names: an error is one line, and what is
// accepted means the same when it is written and read once more. Nothing of it ends the program.

// oneLine requires of an error that it can be printed.
func oneLine(t *testing.T, err error) {
	t.Helper()
	require.False(t, strings.ContainsAny(err.Error(), "\n\r"), "%q", err)
}

func FuzzReadConfig(f *testing.F) {
	for _, s := range []string{`{}`, `{"bip":"10.9.0.1/24","fixed-cidr":"10.9.0.128/25","ipv6":true}`, `{"mtu":-1}`, `{"dns":["::1%\n"]}`, `{"masquerade-ports":"1-2,3-4"}`,
		`{"default-address-pools":[{"base":"10.0.0.0/8","size":24}]}`, `{"timeout-udp":"5m"} {}`, `{"ip":"fe80::1%eth0"}`, `[]`, `{"bip6":"::ffff:10.0.0.1/120"}`, `nul`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		path := filepath.Join(t.TempDir(), "config.json")
		require.NoError(t, os.WriteFile(path, raw, 0o600))
		c, err := ReadConfig(path)
		if err != nil {
			oneLine(t, err)
			return
		}
		again, err := json.Marshal(c)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, again, 0o600))
		d, err := ReadConfig(path)
		require.NoError(t, err, "%s", again)
		once, err := json.Marshal(d)
		require.NoError(t, err)
		require.JSONEq(t, string(again), string(once))
		full := c.withDefaults()
		require.NoError(t, full.check())
		if opts, err := full.defaultNetwork(); err != nil {
			oneLine(t, err)
		} else if err := opts.check(); err != nil {
			oneLine(t, err)
		}
		if c.MasqueradePorts != "" {
			ranges, err := parsePortRanges(c.MasqueradePorts)
			require.NoError(t, err)
			for i, r := range ranges {
				require.True(t, r.First > 0 && r.First <= r.Last && (i == 0 || r.First > ranges[i-1].Last), "%v", ranges)
			}
		}
	})
}

// Subnets, gateways and ranges as network create takes them.
func FuzzSubnets(f *testing.F) {
	f.Add("10.5.0.0/16", "10.5.0.1", "10.5.1.0/24")
	f.Add("fd00:5::/64", "", "fd00:5::8000/113")
	f.Add("::ffff:10.0.0.0/104", "10.0.0.1", "")
	f.Add("10.5.0.0/31", "10.5.0.0", "10.5.0.0/32")
	f.Add("fe80::%x/64", "fe80::1%x", "")
	f.Fuzz(func(t *testing.T, subnet, gateway, within string) {
		p, err := netip.ParsePrefix(subnet)
		if err != nil {
			return
		}
		opts := NetworkOptions{Name: "n", Subnets: []netip.Prefix{p}}
		if g, err := netip.ParseAddr(gateway); err == nil {
			opts.Gateways = append(opts.Gateways, g)
		}
		if r, err := netip.ParsePrefix(within); err == nil {
			opts.Ranges = append(opts.Ranges, r)
		}
		if err := opts.check(); err != nil {
			oneLine(t, err)
			return
		}
		s, err := subnetOf(p, opts, &Config{})
		if err != nil {
			oneLine(t, err)
			return
		}
		require.True(t, p.Contains(s.Gateway), "gateway %s of %s", s.Gateway, p)
		require.NoError(t, ipam.CheckGateway(s.Gateway, p))
		if s.Range.IsValid() {
			require.True(t, p.Overlaps(s.Range) && s.Range.Bits() >= p.Bits(), "range %s of %s", s.Range, p)
		}
		require.Empty(t, s.Gateway.Zone())
	})
}

// The files of a container's /etc, out of names that somebody else has chosen: each line is one that
// the options asked for, and no more.
func FuzzEtc(f *testing.F) {
	f.Add("box", "x=1.2.3.4", "::1", "a\x00b", "", "")
	f.Add("web", "db:192.0.2.7", "192.0.2.53", "example.org", "nameserver 127.0.0.53\nsearch a b\noptions edns0\n", "10.0.0.9\tedited\n")
	f.Add("box.example", "a=[::1]", "fe80::1%eth0", ".", "domain x\n;nameserver 1.2.3.4\nnameserver\n", "")
	f.Add("box", "x:host-gateway", "::1%\nsearch evil", "b", "nameserver ::1%e\rth0 #\n", "no newline")
	f.Fuzz(func(t *testing.T, hostname, extra, server, search, host, current string) {
		opts := ContainerOptions{Hostname: hostname, AddHosts: []string{extra}, DNS: []string{server}, DNSSearch: []string{search}}
		if err := opts.check(); err != nil {
			oneLine(t, err)
			opts = ContainerOptions{Hostname: "box"}
		}
		var entries []hostsEntry
		for _, s := range opts.AddHosts {
			name, ip, err := parseAddHost(s)
			require.NoError(t, err)
			if ip != hostGateway {
				entries = append(entries, hostsEntry{netip.MustParseAddr(ip), name})
			}
		}
		entries = append(entries, hostsEntry{netip.MustParseAddr("10.0.0.2"), ownNames(opts.Hostname)})
		lines := hostsLines(entries, true)
		require.Len(t, lines, 6+len(entries))
		merged := string(mergeLines([]byte(current), []string{"10.0.0.9\tedited"}, lines))
		require.Equal(t, merged, string(mergeLines([]byte(merged), lines, lines)), "once more")
		for i, l := range lines {
			require.False(t, strings.ContainsAny(l, "\n\r\x00"), "%q", l)
			ip, names, ok := strings.Cut(l, "\t")
			require.True(t, ok && names != "")
			_, err := netip.ParseAddr(ip)
			require.NoError(t, err)
			require.Equal(t, l, strings.Split(merged, "\n")[i])
		}
		resolv := string(resolvConf([]byte(host), opts.DNS, opts.DNSSearch, nil, true))
		count := map[string]int{}
		for l := range strings.Lines(resolv) {
			fields := strings.Fields(l)
			require.NotEmpty(t, fields, "%q", resolv)
			require.Contains(t, []string{"nameserver", "search", "options"}, fields[0], "%q", resolv)
			require.True(t, strings.HasPrefix(l, fields[0]+" "), "%q", l)
			if fields[0] == "nameserver" {
				require.Len(t, fields, 2, "%q", l)
				_, err := netip.ParseAddr(fields[1])
				require.NoError(t, err)
			}
			count[fields[0]]++
		}
		require.LessOrEqual(t, max(count["search"], count["options"]), 1)
		if len(opts.DNS) > 0 {
			require.Equal(t, len(opts.DNS), count["nameserver"], "%q", resolv)
		}
	})
}

// A name of a container or a network is one word, wherever it goes: a file, a line, a column.
func FuzzNames(f *testing.F) {
	for _, s := range []string{"web", "eth0\x00", "a..b", "-x", "ä", "a/b", "a\nb", "", strings.Repeat("x", 300)} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if err := checkName("container", s); err != nil {
			oneLine(t, err)
		} else {
			require.False(t, strings.ContainsAny(s, " \t\r\n\x00/") || s == "." || s == "..", "%q", s)
		}
		if name, alias, err := parseLink(s); err != nil {
			oneLine(t, err)
		} else {
			require.False(t, strings.ContainsAny(name+alias, " \t\r\n\x00"), "%q", []string{name, alias})
		}
		if validDevice(s) {
			require.Less(t, len(s), 16)
			require.False(t, strings.ContainsAny(s, " \n\x00"), "%q", s)
			require.False(t, slices.Contains([]string{"", ".", ".."}, s) || strings.Contains(s, "/"))
		}
	})
}
