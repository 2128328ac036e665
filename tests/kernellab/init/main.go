// SPDX-License-Identifier: Apache-2.0

// Command init is process 1 of a machine of the kernel lab. It mounts the pseudo file
// systems, loads the modules, runs the job and says how that ended, by a line of its
// own on the console; then it restarts the machine, on which the emulator ends.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/tests/kernellab/image"
	"github.com/bpfnet/bpfnet/tests/kernellab/verdict"
)

func main() {
	code, err := run()
	if err != nil {
		fmt.Printf("\n%s%v\n", verdict.Trouble, err)
	} else {
		fmt.Printf("\n%s%d\n", verdict.Mark, code)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() (code int, err error) {
	for _, m := range []struct{ path, typ string }{
		{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}, {"/tmp", "tmpfs"}, {"/run", "tmpfs"},
		{"/sys/fs/bpf", "bpf"}, {"/sys/fs/cgroup", "cgroup2"},
	} {
		if err := unix.Mount(m.typ, m.path, m.typ, 0, ""); err != nil {
			return 0, fmt.Errorf("mount %s: %w", m.path, err)
		}
	}
	data, err := os.ReadFile(image.JobPath)
	if err != nil {
		return 0, err
	}
	var job image.Job
	if err := json.Unmarshal(data, &job); err != nil {
		return 0, fmt.Errorf("%s: %w", image.JobPath, err)
	}
	for _, m := range job.Modules {
		if err := load(m); err != nil {
			return 0, fmt.Errorf("module %s: %w", m, err)
		}
	}
	if err := raiseLoopback(); err != nil {
		return 0, fmt.Errorf("lo: %w", err)
	}
	p, err := os.StartProcess(job.Command[0], job.Command, &os.ProcAttr{
		Dir: job.Dir, Env: append(os.Environ(), job.Env...), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
	})
	if err != nil {
		return 0, err
	}
	// Orphans are process 1's to wait for, too.
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("%s: wait: %w", strings.Join(job.Command, " "), err)
		case pid == p.Pid && status.Signaled():
			return 128 + int(status.Signal()), nil
		case pid == p.Pid:
			return status.ExitStatus(), nil
		}
	}
}

func load(module string) error {
	f, err := os.Open(module)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.FinitModule(int(f.Fd()), "", 0)
	if err == unix.EEXIST {
		return nil
	}
	return err
}

func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}
