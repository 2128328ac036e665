// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// G1: every process of bpfnet is killed with SIGKILL, the daemon among them, 50 times, under 100 TCP
// flows, flows of every other kind and UDP streams: no reset, nothing lost, no new connection fails.
// The containers' commands live on and write their logs, and every command goes on to work.
//
//	X 7000 ── H ─┬─ n1 ─┬─ web (8080:80)
//	             │      └─ peer
//	             └─ n2 ─── other
func TestG1(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	c.network("n2", 2, true)
	p, o := c.container("peer", "n1"), c.container("other", "n2")
	lab.ServeTCP(t, c.Client, "world", ":7000")
	lab.ServeUDP(t, c.Client, "world", ":7000")
	c.must(append([]string{"run", "-d", "--name", "web", "--net", "n1", "-p", "8080:80", "-p", "8080:80/udp", "--"}, lab.Self("serve", "web", ":80")...)...)
	eventually(t, "web serves", func() bool { return c.must("logs", "web") == "serving" })
	var talks []*dialogue
	for i := range times(100, 20) {
		talks = append(talks, c.talking("tcp", c.Client, at([]string{lab.HostIPv4, lab.HostIPv6}[i%2], 8080), "web"))
	}
	talks = append(talks, c.calling("tcp", c.Client, at(lab.HostIPv4, 8080), "web"), c.calling("udp", c.Client, at(lab.HostIPv6, 8080), "web"),
		c.calling("tcp", c.Host, "127.0.0.1:8080", "web"))
	web := c.station(&actor{name: "web"}, "n1")
	for i, family := range ipVersions {
		host, world := []string{lab.HostIPv4, lab.HostIPv6}[i], []string{lab.ClientIPv4, lab.ClientIPv6}[i]
		for _, proto := range []string{"tcp", "udp"} {
			talks = append(talks,
				c.talking(proto, p.ns, at(world, 7000), "world"), c.calling(proto, p.ns, at(world, 7000), "world"),
				c.talking(proto, p.ns, at(web.addr(family), 80), "web"),
				c.talking(proto, o.ns, at(host, 8080), "web"), c.calling(proto, o.ns, at(host, 8080), "web"))
		}
	}
	streams := []*stream{c.streaming(c.Client, at(lab.HostIPv4, 8080)), c.streaming(c.Client, at(lab.HostIPv6, 8080)),
		c.streaming(p.ns, at(lab.ClientIPv4, 7000)), c.streaming(p.ns, at(lab.ClientIPv6, 7000))}
	servers, first := []string{"web", "web", "world", "world"}, make([]int64, len(streams))
	for i, k := range streams {
		first[i] = k.next()
	}
	for i := range times(50, 5) {
		name := fmt.Sprintf("job%d", i)
		id := c.must("run", "-d", "--name", name, "--net", "n1", "-p", "80", "--", "sh", "-c", "while :; do echo line; sleep 0.01; done")
		log := filepath.Join(c.Root, "containers", id, "log")
		follow := c.start("logs", "-f", name)
		require.True(t, follow.WaitOutput("line", wait), name)
		d := c.daemon()
		half := c.start("publish", "web", "20000-21999:20000-21999") // killed while it works, or just after
		killed := c.killOwn()
		require.Subset(t, killed, []int{follow.Pid(), d.Pid()})
		require.Greater(t, len(killed), 2, "the supervisor is a process too")
		<-follow.Done()
		<-half.Done()
		<-d.Done()
		unharmed(talks...)
		size := fileSize(t, log)
		eventually(t, name+" writes its log", func() bool { return fileSize(t, log) > size })
		require.Contains(t, c.must("ps", "--format", "{{.Names}} {{.Status}}"), name+" Up")
		require.Contains(t, c.must("logs", "--tail", "1", name), "line")
		require.Equal(t, name, c.must("stop", "-t", "0", name))
		require.NotContains(t, c.must("ps", "--format", "{{.Names}}"), name)
		require.Equal(t, name, c.must("rm", name))
		require.NoFileExists(t, log)
		if r := c.bpfnet("unpublish", "web", "20000-21999:20000-21999"); r.code != 0 {
			require.NotContains(t, c.must("port", "web"), "20000", r.err)
		}
		require.Empty(t, c.must("reconcile"))
		unharmed(talks...)
	}
	over(talks...)
	for i, k := range streams {
		k.answered(first[i], k.next()-first[i], servers[i])
	}
	c.must("stop", "-t", "0", "web")
	c.must("rm", "web", "peer", "other")
	require.Empty(t, c.must("ps", "-a", "-q"))
	require.Empty(t, c.own())
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Size()
}
