// SPDX-License-Identifier: Apache-2.0

// Package demo is the main job in a lab of its own: a client, a host and two
// containers in network namespaces that nobody else uses, with their own store,
// pins and cgroup. It explains what it does line by line and leaves nothing behind.
package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/lab"
	"github.com/bpfnet/bpfnet/control/netns"
)

const picture = `
   client                       host                                containers
  ┌────────────────┐  uplink   ┌──────────────────────────┐        ┌────────────────────┐
  │ 203.0.113.2    ├───────────┤ 203.0.113.1              │   ┌────┤ web   172.17.0.2   │ :80
  │ 2001:db8::2    │           │ 2001:db8::1     bpfnet0  ├───┤    └────────────────────┘
  └────────────────┘           │              172.17.0.1  │   │    ┌────────────────────┐
                               └──────────────────────────┘   └────┤ peer  172.17.0.3   │
                                                                   └────────────────────┘
`

// wait bounds each thing that should be answered; refusal bounds what should not.
const (
	wait    = 3 * time.Second
	refusal = 400 * time.Millisecond
)

type demo struct {
	out           io.Writer
	lab           *lab.Lab
	m             *control.Manager
	web           *control.Container
	webNS, peerNS *netns.NS
	// The web server's own words about who asked.
	seen chan string
}

// Run shows the main job on out. The error is what did not work as it should, or that ctx
// has ended: then nothing is left behind either.
func Run(ctx context.Context, out io.Writer) (err error) {
	if os.Geteuid() != 0 {
		return control.ErrNotRoot
	}
	begun := time.Now()
	d := &demo{out: out, seen: make(chan string, 16)}
	d.lab, err = lab.New("bpfnet-demo")
	if err != nil {
		return fmt.Errorf("demo: lab: %w", err)
	}
	defer func() {
		if closeErr := d.close(); err == nil && closeErr != nil {
			err = fmt.Errorf("demo: clean up: %w", closeErr)
		}
		if err == nil {
			d.say("Everything is gone again: namespaces, programs, maps, store. %.1f s.", time.Since(begun).Seconds())
		}
	}()
	fmt.Fprint(out, picture)
	for _, act := range []func() error{d.setUp, d.publish, d.fetch, d.world, d.icc, d.look} {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := act(); err != nil {
			return fmt.Errorf("demo: %w", err)
		}
	}
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, "\n"+format+"\n", args...) }

func (d *demo) shell(format string, args ...any) {
	fmt.Fprintf(d.out, "  $ "+format+"\n", args...)
}

func (d *demo) result(format string, args ...any) {
	fmt.Fprintf(d.out, "    "+format+"\n", args...)
}

func (d *demo) close() error {
	var errs []error
	if d.m != nil {
		errs = append(errs, d.m.Uninstall(), d.m.Close())
	}
	return errors.Join(append(errs, d.lab.Close())...)
}

// setUp makes the host and two containers out of namespaces that are there.
func (d *demo) setUp() (err error) {
	d.say("The host gets its programs and maps; containers are network namespaces that are attached.")
	for _, ns := range []**netns.NS{&d.webNS, &d.peerNS} {
		if *ns, err = d.lab.Namespace(); err != nil {
			return err
		}
	}
	d.m, err = control.Open(control.Options{Root: d.lab.Root, BPFFS: d.lab.BPFFS, Netns: d.lab.Host.Path(), Cgroup: d.lab.Cgroup})
	if err != nil {
		return err
	}
	on := true
	d.shell("bpfnet init --ipv6")
	if err := d.m.Init(&control.Config{IPv6: &on}); err != nil {
		return err
	}
	d.shell("bpfnet attach web  netns:/run/netns/web")
	d.web, err = d.m.CreateContainer(control.ContainerOptions{Name: "web", Attach: "netns:" + d.webNS.Path()})
	if err != nil {
		return err
	}
	d.shell("bpfnet attach peer netns:/run/netns/peer")
	_, err = d.m.CreateContainer(control.ContainerOptions{Name: "peer", Attach: "netns:" + d.peerNS.Path()})
	return err
}

func (d *demo) publish() error {
	d.say("A web server in web (Go's net/http) that says whom it sees; its port 80 becomes 8080 of the host.")
	var listener net.Listener
	err := d.webNS.Do(func() (err error) {
		listener, err = net.Listen("tcp", ":80")
		return err
	})
	if err != nil {
		return err
	}
	d.lab.OnClose(listener.Close)
	go http.Serve(listener, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", r.RemoteAddr)
	}))
	d.shell("bpfnet publish web 8080:80")
	if _, err := d.m.Publish("web", "8080:80"); err != nil {
		return err
	}
	published, err := d.m.Publications(d.web.ID)
	if err != nil {
		return err
	}
	d.shell("bpfnet port web")
	for _, p := range published {
		d.result("%d/%s -> %s", p.Port, p.Proto, netip.AddrPortFrom(p.HostIP, p.HostPort))
	}
	return nil
}

