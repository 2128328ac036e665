// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// outcome is what one load did.
type outcome struct {
	ops           float64 // in the workload's unit
	elapsed       time.Duration
	payload       uint64 // bytes that the programs at the ends have sent each other, at least
	lost          uint64
	seen          netip.Addr // by the server
	before, after usage
	pinned        [2]string // CPUs that client and server were allowed
	ran           [2]int    // where they were last; -1: not known
}

// place is where a load runs.
type place struct {
	*site
	path
	w              workload
	client, server int // CPUs
	meter          *meter
	time, warm     time.Duration
	brief          bool
}

func (p *place) load(ctx context.Context) (outcome, error) {
	switch p.w.tool {
	case toolIperf:
		return p.stream(ctx)
	case toolWrk:
		return p.http(ctx)
	}
	return p.talk(ctx)
}

// talk is the load of two workers.
func (p *place) talk(ctx context.Context) (o outcome, err error) {
	ctx, cancel := context.WithTimeout(ctx, p.warm+p.time+3*patience)
	defer cancel()
	j := job{Server: true, UDP: p.w.udp, Talk: p.w.talk, Addr: p.listen}
	server, err := p.spawn(ctx, p.to, p.server, j)
	if err != nil {
		return o, fmt.Errorf("server: %w", err)
	}
	defer server.end()
	j.Server, j.Addr, j.Warm, j.Time = false, p.connect, p.warm, p.time
	client, err := p.spawn(ctx, p.from, p.client, j)
	if err != nil {
		return o, fmt.Errorf("client: %w", err)
	}
	defer client.end()
	if o.pinned[0], err = pinnedTo(client.cmd.Process.Pid); err != nil {
		return o, err
	}
	if o.pinned[1], err = pinnedTo(server.cmd.Process.Pid); err != nil {
		return o, err
	}
	first, err := server.ask()
	if err != nil {
		return o, fmt.Errorf("server: %w", err)
	}
	o.before = p.meter.read(p.Cgroup)
	did, err := client.ask()
	if err != nil {
		return o, fmt.Errorf("client: %w", err)
	}
	o.after = p.meter.read(p.Cgroup)
	last, err := server.ask()
	if err != nil {
		return o, fmt.Errorf("server: %w", err)
	}
	served := last.Ops - first.Ops
	o.elapsed, o.lost, o.seen, o.ran = did.Elapsed, did.Lost, last.From, [2]int{did.CPU, last.CPU}
	if p.w.talk == talkFlood {
		o.ops, o.payload, o.lost = float64(served), served*floodSize, 0
		return o, nil
	}
	if served < did.Ops {
		return o, fmt.Errorf("the client had %d answers, the server gave %d", did.Ops, served)
	}
	o.ops, o.payload = float64(did.Ops), 2*did.Ops
	return o, nil
}

// stream is the load of iperf3.
func (p *place) stream(ctx context.Context) (o outcome, err error) {
	seconds := int(math.Ceil(p.time.Seconds())) // it takes whole ones only
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+3*patience)
	defer cancel()
	server, err := p.tool(ctx, p.to, p.server, "iperf3", "-s", "-1", "-J", "-B", p.listen.Addr().String(), "-p", fmt.Sprint(p.listen.Port()))
	if err != nil {
		return o, err
	}
	defer server.end()
	if err := server.listening(ctx, p.to); err != nil {
		return o, err
	}
	args := []string{"-c", p.connect.Addr().String(), "-p", fmt.Sprint(p.connect.Port()), "-J",
		"--get-server-output", "--connect-timeout", fmt.Sprint(patience.Milliseconds())}
	if p.brief {
		args = append(args, "-n", "20M")
	} else {
		args = append(args, "-t", fmt.Sprint(seconds))
	}
	// By nature the client sends; a container is the client on its way to the world only.
	if p.w.out != (p.from == p.web) {
		args = append(args, "-R")
	}
	client, err := p.measured(ctx, &o, server, "iperf3", args...)
	if err != nil {
		return o, err
	}
	return o, o.readIperf(client.out.Bytes())
}

