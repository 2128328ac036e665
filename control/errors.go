// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"

	"github.com/bpfnet/bpfnet/control/ipam"
	"github.com/bpfnet/bpfnet/control/ports"
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

// ofKind is an error of another package's that errors.Is knows by one of the sentinels, too.
type ofKind struct {
	kind error
	error
}

func (e *ofKind) Unwrap() []error { return []error{e.kind, e.error} }

// addressKind tells what a caller decides on from what went wrong with an address or a port.
func addressKind(err error) error {
	for _, e := range []error{ipam.ErrInUse, ipam.ErrExhausted, ipam.ErrNoNetwork, ports.ErrAllocated, ports.ErrInUse} {
		if errors.Is(err, e) {
			return &ofKind{ErrConflict, err}
		}
	}
	if errors.Is(err, ports.ErrNotAvailable) {
		return &ofKind{ErrInvalid, err}
	}
	return err
}

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
