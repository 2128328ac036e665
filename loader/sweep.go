// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"

	"github.com/cilium/ebpf"
)

// ArmSweep runs the program sweep once, which arms the timer that ends expired
// flows. The timer then lives as long as the pinned maps; arming it again is fine.
func ArmSweep(sweep *ebpf.Program) error {
	// An Ethernet frame of an unassigned type: the kernel looks into IP packets.
	code, err := sweep.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return fmt.Errorf("program sweep: run: %w", err)
	}
	if code != 0 {
		return fmt.Errorf("program sweep: returned %d", int32(code))
	}
	return nil
}
