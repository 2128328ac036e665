// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/cilium/ebpf"
)

// VerifierLog is the whole of the verifier's log, when err is because it refused
// a program; else empty.
func VerifierLog(err error) string {
	var ve *ebpf.VerifierError
	if !errors.As(err, &ve) {
		return ""
	}
	return strings.Join(ve.Log, "\n")
}

// rejected is a load error in one line; %+v has the whole log.
type rejected struct {
	object string // "program from_uplink"
	cause  *ebpf.VerifierError
}

// Lines of the log that an error shows, and their length altogether.
const (
	logLines = 3
	logBytes = 400
)

func (r *rejected) Error() string {
	lines := make([]string, 0, logLines)
	for i := len(r.cause.Log) - 1; i >= 0 && len(lines) < logLines; i-- {
		line := strings.Join(strings.Fields(r.cause.Log[i]), " ")
		if line == "" || strings.HasPrefix(line, "processed ") || strings.HasPrefix(line, "verification time") ||
			strings.HasPrefix(line, "stack depth") {
			continue
		}
		lines = append([]string{line}, lines...)
	}
	tail := strings.Join(lines, " | ")
	if len(tail) > logBytes {
		tail = "…" + tail[len(tail)-logBytes:]
	}
	if tail == "" {
		return fmt.Sprintf("%s: %v", r.object, r.cause.Cause)
	}
	return fmt.Sprintf("%s: %v: verifier: %s", r.object, r.cause.Cause, tail)
}

func (r *rejected) Unwrap() error { return r.cause }

func (r *rejected) Format(f fmt.State, verb rune) {
	io.WriteString(f, r.Error())
	if verb == 'v' && f.Flag('+') {
		io.WriteString(f, "\n"+strings.Join(r.cause.Log, "\n"))
	}
}

// programError gives an error of ebpf.NewCollection our shape.
func programError(err error) error {
	var ve *ebpf.VerifierError
	if !errors.As(err, &ve) {
		return err
	}
	object, _, _ := strings.Cut(err.Error(), ": ")
	return &rejected{object, ve}
}
