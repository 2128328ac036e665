// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const product = "github.com/bpfnet/bpfnet/cmd/bpfnet"

// built is a directory of programs, which every user may execute.
var built struct {
	sync.Mutex
	dir string
}

// Main runs a package's tests, takes away what Build has made, and gives the exit status:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	built.Lock()
	defer built.Unlock()
	if built.dir != "" {
		os.RemoveAll(built.dir)
	}
	return code
}

// Binary is the path of the real program: that of BPFNET_BINARY, where there is no Go, or
// built once.
func Binary(t testing.TB) string {
	t.Helper()
	if path := os.Getenv("BPFNET_BINARY"); path != "" {
		return path
	}
	path, err := Build(product)
	if err != nil {
		t.Fatalf("lab: %v", err)
	}
	return path
}

// Build builds a main package of this module or of one that it needs, once, and gives the
// program's path. All are in one directory, under the packages' last names. The tests'
// TestMain calls Main.
func Build(pkg string) (string, error) {
	built.Lock()
	defer built.Unlock()
	if built.dir == "" {
		dir, err := os.MkdirTemp("", "bpfnet-binary")
		if err != nil {
			return "", err
		}
		built.dir = dir
		if err := os.Chmod(dir, 0o755); err != nil {
			return "", err
		}
	}
	program := filepath.Join(built.dir, path.Base(pkg))
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	cmd := exec.Command("go", "build", "-trimpath", "-o", program, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", pkg, err, out)
	}
	return program, nil
}

// Deb builds the Debian package of the tree as it is, with a version of its own: so nothing
// depends on git, and nothing compressed.
func Deb(t testing.TB, version string) string {
	t.Helper()
	root, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("lab: go env: %v", err)
	}
	dir := t.TempDir()
	build := exec.Command("sh", filepath.Join(filepath.Dir(strings.TrimSpace(string(root))), "packaging", "deb"), dir)
	build.Env = append(os.Environ(), "VERSION="+version, "DPKG_DEB_COMPRESSOR_TYPE=none")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("lab: package: %v: %s", err, out)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "bpfnet_"+version+"_*.deb"))
	if err != nil || len(debs) != 1 {
		t.Fatalf("lab: package: built %q: %v", debs, err)
	}
	return debs[0]
}
