// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Handle is a running process of anybody's, held so that its pid cannot come to
// mean another one meanwhile.
type Handle struct {
	PID    int
	Parent int

	pidfd int
	mount *os.File
}

// Open finds the process with this pid and start time (see StartTime).
// os.ErrProcessDone when it has ended, even if the pid is somebody else's now.
func Open(pid int, start uint64) (*Handle, error) {
	if pid <= 0 {
		return nil, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) { // EINVAL: the pid of a thread now
		return nil, os.ErrProcessDone
	}
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	h := &Handle{PID: pid, pidfd: fd}
	st, err := readStat(pid)
	if err != nil || st.start != start || h.ended() {
		unix.Close(fd)
		if err != nil && !errors.Is(err, os.ErrProcessDone) {
			return nil, err
		}
		return nil, os.ErrProcessDone
	}
	h.Parent = st.parent
	return h, nil
}

// Alive tells whether the process with this pid and start time runs.
func Alive(pid int, start uint64) bool {
	h, err := Open(pid, start)
	if err != nil {
		return false
	}
	h.Close()
	return true
}

// Close lets go of the process, which goes on.
func (h *Handle) Close() error {
	if h.mount != nil {
		h.mount.Close()
	}
	return unix.Close(h.pidfd)
}

// Signal sends a signal; os.ErrProcessDone when the process has ended.
func (h *Handle) Signal(sig unix.Signal) error {
	err := unix.PidfdSendSignal(h.pidfd, sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}

// FD is a descriptor that polls as readable once the process has ended.
func (h *Handle) FD() int { return h.pidfd }

// Wait waits until the process has ended, for so long at most (negative: for
// ever), and tells whether it has.
func (h *Handle) Wait(limit time.Duration) (bool, error) { return pollEnd(h.pidfd, limit) }

// Stop sends SIGTERM, after grace SIGKILL, and waits for the end; negative waits for ever before SIGKILL.
// It returns the last signal that was sent. What the process leaves
// behind in a mount namespace that is not the caller's is killed too.
func (h *Handle) Stop(grace time.Duration) (unix.Signal, error) {
	if h.mount == nil {
		// Held from before the end: the number of a namespace that is gone may be given to another.
		h.mount, _ = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", h.PID))
	}
	sent := unix.SIGKILL
	if grace != 0 {
		sent = unix.SIGTERM
		if err := h.Signal(sent); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return sent, fmt.Errorf("process %d: %w", h.PID, err)
		}
		ended, err := h.Wait(grace)
		if err != nil {
			return sent, err
		}
		if ended {
			h.rest()
			return sent, nil
		}
		sent = unix.SIGKILL
	}
	if err := h.Signal(sent); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return sent, fmt.Errorf("process %d: %w", h.PID, err)
	}
	ended, err := h.Wait(killLimit)
	if err == nil && !ended {
		err = fmt.Errorf("process %d: did not end in %v after SIGKILL", h.PID, killLimit)
	}
	h.rest()
	return sent, err
}

// killLimit bounds the wait for a process that was sent SIGKILL: one that is
// stuck in the kernel may take for ever.
const killLimit = 10 * time.Second

func (h *Handle) rest() {
	if h.mount != nil {
		killRest(h.mount)
	}
}

func (h *Handle) ended() bool {
	done, _ := pollEnd(h.pidfd, 0)
	return done
}

func pollEnd(pidfd int, limit time.Duration) (bool, error) {
	deadline := time.Now().Add(limit)
	for {
		ms := -1
		if limit >= 0 {
			ms = int(max(0, (time.Until(deadline)+time.Millisecond-1)/time.Millisecond))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, ms)
		if err == unix.EINTR {
			continue
		}
		return n > 0, err
	}
}

// StartTime is when a process started, in clock ticks since boot (field 22 of
// /proc/PID/stat): with the pid it names one process, as long as the host runs.
// os.ErrProcessDone when there is none.
func StartTime(pid int) (uint64, error) {
	st, err := readStat(pid)
	return st.start, err
}

type stat struct {
	parent int
	start  uint64
}

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return stat{}, os.ErrProcessDone
	}
	if err != nil {
		return stat{}, err
	}
	return parseStat(data)
}

// parseStat reads proc_pid_stat(5). The name, field 2, may hold anything, blanks
// and parentheses included: the fields are counted from its last parenthesis.
func parseStat(data []byte) (stat, error) {
	end := bytes.LastIndexByte(data, ')')
	fields := bytes.Fields(data[end+1:])
	if end < 0 || len(fields) < 20 {
		return stat{}, errors.New("process status: not understood")
	}
	parent, err := strconv.Atoi(string(fields[4-3]))
	if err != nil {
		return stat{}, fmt.Errorf("process status: %w", err)
	}
	start, err := strconv.ParseUint(string(fields[22-3]), 10, 64)
	if err != nil {
		return stat{}, fmt.Errorf("process status: %w", err)
	}
	return stat{parent, start}, nil
}
