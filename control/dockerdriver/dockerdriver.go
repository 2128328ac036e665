// SPDX-License-Identifier: Apache-2.0

// Package dockerdriver is bpfnet as a network driver of the Docker Engine's: for
// docker network create -d bpfnet. It serves libnetwork's protocol for remote drivers on a
// socket in the Engine's directory of plugins, for the daemon.
//
// The Engine gives IDs and addresses, and asks in this order, as its version 20.10 does:
// CreateEndpoint, Join (the container's namespace is not there yet), then
// ProgramExternalConnectivity with the published ports; after that it takes the end of the
// cable that Join named into the container, and gives it its address and routes. Nothing is
// asked again when the Engine or the daemon starts: what was said stays in the store.
package dockerdriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/bpfnet/bpfnet/control"
)

// DefaultSocket is where the Engine looks for a driver named bpfnet.
const DefaultSocket = "/run/docker/plugins/bpfnet.sock"

// driver marks in the store what was made here.
const driver = "docker-driver"

const (
	maxBody   = 16 << 20 // bytes of a request: 65,535 published ports are about 6 MB
	finishFor = 5 * time.Second
)

// Options say where.
type Options struct {
	Socket string // "": DefaultSocket
	Log    func(line string)
	Ready  func() // is called when the Engine is answered
}

// server answers one Engine. The Manager is for one request at a time.
type server struct {
	mu  sync.Mutex
	m   *control.Manager
	log func(string)
}

// Serve answers the Engine until ctx ends. The socket is root's alone, and goes with it;
// one that nobody listens on any more is replaced.
func Serve(ctx context.Context, m *control.Manager, o Options) error {
	if o.Socket == "" {
		o.Socket = DefaultSocket
	}
	if o.Log == nil {
		o.Log = func(string) {}
	}
	path, err := filepath.Abs(o.Socket)
	if err != nil {
		return err
	}
	l, err := listen(path)
	if err != nil {
		return fmt.Errorf("docker driver: %w", err)
	}
	s := &server{m: m, log: o.Log}
	h := &http.Server{Handler: s.handler(), ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute,
		IdleTimeout: 10 * time.Minute, ErrorLog: slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug)}
	ended := make(chan error, 1)
	go func() { ended <- h.Serve(l) }()
	s.log("docker driver: listening on " + path)
	if o.Ready != nil {
		o.Ready()
	}
	select {
	case err = <-ended:
	case <-ctx.Done():
		finish, stop := context.WithTimeout(context.Background(), finishFor)
		defer stop()
		err = h.Shutdown(finish)
	}
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, context.DeadlineExceeded) {
		err = nil // what is at work ends as by SIGKILL: the next command reconciles
	}
	return errors.Join(err, l.remove())
}

// listener is one whose socket has been moved to its place.
type listener struct {
	*net.UnixListener
	path string
	file os.FileInfo
}

// listen makes the socket in a directory of its own first: nobody else can open it before
// its mode is set, and the place in the Engine's directory is never without one.
func listen(path string) (*listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if err := unused(path); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(dir, ".bpfnet")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	fresh := filepath.Join(tmp, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	l.SetUnlinkOnClose(false)
	var info os.FileInfo
	if err = os.Chmod(fresh, 0o600); err == nil {
		if info, err = os.Stat(fresh); err == nil {
			err = os.Rename(fresh, path)
		}
	}
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	return &listener{l, path, info}, nil
}

// unused says whether a socket can be at path: there is nothing, or one that nobody listens on.
func unused(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s: is there, and no socket; remove it, or name another one", path)
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = c.Close()
		return fmt.Errorf("socket %s: another process listens on it", path)
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	}
	return fmt.Errorf("socket %s: %w", path, err)
}

// remove takes the socket away, if it is still ours.
func (l *listener) remove() error {
	if info, err := os.Lstat(l.path); err != nil || !os.SameFile(info, l.file) {
		return nil
	}
	return os.Remove(l.path)
}
