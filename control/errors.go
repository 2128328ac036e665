// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"

	"github.com/bpfnet/bpfnet/control/store"
)

// What a caller decides on. Errors that wrap them have Docker's wording.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict")
	ErrInvalid  = errors.New("invalid")
	ErrNotRoot  = errors.New("root is needed: run it with sudo")
	ErrNotSetUp = errors.New("this host is not set up any more")
	ErrLocked   = store.ErrLocked // other commands have held the store for a minute
)

// kindError is a line of text that errors.Is knows by one of the sentinels.
type kindError struct {
	kind error
	text string
}

func (e *kindError) Error() string { return e.text }
func (e *kindError) Unwrap() error { return e.kind }

func notFound(format string, a ...any) error {
	return &kindError{ErrNotFound, fmt.Sprintf(format, a...)}
}

func conflict(format string, a ...any) error {
	return &kindError{ErrConflict, fmt.Sprintf(format, a...)}
}

func invalid(format string, a ...any) error {
	return &kindError{ErrInvalid, fmt.Sprintf(format, a...)}
}
