// SPDX-License-Identifier: Apache-2.0

// Command kernellab runs tests under other kernels than this machine's: each suite
// (see suites.go) in a machine of its own, emulated by QEMU, with one of Debian's cloud
// kernels (see kernels.go) and an initramfs that holds nothing but the tests.
//
//	make vm                                              everything, on every kernel
//	make vm VMFLAGS=-brief                               most of it, in less time
//	make vm KERNEL=6.1 PKG=./tests/datapath RUN=TestX    one
//
// A machine has no shell, no ip and no network: tests make what they need by netlink.
// It is for function only; what takes time there says nothing (testing.Short is true).
//
//	go build, go test -c ─► image (initramfs) ─► machine (QEMU) ─► console ─► verdict
//	                          init, test, modules        init runs the test
//
// One line is printed for a suite and kernel; where one fails, so does the program, and
// the console's end follows. A kernel that panics, warns or hangs is a failure.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/bpfnet/bpfnet/tests/kernellab/image"
	"github.com/bpfnet/bpfnet/tests/kernellab/verdict"
	"github.com/bpfnet/bpfnet/tests/verifier/insns"
)

type options struct {
	kernel, pkg, run string
	cache            string
	limit            time.Duration
	machines         int
	verbose          bool
	brief            bool
	insns            bool
}

func main() {
	var o options
	flag.StringVar(&o.kernel, "kernel", "", "one `series` of kernels; all without it")
	flag.StringVar(&o.pkg, "pkg", "", "one `package`; all suites without it")
	flag.StringVar(&o.run, "run", "", "tests, as for go test -run")
	flag.StringVar(&o.cache, "cache", "", "`directory` of the kernels")
	flag.DurationVar(&o.limit, "timeout", 10*time.Minute, "for one machine")
	flag.IntVar(&o.machines, "machines", runtime.NumCPU(), "that run at once")
	flag.BoolVar(&o.verbose, "v", false, "print the whole console, always")
	flag.BoolVar(&o.brief, "brief", false, "on the oldest kernel all suites, on others whether the programs load, attach and are replaced")
	flag.BoolVar(&o.insns, "insns", false, "only count verified instructions, and write the kernels' columns of "+insns.Path)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := run(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "kernellab:", err)
	}
	if !ok || err != nil {
		os.Exit(1)
	}
}

// job is a suite on a kernel.
type job struct {
	suite  suite
	kernel kernel
	dir    string // of the kernel
}

type outcome struct {
	job
	verdict verdict.Verdict
	console string
	took    time.Duration
	err     error // of the lab, not of what it ran
}

func run(ctx context.Context, o options) (ok bool, err error) {
	if o.cache == "" {
		if o.cache, err = cacheDir(); err != nil {
			return false, err
		}
	}
	booted := slices.Clone(kernels)
	if o.kernel != "" {
		booted = slices.DeleteFunc(booted, func(k kernel) bool { return k.Series != o.kernel })
	}
	if len(booted) == 0 {
		return false, fmt.Errorf("kernel %s: the lab has none of this series", o.kernel)
	}
	if o.run != "" && o.pkg == "" {
		return false, errors.New("tests are of a package: -run needs -pkg (make vm: RUN needs PKG)")
	}
	list := chosen(o.pkg, o.run)
	if o.insns {
		list = []suite{counting}
	}
	var jobs []job
	for _, s := range list {
		for i, k := range booted {
			if o.brief && s.Oldest && i > 0 {
				continue
			}
			dir, err := kernelDir(o.cache, k.Series)
			if err != nil {
				return false, err
			}
			jobs = append(jobs, job{s, k, dir})
		}
	}
	dir, err := os.MkdirTemp("", "bpfnet-kernellab-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	if err := build(dir, list); err != nil {
		return false, err
	}
	ok = true
	all := runAll(ctx, jobs, dir, o)
	for _, r := range all {
		ok = ok && r.err == nil && r.verdict.Problem == ""
	}
	if ok && o.insns {
		return ok, writeInsns(all)
	}
	return ok, nil
}

// writeInsns writes the table's columns of the kernels that counted.
func writeInsns(all []outcome) error {
	text, err := os.ReadFile(insns.Path)
	if err != nil {
		return err
	}
	table, err := insns.Parse(string(text))
	if err != nil {
		return err
	}
	for _, r := range all {
		table[r.kernel.Series] = insns.Counts(r.console)
	}
	return os.WriteFile(insns.Path, []byte(table.String()), 0o644)
}

// runAll runs the jobs, so many at once, and reports each when it is over.
func runAll(ctx context.Context, jobs []job, dir string, o options) []outcome {
	queue := make(chan job, len(jobs))
	for _, j := range jobs {
		queue <- j
	}
	close(queue)
	var mu sync.Mutex
	var all []outcome
	var workers sync.WaitGroup
	for range max(1, o.machines) {
		workers.Go(func() {
			for j := range queue {
				r := j.run(ctx, dir, o.limit)
				mu.Lock()
				all = append(all, r)
				report(os.Stdout, r, o.verbose)
				mu.Unlock()
			}
		})
	}
	workers.Wait()
	return all
}

func (j job) run(ctx context.Context, dir string, limit time.Duration) outcome {
	start := time.Now()
	r := outcome{job: j}
	initramfs := filepath.Join(dir, fmt.Sprintf("%s-%s.cpio", j.suite.name(), j.kernel.Series))
	defer os.Remove(initramfs)
	files := map[string]string{"/bin/" + j.suite.name(): filepath.Join(dir, j.suite.name())}
	for _, f := range j.suite.Files {
		files[filepath.Join(source, f)] = f
	}
	env := []string{"PATH=/bin", "HOME=/tmp", "TMPDIR=/tmp"}
	if j.suite.Binary {
		files["/bin/bpfnet"] = filepath.Join(dir, "bpfnet")
		env = append(env, "BPFNET_BINARY=/bin/bpfnet")
	}
	r.err = image.Write(initramfs, image.Spec{
		Kernel:  j.dir,
		Init:    filepath.Join(dir, "init"),
		Modules: slices.Concat(base, j.kernel.Modules, j.suite.Modules),
		Files:   files,
		// The test's own limit comes first: it says where it hangs.
		Job: image.Job{Command: j.suite.command((limit * 3 / 4).String()), Dir: filepath.Join(source, j.suite.Package), Env: env},
	})
	if r.err == nil {
		var expired bool
		r.console, expired, r.err = boot(ctx, j.dir, initramfs, limit)
		r.verdict = verdict.Of(r.console, expired)
		if r.verdict.Problem == "" {
			r.verdict.Problem = j.suite.ran(r.verdict)
		}
	}
	r.took = time.Since(start)
	return r
}
