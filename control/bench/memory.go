// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/cilium/ebpf"
)

// memory is what the site keeps at rest; kernel is kernelMemory from before it was built.
func (s *site) memory(name string, kernel int64) (Memory, error) {
	m := Memory{Contender: name, Scale: s.scale, Kernel: kernelMemory() - kernel}
	err := filepath.WalkDir(s.BPFFS, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) {
			return nil // no programs
		}
		if err != nil || d.IsDir() {
			return err
		}
		bytes, ok := mapBytes(path)
		if ok {
			m.MapCount++
			m.Maps += bytes
		}
		return nil
	})
	if err != nil {
		return m, fmt.Errorf("pins: %w", err)
	}
	procs, err := os.ReadFile(filepath.Join(s.Cgroup, "cgroup.procs"))
	if err != nil {
		return m, err
	}
	for _, pid := range strings.Fields(string(procs)) {
		m.Processes++
		m.ProcessBytes += resident(pid)
	}
	return m, nil
}

// mapBytes is false for a pin that is no map.
func mapBytes(path string) (uint64, bool) {
	pinned, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		return 0, false
	}
	defer pinned.Close()
	info, err := pinned.Info()
	if err != nil {
		return 0, false
	}
	bytes, _ := info.Memlock()
	return bytes, true
}

// resident is a process's memory that is its own or shared, in bytes.
func resident(pid string) uint64 {
	data, err := os.ReadFile("/proc/" + pid + "/statm")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(data))
	if len(f) < 2 {
		return 0
	}
	return number(f[1]) * uint64(os.Getpagesize())
}

// kernelMemory is what the kernel itself holds: slabs that cannot be given back, vmalloc,
// per-CPU memory. Whatever else the machine does is in it.
func kernelMemory() int64 {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	var sum int64
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "SUnreclaim:", "VmallocUsed:", "Percpu:":
			sum += int64(number(f[1])) * 1024
		}
	}
	return sum
}
