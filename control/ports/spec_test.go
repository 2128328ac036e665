// SPDX-License-Identifier: Apache-2.0

package ports

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestParse(t *testing.T) {
	tests := []struct {
		spec      string
		want      Spec
		canonical string
	}{
		{"80", Spec{First: 80, Last: 80, Proto: "tcp"}, "80/tcp"},
		{"80/udp", Spec{First: 80, Last: 80, Proto: "udp"}, "80/udp"},
		{"80/TCP", Spec{First: 80, Last: 80, Proto: "tcp"}, "80/tcp"},
		{"80/Sctp", Spec{First: 80, Last: 80, Proto: "sctp"}, "80/sctp"},
		{"80/", Spec{First: 80, Last: 80, Proto: "tcp"}, "80/tcp"},
		{"080", Spec{First: 80, Last: 80, Proto: "tcp"}, "80/tcp"},
		{"80-90", Spec{First: 80, Last: 90, Proto: "tcp"}, "80-90/tcp"},
		{"80-80", Spec{First: 80, Last: 80, Proto: "tcp"}, "80/tcp"},
		{":80", Spec{First: 80, Last: 80, Proto: "tcp"}, "80/tcp"},
		{"::80", Spec{First: 80, Last: 80, Proto: "tcp"}, "80/tcp"},
		{"8080:80", Spec{HostFirst: 8080, HostLast: 8080, First: 80, Last: 80, Proto: "tcp"}, "8080:80/tcp"},
		{"1-65535:1-65535", Spec{HostFirst: 1, HostLast: 65535, First: 1, Last: 65535, Proto: "tcp"}, "1-65535:1-65535/tcp"},
		{"8080-8083:80", Spec{HostFirst: 8080, HostLast: 8083, First: 80, Last: 80, Proto: "tcp"}, "8080-8083:80/tcp"},
		{"7000-7002:80-82/udp", Spec{HostFirst: 7000, HostLast: 7002, First: 80, Last: 82, Proto: "udp"}, "7000-7002:80-82/udp"},
		{"127.0.0.1:8080:80", Spec{HostIP: addr("127.0.0.1"), HostFirst: 8080, HostLast: 8080, First: 80, Last: 80, Proto: "tcp"}, "127.0.0.1:8080:80/tcp"},
		{"127.0.0.1::80", Spec{HostIP: addr("127.0.0.1"), First: 80, Last: 80, Proto: "tcp"}, "127.0.0.1::80/tcp"},
		{"0.0.0.0:8080:80", Spec{HostIP: addr("0.0.0.0"), HostFirst: 8080, HostLast: 8080, First: 80, Last: 80, Proto: "tcp"}, "0.0.0.0:8080:80/tcp"},
		{"127.0.0.1:7000-7002:80-82", Spec{HostIP: addr("127.0.0.1"), HostFirst: 7000, HostLast: 7002, First: 80, Last: 82, Proto: "tcp"}, "127.0.0.1:7000-7002:80-82/tcp"},
		{"[::1]:8080:80", Spec{HostIP: addr("::1"), HostFirst: 8080, HostLast: 8080, First: 80, Last: 80, Proto: "tcp"}, "[::1]:8080:80/tcp"},
		{"[2001:db8::68]::333/udp", Spec{HostIP: addr("2001:db8::68"), First: 333, Last: 333, Proto: "udp"}, "[2001:db8::68]::333/udp"},
		{"[::]:80:80", Spec{HostIP: addr("::"), HostFirst: 80, HostLast: 80, First: 80, Last: 80, Proto: "tcp"}, "[::]:80:80/tcp"},
		{"[127.0.0.1]:80:80", Spec{HostIP: addr("127.0.0.1"), HostFirst: 80, HostLast: 80, First: 80, Last: 80, Proto: "tcp"}, "127.0.0.1:80:80/tcp"},
		{"[::ffff:10.0.0.1]:80:80", Spec{HostIP: addr("10.0.0.1"), HostFirst: 80, HostLast: 80, First: 80, Last: 80, Proto: "tcp"}, "10.0.0.1:80:80/tcp"},
		// Docker's tests have these.
		{"2001:4860:0:2001::68::333", Spec{HostIP: addr("2001:4860:0:2001::68"), First: 333, Last: 333, Proto: "tcp"}, "[2001:4860:0:2001::68]::333/tcp"},
		{"::1:80:80", Spec{HostIP: addr("::1"), HostFirst: 80, HostLast: 80, First: 80, Last: 80, Proto: "tcp"}, "[::1]:80:80/tcp"},
		{"::::80", Spec{HostIP: addr("::"), First: 80, Last: 80, Proto: "tcp"}, "[::]::80/tcp"},

		{"8080:80,from=203.0.113.0/24,2001:db8::/32", Spec{HostFirst: 8080, HostLast: 8080, First: 80, Last: 80, Proto: "tcp",
			From: prefixes("203.0.113.0/24", "2001:db8::/32")}, "8080:80/tcp,from=203.0.113.0/24,2001:db8::/32"},
		{"80/udp,from=203.0.113.7,2001:db8::7", Spec{First: 80, Last: 80, Proto: "udp",
			From: prefixes("203.0.113.7/32", "2001:db8::7/128")}, "80/udp,from=203.0.113.7/32,2001:db8::7/128"},
		{"80,from=203.0.113.7/24,from=::/0,::ffff:10.0.0.1,::ffff:10.1.2.3/112", Spec{First: 80, Last: 80, Proto: "tcp",
			From: prefixes("203.0.113.0/24", "::/0", "10.0.0.1/32", "10.1.0.0/16")}, "80/tcp,from=203.0.113.0/24,::/0,10.0.0.1/32,10.1.0.0/16"},
	}
	for _, tt := range tests {
		t.Run(tt.spec, func(t *testing.T) {
			got, err := Parse(tt.spec)
			require.NoError(t, err)
			tt.want.Raw = tt.spec
			require.Equal(t, []Spec{tt.want}, got)
			require.Equal(t, tt.canonical, got[0].String())

			again, err := Parse(tt.canonical)
			require.NoError(t, err, "the canonical form is a spec")
			again[0].Raw = tt.spec
			require.Equal(t, got, again)
		})
	}
}

