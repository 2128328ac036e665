// SPDX-License-Identifier: Apache-2.0

// Package cni is bpfnet as a CNI plugin (spec 0.3.1 to 1.1): bridge, port maps,
// firewall and masquerade in one. The command line calls Main, with what a runtime
// has put into the environment and on standard input.
//
// A network of the configuration's name is made by the first ADD, and stays. The
// container of a CNI_CONTAINERID is one container of the Manager's, however many
// interfaces it gets on however many networks; it goes with the last of them.
package cni

import (
	"encoding/json"
	"io"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/bpfnet/bpfnet/control"
)

// runtime marks what was made here.
const runtime = "cni"

var versions = version.PluginSupports("0.3.1", "0.4.0", "1.0.0", "1.1.0")

// plugin is one call by a runtime.
type plugin struct {
	options control.Options // of the environment; the configuration's go before them
}

// Main serves one call by a runtime and gives the exit status. Results and errors
// go to standard output, as JSON. Without CNI_COMMAND it says on standard error what it is.
func Main(o control.Options, about string, out io.Writer) int {
	p := &plugin{options: o}
	err := skel.PluginMainFuncsWithError(skel.CNIFuncs{
		Add: coded(p.add), Del: coded(p.del), Check: coded(p.check), GC: coded(p.gc), Status: coded(p.status),
	}, versions, about)
	if err == nil {
		return 0
	}
	Fail(out, err)
	return 1
}

// coded gives every error its code; package skel would take those without one for internal.
func coded(serve func(*skel.CmdArgs) error) func(*skel.CmdArgs) error {
	return func(args *skel.CmdArgs) error {
		if err := serve(args); err != nil {
			return asError(err)
		}
		return nil
	}
}

// Fail writes an error as runtimes read it.
func Fail(out io.Writer, err error) {
	e := asError(err)
	_ = json.NewEncoder(out).Encode(struct {
		Version string `json:"cniVersion"`
		*types.Error
	}{version.Current(), e})
}

// containerID is the Manager's ID of a runtime's container.
func containerID(id string) string { return control.RuntimeID(runtime, id) }

// call is a request with everything read.
type call struct {
	*skel.CmdArgs
	conf *config
	want *wishes // of ADD
	m    *control.Manager
}

func (p *plugin) begin(args *skel.CmdArgs) (*call, error) {
	conf, err := readConfig(args.StdinData)
	if err != nil {
		return nil, err
	}
	c := &call{CmdArgs: args, conf: conf}
	o := p.options
	conf.host(&o)
	c.m, err = control.Open(o)
	return c, err
}
