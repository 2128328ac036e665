// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/bpfnet/bpfnet/control"
)

// del ends an attachment, whatever is left of it. Its address is given back last.
func (p *plugin) del(args *skel.CmdArgs) error {
	c, err := p.begin(args)
	if err != nil {
		return err
	}
	defer c.m.Close()
	return errors.Join(c.leave(containerID(c.ContainerID), c.IfName), c.delegateDel())
}

// leave ends an attachment; nothing to end is as good.
func (c *call) leave(id, ifName string) error {
	if done, err := c.unchain(id, c.conf.Name, ifName); err != nil || done {
		return err
	}
	err := c.m.Leave(c.conf.Name, id, ifName)
	if errors.Is(err, control.ErrNotFound) {
		return nil
	}
	return err
}

// attachments are all that runtimes have on the network, of our making and adopted.
func (c *call) attachments() ([]control.Attachment, error) {
	list, err := c.m.Attachments(runtime, c.conf.Name)
	if err != nil {
		return nil, err
	}
	all, err := c.m.Containers()
	for _, have := range all {
		if ep := have.Endpoints[networkID(c.conf.Name)]; ep != nil && have.Engine == runtime {
			list = append(list, control.Attachment{Container: have, Endpoint: ep, Up: have.State == control.StateRunning})
		}
	}
	return list, err
}

// gc ends every attachment to the network that the runtime does not list (without a list, as
// libcni calls it, all), and goes on when one cannot be.
func (p *plugin) gc(args *skel.CmdArgs) error {
	c, err := p.begin(args)
	if err != nil {
		return err
	}
	defer c.m.Close()
	valid := make(map[types.GCAttachment]bool)
	for _, a := range c.conf.valid {
		valid[types.GCAttachment{ContainerID: containerID(a.ContainerID), IfName: a.IfName}] = true
	}
	list, err := c.attachments()
	if err != nil {
		return err
	}
	var errs []error
	for _, a := range list {
		is := types.GCAttachment{ContainerID: a.Container.ID, IfName: a.Endpoint.Interface()}
		if !valid[is] {
			errs = append(errs, c.leave(is.ContainerID, is.IfName))
		}
	}
	return errors.Join(append(errs, c.delegateGC())...)
}
