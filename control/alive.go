// SPDX-License-Identifier: Apache-2.0

package control

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// startTime is when a process began, in clock ticks since boot (proc_pid_stat(5),
// field 22): with it a PID that was used again is told apart. 0: no such process,
// or only a zombie.
func startTime(pid int) uint64 {
	if pid <= 0 {
		return 0
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name in field 2 may hold anything, brackets and blanks too.
	end := bytes.LastIndexByte(raw, ')')
	if end < 0 {
		return 0
	}
	f := bytes.Fields(raw[end+1:])
	if len(f) < 20 || f[0][0] == 'Z' || f[0][0] == 'X' {
		return 0
	}
	t, err := strconv.ParseUint(string(f[19]), 10, 64)
	if err != nil {
		return 0
	}
	return t
}

// alive says whether the process that had this start time still runs.
func alive(pid int, start uint64) bool {
	t := startTime(pid)
	return t != 0 && t == start
}
