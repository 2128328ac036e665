// SPDX-License-Identifier: Apache-2.0

// Command verifier loads the programs one by one, without attaching them, and
// prints what the kernel's verifier did: verified instructions and translated
// size per program. Where a program is refused it prints the end of the log,
// which is how a verifier error is found:
//
//	make verifier                       every program
//	make verifier PROG=from_endpoint    one, with more of its log
//
// The last lines name the C source line (`; … @ file.h:123`) and the registers.
// Usual causes: a packet pointer used after a helper that may move the packet, a
// bound that the compiler dropped, more than 8 frames of calls, 512 bytes of stack.
package main

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/bpfnet/bpfnet/loader"
)

func main() {
	only, lines := "", 30
	if len(os.Args) > 1 {
		only, lines = os.Args[1], 300
	}
	if err := run(only, lines); err != nil {
		fmt.Fprintln(os.Stderr, "verifier:", err)
		os.Exit(1)
	}
}

func run(only string, lines int) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	spec, err := loader.LoadBPF()
	if err != nil {
		return err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	var names []string
	for name := range spec.Programs {
		names = append(names, name)
	}
	slices.Sort(names)
	refused := 0
	for _, name := range names {
		if only != "" && only != name {
			continue
		}
		one := spec.Copy()
		for other := range one.Programs {
			if other != name {
				delete(one.Programs, other)
			}
		}
		c, err := ebpf.NewCollection(one)
		if err != nil {
			refused++
			var verifier *ebpf.VerifierError
			if errors.As(err, &verifier) {
				log := verifier.Log
				fmt.Printf("%s: refused\n", name)
				for _, line := range log[max(0, len(log)-lines):] {
					fmt.Println("  ", line)
				}
				continue
			}
			return fmt.Errorf("%s: %w", name, err)
		}
		info, err := c.Programs[name].Info()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		verified, _ := info.VerifiedInstructions()
		size, _ := info.TranslatedSize()
		fmt.Printf("%-16s %7d instructions verified, %6d bytes\n", name, verified, size)
		c.Close()
	}
	if refused > 0 {
		return fmt.Errorf("%d programs refused", refused)
	}
	return nil
}
