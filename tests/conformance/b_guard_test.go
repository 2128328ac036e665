// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// B9: once a port is published no process of the host's gets it, by any address that would
// take it; all else is free, and containers' namespaces are their own.
//
//	H: a process in the cgroup          srv: a process in the same cgroup
func TestB9(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	c.network("n4", 4, false)
	s, four := c.container("srv", "n1"), c.container("four", "n4")
	host := c.probe(c.Host)
	six := bracket(lab.HostIPv6)
	for _, v := range []struct {
		by          *actor
		spec        string
		taken, free []string // addresses
	}{
		{s, "8080:80", []string{"0.0.0.0", "[::]", "127.0.0.1", "127.0.0.9", "[::1]", lab.HostIPv4, six}, nil},
		{s, "0.0.0.0:8080:80", []string{"0.0.0.0", "[::]", "127.0.0.1", lab.HostIPv4}, []string{six}},
		{s, "[::]:8080:80", []string{"[::]", "[::1]", six}, []string{"0.0.0.0", lab.HostIPv4}},
		{s, "127.0.0.1:8080:80", []string{"0.0.0.0", "[::]", "127.0.0.1"}, []string{"127.0.0.2", lab.HostIPv4, six}},
		{s, lab.HostIPv4 + ":8080:80", []string{"0.0.0.0", "[::]", lab.HostIPv4}, []string{"127.0.0.1", "[::1]"}},
		{s, six + ":8080:80", []string{"[::]", six}, []string{"0.0.0.0", lab.HostIPv4, "[::1]"}},
		{s, "8070-8089:70-89", []string{"0.0.0.0", "[::]", "127.0.0.1", "[::1]", lab.HostIPv4, six}, nil},
		// [::1] leads to a container that has only IPv4, too: A3.
		{four, "8080:80", []string{"0.0.0.0", "[::]", "127.0.0.1", "[::1]", lab.HostIPv4}, []string{six}},
	} {
		for _, proto := range few([]string{"tcp", "udp"}, 1) {
			t.Run(v.by.name+" "+v.spec+"/"+proto, func(t *testing.T) {
				c, host := c.in(t), &probe{t, host.in, host.out}
				other := map[string]string{"tcp": "udp", "udp": "tcp"}[proto]
				check := func(addr string, published bool) {
					t.Helper()
					for _, kind := range []string{"", "+reuse"} {
						for _, only := range []string{"", "6"} {
							if only != "" && !strings.HasPrefix(addr, "[") {
								continue
							}
							if published {
								// :: for IPv6 alone does not take what is published for IPv4 alone.
								if addr == "[::]" && only != "" && !strings.Contains(v.spec, "[") && (v.by == four || strings.Contains(v.spec, ".")) {
									continue
								}
								host.taken(proto+only+kind, addr+":8080")
							} else {
								host.free(proto+only+kind, addr+":8080")
							}
						}
					}
					host.free(other, addr+":8080")
					host.free(proto, addr+":8090")
				}
				all := append(append([]string{}, v.taken...), v.free...)
				for _, addr := range all {
					check(addr, false)
				}
				before := lab.ReadSysctl(t, c.Host, "ipv4/ip_local_reserved_ports")
				c.publish(v.by, v.spec+"/"+proto)
				for _, addr := range v.taken {
					check(addr, true)
				}
				for _, addr := range v.free {
					check(addr, false)
				}
				inside := c.probe(s.ns)
				for _, addr := range []string{"0.0.0.0", "[::]", "127.0.0.1", s.ip4.String(), bracket(s.ip6.String())} {
					inside.free(proto, addr+":8080")
				}
				c.unpublish(v.by, v.spec+"/"+proto)
				for _, addr := range all {
					check(addr, false)
				}
				require.Equal(t, before, lab.ReadSysctl(t, c.Host, "ipv4/ip_local_reserved_ports"))
			})
		}
	}
	// It is the kernel that keeps the port: all of it holds with nobody of ours there, and
	// ends with the container.
	c.publish(s, "8080:80")
	c.probe(s.ns).holds("tcp", "[::]:8080")
	host.taken("tcp", "[::]:8080")
	c.remove("srv")
	host.free("tcp", "[::]:8080")
}