// Row B12: one line naming the piece that is wrong.
func TestParseErrors(t *testing.T) {
	tests := []struct{ spec, want string }{
		{"", `port "": no port specified`},
		{":", `port ":": no port specified`},
		{"8080:", `port "8080:": no port specified`},
		{"/tcp", `port "/tcp": no port specified`},
		{"0", `port "0": invalid containerPort: 0: not between 1 and 65535`},
		{"8080:0", `port "8080:0": invalid containerPort: 0: not between 1 and 65535`},
		{"0:80", `port "0:80": invalid hostPort: 0: not between 1 and 65535`},
		{"65536", `port "65536": invalid containerPort: 65536: not between 1 and 65535`},
		{"65536:80", `port "65536:80": invalid hostPort: 65536: not between 1 and 65535`},
		{"99999999999999999999999:80", `port "99999999999999999999999:80": invalid hostPort: 99999999999999999999999: not between 1 and 65535`},
		{"abc", `port "abc": invalid containerPort: abc: not a number`},
		{"abc:80", `port "abc:80": invalid hostPort: abc: not a number`},
		{"80:abc/udp", `port "80:abc/udp": invalid containerPort: abc: not a number`},
		{"-1:-1", `port "-1:-1": invalid containerPort: -1: a number is missing`},
		{"+80", `port "+80": invalid containerPort: +80: not a number`},
		{"0x50", `port "0x50": invalid containerPort: 0x50: not a number`},
		{"80-", `port "80-": invalid containerPort: 80-: a number is missing`},
		{"80-81-82", `port "80-81-82": invalid containerPort: 80-81-82: not a number`},
		{"90-80", `port "90-80": invalid containerPort: 90-80: 80 is below 90`},
		{"8083-8080:80", `port "8083-8080:80": invalid hostPort: 8083-8080: 8080 is below 8083`},
		{"80-65536", `port "80-65536": invalid containerPort: 80-65536: not between 1 and 65535`},
		{"7000-7001:80-82", `port "7000-7001:80-82": invalid ranges specified for container and host Ports: 80-82 and 7000-7001`},
		{"7000:80-82", `port "7000:80-82": invalid ranges specified for container and host Ports: 80-82 and 7000`},
		{"80:80:80:80", `port "80:80:80:80": invalid IP address: 80:80`},
		{"127.0.0.1:80", `port "127.0.0.1:80": invalid hostPort: 127.0.0.1: not a number`},
		{"localhost:80:80", `port "localhost:80:80": invalid IP address: localhost`},
		{"300.0.0.1:80:80", `port "300.0.0.1:80:80": invalid IP address: 300.0.0.1`},
		{"127.1:80:80", `port "127.1:80:80": invalid IP address: 127.1`},
		{"010.0.0.1:80:80", `port "010.0.0.1:80:80": invalid IP address: 010.0.0.1`},
		{"224.0.0.1:80:80", `port "224.0.0.1:80:80": invalid IP address: 224.0.0.1: not one host's`},
		{"255.255.255.255:80:80", `port "255.255.255.255:80:80": invalid IP address: 255.255.255.255: not one host's`},
		{"[ff02::1]:80:80", `port "[ff02::1]:80:80": invalid IP address: ff02::1: not one host's`},
		{"[fe80::1]:80:80", `port "[fe80::1]:80:80": invalid IP address: fe80::1: link-local, which names no interface`},
		{"[fe80::1%eth0]:80:80", `port "[fe80::1%eth0]:80:80": invalid IP address: fe80::1%eth0`},
		{"[::1:80:80", `port "[::1:80:80": invalid IP address: [::1:80:80: missing ]`},
		{"[]:80:80", `port "[]:80:80": invalid IP address: []`},
		{"[::1]:80", `port "[::1]:80": invalid port :80: an address is followed by :HOSTPORT:PORT or ::PORT`},
		{"[::1]80:80", `port "[::1]80:80": invalid port 80:80: an address is followed by :HOSTPORT:PORT or ::PORT`},
		{"[::1]:80:80:80", `port "[::1]:80:80:80": invalid port :80:80:80: an address is followed by :HOSTPORT:PORT or ::PORT`},
		{"[::1]", `port "[::1]": invalid port "": an address is followed by :HOSTPORT:PORT or ::PORT`},
		{"80/xyz", `port "80/xyz": invalid proto: xyz`},
		{"80/icmp", `port "80/icmp": invalid proto: icmp`},
		{"80/tcp/udp", `port "80/tcp/udp": invalid proto: tcp/udp`},
		{"80/tcp:90", `port "80/tcp:90": invalid hostPort: 80/tcp: not a number`},
		{" 80", `port " 80": invalid containerPort: " 80": not a number`},
		{"80\n", `port "80\n": invalid containerPort: "80\n": not a number`},
		{"8０", `port "8０": invalid containerPort: "8０": not a number`},
		{"80,", `port "80,": unknown option: ""`},
		{"80,foo=1", `port "80,foo=1": unknown option: foo=1`},
		{"80,from=", `port "80,from=": invalid from: ""`},
		{"80,from=10.0.0.0/33", `port "80,from=10.0.0.0/33": invalid from: 10.0.0.0/33`},
		{"80,from=example.com", `port "80,from=example.com": invalid from: example.com`},
		{"80,from=10.0.0.0/8,", `port "80,from=10.0.0.0/8,": invalid from: ""`},
		{"80,from=fe80::1%eth0", `port "80,from=fe80::1%eth0": invalid from: fe80::1%eth0`},
		{"80,from=::ffff:10.0.0.0/90", `port "80,from=::ffff:10.0.0.0/90": invalid from: ::ffff:10.0.0.0/90`},
		{"80,from=10.0.0.0/8,to=1", `port "80,from=10.0.0.0/8,to=1": invalid from: to=1`},
	}
	for _, tt := range tests {
		t.Run(tt.spec, func(t *testing.T) {
			got, err := Parse(tt.spec)
			require.Nil(t, got)
			require.EqualError(t, err, tt.want)
		})
	}
	_, err := Parse(strings.Repeat("9", 100_000))
	require.Less(t, len(err.Error()), 500)
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"80", "[::1]:8080-8083:80/udp", "::1:80:80", "80,from=10.0.0.0/8", "[", "]:", ",,,"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := Parse(s)
		if err != nil {
			require.NotContains(t, err.Error(), "\n")
			return
		}
		again, err := Parse(got[0].String())
		require.NoError(t, err)
		again[0].Raw = s
		require.Equal(t, got, again)
	})
}

