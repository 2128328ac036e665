// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"
)

const (
	sweepAgain = 4 // SWEEP_AGAIN of bpf/sweep.c: the kernel had no memory for the timer at hand
	armTime    = time.Second
)

// ArmSweep runs the program sweep once, which arms the timer that ends expired
// flows. The timer then lives as long as the pinned maps; arming it again is fine.
func ArmSweep(sweep *ebpf.Program) error {
	for end := time.Now().Add(armTime); ; time.Sleep(time.Millisecond) {
		// An Ethernet frame of an unassigned type: the kernel looks into IP packets.
		code, err := sweep.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
		switch {
		case err != nil:
			return fmt.Errorf("program sweep: run: %w", err)
		case code == sweepAgain && time.Now().Before(end):
			continue
		case code != 0:
			return fmt.Errorf("program sweep: returned %d", int32(code))
		}
		return nil
	}
}
