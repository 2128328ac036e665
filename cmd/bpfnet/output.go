// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// output is standard output. What could not be written is remembered, for the exit status:
// who prints needs not look.
type output struct {
	file *os.File
	lost error // of the first write that failed; nothing is written after it
}

func (o *output) Write(b []byte) (int, error) {
	if o.lost != nil {
		return 0, o.lost
	}
	n, err := o.file.Write(b)
	if err == nil {
		return n, nil
	}
	var cause *os.PathError
	if errors.As(err, &cause) {
		err = cause.Err
	}
	o.lost = fmt.Errorf("standard output: %w", err)
	return n, o.lost
}

// readerGone says whether it was lost because who reads it wants no more: that is no news.
func (o *output) readerGone() bool { return errors.Is(o.lost, unix.EPIPE) }