// B11: 64 at once ask for random ports while a process of the host's binds ports at random: no
// port is handed out twice, neither to two containers nor to a container and the process.
func TestB11(t *testing.T) {
	parallel(t)
	type way struct {
		by     string
		rounds int
	}
	ways := []way{{"managers", times(50, 8)}, {"commands", times(10, 1)}}
	if onDocker() {
		ways = []way{{"docker run", times(10, 1)}}
	}
	for _, v := range ways {
		t.Run(v.by, func(t *testing.T) {
			c := newCast(t)
			c.ephemeral(stormFirst, stormLast)
			c.network("n1", 1, true)
			var actors []*actor
			for i := 0; i < 8 && !onDocker(); i++ {
				actors = append(actors, c.container(fmt.Sprint("srv", i), "n1"))
			}
			rival := c.probe(c.Host)
			binds, clashes := 0, 0
			for range v.rounds {
				n, bad := c.rivalry(v.by, actors, rival)
				binds, clashes = binds+n, clashes+bad
			}
			t.Logf("%d ports handed out beside %d binds, %d clashes", v.rounds*64, binds, clashes)
			require.Zero(t, clashes)
		})
	}
}

const stormFirst, stormLast = 40000, 40199

// rivalry has 64 ask for a port each beside the rival, and gives them back; bad is how many of
// them the rival had as well.
func (c *cast) rivalry(by string, actors []*actor, rival *probe) (binds, bad int) {
	c.t.Helper()
	_, err := rival.do("storm %d %d", stormFirst, stormLast)
	require.NoError(c.t, err)
	list, takeBack := c.handOut(by, actors)
	report, err := rival.do("calm")
	require.NoError(c.t, err)
	takeBack()
	seen := make(map[string]int64)
	for _, h := range list {
		require.True(c.t, h.port >= stormFirst && h.port <= stormLast, "%d", h.port)
		for _, network := range eachFamily(h.network) {
			key := fmt.Sprint(network, ":", h.port)
			require.NotContains(c.t, seen, key, "handed out twice")
			seen[key] = h.when
		}
	}
	lines := strings.Fields(report)
	require.Greater(c.t, len(lines), len(list), "the rival got too little done")
	for _, line := range lines {
		var port int
		var from, took, end int64
		network, rest, _ := strings.Cut(line, ":")
		_, err := fmt.Sscanf(strings.ReplaceAll(rest, ":", " "), "%d %d %d %d", &port, &from, &took, &end)
		require.NoError(c.t, err, line)
		for _, x := range eachFamily(network) {
			// END was read while the rival still had the port.
			if when, ok := seen[fmt.Sprint(x, ":", port)]; ok && end > when {
				bad++
				c.t.Errorf("%s %d was published, and the host's process had it for another %d µs (it bound it %d µs before, in %d µs)",
					network, port, (end-when)/1000, (when-from)/1000, took/1000)
			}
		}
	}
	return len(lines), bad
}

// handed is a port that was asked for: by "tcp" and "udp" of both families, or by "tcp4" and its like of one.
type handed struct {
	network string
	port    int
	when    int64
	err     error
}

// eachFamily are the networks of one family each.
func eachFamily(network string) []string {
	if len(network) > len("tcp") {
		return []string{network}
	}
	return []string{network + "4", network + "6"}
}

// handOut has 64 ask at once.
func (c *cast) handOut(by string, actors []*actor) (list []handed, takeBack func()) {
	c.t.Helper()
	if d, ok := c.maker.(*theirs); ok {
		return d.handOut(c)
	}
	list = make([]handed, 64)
	of := func(i int) string { return actors[i%len(actors)].name }
	var all sync.WaitGroup
	for i := range list {
		all.Go(func() {
			h := handed{network: []string{"tcp", "udp"}[i%2]}
			h.port, h.err = c.askForPort(by, of(i), "80/"+h.network)
			h.when = monotonic()
			list[i] = h
		})
	}
	all.Wait()
	return list, func() {
		for i, h := range list {
			require.NoError(c.t, h.err)
			require.NoError(c.t, c.m.Unpublish(of(i), fmt.Sprintf("%d:80/%s", h.port, h.network)))
		}
	}
}

// askForPort publishes a container port on any free one, by a Manager or by the real program.
func (c *cast) askForPort(by, name, spec string) (int, error) {
	if by == "managers" {
		m, err := control.Open(control.Options{Root: c.Root})
		if err != nil {
			return 0, err
		}
		defer m.Close()
		pubs, err := m.Publish(name, spec)
		if err != nil {
			return 0, err
		}
		return int(pubs[0].HostPort), nil
	}
	out, err := c.Run(c.Host, lab.Binary(c.t), "publish", "-o", "json", name, spec)
	if err != nil {
		return 0, err
	}
	var port int
	_, rest, _ := strings.Cut(out, `"HostPort": "`)
	if _, err := fmt.Sscanf(rest, "%d", &port); err != nil {
		return 0, fmt.Errorf("%q: %w", out, err)
	}
	return port, nil
}
