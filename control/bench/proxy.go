// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// proxyPath finds docker-proxy: $DOCKER_PROXY, the PATH, and where packages put it.
func proxyPath() (string, error) {
	for _, p := range []string{os.Getenv("DOCKER_PROXY"), "docker-proxy", "/usr/sbin/docker-proxy", "/usr/libexec/docker/docker-proxy"} {
		if p == "" {
			continue
		}
		if found, err := exec.LookPath(p); err == nil {
			return filepath.Abs(found)
		}
	}
	return "", fmt.Errorf("%w: docker-proxy (Debian: docker.io)", exec.ErrNotFound)
}

// proxy runs docker-proxy as dockerd would, on 127.0.0.1 of the host.
func (s *site) proxy(ctx context.Context, cpus []int, udp bool) (func(), error) {
	program, err := proxyPath()
	if err != nil {
		return nil, err
	}
	proto := "tcp"
	if udp {
		proto = "udp"
	}
	// It says on descriptor 3 whether it listens: "0\n", or "1\n" and why not.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	cmd := exec.Command(program, "-proto", proto, "-host-ip", "127.0.0.1", "-host-port", fmt.Sprint(proxyPort),
		"-container-ip", s.webAddr.String(), "-container-port", fmt.Sprint(port))
	cmd.ExtraFiles = []*os.File{w}
	err = s.Start(s.Host, cpus, cmd)
	w.Close()
	if err != nil {
		return nil, fmt.Errorf("docker-proxy: %w", err)
	}
	end := func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	if err := r.SetReadDeadline(time.Now().Add(patience)); err != nil {
		end()
		return nil, err
	}
	word, err := bufLine(r)
	if err != nil || !strings.HasPrefix(word, "0") {
		end()
		return nil, fmt.Errorf("docker-proxy: does not listen: %q: %w", word, err)
	}
	return end, nil
}

// proxyMemory is what one published port costs.
func (s *site) proxyMemory(ctx context.Context) (Memory, error) {
	end, err := s.proxy(ctx, nil, false)
	if err != nil {
		return Memory{}, err
	}
	defer end()
	return s.memory(DockerProxy, kernelMemory())
}

// bufLine reads a short line, or up to the end.
func bufLine(r io.Reader) (string, error) {
	buf := make([]byte, 256)
	n, err := r.Read(buf)
	return strings.TrimSpace(string(buf[:n])), err
}
