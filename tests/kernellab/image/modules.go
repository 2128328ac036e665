// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// ErrNoModule says that a kernel has a module neither as a file nor built in.
var ErrNoModule = errors.New("neither a module nor built into this kernel")

// modules are what a kernel can load, and what it need not.
type modules struct {
	files   map[string]string // name to path
	builtin map[string]bool
	depends func(path string) ([]string, error)
}

// readModules looks at /lib/modules/VERSION below a kernel's directory. Modules have
// to be unpacked (.ko).
func readModules(kernel string) (*modules, error) {
	trees, err := filepath.Glob(filepath.Join(kernel, "lib/modules/*"))
	if err != nil || len(trees) != 1 {
		return nil, fmt.Errorf("kernel %s: %d trees in lib/modules, not 1", kernel, len(trees))
	}
	m := &modules{files: make(map[string]string), builtin: make(map[string]bool), depends: dependsOf}
	list, err := os.ReadFile(filepath.Join(trees[0], "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for _, p := range strings.Fields(string(list)) {
		m.builtin[moduleName(p)] = true
	}
	return m, filepath.WalkDir(trees[0], func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(p, ".ko") {
			m.files[moduleName(p)] = p
		}
		return err
	})
}

// moduleName is what the kernel calls the module of a file: - and _ are the same.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

// order lists the files of the wanted modules and of all that they need, each after
// what it needs. What is built in needs no file. ErrNoModule for what is not there.
func (m *modules) order(wanted []string) ([]string, error) {
	var files []string
	const visiting, done = 1, 2
	state := make(map[string]int)
	var add func(name string) error
	add = func(name string) error {
		name = moduleName(name)
		switch state[name] {
		case done:
			return nil
		case visiting:
			return fmt.Errorf("module %s needs itself", name)
		}
		file, ok := m.files[name]
		if !ok && !m.builtin[name] {
			return fmt.Errorf("module %s: %w", name, ErrNoModule)
		}
		if ok {
			state[name] = visiting
			needs, err := m.depends(file)
			if err != nil {
				return fmt.Errorf("module %s: %w", name, err)
			}
			for _, n := range needs {
				if err := add(n); err != nil {
					return err
				}
			}
			files = append(files, file)
		}
		state[name] = done
		return nil
	}
	for _, name := range wanted {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return files, nil
}

// dependsOf reads what a module says that it needs (its .modinfo's "depends=").
func dependsOf(file string) ([]string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	e, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	info := e.Section(".modinfo")
	if info == nil {
		return nil, nil
	}
	text, err := info.Data()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	for entry := range strings.SplitSeq(string(text), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
