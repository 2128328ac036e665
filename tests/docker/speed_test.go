// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/maps"
	"github.com/bpfnet/bpfnet/tests/dockerd"
	"github.com/bpfnet/bpfnet/tests/lab"
)

// create makes a container of the image box by the Engine's interface: the client's own
// time is no part of what is measured. The server in it says its name and whom it sees.
func (e *engine) create(name string, ports network.PortMap) string {
	e.T.Helper()
	exposed := make(network.PortSet)
	for p := range ports {
		exposed[p] = struct{}{}
	}
	zero := 0
	r, err := e.api.ContainerCreate(context.Background(), client.ContainerCreateOptions{
		Name: name,
		Config: &container.Config{Image: "box", Hostname: name, ExposedPorts: exposed, StopTimeout: &zero,
			Cmd: []string{"httpd", "-f", "-h", "/www"}},
		HostConfig: &container.HostConfig{PortBindings: ports},
	})
	require.NoError(e.T, err)
	return r.ID
}

func bind(host, cont int) (network.Port, network.PortBinding) {
	p, _ := network.PortFrom(uint16(cont), network.TCP)
	return p, network.PortBinding{HostPort: fmt.Sprint(host)}
}

func portMap(pairs ...int) network.PortMap {
	m := make(network.PortMap)
	for i := 0; i < len(pairs); i += 2 {
		p, b := bind(pairs[i], pairs[i+1])
		m[p] = append(m[p], b)
	}
	return m
}

func (e *engine) start(id string) {
	e.T.Helper()
	_, err := e.api.ContainerStart(context.Background(), id, client.ContainerStartOptions{})
	require.NoError(e.T, err)
}

func (e *engine) remove(id string) {
	e.T.Helper()
	_, err := e.api.ContainerRemove(context.Background(), id, client.ContainerRemoveOptions{Force: true})
	require.NoError(e.T, err)
}

// greets asks the server of create once, with a new connection.
func (e *engine) greets(port int, limit time.Duration) (string, error) {
	c, err := lab.Dial(e.Client, "tcp", "", fmt.Sprintf("%s:%d", lab.HostIPv4, port), limit)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, "GET /cgi-bin/who HTTP/1.0\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(c)
	_, body, _ := strings.Cut(string(answer), "\n\n")
	return strings.TrimSpace(strings.ReplaceAll(body, "\r", "")), err
}

// firstAnswer connects anew every two milliseconds until somebody is answered, and says when
// that was: a connection that came too early may hang in the Engine's own socket.
func (e *engine) firstAnswer(port int, want string) time.Time {
	e.T.Helper()
	answered := make(chan time.Time, 1)
	tick, end := time.NewTicker(2*time.Millisecond), time.After(dockerd.Wait)
	defer tick.Stop()
	for {
		select {
		case at := <-answered:
			return at
		case <-end:
			e.T.Fatalf("port %d: does not answer", port)
		case <-tick.C:
			go func() {
				if line, err := e.greets(port, dockerd.Soon); err == nil && line == want {
					select {
					case answered <- time.Now():
					default:
					}
				}
			}()
		}
	}
}

func median(list []time.Duration) time.Duration {
	slices.Sort(list)
	return list[len(list)/2]
}

// From the Engine's event that a container has started to the first answer of its port.
func TestAnswersAtOnce(t *testing.T) {
	e := newEngine(t)
	var took []time.Duration
	for i := range 5 {
		id := e.create(fmt.Sprint("web", i), portMap(8080, 80))
		at := e.at(id, "start", func() { e.start(id) })
		took = append(took, e.firstAnswer(8080, fmt.Sprintf("web%d [::ffff:%s]", i, lab.ClientIPv4)).Sub(at))
		e.remove(id)
	}
	t.Logf("from the start event to the answer: median %v of %v", median(took), took)
	require.Less(t, median(took), time.Duration(float64(50*time.Millisecond)*lab.Slowness(t)))
}

// firstRefusal connects anew every two milliseconds until the port is closed.
func (e *engine) firstRefusal(port int) time.Time {
	e.T.Helper()
	refused := make(chan time.Time, 1)
	tick, end := time.NewTicker(2*time.Millisecond), time.After(dockerd.Wait)
	defer tick.Stop()
	for {
		select {
		case at := <-refused:
			return at
		case <-end:
			e.T.Fatalf("port %d: is not closed", port)
		case <-tick.C:
			go func() {
				if _, err := e.greets(port, dockerd.Soon); lab.Refused(err) {
					select {
					case refused <- time.Now():
					default:
					}
				}
			}()
		}
	}
}

// leads says whether a host port leads anywhere, by the programs' own tables.
func (e *engine) leads(port int) bool {
	e.T.Helper()
	src, err := loader.OpenMaps(loader.Options{BPFFS: e.BPFFS})
	require.NoError(e.T, err)
	defer src.Close()
	_, taken, err := maps.New(src).Ports.Conflict(maps.Binding{Proto: maps.TCP, Addr: netip.IPv4Unspecified(), First: uint16(port), Count: 1})
	require.NoError(e.T, err)
	return taken
}

