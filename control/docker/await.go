// SPDX-License-Identifier: Apache-2.0

package docker

import (
	"context"
	"errors"
	"net"
	"regexp"
	"slices"

	"github.com/moby/moby/client"

	"github.com/bpfnet/bpfnet/control"
)

// While the Engine starts a container it does not say where that is: to ask for the
// container waits until it has started. But it says which endpoints it has made, and the
// host shows the cable: nothing passes it until it is known whose it is. So a container is
// known by the time that its process runs, and the first packet that it sends finds its
// way; its ports follow with the event of its start.

var vethRule = regexp.MustCompile(veths)

// awaited is a container that is being started, with the endpoints that it has by now.
type awaited struct {
	control.AdoptedContainer
	found bool
}

// await expects the cable of a container that is being started.
func (f *follower) await(ctx context.Context, network, id string) error {
	ctx, cancel := context.WithTimeout(ctx, askFor)
	defer cancel()
	if !f.bridges[network] {
		return nil
	}
	if f.awaited[id] == nil {
		f.awaited[id] = &awaited{found: true} // until it is known whose cable to look for
		if err := f.expect(id, network); err != nil {
			return err
		}
	}
	n, err := f.api.NetworkInspect(ctx, network, client.NetworkInspectOptions{})
	if err != nil {
		return nil // it is gone again, or will be found otherwise
	}
	made, ok := n.Network.Containers[id]
	if !ok {
		return nil
	}
	c := f.awaited[id]
	c.ID, c.Name, c.found = id, made.Name, false
	if !f.bound[network] {
		c.Ports = f.fixed[id].Ports
	}
	ep := control.AdoptedEndpoint{Network: network, MAC: net.HardwareAddr(made.MacAddress).String(), IPv4: made.IPv4Address, IPv6: made.IPv6Address}
	c.Endpoints = append(slices.DeleteFunc(c.Endpoints, func(x control.AdoptedEndpoint) bool { return x.Network == network }), ep)
	return nil
}

// learn asks for a container that was just made. If it is being started already, the answer
// comes when that is done: nobody waits for it.
func (f *follower) learn(ctx context.Context, id string) {
	go func() {
		c, err := f.inspect(ctx, id)
		if err != nil || c == nil {
			return
		}
		select {
		case f.learned <- fixed(c):
		case <-ctx.Done():
		}
	}()
}

// expect has the ports of a container closed that the Engine has just bound: a client would
// be connected to the Engine's own socket, and never be answered.
func (f *follower) expect(id, network string) error {
	c := f.fixed[id]
	if len(c.Ports) == 0 || f.bound[network] {
		return nil
	}
	_, err := f.m.Adopt(asked(control.Adopted{Containers: []control.AdoptedContainer{c}}))
	if errors.Is(err, control.ErrNotSetUp) {
		return err
	}
	return nil
}

// seek adopts those of the awaited whose cables are there.
func (f *follower) seek(ctx context.Context) error {
	var list []control.AdoptedContainer
	for _, id := range sortedKeys(f.awaited) {
		if c := f.awaited[id]; !c.found {
			list = append(list, c.AdoptedContainer)
		}
	}
	if len(list) == 0 {
		return nil
	}
	found, err := f.m.FindNetns(Name, list)
	if err != nil || len(found) == 0 {
		return err
	}
	for i := range found {
		f.awaited[found[i].ID].found = true
	}
	// What is wrong is said when it has started.
	changes, err := f.m.Adopt(asked(control.Adopted{Containers: found}))
	for _, c := range changes {
		f.o.Log(c)
	}
	if errors.Is(err, control.ErrNotSetUp) {
		return err
	}
	return nil
}
