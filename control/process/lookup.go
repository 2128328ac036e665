// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// lookup finds a command as execvp does, in the PATH of env. On failure it
// returns the exit status that says why.
func lookup(name string, env []string) (path string, code int, err error) {
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", codeOf(err), fmt.Errorf("%s: %w", name, err)
		}
		return name, 0, nil
	}
	var found error
	for _, dir := range strings.Split(searchPath(env), ":") {
		if dir == "" {
			dir = "."
		}
		path := dir + "/" + name
		err := executable(path)
		if err == nil {
			return path, 0, nil
		}
		if codeOf(err) == CodeNotExecutable {
			found = err
		}
	}
	if found != nil {
		return "", CodeNotExecutable, fmt.Errorf("%s: %w", name, found)
	}
	return "", CodeNotFound, fmt.Errorf("%s: command not found", name)
}

// searchPath is the last PATH of env, the one that the command will see.
func searchPath(env []string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if p, ok := strings.CutPrefix(env[i], "PATH="); ok {
			return p
		}
	}
	return DefaultPath
}

func executable(path string) error {
	st, err := os.Stat(path)
	if err != nil {
		return errno(err)
	}
	if st.IsDir() {
		return syscall.EISDIR
	}
	return unix.Access(path, unix.X_OK)
}

func codeOf(err error) int {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return CodeNotFound
	}
	return CodeNotExecutable
}

// execute returns only when the command could not be executed.
func execute(path string, args, env []string) (int, error) {
	heedSignals()
	err := syscall.Exec(path, args, env)
	if errors.Is(err, unix.ENOENT) {
		return CodeNotFound, fmt.Errorf("%s: its interpreter or loader was not found", path)
	}
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOMEM) {
		return CodeFailed, fmt.Errorf("%s: %w", path, err)
	}
	return CodeNotExecutable, fmt.Errorf("%s: %w", path, err)
}
