// SPDX-License-Identifier: Apache-2.0

// Command verifier loads the programs one by one, without attaching them, and
// prints what the kernel's verifier did: verified instructions and translated
// size per program. Where a program is refused it prints the end of the log,
// which is how a verifier error is found:
//
//	make verifier                       every program, compared with the table
//	make verifier PROG=from_endpoint    one, with more of its log
//	make insns                          writes the table, for every kernel
//
// The last lines name the C source line (`; … @ file.h:123`) and the registers.
// Usual causes: a packet pointer used after a helper that may move the packet, a
// bound that the compiler dropped, more than 8 frames of calls, 512 bytes of stack
// over a chain of calls (before 6.8 each frame counts in steps of 32).
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/loader"
	"github.com/bpfnet/bpfnet/tests/verifier/insns"
)

func main() {
	record := flag.Bool("record", false, "do not compare with the table")
	update := flag.Bool("update", false, "write the table's column of this kernel, in the current directory's "+insns.Path)
	flag.Parse()
	if err := run(flag.Arg(0), *record, *update); err != nil {
		fmt.Fprintln(os.Stderr, "verifier:", err)
		os.Exit(1)
	}
}

func run(only string, record, update bool) error {
	if err := rlimit.RemoveMemlock(); err != nil {
		return err
	}
	counts, err := load(only)
	if err != nil || record || only != "" {
		return err
	}
	kernel, err := series()
	if err != nil {
		return err
	}
	table, err := insns.Committed()
	if err != nil {
		return err
	}
	if update {
		table[kernel] = counts
		return os.WriteFile(insns.Path, []byte(table.String()), 0o644)
	}
	return table.Check(kernel, counts)
}

// series is the running kernel's: "6.12".
func series() (string, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "", err
	}
	var major, minor int
	release := unix.ByteSliceToString(name.Release[:])
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		return "", fmt.Errorf("kernel release %q: %w", release, err)
	}
	return fmt.Sprintf("%d.%d", major, minor), nil
}

// load loads all programs, or only one, prints what came of it, and gives the counts.
func load(only string) (map[string]int, error) {
	lines := 30
	if only != "" {
		lines = 300
	}
	spec, err := loader.LoadBPF()
	if err != nil {
		return nil, err
	}
	for _, m := range spec.Maps {
		m.Pinning = ebpf.PinNone
	}
	var names []string
	for name := range spec.Programs {
		names = append(names, name)
	}
	slices.Sort(names)
	counts := make(map[string]int)
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
		one.Maps[loader.BPFMapSlowPaths].Contents = nil
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
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		info, err := c.Programs[name].Info()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		verified, _ := info.VerifiedInstructions()
		size, _ := info.TranslatedSize()
		fmt.Println(insns.Line(name, uint64(verified), size))
		counts[name] = int(verified)
		c.Close()
	}
	if refused > 0 {
		return nil, fmt.Errorf("%d programs refused", refused)
	}
	return counts, nil
}
