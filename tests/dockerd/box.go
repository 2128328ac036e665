// SPDX-License-Identifier: Apache-2.0

package dockerd

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/control/netns"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// who is a page of busybox's httpd that says who it is, and whom it sees.
const who = "#!/bin/sh\necho\necho $(cat /etc/hostname) $REMOTE_ADDR\n"

// ImportImage makes the image box of busybox alone. Its httpd, with /www, has the page
// /cgi-bin/who.
func (e *Engine) ImportImage() {
	e.T.Helper()
	content, err := os.ReadFile(busybox)
	require.NoError(e.T, err)
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	write := func(name string, data []byte) {
		require.NoError(e.T, w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg}))
		_, err := w.Write(data)
		require.NoError(e.T, err)
	}
	write("bin/busybox", content)
	write("www/cgi-bin/who", []byte(who))
	for _, name := range strings.Fields("sh sleep httpd ping nc wget cat ip nslookup") {
		require.NoError(e.T, w.WriteHeader(&tar.Header{Name: "bin/" + name, Linkname: "busybox", Mode: 0o777, Typeflag: tar.TypeSymlink}))
	}
	require.NoError(e.T, w.Close())
	file := filepath.Join(e.Dir, "box.tar")
	require.NoError(e.T, os.WriteFile(file, buf.Bytes(), 0o600))
	e.Docker("import", "--change", `ENV PATH=/bin`, file, "box")
}

// Box is a running container with servers of the lab's in its namespace, on TCP and UDP ports
// 80 and 81: each answers with its name, and whom it sees.
type Box struct {
	Name   string
	ID     string
	NS     *netns.NS
	V4, V6 string // on the first of its networks that has one
}

// Gateway is the first address of the box's /16.
func (b *Box) Gateway() string {
	parts := strings.Split(b.V4, ".")
	return parts[0] + "." + parts[1] + ".0.1"
}

// RunBox starts a container with flags of docker run.
func (e *Engine) RunBox(name string, flags ...string) *Box {
	e.T.Helper()
	require.NoError(e.T, e.TryRun(name, flags...))
	return e.Find(name)
}

// TryRun starts a container, without servers, which may fail.
func (e *Engine) TryRun(name string, flags ...string) error {
	_, err := e.TryStart(name, flags...)
	return err
}

// TryStart is TryRun that gives the container's ID.
func (e *Engine) TryStart(name string, flags ...string) (string, error) {
	return e.TryDocker(append(append([]string{"run", "-d", "--name", name, "--stop-timeout", "0"}, flags...), "box", "sleep", "100000")...)
}

// RunAll is RunBox for several at once; each line is a name and flags.
func (e *Engine) RunAll(lines ...string) map[string]*Box {
	e.T.Helper()
	require.NoError(e.T, Many(len(lines), func(i int) error {
		f := strings.Fields(lines[i])
		return e.TryRun(f[0], f[1:]...)
	}))
	boxes := make(map[string]*Box)
	for _, l := range lines {
		name := strings.Fields(l)[0]
		boxes[name] = e.Find(name)
	}
	return boxes
}

// Find puts servers into a container that runs.
func (e *Engine) Find(name string) *Box {
	e.T.Helper()
	c := e.Inspect(name)
	b := &Box{Name: name, ID: c.ID}
	var err error
	b.NS, err = netns.OfPID(c.State.Pid)
	require.NoError(e.T, err)
	e.T.Cleanup(func() { b.NS.Close() })
	for _, s := range c.NetworkSettings.Networks {
		if s.IPAddress.IsValid() && b.V4 == "" {
			b.V4 = s.IPAddress.String()
		}
		if s.GlobalIPv6Address.IsValid() && b.V6 == "" {
			b.V6 = s.GlobalIPv6Address.String()
		}
	}
	for _, addr := range []string{":80", ":81"} {
		lab.ServeTCP(e.T, b.NS, name, addr)
		lab.ServeUDP(e.T, b.NS, name, addr)
	}
	if b.V6 != "" {
		// The Engine leaves duplicate address detection on, in the container and on its own bridges.
		e.Eventually(name+" and its gateway have their IPv6 addresses", func() bool {
			_, err := lab.AskTCP(e.Host, "", "["+b.V6+"]:80", "", Soon/8)
			return err == nil
		})
	}
	return b
}

// Inspect is what the Engine says of a container.
func (e *Engine) Inspect(name string) container.InspectResponse {
	e.T.Helper()
	var list []container.InspectResponse
	require.NoError(e.T, json.Unmarshal([]byte(e.Docker("inspect", "--type", "container", name)), &list))
	require.Len(e.T, list, 1)
	return list[0]
}

var asks = map[string]func(*netns.NS, string, string, string, time.Duration) (string, error){"tcp": lab.AskTCP, "udp": lab.AskUDP}

// Answers requires that a server answers by TCP and UDP, and sees the client as src, unless
// that is empty.
func (e *Engine) Answers(from *netns.NS, to, server, src string) {
	e.T.Helper()
	for network, ask := range asks {
		line, err := ask(from, "", to, "hello", Soon)
		require.NoError(e.T, err, "%s %s", network, to)
		r, err := lab.ParseReply(line)
		require.NoError(e.T, err)
		require.Equal(e.T, server, r.Server, "%s %s", network, to)
		require.Equal(e.T, "hello", r.Payload)
		if src != "" {
			require.Equal(e.T, src, r.Remote.Addr().String(), "%s %s", network, to)
		}
	}
}

// Silent requires that nothing gets through, while control does.
func (e *Engine) Silent(from *netns.NS, to string, fromControl *netns.NS, toControl string) {
	e.T.Helper()
	for network, ask := range asks {
		lab.Unreachable(e.T, network+" "+to,
			func() error { _, err := ask(from, "", to, "hello", 300*time.Millisecond); return err },
			func() error { _, err := ask(fromControl, "", toControl, "hello", Soon); return err })
	}
}

// Many calls fn for 0 to n-1, all at once, and gives one of the errors.
func Many(n int, fn func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = fn(i) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
