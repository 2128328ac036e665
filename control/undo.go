// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
)

// undoList takes back what a command did to the kernel and to files, last step
// first. The store is not its business: the transaction rolls back by itself.
type undoList struct {
	steps []undoStep
}

type undoStep struct {
	what string
	back func() error
}

// add registers how to take back a step that has just been done.
func (u *undoList) add(what string, back func() error) {
	u.steps = append(u.steps, undoStep{what, back})
}

// run takes everything back; a step that fails does not keep the others from running.
func (u *undoList) run() error {
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		if err := u.steps[i].back(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", u.steps[i].what, err))
		}
	}
	u.steps = nil
	return errors.Join(errs...)
}
