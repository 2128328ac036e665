// SPDX-License-Identifier: Apache-2.0

package process

import (
	"encoding/gob"
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// The init stage: this program, run again under this name, between the start of
// a process and the execution of the container's command in it.
const stageName = "bpfnet-init"

// Descriptors of the stage above the standard ones.
const (
	specFile   = 3 // gob: stage, then true when the command may be executed
	reportFile = 4 // gob: report when ready, then one on failure or the end
	firstFile  = 5 // namespaces
)

// stage is a Spec as the stage gets it: descriptors by number, 0 for none.
type stage struct {
	Args, Env         []string
	Dir               string
	Netns, Mount, UTS int
	NewMount, NewUTS  bool
	Hostname          string
	Binds             map[string]string
	Rootfs            string
}

type report struct {
	Ready  bool
	Thread int // that holds the namespaces, when ready
	Code   int
	Err    string
}

func (r *report) asError() error { return &StartError{r.Code, errors.New(r.Err)} }

// Init does nothing in an ordinary program; in one that Start started it does
// the init stage's work and does not return.
func Init() {
	if len(os.Args) != 1 || os.Args[0] != stageName {
		return
	}
	// Namespaces belong to a thread: what happens from here on happens on this
	// one, and it is this one that executes the command, whichever it is.
	runtime.LockOSThread()
	if err := unix.CloseRange(specFile, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintf(os.Stderr, "%s: close-on-exec: %v\n", stageName, err)
		os.Exit(CodeFailed)
	}
	out := gob.NewEncoder(os.NewFile(reportFile, "report"))
	code, err := runStage(gob.NewDecoder(os.NewFile(specFile, "spec")), out)
	if err != nil {
		out.Encode(report{Code: code, Err: err.Error()})
	}
	os.Exit(code)
}

func runStage(in *gob.Decoder, out *gob.Encoder) (int, error) {
	var s stage
	if err := in.Decode(&s); err != nil {
		return CodeFailed, fmt.Errorf("init stage: %w", err)
	}
	if err := s.enter(); err != nil {
		return CodeFailed, err
	}
	// Found out before the caller records a start, as far as it can be.
	path, code, err := lookup(s.Args[0], s.Env)
	if err != nil {
		return code, err
	}
	if err := out.Encode(report{Ready: true, Thread: unix.Gettid()}); err != nil {
		return CodeFailed, err
	}
	var proceed bool
	if err := in.Decode(&proceed); err != nil {
		return CodeFailed, errors.New("start was given up")
	}
	return execute(path, s.Args, s.Env)
}

// enter takes this thread into the namespaces and arranges the new ones.
func (s *stage) enter() error {
	if s.Netns != 0 {
		if err := unix.Setns(s.Netns, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
	}
	if s.Mount != 0 {
		// setns refuses a mount namespace to a thread that shares its root and
		// working directory with others, as all threads of a Go program do.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return fmt.Errorf("unshare working directory: %w", err)
		}
		if err := unix.Setns(s.Mount, unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("enter mount namespace: %w", err)
		}
	}
	if s.UTS != 0 {
		if err := unix.Setns(s.UTS, unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("enter UTS namespace: %w", err)
		}
	}
	if s.NewUTS {
		if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("new UTS namespace: %w", err)
		}
		if s.Hostname != "" {
			if err := unix.Sethostname([]byte(s.Hostname)); err != nil {
				return fmt.Errorf("hostname %s: %w", s.Hostname, err)
			}
		}
	}
	if s.NewMount {
		if err := s.mounts(); err != nil {
			return err
		}
	}
	dir := s.Dir
	if dir == "" {
		dir = "/"
	}
	if err := os.Chdir(dir); err != nil {
		return fmt.Errorf("working directory %s: %w", dir, errno(err))
	}
	return nil
}
