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

// G1: every process of bpfnet is killed with SIGKILL, 50 times, under 100 TCP flows and a UDP
// stream: no reset, nothing lost, no new connection fails. The containers' commands live on and
// write their logs, and every command goes on to work.
func TestG1(t *testing.T) {
	parallel(t)
	c := newCast(t)
	c.network("n1", 1, true)
	c.must(append([]string{"run", "-d", "--name", "web", "--net", "n1", "-p", "8080:80", "-p", "8080:80/udp", "--"}, lab.Self("serve", "web", ":80")...)...)
	eventually(t, "web serves", func() bool { return c.must("logs", "web") == "serving" })
	var talks []*dialogue
	for i := range times(100, 20) {
		talks = append(talks, c.talking("tcp", c.Client, at([]string{lab.HostIPv4, lab.HostIPv6}[i%2], 8080), "web"))
	}
	talks = append(talks, c.calling("tcp", c.Client, at(lab.HostIPv4, 8080), "web"), c.calling("udp", c.Client, at(lab.HostIPv6, 8080), "web"),
		c.calling("tcp", c.Host, "127.0.0.1:8080", "web"))
	udp := c.streaming(c.Client, at(lab.HostIPv4, 8080))
	first := udp.next()
	for i := range times(50, 5) {
		name := fmt.Sprintf("job%d", i)
		id := c.must("run", "-d", "--name", name, "--net", "n1", "-p", "80", "--", "sh", "-c", "while :; do echo line; sleep 0.01; done")
		log := filepath.Join(c.Root, "containers", id, "log")
		follow := c.start("logs", "-f", name)
		require.True(t, follow.WaitOutput("line", wait), name)
		half := c.start("publish", "web", "20000-21999:20000-21999") // killed while it works, or just after
		killed := c.killOwn()
		require.Contains(t, killed, follow.Pid())
		require.Greater(t, len(killed), 1, "the supervisor is a process too")
		<-follow.Done()
		<-half.Done()
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
	udp.answered(first, udp.next()-first, "web")
	c.must("stop", "-t", "0", "web")
	c.must("rm", "web")
	require.Empty(t, c.must("ps", "-a", "-q"))
	require.Empty(t, c.own())
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	return info.Size()
}
