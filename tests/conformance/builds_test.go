// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/bpfnet/bpfnet/tests/lab"
)

// edit replaces text in a file of bpf/.
type edit struct{ file, old, new string }

// building is held while build works: each build is made once.
var building sync.Mutex

// build makes the real program of other programs for the kernel: bpf/ is copied, edited
// and compiled, by the command that generate.go has, and the binary embeds what comes
// out of it, Go types included. It is another release of bpfnet.
func build(t testing.TB, name string, edits ...edit) string {
	t.Helper()
	building.Lock()
	defer building.Unlock()
	programs := filepath.Dir(lab.Binary(t))
	path := filepath.Join(programs, name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(filepath.Join(dir, "bpf"), os.DirFS(filepath.Join(root, "bpf"))))
	for _, e := range edits {
		file := filepath.Join(dir, "bpf", e.file)
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		require.Equal(t, 1, strings.Count(string(text), e.old), "%s: %s", e.file, e.old)
		require.NoError(t, os.WriteFile(file, []byte(strings.Replace(string(text), e.old, e.new, 1)), 0o644))
	}
	tool, err := lab.Build("github.com/cilium/ebpf/cmd/bpf2go")
	require.NoError(t, err)
	source, err := os.ReadFile(filepath.Join(root, "generate.go"))
	require.NoError(t, err)
	line := regexp.MustCompile(`(?m)^//go:generate sh -c "(.*)"$`).FindStringSubmatch(string(source))
	require.NotNil(t, line)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "loader"), 0o755))
	run(t, dir, "sh", "-c", strings.Replace(line[1], "go tool bpf2go", tool, 1))
	overlay := struct{ Replace map[string]string }{map[string]string{}}
	for _, f := range []string{"bpf_bpfel.go", "bpf_bpfel.o"} {
		overlay.Replace[filepath.Join(root, "loader", f)] = filepath.Join(dir, "loader", f)
	}
	text, err := json.Marshal(overlay)
	require.NoError(t, err)
	file := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(file, text, 0o644))
	run(t, root, "go", "build", "-trimpath", "-overlay", file, "-o", path, "./cmd/bpfnet")
	return path
}

func run(t testing.TB, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "BPF2GO_CC="+or(os.Getenv("BPF2GO_CC"), "clang-19"), "BPF2GO_STRIP="+or(os.Getenv("BPF2GO_STRIP"), "llvm-strip-19"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = errors.New(err.Error() + ": " + string(out))
	}
	require.NoError(t, err, fmt.Sprint(name, args))
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// by runs a command line of another build of the program.
func (c *cast) by(path string, args ...string) result {
	c.t.Helper()
	return c.ended(c.Start(c.t, c.Host, path, args...), args)
}
