// bpfnet is the command line: flags and printing. What it does is in package control.
package main

import (
	"os"

	"github.com/bpfnet/bpfnet/control/process"
)

func main() {
	process.Init() // of a container's command: does not return then
	os.Exit(execute(&app{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.Args[1:]))
}
