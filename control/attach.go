// SPDX-License-Identifier: Apache-2.0

package control

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
)

// dockerTimeout bounds the question to docker.
const dockerTimeout = 10 * time.Second

// openAttach opens the namespace of "pid:N", "netns:PATH" or "docker:NAME" once;
// path is where it was found, for a later look whether it is still there.
func openAttach(spec string) (ns *netns.NS, path string, err error) {
	kind, what, ok := strings.Cut(spec, ":")
	if !ok || what == "" {
		return nil, "", invalid("%q: not pid:N, netns:PATH or docker:NAME", spec)
	}
	pid := 0
	switch kind {
	case "netns":
		if path, err = filepath.Abs(what); err != nil {
			return nil, "", err
		}
	case "pid":
		if pid, err = strconv.Atoi(what); err != nil || pid <= 0 {
			return nil, "", invalid("pid %q: not a process number", what)
		}
	case "docker":
		if pid, err = dockerPID(what); err != nil {
			return nil, "", err
		}
	default:
		return nil, "", invalid("%q: not pid:N, netns:PATH or docker:NAME", spec)
	}
	if pid != 0 {
		path = fmt.Sprintf("/proc/%d/ns/net", pid)
		if startTime(pid) == 0 {
			return nil, "", notFound("pid %d: no such process", pid)
		}
	}
	ns, err = netns.Open(path)
	return ns, path, err
}

// dockerPID asks docker for the first process of a container.
func dockerPID(name string) (int, error) {
	if strings.HasPrefix(name, "-") {
		return 0, invalid("docker container %q: not a name", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), dockerTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", "inspect", "--type", "container", "--format", "{{.State.Pid}}", name).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		line, _, _ := strings.Cut(strings.TrimSpace(string(exit.Stderr)), "\n")
		return 0, fmt.Errorf("docker container %s: %s", name, line)
	}
	if err != nil {
		return 0, fmt.Errorf("docker container %s: %w", name, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("docker container %s: not running", name)
	}
	return pid, nil
}

// notTheHost refuses the namespace that plays the host, the one of this command, and
// the machine's own, which is process 1's.
func (o *op) notTheHost(ns *netns.NS, what string) error {
	host, err := o.hostNetns()
	if err != nil {
		return err
	}
	own, err := netns.Current()
	if err != nil {
		return err
	}
	defer own.Close()
	if ns.Equal(host) || ns.Equal(own) {
		return invalid("%s: is the host's own network namespace", what)
	}
	machine, err := ns.Holds(1)
	if err == nil && machine {
		err = invalid("%s: is the machine's own network namespace", what)
	}
	return err
}
