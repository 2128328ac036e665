// SPDX-License-Identifier: Apache-2.0

// Package docker follows an unmodified Docker Engine and carries its containers' packets:
// the Engine makes bridges, veths and addresses and chooses host ports, as with
//
//	dockerd --iptables=false --ip6tables=false --userland-proxy=false
//
// and this package tells control.Manager.Adopt what the Engine has. Everything at first
// and after each time that the Engine was away; then, by the Engine's events, what has
// changed. What the Engine says is checked by Adopt against what the host has.
package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"

	"github.com/bpfnet/bpfnet/control"
)

// Name of the engine in the store, and so before the names of its containers.
const Name = "docker"

// DefaultHost is where the Engine listens when nobody says.
const DefaultHost = "unix:///var/run/docker.sock"

// veths are the names that the Engine gives to the host's ends of cables: libnetwork's
// netutils.GenerateIfaceName.
const veths = `^veth[0-9a-f]{7}$`

// Paces.
const (
	askFor   = 20 * time.Second // an answer of the Engine's
	retryMin = 20 * time.Millisecond
	retryMax = 2 * time.Second
	againMin = 50 * time.Millisecond // after what could not be done, to everything
	againMax = 30 * time.Second
)

// Options say what to follow.
type Options struct {
	Host string       // URL; "" is DefaultHost
	Log  func(string) // a line for each change and each error; nil: nobody gets them
}

// Follow follows the Engine until ctx ends, which is no error. An Engine that is away, or
// was never there, is waited for; a Host that is no URL is an error. The Manager is used by nobody
// else meanwhile.
func Follow(ctx context.Context, m *control.Manager, o Options) error {
	if o.Host == "" {
		o.Host = DefaultHost
	}
	if _, err := client.ParseHostURL(o.Host); err != nil {
		return fmt.Errorf("docker-host %q: not unix:///PATH or tcp://HOST:PORT", o.Host)
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	f := &follower{m: m, o: o, learned: make(chan control.AdoptedContainer)}
	for wait := retryMin; ; wait = min(2*wait, retryMax) {
		begin := time.Now()
		err := f.session(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, control.ErrNotSetUp) {
			return nil // uninstalled
		}
		if time.Since(begin) > retryMax {
			wait = retryMin
		}
		f.once(fmt.Sprintf("docker %s: %s", o.Host, line(err)))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

type follower struct {
	m   *control.Manager
	o   Options
	api *client.Client

	bridges map[string]bool            // IDs of the networks that are carried
	links   map[string]map[string]bool // clients by target, by IDs: a target's next start is theirs too
	running map[string]bool            // containers that were seen to run since they started
	awaited map[string]*awaited
	fixed   map[string]control.AdoptedContainer // all, by ID, with what is known of them before they start
	learned chan control.AdoptedContainer       // for fixed
	bound   map[string]bool                     // networks that have a binding address of their own
	shut    map[int]bool                        // see control.Manager.ShutPorts
	last    string                              // error, which is said once

	failures int       // looks that could not do everything, since the last one at everything that could
	due      time.Time // then everything is looked at again, if there were failures
}

// session follows the Engine while it lives.
func (f *follower) session(ctx context.Context) (err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.api, err = client.New(client.WithHost(f.o.Host))
	if err != nil {
		return err
	}
	defer f.api.Close()
	ping, cancelPing := context.WithTimeout(ctx, askFor)
	version, err := f.api.Ping(ping, client.PingOptions{NegotiateAPIVersion: true})
	cancelPing()
	if err != nil {
		return err
	}
	// From here on nothing is missed; what changed before is found by the look at everything.
	stream := f.api.Events(ctx, client.EventsListOptions{Filters: wanted()})
	if err := f.everything(ctx); err != nil {
		return err
	}
	cables, err := f.m.WatchDevices(vethRule.MatchString)
	if err != nil {
		return err
	}
	defer cables.Close()
	f.last = ""
	f.o.Log(fmt.Sprintf("following docker %s, API %s", f.o.Host, version.APIVersion))
	for {
		var again <-chan time.Time
		if f.failures > 0 {
			again = time.After(time.Until(f.due))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			if err := f.everything(ctx); err != nil {
				return err
			}
		case err := <-stream.Err:
			return err
		case e := <-stream.Messages:
			f.takeLearned()
			news := f.newNews()
			news.add(&e)
			for more := true; more; { // what has come meanwhile
				select {
				case e := <-stream.Messages:
					news.add(&e)
				default:
					more = false
				}
			}
			if err := f.follow(ctx, news); err != nil {
				return err
			}
		case c := <-f.learned:
			f.fixed[c.ID] = c
		case <-cables.Done():
			return cables.Err()
		case <-cables.Notice():
			cables.Take()
			if err := f.seek(ctx); err != nil {
				return err
			}
		}
	}
}

// takeLearned takes what has been learned by now: an event may be about it.
func (f *follower) takeLearned() {
	for {
		select {
		case c := <-f.learned:
			f.fixed[c.ID] = c
		default:
			return
		}
	}
}

// wanted are the events that news.add knows: not the many of exec and of health checks.
func wanted() client.Filters {
	f := client.Filters{}.Add("type", string(events.ContainerEventType), string(events.NetworkEventType))
	for _, a := range []events.Action{
		events.ActionStart, events.ActionDie, events.ActionDestroy, events.ActionRename, events.ActionUpdate,
		events.ActionCreate, events.ActionRemove, events.ActionConnect, events.ActionDisconnect,
	} {
		f.Add("event", string(a))
	}
	return f
}

// news is what some events are about: a container or network is looked at once.
type news struct {
	containers map[string]bool // true: it has ended, and that is known without asking
	gone       []string        // networks
	networks   bool            // there may be another one
	joined     []joined        // by containers that do not run yet
	made       []string        // containers that were created
	destroyed  []string
	running    map[string]bool
}

type joined struct{ network, container string }

func (f *follower) newNews() *news {
	return &news{containers: make(map[string]bool), running: f.running}
}

func (n *news) add(e *events.Message) {
	switch e.Type {
	case events.ContainerEventType:
		switch e.Action {
		case events.ActionCreate:
			n.made = append(n.made, e.Actor.ID)
		case events.ActionDestroy:
			n.containers[e.Actor.ID] = true
			n.destroyed = append(n.destroyed, e.Actor.ID)
		case events.ActionDie:
			n.containers[e.Actor.ID] = true
		case events.ActionStart, events.ActionRename, events.ActionUpdate:
			n.containers[e.Actor.ID] = false
		}
	case events.NetworkEventType:
		switch e.Action {
		case events.ActionCreate:
			n.networks = true
		case events.ActionDestroy, events.ActionRemove:
			n.gone = append(n.gone, e.Actor.ID)
		case events.ActionConnect, events.ActionDisconnect:
			n.cable(e.Actor.ID, e.Actor.Attributes["container"], e.Action == events.ActionConnect)
		}
	}
}

// cable is of a container that was put on a network, or taken off.
func (n *news) cable(network, id string, on bool) {
	_, named := n.containers[id]
	switch {
	case id == "":
	case n.running[id]:
		if !named {
			n.containers[id] = false
		}
	case on:
		n.joined = append(n.joined, joined{network, id})
	case !named:
		n.containers[id] = true // it did not start
	}
}

// once logs a line that is not the one logged before.
func (f *follower) once(text string) {
	if text != f.last {
		f.o.Log(text)
	}
	f.last = text
}

func line(err error) string {
	if err == nil {
		return "the stream of events has ended"
	}
	text, _, _ := strings.Cut(strings.TrimSpace(err.Error()), "\n")
	return text
}
