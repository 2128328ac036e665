// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// leeway widens a bar in time where other work shares the machine.
func leeway() float64 {
	if soak() {
		return 1
	}
	return 2
}

func median(list []time.Duration) time.Duration {
	list = slices.Clone(list)
	slices.Sort(list)
	return list[len(list)/2]
}

// took is how long the real program takes for a command line.
func (c *cast) took(args ...string) time.Duration {
	c.t.Helper()
	start := time.Now()
	p := c.start(args...)
	<-p.Done()
	d := time.Since(start)
	require.Zero(c.t, c.ended(p, args).code, "%.100v: %.300s", args, p.Stderr())
	return d
}

// singles are specs of n ports, one by one, from first on.
func singles(addr string, first, n int, proto string) []string {
	if addr != "" {
		addr = bracket(addr) + ":"
	}
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf("%s%d:%d/%s", addr, first+i, first+i, proto)
	}
	return list
}

// Publishing 1, 1,000 and 10,000 ports, and a range of 60,000 on one container, takes at most
// 50 ms above a bare bpfnet version, in the median of five, with nothing and with 10,000 ports
// published already.
func TestBarPublish(t *testing.T) {
	bar := 50 * time.Millisecond
	if !soak() {
		bar = time.Duration(float64(bar) * lab.Slowness(t))
	}
	for _, before := range []struct {
		name  string
		specs []string
		same  bool
	}{
		{"nothing before", nil, false},
		{"10,000 before", append(singles("", 1, 5000, "tcp"), singles("", 1, 5000, "udp")...), false},
		{"10,000 on one address before", append(singles(lab.HostIPv4, 1, 5000, "tcp"), singles("127.0.0.1", 1, 5000, "udp")...), false},
		{"the same 10,000 on another address before", singles("127.0.0.2", 5001, 10000, "tcp"), true},
	} {
		t.Run(before.name, func(t *testing.T) {
			c := newCast(t)
			c.network("n1", 1, true)
			s, other := c.container("srv", "n1"), c.container("other", "n1")
			if before.specs != nil {
				c.publish(other, before.specs...)
			}
			for _, v := range []struct {
				name  string
				specs []string
			}{
				{"1 port", singles("", 5001, 1, "tcp")},
				{"1,000 ports", singles("", 5001, 1000, "tcp")},
				{"10,000 ports", singles("", 5001, 10000, "tcp")},
				{"a range of 60,000", []string{"5001-65000:5001-65000"}},
				{"1 port of one address", singles(lab.HostIPv4, 5001, 1, "tcp")},
				{"10,000 ports of one address", singles("127.0.0.1", 5001, 10000, "tcp")},
			} {
				if before.same && !strings.Contains(v.name, "address") {
					continue // they would conflict
				}
				t.Run(v.name, func(t *testing.T) {
					c := c.in(t)
					bare, full := make([]time.Duration, 5), make([]time.Duration, 5)
					for i := range full {
						bare[i] = c.took("version")
						full[i] = c.took(append([]string{"publish", "srv"}, v.specs...)...)
						c.unpublish(s, v.specs...)
					}
					above := median(full) - median(bare)
					t.Logf("%s, %s: %v above version's %v", v.name, before.name, above.Round(100*time.Microsecond), median(bare).Round(100*time.Microsecond))
					require.LessOrEqual(t, above, time.Duration(float64(bar)*leeway()), "%v, version %v", full, bare)
				})
			}
		})
	}
}

// With everything published the host still gets source ports: by connect() and by bind(0).
func TestBarSourcePorts(t *testing.T) {
	c := newCast(t)
	c.network("n1", 1, true)
	s := c.container("srv", "n1")
	c.serve(s, 3000)
	p := c.probe(c.Host)
	lab.ServeTCP(t, c.Client, "world", ":80")
	lab.ServeUDP(t, c.Client, "world", ":80")
	check := func(what string) {
		t.Helper()
		for _, network := range []string{"tcp", "udp", "udp-unconnected"} {
			for _, to := range []string{at(lab.ClientIPv4, 80), at(lab.ClientIPv6, 80)} {
				_, err := p.do("connect %s %s 200", network, to)
				require.NoError(t, err, "%s: connect by %s to %s", what, network, to)
			}
		}
		for _, network := range []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6", "tcp+reuse"} {
			_, err := p.do("churn %s 200", network)
			require.NoError(t, err, "%s: bind(0) by %s", what, network)
		}
	}
	check("nothing published")
	c.publish(s, singles("", 32768, 10000, "tcp")...)
	c.publish(s, singles("", 32768, 10000, "udp")...)
	check("10,000 published")
	require.NoError(t, c.m.RemoveContainer("srv"))
	s = c.container("srv", "n1", publish("1024-61023:1024-61023", "1024-61023:1024-61023/udp"))
	c.serve(s, 3000)
	require.ErrorIs(t, c.probeTaken(p, "[::]:40000"), unix.EADDRINUSE)
	check("60,000 published")
	c.answers(c.Client, at(lab.HostIPv4, 3000), "srv", lab.ClientIPv4)
	c.answers(c.Host, "127.0.0.1:3000", "srv", "")
	c.publish(s, "1-1023:1-1023", "61024-65535:61024-65535", "1-1023:1-1023/udp", "61024-65535:61024-65535/udp")
	check("everything published")
	c.answers(c.Client, at(lab.HostIPv4, 3000), "srv", lab.ClientIPv4)
}

func (c *cast) probeTaken(p *probe, address string) error {
	_, err := p.do("bind tcp %s", address)
	return err
}

// 1,000 containers: attaches 991 to 1,000 take, in the median, at most 1.5 times attaches 2 to 11.
func TestBarContainers(t *testing.T) {
	c := newCast(t)
	_, err := c.m.CreateNetwork(control.NetworkOptions{Name: "big", IPv6: true})
	require.NoError(t, err)
	n := times(1000, 200)
	list := make([]time.Duration, n)
	for i := range list {
		name := fmt.Sprint("srv", i+1)
		_, path := c.namespace(name)
		start := time.Now()
		_, err := c.m.CreateContainer(control.ContainerOptions{Name: name, Network: "big", Attach: "netns:" + path, Publish: []string{"80"}})
		list[i] = time.Since(start)
		require.NoError(t, err, name)
	}
	early, late := median(list[1:11]), median(list[n-10:])
	t.Logf("attaches 2-11: %v, the last ten of %d: %v, %.2f times", early.Round(100*time.Microsecond), n, late.Round(100*time.Microsecond), float64(late)/float64(early))
	for i := 0; i < n; i += n / 10 {
		t.Logf("attaches %d-%d: %v", i+1, i+10, median(list[i:min(i+10, n)]).Round(100*time.Microsecond))
	}
	require.LessOrEqual(t, float64(late), 1.5*leeway()*float64(early))
	last, err := c.m.Container(fmt.Sprint("srv", n))
	require.NoError(t, err)
	require.Len(t, last.Endpoints, 1)
	require.Len(t, strings.Fields(c.must("ps", "-q")), n)
}
