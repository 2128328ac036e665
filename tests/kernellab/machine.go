// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"
)

const emulator = "qemu-system-x86_64"

// boot runs a kernel with an initramfs until the machine ends or the limit is over,
// and gives what it wrote to its console. The processor is emulated, and an old one on
// purpose: with all that the emulator can do, a suite takes twice as long. On a busy host
// its timer is late, which the kernel is not to take for broken. A warning of the kernel's
// ends it, as a panic does.
func boot(ctx context.Context, kernel, initramfs string, limit time.Duration) (console string, expired bool, err error) {
	images, err := filepath.Glob(filepath.Join(kernel, "boot/vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return "", false, fmt.Errorf("kernel %s: %d images in boot, not 1", kernel, len(images))
	}
	timed, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(timed, emulator,
		"-machine", "q35", "-accel", "tcg", "-cpu", "qemu64", "-smp", "1", "-m", "1024",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", images[0], "-initrd", initramfs,
		"-append", "console=ttyS0 quiet loglevel=4 panic=-1 panic_on_warn=1 oops=panic mitigations=off nokaslr no_timer_check")
	// It ends with this program, however that ends: the signal comes when the thread does.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	err = cmd.Run()
	if errors.Is(timed.Err(), context.DeadlineExceeded) && err != nil {
		return out.String(), true, nil
	}
	if err != nil {
		return out.String(), false, fmt.Errorf("%s: %w: %s", emulator, err, bytes.TrimSpace(problem.Bytes()))
	}
	return out.String(), false, nil
}
