// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/bpfnet/bpfnet/control"
)

// everything takes over all that the Engine has, and lets go what it has no more.
func (f *follower) everything(ctx context.Context) error {
	f.links, f.running, f.awaited = make(map[string]map[string]bool), make(map[string]bool), make(map[string]*awaited)
	f.shut = make(map[int]bool)
	a := control.Adopted{Whole: true}
	problems, err := f.networks(ctx, &a)
	if err != nil {
		return err
	}
	f.fixed = make(map[string]control.AdoptedContainer)
	ask, cancel := context.WithTimeout(ctx, askFor)
	list, err := f.api.ContainerList(ask, client.ContainerListOptions{All: true})
	cancel()
	if err != nil {
		return err
	}
	for i := range list.Items {
		if err := f.container(ctx, &a, list.Items[i].ID); err != nil {
			return err
		}
	}
	if err := f.adopt(ctx, a); err != nil {
		return err
	}
	for _, p := range problems {
		f.o.Log("docker: " + p)
	}
	return nil
}

// follow looks at what the events are about.
func (f *follower) follow(ctx context.Context, n *news) error {
	for _, id := range n.made {
		f.learn(ctx, id)
	}
	for _, id := range n.destroyed {
		delete(f.fixed, id)
	}
	a := control.Adopted{Gone: n.gone}
	if n.networks {
		problems, err := f.networks(ctx, &a)
		if err != nil {
			return err
		}
		for _, p := range problems {
			f.o.Log("docker: " + p)
		}
	}
	for id, ended := range n.containers {
		delete(f.running, id)
		delete(f.awaited, id)
		if ended {
			a.Gone = append(a.Gone, id)
			continue
		}
		if err := f.container(ctx, &a, id); err != nil {
			return err
		}
		for client := range f.links[id] {
			if _, listed := n.containers[client]; !listed {
				if err := f.container(ctx, &a, client); err != nil {
					return err
				}
			}
		}
	}
	if len(a.Networks)+len(a.Containers)+len(a.Gone) > 0 {
		if err := f.adopt(ctx, a); err != nil {
			return err
		}
	}
	return f.join(ctx, n)
}

// join awaits the containers that are being started.
func (f *follower) join(ctx context.Context, n *news) error {
	started := false
	for _, j := range n.joined {
		if _, looked := n.containers[j.container]; looked {
			continue
		}
		started = true
		if err := f.await(ctx, j.network, j.container); err != nil {
			return err
		}
	}
	if !started {
		return nil
	}
	if err := f.m.ShutPorts(Name, f.shut); err != nil {
		return err
	}
	return f.seek(ctx)
}

// asked is what the Manager is asked, with what is always so of the Engine.
func asked(a control.Adopted) control.Adopted {
	a.Engine, a.Held, a.Devices, a.SetUp = Name, true, veths, !a.Whole
	return a
}

// adopt tells the Manager. What cannot be done of a container that has ended meanwhile is no news.
func (f *follower) adopt(ctx context.Context, a control.Adopted) error {
	changes, err := f.m.Adopt(asked(a))
	for _, c := range changes {
		f.o.Log(c)
	}
	if errors.Is(err, control.ErrNotSetUp) {
		return err
	}
	if err == nil {
		if a.Whole {
			f.failures = 0
		}
		return nil
	}
	if len(a.Containers) > 0 && !a.Whole {
		again := control.Adopted{}
		for i := range a.Containers {
			if err := f.container(ctx, &again, a.Containers[i].ID); err != nil {
				return err
			}
		}
		if len(again.Containers) == 0 {
			return nil
		}
	}
	f.once("error: " + line(err))
	f.failures++
	f.due = time.Now().Add(min(againMin<<min(f.failures-1, 20), againMax))
	return nil
}

// networks adds all networks of the bridge driver.
func (f *follower) networks(ctx context.Context, a *control.Adopted) (problems []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	list, err := f.api.NetworkList(ctx, client.NetworkListOptions{})
	if err != nil {
		return nil, err
	}
	f.bridges, f.bound = make(map[string]bool), make(map[string]bool)
	for i := range list.Items {
		n, lacks, ok := networkOf(&list.Items[i].Network)
		if !ok {
			continue
		}
		f.bridges[n.ID] = true
		f.bound[n.ID] = ownBinding(list.Items[i].Options)
		a.Networks = append(a.Networks, n)
		problems = append(problems, lacks...)
	}
	return problems, nil
}

// container adds one as it is now: to those that run, or to those that are gone.
func (f *follower) container(ctx context.Context, a *control.Adopted, id string) error {
	c, err := f.inspect(ctx, id)
	if err != nil {
		return err
	}
	if c == nil {
		a.Gone = append(a.Gone, id)
		return nil
	}
	var failed error
	names := func(name string) string {
		t, err := f.inspect(ctx, name)
		if err != nil || t == nil {
			failed = errors.Join(failed, err)
			return ""
		}
		return t.ID
	}
	f.fixed[id] = fixed(c)
	// One that runs on networks of other drivers only may be put on one of ours.
	if c.State != nil && c.State.Running {
		f.running[id] = true
	}
	known, ok := containerOf(c, f.bridges, names)
	if failed != nil {
		return failed
	}
	if !ok {
		a.Gone = append(a.Gone, id)
		return nil
	}
	for _, l := range known.Links {
		if f.links[l.Target] == nil {
			f.links[l.Target] = make(map[string]bool)
		}
		f.links[l.Target][id] = true
	}
	a.Containers = append(a.Containers, known)
	return nil
}

// inspect asks for a container by ID or name; nil when there is none.
func (f *follower) inspect(ctx context.Context, ref string) (*container.InspectResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	res, err := f.api.ContainerInspect(ctx, ref, client.ContainerInspectOptions{})
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("container %.12s: %w", ref, err)
	}
	return &res.Container, nil
}
