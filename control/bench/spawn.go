// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/bpfnet/bpfnet/control/netns"
)

// helper is a worker that runs.
type helper struct {
	cmd  *exec.Cmd
	in   io.WriteCloser
	out  *bufio.Reader
	stop func() bool
}

// spawn starts a worker and waits until it is ready.
func (s *site) spawn(ctx context.Context, ns *netns.NS, cpu int, j job) (h *helper, err error) {
	spec, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	h = &helper{cmd: &exec.Cmd{Path: "/proc/self/exe", Args: []string{workerName, string(spec)}}}
	// Signals by which the scheduler of Go would interrupt the loop's calls.
	h.cmd.Env = []string{"GODEBUG=asyncpreemptoff=1"}
	if h.in, err = h.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := h.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	h.out = bufio.NewReader(out)
	if err := s.Start(ns, []int{cpu}, h.cmd); err != nil {
		return nil, fmt.Errorf("worker: %w", err)
	}
	h.stop = context.AfterFunc(ctx, func() { _ = h.cmd.Process.Kill() })
	first, err := h.next()
	if err == nil && !first.Ready {
		err = errors.New("worker: not ready")
	}
	if err != nil {
		h.end()
		return nil, err
	}
	return h, nil
}

func (h *helper) end() {
	h.stop()
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
}

// next is the worker's next line.
func (h *helper) next() (said, error) {
	var s said
	line, err := h.out.ReadBytes('\n')
	if err != nil {
		return s, fmt.Errorf("worker: ended: %w", err)
	}
	if err := json.Unmarshal(line, &s); err != nil {
		return s, fmt.Errorf("worker: %w", err)
	}
	if s.Err != "" {
		return s, errors.New(s.Err)
	}
	return s, nil
}

// ask has a server report, or a client begin and say what it did.
func (h *helper) ask() (said, error) {
	if _, err := io.WriteString(h.in, "\n"); err != nil {
		return said{}, fmt.Errorf("worker: %w", err)
	}
	return h.next()
}

// tool is a foreign program that runs.
type tool struct {
	cmd      *exec.Cmd
	out, err bytes.Buffer
	stop     func() bool
}

func (s *site) tool(ctx context.Context, ns *netns.NS, cpu int, name string, args ...string) (*tool, error) {
	path, err := toolPath(name)
	if err != nil {
		return nil, err
	}
	t := &tool{cmd: exec.Command(path, args...)}
	t.cmd.Stdout, t.cmd.Stderr = &t.out, &t.err
	if err := s.Start(ns, []int{cpu}, t.cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	t.stop = context.AfterFunc(ctx, func() { _ = t.cmd.Process.Kill() })
	return t, nil
}

func (t *tool) end() {
	t.stop()
	_ = t.cmd.Process.Kill()
	_ = t.cmd.Wait()
}

// wait lets the program end by itself.
func (t *tool) wait() error {
	defer t.stop()
	if err := t.cmd.Wait(); err != nil {
		text := strings.TrimSpace(t.err.String())
		if text == "" {
			text = strings.TrimSpace(t.out.String())
		}
		return fmt.Errorf("%s: %w: %.300s", filepath.Base(t.cmd.Path), err, text)
	}
	return nil
}

// toolPath looks where root's programs are, too.
func toolPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, exec.ErrNotFound)
}

// listening waits until something in ns listens on the port, or t has ended.
func (t *tool) listening(ctx context.Context, ns *netns.NS) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	want := fmt.Sprintf(":%04X ", port)
	for {
		found := false
		err := ns.Do(func() error {
			for _, name := range []string{"tcp", "tcp6"} {
				data, err := os.ReadFile("/proc/thread-self/net/" + name)
				if err != nil && !os.IsNotExist(err) {
					return err
				}
				for line := range strings.Lines(string(data)) {
					f := strings.Fields(line) // "0: 00000000:FDE8 00000000:0000 0A …": 0A is LISTEN
					found = found || len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1]+" ", want)
				}
			}
			return nil
		})
		if err != nil || found {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: does not listen: %w: %.300s", filepath.Base(t.cmd.Path), ctx.Err(), t.err.String())
		case <-tick.C:
		}
	}
}
