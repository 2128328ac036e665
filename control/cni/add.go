// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"io/fs"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"

	"github.com/bpfnet/bpfnet/control"
	"github.com/bpfnet/bpfnet/control/netns"
)

func (p *plugin) add(args *skel.CmdArgs) error {
	c, err := p.begin(args)
	if err != nil {
		return err
	}
	defer c.m.Close()
	if c.want, err = c.conf.wishes(args.Args); err != nil {
		return err
	}
	if err := c.checkNetns(); err != nil {
		return err
	}
	if len(c.conf.PrevResult) > 0 {
		return c.chain()
	}
	opts := control.JoinOptions{
		Runtime:   runtime,
		Network:   c.conf.network(),
		ID:        containerID(c.ContainerID),
		Names:     c.names(),
		Netns:     c.Netns,
		Endpoint:  c.want.endpoint(c.IfName),
		Publish:   c.want.publish,
		Held:      c.conf.PortsHeld,
		DNS:       c.want.dns.Nameservers,
		DNSSearch: c.want.dns.Search,
	}
	given, err := c.delegateAdd(&opts)
	if err != nil {
		return err
	}
	j, err := c.m.Join(opts)
	if err != nil {
		return errors.Join(asError(err), c.delegateDel())
	}
	if given != nil && (j.Endpoint.IPv4.Addr() != opts.Endpoint.IPv4 || j.Endpoint.IPv6.Addr() != opts.Endpoint.IPv6) {
		err = c.badIPAM("gives an address of one family, and network %s has two", c.conf.Name)
	} else if err = types.PrintResult(c.result(j, given), c.conf.CNIVersion); err != nil {
		err = failure(types.ErrIOFailure, "result: %v", err)
	}
	if err != nil {
		return errors.Join(err, c.m.Leave(c.conf.Name, opts.ID, c.IfName), c.delegateDel())
	}
	return nil
}

// checkNetns refuses a namespace that is not there, or is the runtime's own.
func (c *call) checkNetns() error {
	ns, err := netns.Open(c.Netns)
	if errors.Is(err, fs.ErrNotExist) {
		return failure(types.ErrUnknownContainer, "CNI_NETNS=%s: no such namespace", c.Netns)
	}
	if err != nil {
		return failure(types.ErrInvalidEnvironmentVariables, "CNI_NETNS: %v", err)
	}
	defer ns.Close()
	own, err := netns.Current()
	if err != nil {
		return err
	}
	defer own.Close()
	if ns.Equal(own) {
		return failure(types.ErrInvalidNetNS, "CNI_NETNS=%s: is the namespace of the runtime itself", c.Netns)
	}
	return nil
}

// names are what the container may be called, best first.
func (c *call) names() []string {
	id := c.ContainerID
	if c.want.name == "" {
		return []string{id}
	}
	return []string{c.want.name, c.want.name + "-" + id[:min(len(id), 12)], id}
}