// get fetches the page from inside ns and returns the address that the server saw.
func get(ns *netns.NS, url string, limit time.Duration) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (conn net.Conn, err error) {
		err = ns.Do(func() error {
			conn, err = (&net.Dialer{}).DialContext(ctx, network, addr)
			return err
		})
		return conn, err
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return "", err
	}
	seen, ok := strings.CutPrefix(string(body), "hello ")
	if !ok {
		return "", fmt.Errorf("%s: answered %q", url, body)
	}
	host, _, err := net.SplitHostPort(seen)
	return host, err
}

// fetch reaches the published port from everywhere; want is the source that the
// server must see, "" for any.
func (d *demo) fetch() error {
	d.say("The page, fetched from everywhere. The server sees the real client; the host shows as the gateway.")
	for _, try := range []struct {
		who  string
		from *netns.NS
		url  string
		want string
	}{
		{"client", d.lab.Client, "http://203.0.113.1:8080/", "203.0.113.2"},
		{"client", d.lab.Client, "http://[2001:db8::1]:8080/", "2001:db8::2"},
		{"host", d.lab.Host, "http://127.0.0.1:8080/", "172.17.0.1"},
		{"host", d.lab.Host, "http://[::1]:8080/", ""},
		{"peer", d.peerNS, "http://203.0.113.1:8080/", "172.17.0.3"},
		{"peer", d.peerNS, "http://172.17.0.2/", "172.17.0.3"},
	} {
		seen, err := get(try.from, try.url, wait)
		if err != nil {
			return fmt.Errorf("%s: %w", try.who, err)
		}
		if try.want != "" && seen != try.want {
			return fmt.Errorf("%s: %s: the server saw %s, not %s", try.who, try.url, seen, try.want)
		}
		d.result("%-7s %-28s -> the server saw %s", try.who, try.url, seen)
	}
	return nil
}

func (d *demo) world() error {
	d.say("From a container to the world: masquerade. The client sees the host's address.")
	d.shell("bpfnet exec peer -- ping 203.0.113.2")
	took, err := ping(d.peerNS, "203.0.113.2", wait)
	if err != nil {
		return err
	}
	d.result("an answer after %s", took.Round(10*time.Microsecond))
	seen, err := d.masqueraded()
	if err != nil {
		return err
	}
	if seen != "203.0.113.1" {
		return fmt.Errorf("masquerade: the client saw %s, not 203.0.113.1", seen)
	}
	d.result("a connection from peer: the client saw %s", seen)
	return nil
}

func (d *demo) icc() error {
	d.say("With icc off containers no longer reach each other, except by published ports.")
	off := false
	d.shell("bpfnet init --icc=false")
	if err := d.m.Init(&control.Config{ICC: &off}); err != nil {
		return err
	}
	if seen, err := get(d.peerNS, "http://172.17.0.2/", refusal); err == nil {
		return fmt.Errorf("icc is off, and peer still reached web as %s", seen)
	}
	d.result("peer    http://172.17.0.2/           -> nothing")
	seen, err := get(d.peerNS, "http://203.0.113.1:8080/", wait)
	if err != nil {
		return fmt.Errorf("icc off: the published port: %w", err)
	}
	d.result("peer    http://203.0.113.1:8080/     -> the server saw %s", seen)
	return nil
}

// look prints the flows and the counters.
func (d *demo) look() error {
	d.say("What the programs remember, and what they dropped and why.")
	flows, err := d.m.Flows(control.FlowFilter{})
	if err != nil {
		return err
	}
	if len(flows) == 0 {
		return errors.New("flows: none are remembered")
	}
	d.shell("bpfnet flows")
	table := tabwriter.NewWriter(d.out, 4, 0, 2, ' ', 0)
	for _, f := range flows {
		fmt.Fprintf(table, "    %s\t%s\t%s\t%s > %s\t%s > %s\t%s\n", f.Proto, f.State, f.Kind, f.Source, f.Destination, f.NewSource, f.NewDest, f.Container)
	}
	table.Flush()
	status, err := d.m.Status()
	if err != nil {
		return err
	}
	d.shell("bpfnet status")
	for _, drop := range status.Drops {
		d.result("dropped %d from %s: %s", drop.Packets, cmpOr(drop.Container, drop.Device), drop.Reason)
	}
	if len(status.Drops) == 0 {
		return errors.New("status: the packets that icc refused are not counted")
	}
	return nil
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
