// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// usage is CPU time since some beginning.
type usage struct {
	at     time.Time
	ours   time.Duration // of the lab's cgroup, and of ksoftirqd
	all    time.Duration // of the machine
	missed bool          // ours is not known
}

// meter reads the CPU time that a lab takes. A packet's way through veths is soft-interrupt work: the
// kernel does it, and charges it, in the task that sent the packet, and under load in
// ksoftirqd, which is counted as ours.
type meter struct{ softirqd []string }

func newMeter() *meter {
	m := &meter{}
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		if comm, err := os.ReadFile(name); err == nil && bytes.HasPrefix(comm, []byte("ksoftirqd/")) {
			m.softirqd = append(m.softirqd, filepath.Join(filepath.Dir(name), "schedstat"))
		}
	}
	return m
}

func (m *meter) read(cgroup string) usage {
	u := usage{at: time.Now()}
	own, err := cgroupUsage(cgroup)
	u.ours, u.missed = own, err != nil
	for _, name := range m.softirqd {
		if data, err := os.ReadFile(name); err == nil {
			u.ours += time.Duration(number(firstWord(data)))
		}
	}
	u.all, _ = machineBusy()
	return u
}

// cgroupUsage is usage_usec of cpu.stat, which a cgroup v2 has whatever its controllers.
func cgroupUsage(cgroup string) (time.Duration, error) {
	data, err := os.ReadFile(filepath.Join(cgroup, "cpu.stat"))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "usage_usec "); ok {
			return time.Duration(number(strings.TrimSpace(rest))) * time.Microsecond, nil
		}
	}
	return 0, errors.New("cpu.stat: no usage_usec")
}

// machineBusy is what all CPUs have worked, in ticks of 10 ms (/proc/stat).
func machineBusy() (time.Duration, error) {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return 0, err
	}
	var ticks uint64
	for i, word := range strings.Fields(line) {
		switch i {
		case 1, 2, 3, 6, 7: // user, nice, system, irq, softirq
			ticks += number(word)
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil
}

func firstWord(data []byte) string {
	word, _, _ := strings.Cut(string(data), " ")
	return word
}

// number reads what the kernel wrote; 0 for what is none.
func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

// allowed lists the CPUs of this process, the highest last.
func allowed() ([]int, error) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(os.Getpid(), &set); err != nil {
		return nil, fmt.Errorf("affinity: %w", err)
	}
	var list []int
	for c := range 8 * len(set) * 8 {
		if set.IsSet(c) {
			list = append(list, c)
		}
	}
	return list, nil
}

// pinnedTo says which CPUs all threads of a process may use: "1", "0-1".
func pinnedTo(pid int) (string, error) {
	names, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	found := ""
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			continue // the thread has ended
		}
		for line := range strings.Lines(string(data)) {
			rest, ok := strings.CutPrefix(line, "Cpus_allowed_list:")
			if !ok {
				continue
			}
			list := strings.TrimSpace(rest)
			if found != "" && list != found {
				return "", fmt.Errorf("process %d: threads on CPUs %s and %s", pid, found, list)
			}
			found = list
		}
	}
	if found == "" {
		return "", fmt.Errorf("process %d: %w", pid, os.ErrProcessDone)
	}
	return found, nil
}
