// SPDX-License-Identifier: Apache-2.0

// Package netavark is bpfnet as a plugin of netavark, podman's own network program
// (netavark's plugin-API.md, API version 1.0.0). The command line calls Main.
//
// podman keeps the networks' configurations, and chooses addresses where it has a subnet to
// choose from. The first container makes the network on the host, and it goes with the last one,
// as netavark's own do: nothing tells a plugin that a network was removed.
package netavark

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/bpfnet/bpfnet/control"
)

// runtime marks what was made here.
const runtime = "netavark"

// label is that of a network made here, with podman's ID of it.
const label = "netavark.id"

// apiVersion is the only one that there is.
const apiVersion = "1.0.0"

// maxInput bounds what is read, in bytes.
const maxInput = 16 << 20

type plugin struct {
	options control.Options
	version string
	in      io.Reader
	out     io.Writer
}

// Main serves one call, create, setup NETNS, teardown NETNS or info, and gives the exit status.
// The answer goes to out, an error as {"error": "…"}.
func Main(o control.Options, version string, args []string, in io.Reader, out io.Writer) int {
	p := &plugin{options: o, version: version, in: io.LimitReader(in, maxInput), out: out}
	if err := p.call(args); err != nil {
		Fail(out, err)
		return 1
	}
	return 0
}

// Fail writes an error as netavark reads it.
func Fail(out io.Writer, err error) {
	_ = json.NewEncoder(out).Encode(map[string]string{"error": strings.ReplaceAll(err.Error(), "\n", "; ")})
}

func (p *plugin) call(args []string) error {
	usage := errors.New("netavark: wants create, setup NETNS, teardown NETNS or info")
	if len(args) == 0 {
		return usage
	}
	switch command, rest := args[0], args[1:]; {
	case command == "info" && len(rest) == 0:
		return p.print(map[string]string{"version": p.version, "api_version": apiVersion})
	case command == "create" && len(rest) == 0:
		return p.create()
	case command == "setup" && len(rest) == 1:
		return p.setup(rest[0])
	case command == "teardown" && len(rest) == 1:
		return p.teardown()
	}
	return usage
}

func (p *plugin) read(v any) error {
	if err := json.NewDecoder(p.in).Decode(v); err != nil {
		return fmt.Errorf("standard input: %w", err)
	}
	return nil
}

func (p *plugin) print(v any) error { return json.NewEncoder(p.out).Encode(v) }
