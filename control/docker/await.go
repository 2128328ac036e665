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
// host shows the cable: nothing passes it until it is known whose it is. So a container is known by the time that its process runs, and the
// first packet that it sends finds its way; its ports follow with the event of its start.

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
	n, err := f.api.NetworkInspect(ctx, network, client.NetworkInspectOptions{})
	if err != nil {
		return nil // it is gone again, or will be found otherwise
	}
	made, ok := n.Network.Containers[id]
	if !ok {
		return nil
	}
	c := f.awaited[id]
	if c == nil {
		c = &awaited{}
		f.awaited[id] = c
	}
	c.ID, c.Name, c.found = id, made.Name, false
	ep := control.AdoptedEndpoint{Network: network, MAC: net.HardwareAddr(made.MacAddress).String(), IPv4: made.IPv4Address, IPv6: made.IPv6Address}
	c.Endpoints = append(slices.DeleteFunc(c.Endpoints, func(x control.AdoptedEndpoint) bool { return x.Network == network }), ep)
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