func TestParsePort(t *testing.T) {
	tests := []struct {
		in          string
		first, last uint16
		proto, err  string
	}{
		{"80", 80, 80, "tcp", ""},
		{"80/tcp", 80, 80, "tcp", ""},
		{"80-90/udp", 80, 90, "udp", ""},
		{"80/UDP", 80, 80, "udp", ""},
		{"65535/sctp", 65535, 65535, "sctp", ""},
		{"", 0, 0, "", `port "": invalid port: "": a number is missing`},
		{"/tcp", 0, 0, "", `port "/tcp": invalid port: "": a number is missing`},
		{"0", 0, 0, "", `port "0": invalid port: 0: not between 1 and 65535`},
		{"65536", 0, 0, "", `port "65536": invalid port: 65536: not between 1 and 65535`},
		{"90-80", 0, 0, "", `port "90-80": invalid port: 90-80: 80 is below 90`},
		{"http", 0, 0, "", `port "http": invalid port: http: not a number`},
		{"8080:80", 0, 0, "", `port "8080:80": invalid port: 8080:80: not a number`},
		{"80/xyz", 0, 0, "", `port "80/xyz": invalid proto: xyz`},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			first, last, proto, err := ParsePort(tt.in)
			require.Equal(t, tt.first, first)
			require.Equal(t, tt.last, last)
			require.Equal(t, tt.proto, proto)
			if tt.err == "" {
				require.NoError(t, err)
			} else {
				require.EqualError(t, err, tt.err)
			}
		})
	}
}
