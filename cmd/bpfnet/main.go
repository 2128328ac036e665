// SPDX-License-Identifier: Apache-2.0

// bpfnet is the command line: flags and printing. What it does is in package control.
package main

import (
	"os"
	"path/filepath"
	"runtime/debug"

	"github.com/bpfnet/bpfnet/control/bench"
	"github.com/bpfnet/bpfnet/control/process"
)

func main() {
	process.Init() // of a container's command: does not return then
	bench.Init()   // one end of what bench measures: the same
	// A command lives for milliseconds and keeps little: collecting garbage half as
	// often makes publishing 10,000 ports a quarter faster.
	debug.SetGCPercent(400)
	a := &app{in: os.Stdin, out: &output{file: os.Stdout}, err: os.Stderr}
	if calledByCNI(os.Args) {
		os.Exit(cniMain(a))
	}
	if filepath.Base(os.Args[0]) == nameNetavark {
		os.Exit(netavarkMain(a, os.Args[1:]))
	}
	os.Exit(execute(a, os.Args[1:]))
}