// measured runs a foreign client against a server that runs, and notes what both cost. The
// client that comes back has ended.
func (p *place) measured(ctx context.Context, o *outcome, server *tool, name string, args ...string) (*tool, error) {
	o.before = p.meter.read(p.Cgroup)
	client, err := p.tool(ctx, p.from, p.client, name, args...)
	if err != nil {
		return nil, err
	}
	defer client.end()
	for i, t := range []*tool{client, server} {
		if o.pinned[i], err = pinnedTo(t.cmd.Process.Pid); err != nil {
			return nil, err
		}
	}
	if err := client.wait(); err != nil {
		return nil, err
	}
	o.after, o.ran = p.meter.read(p.Cgroup), [2]int{-1, -1}
	return client, nil
}

// readIperf takes from iperf3's JSON what was received.
func (o *outcome) readIperf(data []byte) error {
	var said struct {
		Error string
		End   struct {
			Received struct {
				Bytes   uint64
				Seconds float64
			} `json:"sum_received"`
		}
		Server struct {
			Start struct {
				Accepted struct{ Host string } `json:"accepted_connection"`
			}
		} `json:"server_output_json"`
	}
	if err := json.Unmarshal(data, &said); err != nil {
		return fmt.Errorf("iperf3: %w", err)
	}
	if said.Error != "" {
		return fmt.Errorf("iperf3: %s", said.Error)
	}
	received := said.End.Received
	o.ops, o.payload = float64(received.Bytes)/1e6, received.Bytes
	o.elapsed = time.Duration(received.Seconds * float64(time.Second))
	seen, err := netip.ParseAddr(said.Server.Start.Accepted.Host)
	if err != nil {
		return fmt.Errorf("iperf3: whom the server saw: %w", err)
	}
	o.seen = seen.Unmap()
	return nil
}

// answerSize is what nginx's answer and wrk's request have together, at least.
const answerSize = 150

// http is the load of wrk on nginx.
func (p *place) http(ctx context.Context) (o outcome, err error) {
	seconds := int(math.Ceil(p.time.Seconds()))
	ctx, cancel := context.WithTimeout(ctx, time.Duration(seconds)*time.Second+3*patience)
	defer cancel()
	config := filepath.Join(p.Dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConf, p.Dir, p.listen), 0o600); err != nil {
		return o, err
	}
	server, err := p.tool(ctx, p.to, p.server, "nginx", "-p", p.Dir, "-e", "stderr", "-c", config)
	if err != nil {
		return o, err
	}
	defer server.end()
	if err := server.listening(ctx, p.to); err != nil {
		return o, err
	}
	url := "http://" + p.connect.String() + "/"
	if o.seen, err = p.page(ctx, url); err != nil {
		return o, err
	}
	args := []string{"-t1", "-c16", fmt.Sprintf("-d%ds", seconds)}
	if p.w.short {
		args = append(args, "-H", "Connection: close")
	}
	client, err := p.measured(ctx, &o, server, "wrk", append(args, url)...)
	if err != nil {
		return o, err
	}
	return o, o.readWrk(client.out.String())
}

const nginxConf = `daemon off;
master_process off;
pid %s/nginx.pid;
error_log stderr;
events { worker_connections 1024; }
http {
  access_log off;
  keepalive_requests 1000000000;
  server { listen %s; return 200 "$remote_addr\n"; }
}
`

// page fetches nginx's answer: whom it saw.
func (p *place) page(ctx context.Context, url string) (netip.Addr, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = p.from.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return netip.Addr{}, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return netip.Addr{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 256))
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.ParseAddr(strings.TrimSpace(string(body)))
}

var (
	wrkDone   = regexp.MustCompile(`(\d+) requests in ([0-9.]+)(us|ms|s|m),`)
	wrkRefuse = regexp.MustCompile(`(?m)^\s*(Non-2xx or 3xx responses: .*|Socket errors: .*)$`)
	wrkUnits  = map[string]time.Duration{"us": time.Microsecond, "ms": time.Millisecond, "s": time.Second, "m": time.Minute}
)

// readWrk takes from wrk's report how many answers came, all of them right.
func (o *outcome) readWrk(text string) error {
	m := wrkDone.FindStringSubmatch(text)
	if m == nil {
		return fmt.Errorf("wrk: said %.300q", text)
	}
	if bad := wrkRefuse.FindString(text); bad != "" {
		return fmt.Errorf("wrk: %s", strings.TrimSpace(bad))
	}
	took, err := strconv.ParseFloat(m[2], 64)
	if err != nil {
		return fmt.Errorf("wrk: %w", err)
	}
	done := number(m[1])
	o.ops, o.payload = float64(done), done*answerSize
	o.elapsed = time.Duration(took * float64(wrkUnits[m[3]]))
	return nil
}
