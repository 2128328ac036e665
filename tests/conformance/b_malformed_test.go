// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
)

// malformed are specs, and the piece that the error names.
var malformed = []struct{ spec, piece string }{
	{"0", `0`}, {"8080:0", "containerPort: 0"}, {"0:80", "hostPort: 0"}, {"65536", "65536"}, {"8080:65536", "containerPort: 65536"},
	{"65536:80", "hostPort: 65536"}, {"99999999999999999999:80", "99999999999999999999"},
	{"abc", "abc"}, {"abc:80", "hostPort: abc"}, {"8080:abc", "containerPort: abc"}, {"80:80:80:80", "80:80"},
	{"-1:80", "hostPort: -1"}, {"+1:80", "hostPort: +1"}, {"8080:8 0", "8 0"}, {"80 ", "80 "}, {"0x50", "0x50"}, {"8080:80.5", "80.5"},
	{"8080:80/sctpx", "proto: sctpx"}, {"8080:80/icmp", "proto: icmp"}, {"8080:80/tcp/udp", "tcp/udp"}, {"80/6", "proto: 6"},
	{"8000-8002:80-81", "8000-8002"}, {"8000-8001:80-82", "8000-8001"}, {"8002-8000:80-82", "8000 is below 8002"},
	{"8000-8002:82-80", "80 is below 82"}, {"8000-:80", "a number is missing"}, {"-8000:80", "hostPort: -8000"}, {"8000-8001-8002:80", "8000-8001-8002"},
	{"70000-70001:80-81", "70000-70001"}, {"65535-65536:80-81", "65535-65536"},
	{"", ""}, {":", "no port"}, {"::", "no port"}, {"8080:", "no port"}, {"127.0.0.1::", "no port"}, {"/tcp", "no port"},
	{"1.2.3:8080:80", "1.2.3"}, {"256.0.0.1:8080:80", "256.0.0.1"}, {"localhost:8080:80", "localhost"}, {"127.0.0.1/8:8080:80", "127.0.0.1"},
	{"[::1:8080:80", "::1"}, {"[::1]8080:80", "8080:80"}, {"[]:8080:80", "[]"}, {"[::1]:8080:80:90", "8080:80:90"}, {"[fe80::1%eth0]:8080:80", "fe80::1%eth0"},
	{"224.0.0.1:8080:80", "224.0.0.1"}, {"[ff02::1]:8080:80", "ff02::1"}, {"255.255.255.255:8080:80", "255.255.255.255"},
	{"8080:80,from=", "from"}, {"8080:80,from=x", "from: x"}, {"8080:80,from=10.0.0.0/33", "10.0.0.0/33"}, {"8080:80,to=10.0.0.0/8", "to=10.0.0.0/8"},
	{"8080:80,from=10.0.0.0/8,x", "from: x"}, {"8080:80,", "option"}, {"8080:80\n8081:81", `\n`}, {"8080:80\x1b[31m", `\x1b`},
	{"8080:9000/sctp", "sctp"}, {strings.Repeat("8", 5000) + ":80", "888"},
}

// B12: a malformed spec is answered by one line that names the piece, an exit status that is
// not 0, and nothing changes; beside a good spec too.
func TestB12(t *testing.T) {
	parallel(t)
	onlyOurs(t, "words and rules of bpfnet's for what is malformed")
	c := newCast(t)
	c.network("n1", 1, true)
	s := c.container("srv", "n1", publish("7000:70", "127.0.0.1:7001:70/udp"))
	_, path := c.namespace("other")
	before := c.inventory()
	for _, v := range malformed {
		t.Run(short(v.spec), func(t *testing.T) {
			c := c.in(t)
			check := func(err error) {
				t.Helper()
				oneLine(t, err)
				require.ErrorIs(t, err, control.ErrInvalid)
				require.Contains(t, err.Error(), v.piece)
				require.Less(t, len(err.Error()), 300)
				for _, r := range err.Error() {
					require.GreaterOrEqual(t, r, ' ', "%q", err)
				}
			}
			_, err := c.m.Publish(s.name, v.spec)
			check(err)
			_, err = c.m.Publish(s.name, "8888:80", v.spec)
			check(err)
			check(c.m.Unpublish(s.name, v.spec))
			for _, attach := range []string{"netns:" + path, ""} {
				_, err = c.m.CreateContainer(control.ContainerOptions{Name: "bad", Network: "n1", Attach: attach, Publish: []string{"8888:80", v.spec}})
				check(err)
			}
			c.same(before, "the Manager, %q", v.spec)
		})
	}
	// By the real program; the parser is the same, so that some are enough.
	few := malformed
	if !soak() {
		few = few[:24]
	}
	for _, v := range few {
		if v.spec == "" || strings.HasPrefix(v.spec, "-") {
			continue // an argument that is empty, or a flag
		}
		t.Run("command "+short(v.spec), func(t *testing.T) {
			c := c.in(t)
			c.refuses([]string{"publish", "srv", v.spec}, v.piece)
			c.refuses([]string{"attach", "--net", "n1", "-p", "8888:80", "-p", v.spec, "bad", "netns:" + path}, v.piece)
			r := c.bpfnet("run", "--net", "n1", "-p", v.spec, "--", "true")
			clear(t, r, []string{"run", "-p", v.spec}, v.piece)
			require.Equal(t, 125, r.code)
		})
	}
	c.same(before, "the commands")
	// What is not published cannot be taken back, and a good spec still can be.
	require.ErrorIs(t, c.m.Unpublish(s.name, "7000:70", "7002:70"), control.ErrNotFound)
	c.same(before, "unpublish")
	c.publish(s, "8888:80")
}

func short(s string) string {
	if len(s) > 30 {
		return s[:30]
	}
	return s
}
