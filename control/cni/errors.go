// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/bpfnet/bpfnet/control"
)

// Codes of our own; those below 100 are the specification's.
const (
	codeConflict = 100 // a port, an address, a name or a network is somebody else's
	codeDiffers  = 101 // CHECK: the kernel does not have what was asked for
)

func failure(code uint, format string, a ...any) *types.Error {
	return types.NewError(code, fmt.Sprintf(format, a...), "")
}

// asError gives an error its code. Of several the first counts, and the others are details.
func asError(err error) *types.Error {
	var e *types.Error
	switch {
	case errors.As(err, &e):
		code := cmp.Or(e.Code, types.ErrInternal) // libcni's, of a plugin that could not be run, have none
		if e.Error() == err.Error() {
			return types.NewError(code, e.Msg, e.Details)
		}
		return types.NewError(code, e.Msg, strings.ReplaceAll(err.Error(), "\n", "; "))
	case errors.Is(err, control.ErrInvalid):
		return failure(types.ErrInvalidNetworkConfig, "%v", err)
	case errors.Is(err, control.ErrConflict):
		return failure(codeConflict, "%v", err)
	case errors.Is(err, control.ErrNotFound):
		return failure(types.ErrUnknownContainer, "%v", err)
	case errors.Is(err, control.ErrLocked):
		return failure(types.ErrTryAgainLater, "%v", err)
	case errors.Is(err, control.ErrNotRoot):
		return failure(types.ErrPluginNotAvailable, "%v", err)
	}
	return failure(types.ErrInternal, "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
}
