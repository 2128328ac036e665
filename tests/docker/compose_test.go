// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

const composeFile = `
version: "2.4"
services:
  web:
    image: box
    hostname: web
    command: httpd -f -h /www
    ports: ["8080:80", "127.0.0.1:8081:80"]
    networks: {front: {aliases: [www]}, back: {}}
  peer:
    image: box
    command: sleep 100000
    stop_grace_period: 0s
    networks: [front]
  other:
    image: box
    command: sleep 100000
    stop_grace_period: 0s
    networks: [inner]
  far:
    image: box
    command: sleep 100000
    stop_grace_period: 0s
networks:
  front: {}
  back: {driver_opts: {com.docker.network.bridge.enable_icc: "false"}}
  inner: {internal: true}
`

// Debian's docker-compose, unchanged: names by the Engine's own resolver, ports, networks.
func TestCompose(t *testing.T) {
	e := newEngine(t)
	before := e.has()
	file := filepath.Join(e.Dir, "docker-compose.yml")
	require.NoError(t, os.WriteFile(file, []byte(composeFile), 0o600))
	compose := func(args ...string) string {
		t.Helper()
		cmd := e.Command("docker-compose", append([]string{"--host", e.Socket(), "-p", "app", "-f", file}, args...)...)
		p, err := e.StartCommand(e.Host, cmd)
		require.NoError(t, err)
		require.NoError(t, p.Wait(dockerd.Wait), p.Stderr())
		return p.Stdout()
	}
	get := func(container, to string) (string, error) {
		line := `printf 'GET /cgi-bin/who HTTP/1.0\r\n\r\n' | nc -w 1 ` + to
		return e.Run(e.Host, "/usr/bin/docker", "--host", e.Socket(), "exec", container, "sh", "-c", line)
	}
	compose("up", "-d", "--no-color")
	e.firstAnswer(8080, "web [::ffff:"+lab.ClientIPv4+"]")
	require.Contains(t, compose("port", "web", "80"), ":808")
	for _, name := range []string{"web", "www"} {
		// A static busybox looks names up by nslookup alone.
		found := strings.Fields(e.Docker("exec", "app_peer_1", "nslookup", "-type=a", name, "127.0.0.11"))
		out, err := get("app_peer_1", found[len(found)-1]+" 80")
		require.NoError(t, err)
		require.Contains(t, out, "web [::ffff:")
	}
	_, err := get("app_other_1", lab.HostIPv4+" 8080")
	require.Error(t, err, "from an internal network")
	out, err := get("app_far_1", lab.HostIPv4+" 8080")
	require.NoError(t, err)
	require.Contains(t, out, "web ")

	compose("restart", "-t", "0", "web")
	e.firstAnswer(8080, "web [::ffff:"+lab.ClientIPv4+"]")
	compose("down", "-t", "0")
	e.goneAll(0, before)
	require.Empty(t, e.rules())
}
