// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// entry is a file of an archive as read back.
type entry struct {
	mode int
	data string
}

// unpack reads a newc archive by the letter of its format: that the kernel reads it too
// is shown by booting.
func unpack(t *testing.T, data []byte) (names []string, entries map[string]entry) {
	t.Helper()
	entries = make(map[string]entry)
	inodes := make(map[int]bool)
	at := 0
	for {
		require.Zero(t, at%4)
		header := string(data[at : at+110])
		require.True(t, strings.HasPrefix(header, "070701"), header)
		var fields [13]int
		for i := range fields {
			_, err := fmt.Sscanf(header[6+8*i:14+8*i], "%X", &fields[i])
			require.NoError(t, err)
		}
		require.False(t, inodes[fields[0]], "an inode twice is a hard link")
		inodes[fields[0]] = true
		name := string(data[at+110 : at+110+fields[11]-1])
		require.Zero(t, data[at+110+fields[11]-1])
		body := (at + 110 + fields[11] + 3) &^ 3
		if name == "TRAILER!!!" {
			require.Equal(t, len(data), body)
			return names, entries
		}
		names = append(names, name)
		entries[name] = entry{fields[1], string(data[body : body+fields[6]])}
		at = (body + fields[6] + 3) &^ 3
	}
}

func TestArchive(t *testing.T) {
	var out bytes.Buffer
	a := newArchive(&out)
	a.dir("dev")
	a.file("/bin/one", 0o755, []byte("12345"))
	a.file("bin/deep/../two", 0o644, nil)
	a.dir("/src/./a/b")
	a.file("/src/a/c", 0o600, []byte(strings.Repeat("x", 4097)))
	require.NoError(t, a.close())
	names, entries := unpack(t, out.Bytes())
	require.Equal(t, []string{"dev", "bin", "bin/one", "bin/two", "src", "src/a", "src/a/b", "src/a/c"}, names, "each once, directories before what is in them")
	require.Equal(t, entry{0o040755, ""}, entries["src/a/b"])
	require.Equal(t, entry{0o100755, "12345"}, entries["bin/one"])
	require.Equal(t, entry{0o100644, ""}, entries["bin/two"])
	require.Equal(t, entry{0o100600, strings.Repeat("x", 4097)}, entries["src/a/c"])
}

// full takes some bytes and no more.
type full int

func (f *full) Write(p []byte) (int, error) {
	if *f -= full(len(p)); *f < 0 {
		return 0, os.ErrClosed
	}
	return len(p), nil
}

func TestArchiveFull(t *testing.T) {
	room := full(1000)
	a := newArchive(&room)
	a.file("much", 0o644, make([]byte, 4<<20))
	require.ErrorIs(t, a.close(), os.ErrClosed)
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	modules := filepath.Join(dir, "kernel/lib/modules/6.1.0")
	require.NoError(t, os.MkdirAll(modules, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(modules, "modules.builtin"), []byte("kernel/veth.ko\n"), 0o644))
	for _, name := range []string{"init", "test"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o755))
	}
	spec := Spec{
		Kernel: filepath.Join(dir, "kernel"), Init: filepath.Join(dir, "init"), Modules: []string{"veth"},
		Files: map[string]string{"/bin/test": filepath.Join(dir, "test")},
		Job:   Job{Command: []string{"/bin/test", "-x"}, Dir: "/src/loader", Env: []string{"A=b"}},
	}
	file := filepath.Join(dir, "initramfs")
	require.NoError(t, Write(file, spec))
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	_, entries := unpack(t, data)
	require.Equal(t, entry{0o100755, "init"}, entries["init"])
	require.Equal(t, entry{0o100755, "test"}, entries["bin/test"])
	require.Contains(t, entries, "src/loader")
	var job Job
	require.NoError(t, json.Unmarshal([]byte(entries["job.json"].data), &job))
	require.Equal(t, spec.Job, job)

	spec.Modules = []string{"dummy"}
	require.ErrorIs(t, Write(file, spec), ErrNoModule)
	spec.Modules, spec.Init = nil, filepath.Join(dir, "none")
	require.ErrorIs(t, Write(file, spec), os.ErrNotExist)
}
