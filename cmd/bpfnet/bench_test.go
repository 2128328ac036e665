// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/bpfnet/bpfnet/control/bench"
)

// benchGroups are the cgroups of labs of bench's.
func benchGroups(t *testing.T) []string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	require.NoError(t, err)
	require.NotEmpty(t, mounts)
	groups, err := filepath.Glob(filepath.Join(mounts[0].Mountpoint, "bpfnet-bench-*"))
	require.NoError(t, err)
	return groups
}

// measuring starts a bench that measures for an hour, with its files in dir, and waits
// until it does. pids are server and client.
func measuring(t *testing.T, dir, workload string) (cmd *exec.Cmd, out, errs *strings.Builder, pids []string) {
	t.Helper()
	out, errs = &strings.Builder{}, &strings.Builder{}
	before := len(benchGroups(t))
	cmd = exec.Command("/proc/self/exe", "bench", "--workload", workload, "--flow", "published", "--contender", "bpf", "--rounds", "1000", "--time", "1h")
	cmd.Env = append(os.Environ(), beBpfnet+"=1", "TMPDIR="+dir)
	cmd.Stdout, cmd.Stderr = out, errs
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		pids = nil
		for _, g := range benchGroups(t) {
			procs, _ := os.ReadFile(filepath.Join(g, "cgroup.procs"))
			pids = append(pids, strings.Fields(string(procs))...)
		}
		return len(pids) == 2
	}, 20*time.Second, 5*time.Millisecond)
	require.Greater(t, len(benchGroups(t)), before)
	return cmd, out, errs, pids
}

// Ctrl-C in the middle of a measurement, and again at once: bench takes everything
// down, and says so in one line.
func TestBenchInterrupted(t *testing.T) {
	dir := t.TempDir()
	before := benchGroups(t)
	cmd, out, errs, pids := measuring(t, dir, "tcp-rr")
	for range 2 {
		require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
	}
	require.Error(t, cmd.Wait())
	require.Equal(t, 130, cmd.ProcessState.ExitCode(), errs.String())
	require.Equal(t, "bpfnet: bench: interrupted; nothing is left behind\n", errs.String())
	require.Empty(t, out.String(), "no round was complete")

	require.Equal(t, before, benchGroups(t))
	for _, pid := range pids {
		require.NoDirExists(t, "/proc/"+pid)
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	require.NoError(t, err)
	require.Empty(t, mounts)
}

// What bench started ends with it, however it ends.
func TestBenchKilled(t *testing.T) {
	dir := t.TempDir()
	before := benchGroups(t)
	cmd, _, _, pids := measuring(t, dir, "http") // nginx and wrk, which watch no parent
	require.NoError(t, cmd.Process.Kill())
	require.Error(t, cmd.Wait())
	for _, pid := range pids {
		require.Eventually(t, func() bool {
			_, err := os.Stat("/proc/" + pid)
			return os.IsNotExist(err)
		}, 10*time.Second, 5*time.Millisecond, "process %s", pid)
	}
	// The rest is the test's to clean up.
	for _, g := range benchGroups(t) {
		if !slices.Contains(before, g) {
			require.Eventually(t, func() bool { return os.Remove(g) == nil }, 5*time.Second, 5*time.Millisecond, g)
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	require.NoError(t, err)
	for _, m := range mounts {
		require.NoError(t, unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
	}
}

func TestPrintBench(t *testing.T) {
	against := &bench.Ratio{Of: "bpf", Value: 0.962, Low: 0.951, High: 0.969, Level: 0.9688}
	r := &bench.Report{
		Version: "v1", Rounds: 6, Time: 0.25, Seconds: 61.4, LoadBefore: "0.10 0.20 0.30", LoadAfter: "1.00 0.50 0.40",
		Machine: bench.Machine{Kernel: "6.18.0", CPU: "Example", CPUs: 2, Virtual: true, Memory: 8 << 30},
		Cases: []*bench.Case{
			{Workload: "tcp-rr", Flow: "published", Title: "TCP request/response", Unit: "transactions", CPUs: "1", Entries: []*bench.Entry{
				{Contender: "bpf", Scale: bench.One, Rate: 57012.4, Least: 55000, Most: 58000, CPU: 17.5, Measurements: []bench.Measurement{{Others: 0.4}}},
				{Contender: "host", Scale: bench.One, Rate: 59264, Least: 58000, Most: 60000, CPU: 16.8, Against: against, AgainstCPU: against},
				{Contender: "bpf", Scale: bench.Scale{Ports: 1000, Containers: 1}, Rate: 56900, Least: 1, Most: 2, CPU: 0,
					AgainstOne: &bench.Ratio{Of: "1x1", Value: 0.998, Low: 0.99, High: 1.01, Level: 0.9688}},
			}},
			{Workload: "publish", Title: "publish 1000", Unit: "commands", Entries: []*bench.Entry{
				{Contender: "bpf", Scale: bench.One, Rate: 50, Least: 40, Most: 100, CPU: 1234},
				{Contender: "iptables", Scale: bench.One, Rate: 5, Least: 4, Most: 10, CPU: 123456, Against: &bench.Ratio{Of: "bpf", Value: 10, Low: 9, High: 11, Level: 0.5}},
			}},
		},
		Memory:  []bench.Memory{{Contender: "docker-proxy", Scale: bench.One, Processes: 1, ProcessBytes: 3 << 20}},
		Skipped: []bench.Skip{{Workload: "http", Reason: "wrk: executable file not found in $PATH"}},
	}
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	require.NoError(t, err)
	defer out.Close()
	(&app{out: &output{file: out}}).printBench(r)
	text, err := os.ReadFile(out.Name())
	require.NoError(t, err)
	var lines []string
	for line := range strings.Lines(string(text)) {
		lines = append(lines, strings.TrimRight(line, " \n"))
	}
	require.Equal(t, `bpfnet v1 on Linux 6.18.0, 2 CPUs (Example, virtual), 8.0 GiB
6 rounds of all contenders in turn, 250 ms a measurement, 61 s in all. Load before 0.10 0.20 0.30, after 1.00 0.50 0.40.
Something else kept 0.4 CPUs busy meanwhile (median; 0.4 at most): only BY CPU can be relied upon.

tcp-rr (TCP request/response), transactions a second, client and server on CPU 1
FLOW        PORTSxCONTAINERS   CONTENDER   MEDIAN    LEAST     MOST      CPU/OP     BPF IS              BY CPU              TO 1x1
published   1x1                bpf         57,012    55,000    58,000    17.50 µs
published   1x1                host        59,264    58,000    60,000    16.80 µs   0.96x (0.95-0.97)   0.96x (0.95-0.97)
published   1000x1             bpf         56,900    1         2         -                                                  1.00x (0.99-1.01)

Control plane, milliseconds a command
COMMAND        CONTENDER   MEDIAN    LEAST     MOST      CPU/OP     BPF IS
publish 1000   bpf         20.0      10.0      25.0      1.2 ms
publish 1000   iptables    200.0     100.0     250.0     123.5 ms   10.00x (9.00-11.00) 50%

Memory; the kernel's is what it had more of afterwards, the maps included
CONTENDER      PORTSxCONTAINERS   MAPS      PROCESSES   RESIDENT   KERNEL
docker-proxy   1x1                0 B       1           3.0 MiB    0 B

Skipped: http: wrk: executable file not found in $PATH`, strings.Join(lines, "\n"))
}