// at waits for an event of a container and says when it came.
func (e *engine) at(id, event string, do func()) time.Time {
	e.T.Helper()
	ctx, stop := context.WithTimeout(context.Background(), dockerd.Wait)
	defer stop()
	stream := e.api.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("event", event).Add("container", id)})
	came := make(chan time.Time, 1)
	go func() {
		select {
		case <-stream.Messages:
			came <- time.Now()
		case <-stream.Err:
			close(came)
		}
	}()
	do()
	at, ok := <-came
	require.True(e.T, ok, event)
	return at
}

// 206 ports on a host that has published 8,000: what bpfnet adds to the Engine's own time,
// and how soon after the container's end they are closed.
func TestManyPorts(t *testing.T) {
	const (
		rounds = 5
		count  = 206
		most   = 50 * time.Millisecond
		where  = 300 * time.Millisecond // on a machine on which the Engine alone takes so long to start it
	)
	e := newEngineAlone(t)
	for i := range 8 {
		var pairs []int
		for p := range 1000 {
			pairs = append(pairs, 20000+i*1000+p, 1000+p)
		}
		e.start(e.create(fmt.Sprint("many", i), portMap(pairs...)))
	}
	var pairs []int
	for p := range count { // no two are neighbours
		pairs = append(pairs, 10000+2*p, 79+p)
	}
	last := 10002 // leads to port 80
	round := func(answers bool) (start, more, end time.Duration) {
		id := e.create("web", portMap(pairs...))
		begin := time.Now()
		started := e.at(id, "start", func() { e.start(id) })
		start = started.Sub(begin)
		if answers {
			more = e.firstAnswer(last, "web [::ffff:"+lab.ClientIPv4+"]").Sub(started)
			e.adopted("web") // the end of one that runs, not of one whose start is still being looked at
		}
		died := e.at(id, "die", func() { go e.remove(id) })
		end = e.firstRefusal(last).Sub(died)
		if answers { // a container that has ended refuses, too: the port has to be nobody's
			e.Eventually("closed", func() bool { return !e.leads(last) })
			end = time.Since(died)
		}
		e.Eventually("removed", func() bool {
			_, err := e.api.ContainerInspect(context.Background(), id, client.ContainerInspectOptions{})
			return err != nil
		})
		return start, more, end
	}
	var alone, with, added, goneAlone, gone []time.Duration
	for range rounds {
		start, _, end := round(false)
		alone, goneAlone = append(alone, start), append(goneAlone, end)
	}
	e.startDaemon()
	e.adopted("many0", "many7")
	for range rounds {
		start, more, end := round(true)
		with, added, gone = append(with, start), append(added, more), append(gone, end)
	}
	t.Logf("%d ports on 8,000, medians: the Engine starts alone in %v, beside bpfnet in %v; the last port answers %v later", count, median(alone), median(with), median(added))
	t.Logf("closed %v after the container's end, the Engine's own sockets after %v", median(gone), median(goneAlone))
	t.Logf("of %v; %v; %v; %v; %v", alone, with, added, goneAlone, gone)
	// The fastest of each: what else the machine does only adds to them.
	bar := time.Duration(float64(most) * max(1, float64(median(alone))/float64(where)))
	require.Less(t, slices.Min(added), bar)
	require.Less(t, slices.Min(gone), bar)
}

// Who connects to the port of a container that is being started is answered when it runs,
// or refused: he does not hang in the socket by which the Engine holds the port.
func TestNobodyHangs(t *testing.T) {
	e := newEngine(t)
	var hung, answered int
	for i := range 3 {
		id := e.create(fmt.Sprint("web", i), portMap(8080, 80))
		e.Inspect(id) // docker run asks, too, before it starts what it has made
		results := make(chan string, 4096)
		stop := make(chan struct{})
		var asked int
		done := make(chan struct{})
		go func() {
			defer close(done)
			tick := time.NewTicker(4 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					asked++
					go func() {
						c, err := lab.Dial(e.Client, "tcp", "", lab.HostIPv4+":8080", dockerd.Soon)
						if err != nil {
							results <- "refused"
							return
						}
						defer c.Close()
						_ = c.SetDeadline(time.Now().Add(dockerd.Soon))
						_, _ = io.WriteString(c, "GET /cgi-bin/who HTTP/1.0\r\n\r\n")
						if out, err := io.ReadAll(c); err == nil && len(out) > 0 {
							results <- "answered"
						} else {
							results <- "hung"
						}
					}()
				}
			}
		}()
		e.start(id)
		e.firstAnswer(8080, fmt.Sprintf("web%d [::ffff:%s]", i, lab.ClientIPv4))
		close(stop)
		<-done
		for range asked {
			switch <-results {
			case "hung":
				hung++
			case "answered":
				answered++
			}
		}
		e.remove(id)
	}
	t.Logf("of those that connected while three containers were started %d were answered, %d hung", answered, hung)
	require.Less(t, hung, answered) // nearly all hang if the ports are published with the start
}
