// SPDX-License-Identifier: Apache-2.0

// Package image makes what a machine of the kernel lab boots with: an initramfs with
// an init, the program to run, its files and the kernel's modules.
package image

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
)

// JobPath is where init finds its Job.
const JobPath = "/job.json"

// Job is what init does.
type Job struct {
	Modules []string // to load, in this order
	Command []string
	Dir     string // to run it in
	Env     []string
}

// Spec is an initramfs. Files are paths in the machine, to paths here; they may be executed.
type Spec struct {
	Kernel  string // directory with boot/vmlinuz-* and lib/modules/*
	Init    string // static binary
	Modules []string
	Files   map[string]string
	Job     Job // its Modules are filled in
}

// Write writes the initramfs to a file, which it makes.
func Write(file string, s Spec) (err error) {
	available, err := readModules(s.Kernel)
	if err != nil {
		return err
	}
	order, err := available.order(s.Modules)
	if err != nil {
		return fmt.Errorf("kernel %s: %w", s.Kernel, err)
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer func() {
		if closed := f.Close(); err == nil {
			err = closed
		}
	}()
	a := newArchive(f)
	for _, d := range []string{"dev", "proc", "sys", "tmp", "run", s.Job.Dir} {
		a.dir(d)
	}
	add := func(inside, here string, perm uint32) error {
		data, err := os.ReadFile(here)
		if err == nil {
			a.file(inside, perm, data)
		}
		return err
	}
	if err := add("/init", s.Init, 0o755); err != nil {
		return err
	}
	for _, here := range order {
		inside := path.Join("/lib/modules", filepath.Base(here))
		if err := add(inside, here, 0o644); err != nil {
			return err
		}
		s.Job.Modules = append(s.Job.Modules, inside)
	}
	names := make([]string, 0, len(s.Files))
	for name := range s.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := add(name, s.Files[name], 0o755); err != nil {
			return err
		}
	}
	job, err := json.Marshal(s.Job)
	if err != nil {
		return err
	}
	a.file(JobPath, 0o644, job)
	return a.close()
}
