// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"
	"runtime/debug"
	"strings"

	bolterrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// What a caller may want to tell apart; every error of an open store also names
// the file. A full disk is unix.ENOSPC, a missing store fs.ErrNotExist.
var (
	ErrLocked  = errors.New("another bpfnet command holds it")
	ErrCorrupt = errors.New("damaged")
)

// Error is an error of the store's file with the way out.
type Error struct {
	Path string
	Err  error
	Hint string // what would help; may be empty
}

func (e *Error) Error() string {
	s := "store " + e.Path + ": " + e.Err.Error()
	if e.Hint != "" {
		s += ": " + e.Hint
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

const hintCorrupt = `move it away, or put a copy back, and run "bpfnet reconcile"; running traffic is unharmed`

func explain(path string, err error) error {
	var known *Error
	if errors.As(err, &known) {
		return err
	}
	e := &Error{Path: path, Err: bare(err)}
	switch {
	case errors.Is(err, ErrLocked):
		e.Hint = fmt.Sprintf("waited %.0f s; try again when it is done", lockTimeout.Seconds())
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrChecksum),
		errors.Is(err, bolterrors.ErrVersionMismatch), strings.Contains(err.Error(), "file size too small"):
		return corrupt(path, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		e.Hint = "nothing was changed; free some space there and try again"
	case errors.Is(err, unix.EROFS):
		e.Hint = "nothing was changed; choose another directory with --root"
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		e.Hint = "root is needed"
	}
	return e
}

// bare takes "open /path:" off, which the message has already.
func bare(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

func corrupt(path string, cause any) *Error {
	line, _, _ := strings.Cut(fmt.Sprint(cause), "\n")
	return &Error{Path: path, Err: fmt.Errorf("%w (%s)", ErrCorrupt, line), Hint: hintCorrupt}
}

// guard runs a piece of bbolt. On a damaged file bbolt panics, and touching a
// mapped page that a truncated file no longer has is a fault: both become
// ErrCorrupt, here and in every later call.
func (db *DB) guard(fn func() error) (err error) {
	if broken := db.broken.Load(); broken != nil {
		return broken
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			broken := corrupt(db.path, r)
			db.broken.Store(broken)
			err = broken
		}
	}()
	return fn()
}
