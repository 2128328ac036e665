// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"
)

// PanicError is what Do panics with when its function panicked: the value, and
// the stack of the thread on which it happened.
type PanicError struct {
	Value any
	Stack []byte
}

func (p *PanicError) Error() string { return fmt.Sprintf("%v\n\n%s", p.Value, p.Stack) }

// Unwrap gives the value that was panicked with, if it was an error.
func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// Do runs fn on an OS thread of its own inside the namespace and waits for it.
// Sockets, files below /proc/sys/net and processes that fn itself opens or starts
// belong to the namespace; goroutines that it starts are on other threads and do not.
//
// The thread ends with fn, so nobody else ever runs in the wrong namespace. If fn
// panics, Do panics with a *PanicError; if fn leaves by runtime.Goexit
// (testing's FailNow), so does the caller.
func (ns *NS) Do(fn func() error) error {
	return onThrowaway(func() error {
		fd := ns.FD()
		if fd < 0 {
			return fmt.Errorf("netns %s: closed", ns.name)
		}
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("netns %s: setns: %w", ns.name, err)
		}
		return fn()
	})
}

// onThrowaway runs fn on a locked thread that ends afterwards.
func onThrowaway(fn func() error) error {
	var (
		err      error
		panicked *PanicError
		returned bool
		done     = make(chan struct{})
	)
	run := func() {
		defer close(done)
		defer func() {
			if v := recover(); v != nil {
				panicked = &PanicError{Value: v, Stack: debug.Stack()}
			}
		}()
		err = fn()
		returned = true
	}
	go func() {
		// A goroutine that ends while locked takes its thread with it.
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			run()
			return
		}
		// The process's first thread cannot be ended: the runtime would park it, and
		// /proc/PID/ns/net would show its namespace for the whole process. While this
		// goroutine holds it, another one is sure to get another thread.
		go func() {
			runtime.LockOSThread()
			run()
		}()
		<-done
		runtime.UnlockOSThread()
	}()
	<-done

	switch {
	case panicked != nil:
		panic(panicked)
	case !returned:
		runtime.Goexit()
	}
	return err
}
