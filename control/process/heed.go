// SPDX-License-Identifier: Apache-2.0

package process

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// heedSignals makes the process ignore no signal: what nohup or a service manager had
// bpfnet ignore outlives an exec (signal(7)), and is not meant for what runs in a container.
// Called right before exec, where no handler of Go's has to work any more.
func heedSignals() {
	const last = 64
	var byDefault struct { // struct kernel_sigaction: SIG_DFL, no flags
		handler, flags, restorer uintptr
		mask                     uint64
	}
	for s := unix.Signal(1); s <= last; s++ {
		// SIGKILL and SIGSTOP are refused, and need it not.
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&byDefault)), 0, unsafe.Sizeof(byDefault.mask), 0, 0)
	}
}
